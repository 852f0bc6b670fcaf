"""Sampled losses against TensorFlow's with the same candidates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.candidate_sampling.samplers import SampledValues, all_candidate_sampler
from jaxlm.errors import InputError
from jaxlm.losses.exact import linear_cross_entropy
from jaxlm.losses.sampled import nce_loss, sampled_softmax_loss


def problem(seed, vocab_size, width, batch, num_true, num_sampled, scale=1.0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    labels = rng.integers(0, vocab_size, (batch, num_true)).astype(np.int32)
    values = SampledValues(  # any candidates and expected counts will do, since both sides get the same
        jnp.asarray(rng.choice(vocab_size, num_sampled, replace=False), jnp.int32),
        jnp.asarray(rng.uniform(0.01, 1, (batch, num_true)), jnp.float32),
        jnp.asarray(rng.uniform(0.01, 1, num_sampled), jnp.float32),
    )
    return normal(vocab_size, width), normal(vocab_size), labels, normal(batch, width), values


def tensorflow_loss(name, weights, biases, labels, inputs, values, num_true, remove, cotangent):
    """TensorFlow's losses and their gradients with respect to weights, biases and inputs."""
    tf = pytest.importorskip("tensorflow")
    variables = [tf.Variable(x) for x in (weights, biases, inputs)]
    sampled_values = (
        tf.constant(np.asarray(values[0]), tf.int64),
        tf.constant(np.asarray(values[1])),
        tf.constant(np.asarray(values[2])),
    )
    with tf.GradientTape() as tape:
        losses = getattr(tf.nn, name)(
            variables[0],
            variables[1],
            tf.constant(labels, tf.int64),
            variables[2],
            values[0].size,
            len(weights),
            num_true,
            sampled_values,
            remove,
        )
    gradients = tape.gradient(losses, variables, cotangent)
    return losses.numpy(), [tf.convert_to_tensor(gradient).numpy() for gradient in gradients]


def assert_equals_tensorflow(name, weights, biases, labels, inputs, values, num_true, remove):
    cotangent = np.random.default_rng(0).standard_normal(len(inputs)).astype(np.float32)
    loss = {"sampled_softmax_loss": sampled_softmax_loss, "nce_loss": nce_loss}[name]

    def ours(weights, biases, inputs):
        return loss(
            weights,
            biases,
            labels,
            inputs,
            values[0].size,
            len(weights),
            num_true,
            values,
            remove_accidental_hits=remove,
        )

    @jax.jit
    def run():
        losses, pullback = jax.vjp(ours, weights, biases, inputs)
        return losses, pullback(cotangent)

    losses, gradients = run()
    expected, expected_gradients = tensorflow_loss(
        name, weights, biases, labels, inputs, values, num_true, remove, cotangent
    )
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)
    for gradient, correct in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, correct, rtol=1e-4, atol=1e-5)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(["sampled_softmax_loss", "nce_loss"]),
    vocab_size=st.integers(1, 60),
    width=st.integers(1, 9),
    batch=st.integers(1, 7),
    num_true=st.integers(1, 3),
    fraction=st.floats(0, 1),
    remove=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_losses_equal_those_of_tensorflow(name, vocab_size, width, batch, num_true, fraction, remove, seed):
    num_sampled = max(1, round(fraction * vocab_size))  # at S = V every label is an accidental hit
    weights, biases, labels, inputs, values = problem(seed, vocab_size, width, batch, num_true, num_sampled)
    assert_equals_tensorflow(name, weights, biases, labels, inputs, values, num_true, remove)


@pytest.mark.parametrize("name", ["sampled_softmax_loss", "nce_loss"])
@pytest.mark.parametrize(
    "case", ["all labels equal", "one class", "all classes", "candidates repeat", "huge logits", "ten million classes"]
)
def test_extreme_cases_equal_those_of_tensorflow(name, case):
    sizes = {"one class": (1, 1), "all classes": (30, 30), "ten million classes": (10_000_000, 30)}
    vocab_size, num_sampled = sizes.get(case, (30, 20))
    width = 1 if case == "ten million classes" else 5
    weights, biases, labels, inputs, values = problem(3, min(vocab_size, 30), width, 6, 2, num_sampled)
    if case == "ten million classes":
        weights, biases = np.zeros((vocab_size, 1), np.float32), np.zeros(vocab_size, np.float32)
        labels[0] = vocab_size - 1
        values = values._replace(sampled_candidates=values.sampled_candidates.at[:2].set(vocab_size - 1 - np.arange(2)))
        weights[-40:] = 1.5
    elif case == "all labels equal":
        labels[:] = 7
    elif case == "candidates repeat":  # drawn with replacement: TensorFlow masks only the last occurrence of a hit
        values = values._replace(sampled_candidates=jnp.asarray([4, 4, 7, 9, 4] * 4))
        labels[:3, 0] = 4
    elif case == "huge logits":
        biases[::3] = 1e4
        biases[1::3] = -1e4
    for remove in (True, False) if case in ("all classes", "candidates repeat") else (True,):
        assert_equals_tensorflow(name, weights, biases, labels, inputs, values, 2, remove)


