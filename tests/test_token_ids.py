"""Ids on the host are checked; those on a device are not waited for."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import token_ids
from jaxlm.errors import InputError
from jaxlm.token_ids import check_ids


@pytest.mark.parametrize("ids", [[0, 4], np.array([0, 4], np.uint8), jnp.array([0, 4]), jnp.array([7, -1])])
def test_ids_that_may_fit_are_returned(ids):
    np.testing.assert_array_equal(check_ids("ids", ids, 5), ids)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 5], "Invalid `ids`: expected ids from 0 to 4, the vocabulary. Received: 0 to 5."),
        ([-1, 4], "Received: -1 to 4."),
        ([[0, 1]], "expected integer ids of shape \\[N\\]"),
        (3, "expected integer ids of shape \\[N\\]"),
        ([0.0], "Received: 'dtype float64'"),
        (["word"], "Invalid `ids`: expected ids, as from `Vocabulary.encode`. Received: 'text'"),
        ("the sea", "Received: 'text'"),
        (jnp.zeros(3), "Received: 'dtype float32'"),
        (jnp.zeros((3, 2), int), "expected integer ids of shape \\[N\\]"),
    ],
)
def test_ids_that_do_not_fit_raise(ids, message):
    with pytest.raises(InputError, match=message):
        check_ids("ids", ids, 5)


def test_an_id_out_of_range_is_found_in_any_block(monkeypatch):
    monkeypatch.setattr(token_ids, "BLOCK", 7)
    for position in (0, 6, 7, 19):
        ids = np.zeros(20, int)
        ids[position] = 5
        with pytest.raises(InputError, match="Received: 0 to 5"):
            check_ids("ids", ids, 5)


def test_traced_ids_pass():
    assert jax.jit(lambda ids: check_ids("ids", ids, 5))(jnp.array([9]))[0] == 9


def test_no_more_than_a_block_of_a_mapped_file_stays_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(token_ids, "BLOCK", 1 << 18)  # 1 MB
    np.save(tmp_path / "ids.npy", np.arange(1 << 23, dtype=np.int32))
    ids = np.load(tmp_path / "ids.npy", mmap_mode="r")[5:]
    total = 0
    for block in token_ids.blocks(ids):
        total += int(block.sum(dtype=np.int64))
        areas = Path("/proc/self/smaps").read_text().partition(str(tmp_path / "ids.npy"))[2]
        assert int(re.search(r"Rss: +(\d+) kB", areas)[1]) < 8000  # of 32,768
    assert total == (1 << 22) * ((1 << 23) - 1) - 10
