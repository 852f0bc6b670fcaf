"""Reads the vocabulary of a Keras model: Tokenizer, TextVectorization, word lists."""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from convert.weights.id_order import KerasIds, frequency_order
from jaxlm.data.text_files import read_text
from jaxlm.data.tokenization import KerasTokenizer, Tokenization, tokenization_of
from jaxlm.data.vocabulary import EOS, MAX_COUNT, PAD, UNK, UNUSED, Vocabulary
from jaxlm.data.word_lists import read_words
from jaxlm.errors import InputError, shorten

KERAS_UNK = "[UNK]"  # of `TextVectorization`, whose ids 0 and 1 are PAD and this
EXAMPLES = 5


class KerasWords(NamedTuple):
    """The words of a Keras model, in the order of its ids."""

    words: list[str]
    counts: list[int] | None = None  # None if they are unknown
    tokenization: Tokenization | None = None  # None if the file has none
    guessed: bool = False  # whether the tokenization is the default of the class that wrote the file
    unk: str | None = None  # the token for unknown words, if the file names it
    dropped: tuple[str, ...] = ()  # words that are removed from texts
    allows_extra_ids: bool = False  # whether a model may have more ids than words, as with Keras' classes


def read_vocabulary(
    path: Path,
    *,
    unk: str | None = None,
    eos: str | None = None,
    tokenization: Tokenization | Literal["keras_tokenizer"] | None = None,
    vocab_size: int = 0,
) -> tuple[Vocabulary, KerasIds | None]:
    """Reads the words of a Keras model, in the order of its ids.

    Args:
      path: `.json`, a Keras `Tokenizer` (`to_json()` or its `word_index`), the list of
        `TextVectorization.get_vocabulary()`, or "words" (and "counts", "tokenization"), such as a run's
        vocabulary.json; or text, on each line a word, or a word, a tab and its count.
      unk: its token for unknown words; by default `<unk>` or that of Keras, if present.
      eos: its token for the end of a line; by default `<eos>`, if present.
      tokenization: of the model's texts, if the file has none; by default that of the class that wrote the file, or
        "words".
      vocab_size: of the model. If a Keras class wrote the file, the ids beyond its words are unused.

    Returns:
      The vocabulary by decreasing counts, and the id in the file of each of its words; None if those are
      the same. Words without counts are taken to be sorted by frequency; unused ids come last.

    Raises:
      InputError: the file is not a vocabulary, words repeat, or `unk` or `eos` is missing from it.
    """
    found = _read_text(path) if path.suffix != ".json" else _from_json(path, _load_json(path))
    words = _with_reserved_words(path, found, unk, eos)
    if found.allows_extra_ids:
        words += [UNUSED.format(i) for i in range(len(words), vocab_size)]
    counts = None if found.counts is None else found.counts + [0] * (len(words) - len(found.counts))
    order = frequency_order([int(not _is_unused(word)) for word in words] if counts is None else counts)
    if order is not None:
        words = [words[i] for i in order]
        counts = None if counts is None else [counts[i] for i in order]
    given = tokenization_of(tokenization)
    used = given if found.tokenization is None or (found.guessed and given) else found.tokenization
    try:
        known_counts = None if counts is None else tuple(counts)
        vocabulary = Vocabulary(tuple(words), known_counts, used or "words", found.dropped)
    except InputError as error:
        raise InputError(f"{path} is not a vocabulary: {error}") from error
    return vocabulary, None if order is None else KerasIds(order)


def vocabulary_warnings(vocabulary: Vocabulary) -> list[str]:
    """Returns warnings about an imported vocabulary: missing words and counts, unused ids, tokenization."""
    used = vocabulary.tokenization
    lines = [f"tokenization: {used}"]
    if isinstance(used, KerasTokenizer):
        lines = [f"tokenization: that of a Keras Tokenizer, lower={used.lower}, filters={used.filters!r}"]
    if vocabulary.unk is None:
        lines.append("no token for unknown words (name one with --unk): unknown words are left out of a text")
    if vocabulary.eos is None:
        lines.append("no token for the end of a line (name one with --eos): line ends are left out of a text")
    if vocabulary.counts is None:
        lines.append("unknown counts are taken from the new training text")
    unused = sum(map(_is_unused, vocabulary.words))
    if unused:
        lines.append(f"ids that are not words (padding, or unused): {unused:,}")
    kept = {UNK, EOS, "\n"}
    words = (word for word in vocabulary.words if word not in kept and not _is_unused(word))
    never = [word for word in words if vocabulary.tokenize(word) != [word]]
    if never:
        examples = ", ".join(map(repr, never[:EXAMPLES]))
        lines.append(
            f"{len(never):,} words never result from this tokenization, such as {examples}; if the model's texts were"
            " tokenized differently, use --tokenization"
        )
    return lines


def _is_unused(word: str) -> bool:
    return word == PAD or word.startswith(UNUSED.partition("{")[0])


