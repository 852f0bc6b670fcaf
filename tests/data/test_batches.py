"""Training streams are contiguous, and evaluation predicts each word once."""

import dataclasses

import numpy as np
import pytest

from jaxlm.config import TrainConfig
from jaxlm.data.batches import batches_per_epoch, evaluation_batches, train_batch, train_batches
from jaxlm.errors import InputError

OFFSETS = TrainConfig(batch_size=4, sequence_length=6, random_offsets=True, seed=7)


def test_training_batches_are_contiguous_streams():
    tokens = np.arange(1000, 1101, dtype=np.int32)
    config = TrainConfig(batch_size=4, sequence_length=6)
    assert batches_per_epoch(tokens.size, 4, 6) == 4
    rows = [train_batch(tokens, step, config) for step in range(5)]
    stream = np.concatenate([batch.inputs for batch in rows[:4]], axis=1)
    np.testing.assert_array_equal(stream, 1000 + np.arange(4)[:, None] * 25 + np.arange(24))
    for batch in rows:
        np.testing.assert_array_equal(batch.labels, batch.inputs + 1)
    np.testing.assert_array_equal(rows[4].inputs, rows[0].inputs)  # the next epoch
    assert [batch.starts_epoch for batch in rows] == [True, False, False, False, True]
    resumed = list(train_batches(tokens, config, num_steps=2, first_step=3))
    np.testing.assert_equal(resumed, rows[3:])
    with pytest.raises(InputError, match="too few"):
        batches_per_epoch(24, 4, 6)


@pytest.mark.parametrize(
    ("tokens", "num_steps", "first_step", "message"),
    [
        (np.ones((5, 9), int), 1, 0, "`tokens`: expected integer ids of shape"),
        (np.ones(50), 1, 0, "`tokens`: expected integer ids of shape"),
        ([1] * 50, -1, 0, "`num_steps`: expected an integer of at least 0"),
        ([1] * 50, 1.5, 0, "`num_steps`: expected an integer"),
        ([1] * 50, 1, -1, "`first_step`: expected an integer of at least 0"),
    ],
)
def test_texts_and_steps_that_do_not_exist_raise(tokens, num_steps, first_step, message):
    with pytest.raises(InputError, match=message):
        train_batches(tokens, OFFSETS, num_steps, first_step)
    assert len(list(train_batches([1] * 50, OFFSETS, np.int64(2)))) == 2


@pytest.mark.parametrize("size", [97, 101, 119])  # 4 streams of 24, 25 and 29 words in batches of 6
def test_random_offsets_move_the_batches_of_an_epoch_alike(size):
    tokens, offsets = np.arange(size, dtype=np.int32), []
    for epoch in range(60):
        batches = list(train_batches(tokens, OFFSETS, num_steps=4, first_step=4 * epoch))
        stream = np.concatenate([batch.inputs for batch in batches], axis=1)
        offsets.append(stream[0, 0])
        expected = offsets[-1] + np.arange(4)[:, None] * ((size - 1) // 4) + np.arange(24)
        np.testing.assert_array_equal(stream, expected % size)  # after the last word comes the first one
        for batch in batches:
            np.testing.assert_array_equal(batch.labels, (batch.inputs + 1) % size)
        assert [batch.starts_epoch for batch in batches] == [True, False, False, False]
    assert set(offsets) == set(range(6)) and max(np.bincount(offsets)) < 25  # about 10 of each
    other = train_batches(tokens, dataclasses.replace(OFFSETS, seed=1), num_steps=240)
    assert [batch.inputs[0, 0] for batch in other][::4] != offsets


@pytest.mark.parametrize(("size", "batch_size"), [(2, 1), (101, 4), (103, 4), (50, 49), (98, 7)])
def test_evaluation_predicts_each_word_once(size, batch_size):
    tokens = np.arange(size, dtype=np.int32)
    labels, last = [], None
    for batch in evaluation_batches(tokens, batch_size, 5):
        inputs, label, mask = batch.inputs, batch.labels, batch.weights == 1
        assert np.all(mask | (batch.weights == 0))
        assert inputs.shape == label.shape == mask.shape == (batch_size, 5)
        labels += label[mask].tolist()
        np.testing.assert_array_equal(label[mask], inputs[mask] + 1)
        if last is not None:
            np.testing.assert_array_equal(inputs[:, 0][mask[:, 0]], last[mask[:, 0]])
        last = label[:, -1]
    assert sorted(labels) == list(range(1, size))


def test_words_of_a_partial_evaluation_lie_evenly_over_the_text():
    tokens = np.arange(10_001, dtype=np.int32)
    labels = np.concatenate([batch.labels[batch.weights > 0] for batch in evaluation_batches(tokens, 10, 7, 95)])
    assert labels.size == 100
    assert set(labels // 1000) == set(range(10))
