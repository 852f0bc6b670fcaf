"""Reads lists of words: one word, or a word and its count, per line; or JSON."""

import json
import re
import shlex
from pathlib import Path

from jaxlm.data.text_files import read_text
from jaxlm.data.vocabulary import PAD, VOCABULARY_FILE, Vocabulary
from jaxlm.errors import InputError, shorten
from jaxlm.files import PathLike


def read_words(path: PathLike) -> tuple[list[str], list[int] | None]:
    """Reads a text with a word, or a word, a tab or a space and its count, on each line.

    Returns:
      The words, and their counts, or None.

    Raises:
      InputError: the text cannot be read, or a line has no count though others have one.
    """
    lines = read_text(path).removesuffix("\n").split("\n")
    for blank in "\t", " ":
        pairs = [re.fullmatch(rf"(.*){blank}(\d{{1,18}})", line) for line in lines]
        if all(pairs):
            return [pair[1] for pair in pairs if pair], [int(pair[2]) for pair in pairs if pair]
        if blank == "\t" and any("\t" in line for line in lines):
            number = next(n for n, pair in enumerate(pairs, start=1) if not pair)
            raise InputError(
                f"{path}: expected lines of a word, or a word, a tab and a count. Line {number} has no count."
            )
    return lines, None


def read_vocabulary(path: PathLike) -> Vocabulary | list[str]:
    """Reads the vocabulary of a model, or a list of words.

    Args:
      path: vocabulary.json, or the directory of a run or corpus with one; or a list of words: a JSON array, a JSON
        object of words and ids, or text as `read_words` reads it.

    Raises:
      InputError: the file is missing, damaged, or has another form, such as those of Keras' classes.
    """
    path = Path(path)
    path = path / VOCABULARY_FILE if path.is_dir() else path
    if path.suffix != ".json":
        words, _ = read_words(path)
        _require_no_padding(path, words)
        form = r"\S+ \d+" if re.fullmatch(r"\S+ \d+", words[0]) else r"\S+"
        wrong = next((n for n, word in enumerate(words, start=1) if not re.fullmatch(form, word)), None)
        if wrong is not None:
            raise InputError(
                f"{path}, line {wrong}: expected a word, or a word and its count. Received: {words[wrong - 1][:100]!r}."
            )
        return _distinct(path, words)
    try:
        value = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if isinstance(value, dict) and value and all(type(i) is int for i in value.values()):
        value = sorted(value, key=value.__getitem__)
    if isinstance(value, list) and value and all(isinstance(word, str) for word in value):
        _require_no_padding(path, value)
        return _distinct(path, value)
    if isinstance(value, dict) and value.get("class_name") == "Tokenizer":
        raise _of_keras(path)
    if not isinstance(value, dict) or "format" not in value:
        raise InputError(f"{path}: expected vocabulary.json, a JSON array of words, or a JSON object of words and ids.")
    return Vocabulary.load(path)


def _require_no_padding(path: Path, words: list[str]) -> None:
    """Raises `InputError` for the list of Keras' `TextVectorization.get_vocabulary()`."""
    if words[:2] == [PAD, "[UNK]"]:
        raise _of_keras(path)


def _of_keras(path: Path) -> InputError:
    return InputError(
        f"{path} lists the words of a Keras model by their ids. Give vocabulary.json of the run that `jaxlm-convert"
        f" from-keras MODEL RUN --vocabulary {shlex.quote(str(path))}` makes, or a list of words without padding."
    )


def _distinct(path: Path, words: list[str]) -> list[str]:
    seen: set[str] = set()
    for word in words:
        if word in seen:
            raise InputError(f"{path}: expected distinct words. Received: {shorten(word)!r} twice.")
        seen.add(word)
    return words
