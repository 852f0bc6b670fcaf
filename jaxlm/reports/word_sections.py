"""Sections about words: surprising words in context, samples, nearest neighbors, and a map of frequent words."""

import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.data.vocabulary import Vocabulary
from jaxlm.inference.batch_reader import TIME_STEPS, Reader, Sequence
from jaxlm.inference.generation import generate
from jaxlm.inference.neighbors import TABLES, nearest_words
from jaxlm.model.language_model import LanguageModel
from jaxlm.reports.html import Cell, Rows
from jaxlm.reports.svg import Figure, word_map

TEMPERATURES = (0.5, 0.8, 1.1)
SAMPLE_WORDS = 60
SURPRISING = 12
CONTEXT = 10  # words on either side of a surprising one
WORDS_WITH_NEIGHBORS = 10
NEIGHBORS = 6
MAPPED = 150
FUNCTION_WORDS = 30  # the most frequent words say little about meaning


class ScoredText(NamedTuple):
    """Words of a text, with their log-probabilities and ranks."""

    ids: np.ndarray  # [N]
    log_probabilities: np.ndarray  # [N] float64, in nats
    ranks: np.ndarray  # [N]


def score_text(model: LanguageModel, ids: np.ndarray) -> ScoredText:
    """Scores the words of a text, `[N + 1]` ids, after the first.

    A long text is shortened to a multiple of the longest batch, so that one program reads all of it.
    """
    size, longest = ids.size - 1, TIME_STEPS[-1]
    ids = ids[: (size if size < longest else size - size % longest) + 1]
    reader = Reader(model, 1024)
    log_probabilities, ranks, _ = reader.statistics(ids[1:], reader.read_text(Sequence(ids[:-1], 0)))
    return ScoredText(np.asarray(ids[1:]), log_probabilities, ranks)


class WordSections(NamedTuple):
    """Contents of the sections about the words of a run."""

    name: str  # of the run
    surprising: Rows | None  # None without a text
    samples: list[tuple[float, str]]  # temperature and text
    neighbors: Rows
    map: Figure | None  # None if the vocabulary has too few words


def word_sections(
    name: str, model: LanguageModel, vocabulary: Vocabulary, scored: ScoredText | None, seed: int
) -> WordSections:
    """Makes the sections about the words of one run."""
    content = [i for i, word in enumerate(vocabulary.words) if re.fullmatch(r"\w{3,}", word)]
    content = content[FUNCTION_WORDS:] if len(content) > 2 * FUNCTION_WORDS else content
    enough = len(content) >= 3
    return WordSections(
        name,
        None if scored is None else _surprising(vocabulary, scored),
        _samples(model, vocabulary, seed),
        _neighbors(model, vocabulary, content) if enough else [],
        _map(model, vocabulary, content[:MAPPED], f"word-map {name}") if enough else None,
    )


def _surprising(vocabulary: Vocabulary, scored: ScoredText) -> Rows:
    bits = -scored.log_probabilities / math.log(2)
    shown: list[int] = []
    for position in np.argsort(-bits).tolist():  # of words whose contexts do not overlap
        if scored.ids[position] in vocabulary.placeholders or scored.ids[position] == vocabulary.eos:
            continue
        if all(abs(position - other) > CONTEXT for other in shown):
            shown.append(position)
        if len(shown) == SURPRISING:
            break
    texts = [vocabulary.words[i] if i != vocabulary.eos else "¶" for i in scored.ids.tolist()]
    rows: list[list[Cell]] = []
    for position in shown:
        around = range(max(0, position - CONTEXT), min(len(texts), position + CONTEXT + 1))
        context = [(texts[n], float(bits[n])) for n in around]
        rows.append([texts[position], round(float(bits[position]), 1), int(scored.ranks[position]), context])
    return rows


def _samples(model: LanguageModel, vocabulary: Vocabulary, seed: int) -> list[tuple[float, str]]:
    readable = (word for word in vocabulary.words if vocabulary.encode(word).size)
    prompt = next(readable, "") if vocabulary.eos is None else ""  # without <eos>, the most frequent word
    made = []
    for temperature in TEMPERATURES:
        text = generate(model, vocabulary, prompt, SAMPLE_WORDS, temperature=temperature, key=jax.random.key(seed))
        made.append((temperature, text.strip()))
    return made


def _neighbors(model: LanguageModel, vocabulary: Vocabulary, content: list[int]) -> Rows:
    spread = np.unique(np.geomspace(1, min(len(content), 2000), WORDS_WITH_NEIGHBORS).astype(int) - 1)
    return [
        [word, *(", ".join(nearest_words(model, vocabulary, word, NEIGHBORS, table=name).words) for name in TABLES)]
        for word in (vocabulary.words[content[n]] for n in spread)
    ]


def _map(model: LanguageModel, vocabulary: Vocabulary, ids: list[int], name: str) -> Figure:
    """The first two principal components of the words' rows, each scaled to length 1."""
    rows = np.asarray(jnp.take(model.input_rows, np.array(ids), axis=0), np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    rows -= rows.mean(axis=0)
    left, scales, _ = np.linalg.svd(rows, full_matrices=False)
    points = np.zeros((len(ids), 2))
    points[:, : min(2, scales.size)] = (left * scales)[:, :2]
    share = float((scales[:2] ** 2).sum() / max((scales**2).sum(), 1e-30))
    texts = [vocabulary.words[i] for i in ids]
    caption = (
        f"{len(ids)} frequent words by the two main directions of their embedding rows, {share:.0%} of the variance."
    )
    description = f"Map of words. {caption} The table of nearest words lists the neighbors."
    return Figure(word_map(name, description, texts, points), caption)
