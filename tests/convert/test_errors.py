"""Errors of other libraries become `InputError`; those of jaxlm itself stay as they are."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from convert.errors import library_errors
from convert.weights import cudnn
from jaxlm.errors import InputError


@pytest.mark.parametrize(
    "call",
    [
        lambda path: json.loads("{"),
        lambda path: h5py.File(path, "r"),
        lambda path: np.load(path / "nothing.npy"),
        lambda path: np.random.default_rng(0).bogus,
    ],
)
def test_an_error_of_another_library_becomes_one_line(tmp_path, call):
    with (
        pytest.raises(InputError, match="a.keras cannot be loaded: ") as raised,
        library_errors(Path("a.keras"), "loaded"),
    ):
        call(tmp_path)
    assert "\n" not in str(raised.value)


def test_an_error_of_our_own_code_is_raised_as_it_is():
    with pytest.raises(TypeError), library_errors(Path("a.keras"), "loaded"):
        cudnn.as_lstm_arrays(None)
    with pytest.raises(InputError, match="^mine$"), library_errors(Path("a.keras"), "loaded"):
        raise InputError("mine")


def test_a_lack_of_memory_is_named():
    with pytest.raises(InputError, match="needs more memory"), library_errors(Path("a.keras"), "written"):
        raise MemoryError
