"""The batches that a training step takes, and those that it refuses or that make its loss NaN."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from step_helpers import MODEL, TRAIN, UNIGRAMS, batches, make_model

from jaxlm.data.batches import Batch
from jaxlm.errors import InputError
from jaxlm.training.state import TrainState
from jaxlm.training.step import train_step

INPUTS, LABELS = batches(1)[0][:2]


@pytest.mark.parametrize("asarray", [np.asarray, np.ndarray.tolist])
@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (np.full_like(INPUTS, 50), LABELS, "Invalid `inputs`: expected ids from 0 to 49"),
        (INPUTS, np.full_like(LABELS, 50), "Invalid `labels`: expected ids from 0 to 49"),
        (np.full_like(INPUTS, 10**6), LABELS, "Received: 1000000"),
        (INPUTS, np.full_like(LABELS, -1), "Received: -1"),
        (INPUTS.astype(np.float32), LABELS, "expected integer ids"),
        (INPUTS[0], LABELS[0], "expected integer ids of shape"),
        (INPUTS[:, :-1], LABELS, "Invalid `labels`: expected the shape of the inputs"),
        (INPUTS[:2], LABELS[:2], "expected shape \\[3, sequence_length\\], as the state was made for"),
        (INPUTS[:, :0], LABELS[:, :0], "expected"),
    ],
)
def test_wrong_batches_on_the_host_raise(asarray, inputs, labels, message):
    with pytest.raises(InputError, match=message):
        train_step(TrainState.create(make_model(), TRAIN), (asarray(inputs), asarray(labels)), 0.1)


@pytest.mark.parametrize("asarray", [np.asarray, np.ndarray.tolist])
@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (np.full((3, 1), -5), "`positions`: expected time steps from -1 to 3. Received: '-5 to -5'"),
        (np.array([[0], [1], [4]]), "`positions`: expected time steps from -1 to 3. Received: '0 to 4'"),
        (np.zeros((3, 1)), "`positions`: expected integer"),
        (np.zeros(3, int), "`positions`: expected shape"),
        (np.zeros((3, 2), int), "`labels`: expected the shape of the positions"),
    ],
)
def test_wrong_positions_raise(asarray, positions, message):
    batch = Batch(INPUTS, LABELS[:, :1], positions=asarray(positions))
    with pytest.raises(InputError, match=message):
        train_step(TrainState.create(make_model(), TRAIN), batch, 0.1)


@pytest.mark.parametrize("batch", [INPUTS, (INPUTS,), "words"])
def test_what_is_not_a_batch_raises(batch):
    with pytest.raises(InputError, match="expected a Batch, or a pair of inputs and labels"):
        train_step(TrainState.create(make_model(), TRAIN), batch, 0.1)


def test_lists_are_batches_too():
    results = [
        train_step(TrainState.create(make_model(), TRAIN), batch, 0.1)[1]
        for batch in ((INPUTS, LABELS), (INPUTS.tolist(), LABELS.tolist()), Batch(jnp.array(INPUTS), jnp.array(LABELS)))
    ]
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("change", [{}, {"loss": "nce", "sampler": "unigram"}, {"loss": "full", "tied": True}])
@pytest.mark.parametrize("argument", ["inputs", "labels"])
@pytest.mark.parametrize("word", [50, -1, 10**6])
def test_an_invalid_id_on_the_device_makes_the_loss_nan(change, argument, word):
    change = dict(change)
    model = dataclasses.replace(MODEL, embedding_size=7, tied=change.pop("tied", False))
    batch = Batch(jnp.array(INPUTS), jnp.array(LABELS))
    state = TrainState.create(make_model(model), dataclasses.replace(TRAIN, **change), UNIGRAMS)
    _, loss = train_step(state, batch._replace(**{argument: getattr(batch, argument).at[1, 2].set(word)}), 0.1)
    assert np.isnan(loss)
