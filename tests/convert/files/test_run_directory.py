"""Damaged files of an imported run."""

import numpy as np
import pytest

from convert import frequency_order
from convert.files import run_directory
from convert.weights.id_order import KerasIds
from jaxlm.data.vocabulary import Vocabulary
from jaxlm.errors import InputError


def test_counts_are_sorted_stably():
    assert frequency_order([9, 9, 3, 0]) is None
    assert frequency_order([3, 9, 3, 9]).tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("ids", [[0, 1], [0, 1, 1], [1, 2, 3]])
def test_damaged_keras_ids_are_refused(random_model, tmp_path, ids):
    vocabulary = Vocabulary(("<unk>", "<eos>", "the"), (3, 2, 1), "words")
    run = tmp_path / "run"
    run_directory.write(run, random_model(1, vocab_size=3), vocabulary, KerasIds(np.array([2, 0, 1])))
    assert run_directory.load(run).words == ("<eos>", "the", "<unk>")
    KerasIds(np.array(ids)).save(run)
    with pytest.raises(InputError, match="keras_ids.npy is damaged"):
        run_directory.load(run)