@pytest.mark.parametrize("loss", [sampled_softmax_loss, nce_loss])
def test_shards_of_rows_act_as_one_table(loss):
    weights, biases, labels, inputs, values = problem(4, 23, 6, 5, 2, 9)

    def shards(table):
        return tuple(jnp.asarray(rows) for rows in (table[:8], table[8:16], table[16:]))

    def total(weights, biases):
        return loss(weights, biases, labels, inputs, 9, 23, 2, values).sum()

    loss_and_gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    whole, d_whole = loss_and_gradients(weights, biases)
    parts, d_parts = loss_and_gradients(shards(weights), shards(biases))
    np.testing.assert_allclose(parts, whole, rtol=1e-6)
    for ours, expected in zip(d_parts, d_whole, strict=True):
        np.testing.assert_allclose(np.concatenate(ours), expected, rtol=1e-6, atol=1e-7)
    tf = pytest.importorskip("tensorflow")
    theirs = tf.nn.sampled_softmax_loss if loss is sampled_softmax_loss else tf.nn.nce_loss  # it cuts 23 into 8, 8, 7
    given_values = [tf.constant(np.asarray(value)) for value in values]
    given_values[0] = tf.cast(given_values[0], tf.int64)
    tf_shards = [[tf.constant(np.asarray(rows)) for rows in shards(table)] for table in (weights, biases)]
    losses = theirs(*tf_shards, tf.constant(labels, tf.int64), inputs, 9, 23, 2, given_values)
    np.testing.assert_allclose(tf.reduce_sum(losses), whole, rtol=1e-5)


@pytest.mark.parametrize("loss", [sampled_softmax_loss, nce_loss])
def test_log_q_can_be_left_in(loss):
    weights, biases, labels, inputs, values = problem(5, 23, 6, 5, 1, 9)
    ones = values._replace(
        true_expected_count=jnp.ones_like(values[1]), sampled_expected_count=jnp.ones_like(values[2])
    )
    np.testing.assert_array_equal(
        loss(weights, biases, labels, inputs, 9, 23, 1, values, subtract_log_q=False),
        loss(weights, biases, labels, inputs, 9, 23, 1, ones),
    )


@pytest.mark.parametrize("loss", [sampled_softmax_loss, nce_loss])
def test_bfloat16_is_accumulated_in_float32(loss):
    weights, biases, labels, inputs, values = problem(6, 40, 300, 5, 1, 19, scale=0.3)
    short = [jnp.asarray(x, jnp.bfloat16) for x in (weights, biases, inputs)]

    def total(weights, biases, inputs):
        return loss(weights, biases, labels, inputs, 19, 40, 1, values).sum()

    loss_and_gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))
    value, gradients = loss_and_gradients(*short)
    # the truth is the float32 loss of the rounded numbers, so that only the error of accumulation is left
    expected, expected_gradients = loss_and_gradients(*(x.astype(jnp.float32) for x in short))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for gradient, correct in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(gradient, np.float32), correct, rtol=2**-7, atol=1e-2)


def test_all_candidates_without_hits_give_the_exact_loss():
    weights, biases, labels, inputs, _ = problem(7, 31, 6, 5, 1, 1)
    values = all_candidate_sampler(None, jnp.asarray(labels), 31, True, 31)
    np.testing.assert_allclose(
        sampled_softmax_loss(weights, biases, labels, inputs, 31, 31, 1, values),
        linear_cross_entropy(inputs, weights, labels[:, 0], biases=biases),
        rtol=1e-5,
    )


def test_vmap_over_problems():
    weights, biases, labels, inputs, values = problem(8, 31, 6, 5, 1, 9)
    stacked = np.stack([inputs, 2.0 * inputs])
    losses_of = jax.jit(lambda x: sampled_softmax_loss(weights, biases, labels, x, 9, 31, 1, values))
    together = jax.vmap(losses_of)(stacked)
    for n, x in enumerate(stacked):
        single = losses_of(x)
        np.testing.assert_allclose(together[n], single, rtol=1e-5)


