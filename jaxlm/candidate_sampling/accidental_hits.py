"""Accidental hits: sampled candidates that are true classes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxlm.errors import require
from jaxlm.token_ids import as_int32

HIT_WEIGHT = np.finfo(np.float32).min  # TensorFlow adds it to the logit of an accidental hit


class AccidentalHits(NamedTuple):
    """Positions of true classes among the candidates. Entries left over hold (N, S, 0)."""

    indices: jax.Array  # [N * num_true] int32, the example
    ids: jax.Array  # [N * num_true] int32, the position among the candidates
    weights: jax.Array  # [N * num_true] float32, the lowest float, added to the logit


def compute_accidental_hits(
    true_classes: jax.Array | ArrayLike, sampled_candidates: jax.Array | ArrayLike, num_true: int
) -> AccidentalHits:
    """Finds the candidates that are true classes of an example, in TensorFlow's order.

    If a candidate occurs more than once, its last position counts, as in TensorFlow. The shapes are fixed
    for `jit`: the hits come first, and entries left over are out of range, so that
    `logits.at[hits.indices, hits.ids].add(hits.weights, mode="drop")` ignores them.

    Args:
      true_classes: `[N, num_true]` integer ids.
      sampled_candidates: `[S]` integer ids.
      num_true: number of true classes per example.

    Returns:
      `AccidentalHits`.

    Raises:
      InputError: a shape does not fit, or ids are not integers.

    References:
      `tf.nn.compute_accidental_hits`.
    """
    true_classes = jnp.asarray(as_int32("true_classes", true_classes))
    sampled_candidates = jnp.asarray(as_int32("sampled_candidates", sampled_candidates))
    fits = true_classes.ndim == 2 and true_classes.shape[1] == num_true
    require(fits, "true_classes", f"shape [N, {num_true}], with num_true={num_true}", true_classes.shape)
    fits = sampled_candidates.ndim == 1 and sampled_candidates.size > 0
    require(fits, "sampled_candidates", "shape [S], with S of at least 1", sampled_candidates.shape)
    return _accidental_hits(true_classes, sampled_candidates)


@jax.jit
def _accidental_hits(true_classes: jax.Array, sampled_candidates: jax.Array) -> AccidentalHits:
    num_true = true_classes.shape[1]
    num_examples, num_sampled = true_classes.shape[0], sampled_candidates.shape[0]
    order = jnp.argsort(sampled_candidates, stable=True)
    ordered, flat = sampled_candidates[order], true_classes.reshape(-1)
    position = jnp.maximum(jnp.searchsorted(ordered, flat, side="right") - 1, 0)
    is_hit = ordered[position] == flat
    found = jnp.flatnonzero(is_hit, size=flat.size, fill_value=flat.size)
    indices = (jnp.arange(flat.size, dtype=jnp.int32) // num_true).at[found].get(mode="fill", fill_value=num_examples)
    ids = order.astype(jnp.int32)[position].at[found].get(mode="fill", fill_value=num_sampled)
    return AccidentalHits(indices, ids, jnp.where(found < flat.size, HIT_WEIGHT, np.float32(0.0)))


def last_occurrences(ids: jax.Array) -> jax.Array:
    """Marks the last occurrence of each id: `[N]` integer -> `[N]` bool."""
    order = jnp.argsort(ids, stable=True)
    ordered = ids[order]
    last = jnp.concatenate([ordered[1:] != ordered[:-1], jnp.ones(1, bool)])
    return jnp.zeros(ids.size, bool).at[order].set(last, unique_indices=True)