def _with_reserved_words(path: Path, found: KerasWords, unk: str | None, eos: str | None) -> list[str]:
    """Returns the words with jaxlm's tokens for unknown words and line ends."""
    known = set(found.words)
    if len(known) < len(found.words):
        word = next(word for n, word in enumerate(found.words) if word in found.words[:n])
        raise InputError(
            f"{path}: expected distinct words. Received: {shorten(word)!r} {found.words.count(word)} times."
        )
    for argument, given, name in (("unk", unk, UNK), ("eos", eos, EOS)):
        if given is not None and given not in known:
            raise InputError(
                f"Invalid `{argument}`: expected a word of {path}, which stands for {name}. Received: {given!r}."
            )
    if unk is not None and unk == eos:
        raise InputError(f"Invalid `eos`: expected another word than `unk`. Received: {eos!r}.")
    if unk is None:
        unk = found.unk or next((word for word in (UNK, KERAS_UNK) if word in known), UNK)
    renamed = {unk: UNK, EOS if eos is None else eos: EOS}
    for old, new in renamed.items():
        if old != new and new in known:
            argument = "unk" if new == UNK else "eos"
            raise InputError(f"{path} has both {old!r} and {new!r}; name {new!r} with `{argument}`, or rename one.")
    return [renamed.get(word, word) for word in found.words]


def _load_json(path: Path) -> Any:
    try:
        value = json.loads(read_text(path))
        return json.loads(value) if isinstance(value, str) else value  # json.dump of the result of `to_json`
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error


def _from_json(path: Path, value: Any) -> KerasWords:
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return _from_list(value)
    if isinstance(value, dict) and value.get("class_name") == "Tokenizer" and isinstance(value.get("config"), dict):
        return _from_tokenizer(path, value["config"])
    if isinstance(value, dict) and isinstance(value.get("words"), list):
        counts, dropped = value.get("counts"), value.get("dropped", [])
        tokenization = tokenization_of(value.get("tokenization") or value.get("split"))  # its name in older files
        are_words = isinstance(dropped, list) and all(isinstance(word, str) for word in value["words"] + dropped)
        if are_words and _are_counts(counts, len(value["words"])):
            known_counts = counts if counts and any(counts) else None
            return KerasWords(value["words"], known_counts, tokenization, dropped=tuple(dropped))
    elif isinstance(value, dict) and value and all(type(i) is int for i in value.values()):
        words = _from_word_index(path, value)
        if words[0] != PAD:
            return KerasWords(words)
        return KerasWords(words, tokenization=KerasTokenizer(), guessed=True, allows_extra_ids=True)
    raise InputError(
        f"{path} is not a vocabulary: expected words with or without counts, or the JSON of `Tokenizer.to_json()`,"
        " `Tokenizer.word_index` or `TextVectorization.get_vocabulary()`."
    )


def _are_counts(counts: Any, size: int) -> bool:
    if counts is None:
        return True
    valid = isinstance(counts, list) and all(type(count) is int and 0 <= count < MAX_COUNT for count in counts)
    return valid and len(counts) in (0, size)


def _from_list(words: list[str], counts: list[int] | None = None) -> KerasWords:
    counts = counts if counts and any(counts) else None
    if words[:2] == [PAD, KERAS_UNK]:
        return KerasWords(words, counts, "text_vectorization", guessed=True, unk=KERAS_UNK, allows_extra_ids=True)
    return KerasWords(words, counts)


def _from_word_index(path: Path, word_index: dict[str, int]) -> list[str]:
    """Returns words in the order of their ids, which begin at 0, or at 1 with padding before them."""
    by_id = {i: word for word, i in word_index.items()}
    first = min(by_id)
    if first not in (0, 1) or set(by_id) != set(range(first, first + len(word_index))):
        raise InputError(f"{path} is not a vocabulary: expected consecutive ids from 0 or 1, one per word.")
    return [PAD] * first + [by_id[i] for i in range(first, first + len(word_index))]


def _from_tokenizer(path: Path, config: dict[str, Any]) -> KerasWords:
    """Reads the config of a Keras `Tokenizer`. Ids from `num_words` on do not occur in its texts."""
    try:
        word_index, word_counts = json.loads(config["word_index"]), json.loads(config.get("word_counts") or "{}")
        num_words, oov, filters = config.get("num_words"), config.get("oov_token"), config.get("filters") or ""
        tokenization = tokenization_of({"lower": config.get("lower", True), "filters": filters})
        if not (word_index and isinstance(num_words, int | None) and isinstance(oov, str | None)):
            raise TypeError("it has no words, or settings of another type")
        if not all(type(i) is int for i in word_index.values()):
            raise TypeError("ids are not integers")
        counts = [word_counts.get(word, 0) for word in sorted(word_index, key=word_index.__getitem__)]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} does not hold a Keras Tokenizer: {error!r}") from error
    if config.get("char_level") or config.get("split", " ") != " ":
        raise InputError(f"{path}: expected a Tokenizer with char_level=False and split=' '.")
    words, counts = _from_word_index(path, word_index), [0, *counts]
    if words[0] != PAD or not _are_counts(counts, len(words)):
        raise InputError(f"{path} does not hold a Keras Tokenizer: expected ids from 1 and counts of at least 0.")
    if num_words:
        dropped = sum(counts[num_words:])
        words, counts = words[:num_words], counts[:num_words]
        if oov in words and any(counts):
            counts[words.index(oov)] += dropped
    oov = oov if oov in words else None
    return KerasWords(words, counts if any(counts) else None, tokenization, unk=oov, allows_extra_ids=True)


def _read_text(path: Path) -> KerasWords:
    """Reads a word, or a word and its count, on each line."""
    if path.suffix in (".pickle", ".pkl"):
        raise InputError(
            f"{path} is a pickle, which can execute code, so it is not read. If you trust it, load it in Python and"
            " write JSON: open('tokenizer.json', 'w').write(tokenizer.to_json())."
        )
    return _from_list(*read_words(path))
