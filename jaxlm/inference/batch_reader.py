"""Runs a model over lines or texts of any lengths: few shapes are compiled, and the softmax is never padded."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlm.losses.word_statistics import WordStatistics, word_statistics
from jaxlm.matmul import in_float32
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.lstm import Carry
from jaxlm.model.params import place_like, require_one_device

TIME_STEPS = (8, 32, 128)  # of a batch of lines; longer ones are read in parts

OutputChunk = tuple[np.ndarray, np.ndarray]  # outputs [n, D], and the slots [n] of their labels in the results


class Sequence(NamedTuple):
    """Words to read, and the place of the results for the words after them."""

    inputs: np.ndarray  # [n] int32
    slot: int  # of the label of the first input in the results


class Reader:
    """Runs a model over sequences. Their LSTM is padded; their outputs are packed, so that the softmax is not."""

    def __init__(self, model: LanguageModel, batch_words: int):
        require_one_device(model)
        self.model, self.batch_words = model, batch_words
        self.graphdef, self.params = nnx.split(model)
        self.carry = place_like(model, model.initial_carry(1))  # of the text that `read_text` reads part by part

    def read_text(self, text: Sequence) -> Iterator[OutputChunk]:
        """Yields the outputs of the next part of one text, whose state carries over, without padding."""
        start = 0
        while start < text.inputs.size:
            length = max(n for n in (1, *TIME_STEPS) if n <= text.inputs.size - start)
            ids = text.inputs[None, start : start + length]
            outputs, self.carry = _outputs(self.graphdef, self.params, ids, self.carry)
            yield np.asarray(outputs)[0], text.slot + start + np.arange(length)
            start += length

    def read_sentences(self, sequences: list[Sequence]) -> Iterator[OutputChunk]:
        """Yields the outputs of sequences, each from the zero state, those of similar lengths in one batch."""
        sequences = sorted(sequences, key=lambda sequence: sequence.inputs.size)
        for shorter, length in zip((0, *TIME_STEPS), TIME_STEPS, strict=False):
            longest = length if length < TIME_STEPS[-1] else np.inf
            group = [sequence for sequence in sequences if shorter < sequence.inputs.size <= longest]
            size = max(1, self.batch_words // length) if len(group) > 1 else 1
            for start in range(0, len(group), size):
                yield from self._read_batch(group[start : start + size], size, length)

    def _read_batch(self, batch: list[Sequence], batch_size: int, length: int) -> Iterator[OutputChunk]:
        carry = place_like(self.model, self.model.initial_carry(batch_size))
        for start in range(0, max(sequence.inputs.size for sequence in batch), length):
            ids = np.zeros((batch_size, length), np.int32)
            parts = [sequence.inputs[start : start + length] for sequence in batch]
            for row, part in zip(ids, parts, strict=False):
                row[: part.size] = part
            outputs, carry = _outputs(self.graphdef, self.params, ids, carry)
            for row, sequence, part in zip(np.asarray(outputs), batch, parts, strict=False):
                yield row[: part.size], sequence.slot + start + np.arange(part.size)

    def statistics(
        self, labels: np.ndarray, chunks: Iterator[OutputChunk]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns log-probabilities, ranks and entropies of labels `[M]`; NaN, 0, NaN for those without an output."""
        results = np.full(labels.size, np.nan), np.zeros(labels.size, np.int64), np.full(labels.size, np.nan)
        for outputs, slots in _packed(chunks, self.batch_words):
            found = _statistics(self.graphdef, self.params, outputs, np.resize(labels[slots], len(outputs)))
            for result, values in zip(results, found, strict=True):
                result[slots] = np.asarray(values)[: slots.size]
        return results


def _packed(chunks: Iterator[OutputChunk], size: int) -> Iterator[OutputChunk]:
    """Yields chunks in batches of `size` outputs; the last ones are padded to one of a few sizes."""
    outputs: np.ndarray | None = None
    slots, used = np.zeros(size, np.int64), 0
    for piece, positions in chunks:
        outputs = np.zeros((size, piece.shape[1]), np.float32) if outputs is None else outputs
        start = 0
        while start < positions.size:
            end = start + min(size - used, positions.size - start)
            filled = slice(used, used + end - start)
            outputs[filled], slots[filled] = piece[start:end], positions[start:end]
            used, start = filled.stop, end
            if used == size:
                yield outputs, slots
                used = 0
    sizes = [size // 4**n for n in range(4) if size // 4**n >= 16] or [size]
    start = 0
    while start < used and outputs is not None:
        rest = used - start
        part = max((n for n in sizes if n <= rest or 4 * rest >= 3 * n), default=min(sizes))
        end = min(start + part, used)
        yield np.resize(outputs[start:end], (part, outputs.shape[1])), slots[start:end]
        start = end


@partial(jax.jit, static_argnums=0)
@in_float32
def _outputs(
    graphdef: nnx.GraphDef, params: Any, ids: jax.Array | np.ndarray, carry: tuple[Carry, ...]
) -> tuple[jax.Array, tuple[Carry, ...]]:
    model = nnx.merge(graphdef, params)
    return model.hidden(model.embed(jnp.asarray(ids)), carry)


@partial(jax.jit, static_argnums=0)
@in_float32
def _statistics(
    graphdef: nnx.GraphDef, params: Any, outputs: jax.Array | np.ndarray, labels: jax.Array | np.ndarray
) -> WordStatistics:
    model = nnx.merge(graphdef, params)
    return word_statistics(jnp.asarray(outputs), model.weights[...], labels, biases=model.biases[...])
