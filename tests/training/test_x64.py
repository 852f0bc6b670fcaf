"""With JAX in 64-bit mode everything works, and model, state and losses stay float32."""

import os
import subprocess
import sys

import pytest

PATH = """
import importlib.util, sys
import jax, jax.numpy as jnp, numpy as np, optax
import jaxlm
from flax import nnx
assert jnp.zeros(1).dtype == jnp.float64
jax.config.update("jax_numpy_rank_promotion", "raise")

corpus = jaxlm.load_corpus(sys.argv[1])
size = len(corpus.vocabulary)
model_config = jaxlm.ModelConfig(size, embedding_size=6, hidden_size=8, projection_size=6, tied=True, dropout=0.1)
sizes = {"batch_size": 3, "sequence_length": 4, "num_sampled": 20}
train_config = jaxlm.TrainConfig(**sizes, loss="nce", sampler="uniform", optimizer="adagrad")
state = jaxlm.TrainState.from_corpus(corpus, model_config, train_config)
types = jax.tree.map(lambda leaf: leaf.dtype, state)
for batch in jaxlm.train_batches(corpus.train, train_config, num_steps=2):
    state, loss = jaxlm.train_step(state, batch, 1e-2)
assert loss.dtype == jnp.float32 and np.isfinite(loss)
assert jax.tree.map(lambda leaf: leaf.dtype, state) == types
assert {leaf.dtype.name for leaf in jax.tree.leaves((state.tables, state.dense, state.carry))} == {"float32"}
evaluation = jaxlm.evaluate(state.model, corpus.valid, max_tokens=200)
assert 1 < evaluation.perplexity < size
text = jaxlm.generate(state.model, corpus.vocabulary, "the whale", 3, top_k=4, key=jax.random.key(0))
assert text.startswith("the whale") and len(text) > 9

train_config = jaxlm.TrainConfig(**sizes, sampler="unigram")
schedule = jaxlm.ScheduleConfig(steps=4, eval_every=2, eval_tokens=100)
for _ in range(2):  # the second call restores a checkpoint
    assert jaxlm.train(corpus, sys.argv[2], model_config, train_config, schedule, progress=False) is not None

key, labels = jax.random.key(0), jnp.array([[3], [14]])
sampling = jaxlm.candidate_sampling
for values in (
    sampling.log_uniform_candidate_sampler(key, labels, 10, True, 50),
    sampling.uniform_candidate_sampler(key, labels, 10, True, 50),
    sampling.fixed_unigram_candidate_sampler(key, labels, 10, True, 50, sampling.unigram_table(np.arange(1, 51))),
    sampling.learned_unigram_candidate_sampler(key, labels, 10, True, 50, sampling.learned_unigrams(50))[0],
    sampling.all_candidate_sampler(None, labels, 50, True, 50),
):
    assert [value.dtype.name for value in values] == ["int32", "float32", "float32"]
hits = sampling.compute_accidental_hits(labels, values.sampled_candidates, 1)
assert [part.dtype.name for part in hits] == ["int32", "int32", "float32"]
for dtype in (jnp.float32, jnp.float64):
    weights, inputs = jnp.ones((50, 4), dtype), jnp.ones((2, 4), dtype)
    loss = jaxlm.sampled_softmax_loss(weights, weights[:, 0], labels, inputs, 10, 50, key=key)
    assert np.isfinite(loss).all()
    exact = jax.grad(lambda w: jaxlm.linear_cross_entropy(inputs, w, labels[:, 0], biases=w[:, 0]).sum())(weights)
    assert exact.dtype == dtype and np.isfinite(exact).all()

if importlib.util.find_spec("keras"):
    import convert
    convert.from_keras(convert.to_keras(jaxlm.load_model(sys.argv[2])[0]))
"""


@pytest.mark.slow
def test_training_evaluation_sampling_and_export(corpus_dir, tmp_path):
    command = [sys.executable, "-c", PATH, str(corpus_dir), str(tmp_path / "run")]
    result = subprocess.run(command, env=os.environ | {"JAX_ENABLE_X64": "1"}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