def test_uniform_logits_have_the_known_sampled_and_exact_loss():
    size = 20_000
    labels = np.arange(0, size, 97, dtype=np.int32)[:, None]
    inputs = jnp.zeros((labels.size, 2))
    weights, biases = jnp.zeros((size, 2)), jnp.zeros(size)
    exact = linear_cross_entropy(inputs, weights, labels[:, 0], biases=biases)
    np.testing.assert_allclose(exact, np.log(size), rtol=1e-6)
    sampled = sampled_softmax_loss(weights, biases, labels, inputs, 100, size, key=jax.random.key(0))
    assert sampled.mean() < np.log(size) - 1  # why a training loss is never shown as a perplexity


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"labels": np.zeros((5,), int)}, "labels"),
        ({"labels": np.zeros((5, 2), int)}, "labels"),
        ({"weights": np.zeros((6, 50), np.float32)}, "weights"),
        ({"biases": np.zeros(49, np.float32)}, "biases"),
        ({"weights": [np.zeros((25, 6), np.float32), np.zeros((24, 6), np.float32)]}, "weights"),
        ({"labels": np.full((5, 1), 50)}, "labels"),
        ({"labels": np.zeros((5, 1), np.float32)}, "labels"),
        ({"labels": [[2**40]] * 5}, "labels"),
        ({"seed": 3}, "seed"),
        ({"partition_strategy": "mod"}, "partition_strategy"),
        ({"sampled_values": (np.zeros(19, int), np.ones((5, 1)), np.ones(19))}, "sampled_values"),
        ({"sampled_values": (np.full(20, 50), np.ones((5, 1)), np.ones(20))}, "sampled_values"),
        ({"key": None}, "key"),
    ],
)
def test_wrong_arguments_raise(change, word):
    weights, biases, labels, inputs, _ = problem(1, 50, 6, 5, 1, 20)
    arguments = dict(weights=weights, biases=biases, labels=labels, inputs=inputs, key=jax.random.key(0)) | change
    with pytest.raises(InputError, match=word):
        sampled_softmax_loss(**arguments, num_sampled=20, num_classes=50)


@pytest.mark.parametrize("loss", [sampled_softmax_loss, nce_loss])
@pytest.mark.parametrize("cut", [(), (20,)])
def test_a_traced_label_out_of_range_gives_nan_and_spares_the_others(loss, cut):
    weights, biases, labels, inputs, values = problem(2, 50, 6, 5, 1, 20)
    tables = [tuple(map(jnp.asarray, np.split(table, cut))) if cut else table for table in (weights, biases)]
    losses_of = jax.jit(lambda labels: loss(*tables, labels, inputs, 20, 50, 1, values))
    for label in (50, -1, 10**6):
        labels[3] = label
        np.testing.assert_array_equal(np.isnan(losses_of(labels)), np.arange(5) == 3)
    gradients = []  # the loss of the invalid label masked, and without its example
    for rows in (np.arange(5), np.delete(np.arange(5), 3)):
        some = values._replace(true_expected_count=values.true_expected_count[rows])

        def total(inputs: jax.Array, rows: np.ndarray = rows, some: SampledValues = some) -> jax.Array:
            losses = jax.jit(lambda labels: loss(*tables, labels, inputs, 20, 50, 1, some))(labels[rows])
            return jnp.where(rows == 3, 0.0, losses).sum()

        gradients.append(np.asarray(jax.grad(total)(jnp.asarray(inputs[rows]))))
    np.testing.assert_array_equal(gradients[0][3], 0.0)
    np.testing.assert_allclose(np.delete(gradients[0], 3, axis=0), gradients[1], rtol=1e-6)


@pytest.mark.parametrize("loss", [sampled_softmax_loss, nce_loss])
def test_the_type_of_labels_and_candidates_changes_nothing(loss):
    weights, biases, _, inputs, values = problem(2, 256, 6, 3, 1, 4)
    counts = values.true_expected_count, values.sampled_expected_count
    results = []
    for dtype in ("uint8", "int32"):
        labels, candidates = (jnp.asarray(ids, dtype) for ids in ([[255], [3], [4]], [4, 4, 255, 7]))
        results.append(loss(weights, biases, labels, inputs, 4, 256, 1, SampledValues(candidates, *counts)))
    np.testing.assert_array_equal(*results)


def test_lists_and_numpy_arrays_are_taken():
    weights, biases, labels, inputs, values = problem(2, 50, 6, 5, 1, 20)
    expected = sampled_softmax_loss(*map(jnp.asarray, (weights, biases, labels, inputs)), 20, 50, 1, values)
    ours = sampled_softmax_loss(weights, biases, labels.tolist(), inputs.tolist(), 20, 50, 1, values)
    np.testing.assert_array_equal(ours, expected)
