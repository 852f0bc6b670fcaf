"""Warnings about a text: unknown words, other Unicode forms, markers of other toolkits, unsegmented scripts."""

import itertools
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxlm.data.vocabulary import EOS, UNK, Vocabulary
from jaxlm.errors import shorten

EXAMPLES = 8
# Thai, Lao, Burmese, Khmer, Chinese and Japanese: written without spaces between words
SPACELESS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]")
LONG_WORD = 6.0  # characters; cut words of these languages have a mean of 2 to 4, phrases of 8 and more
SHARE = 0.2  # of all words
UNK_MARKERS = ("<UNK>", "[UNK]", "UNK", "<Unk>", "<unknown>", "<OOV>")  # unknown words, as other toolkits write them
SENTENCE_MARKERS = ("<s>", "</s>", "<S>", "</S>", "<bos>", "<sos>", "<BOS>", "<EOS>", "[CLS]", "[SEP]", "<|endoftext|>")
MARKER_SHARE = 0.0005  # of all words, from which on a marker is more than a rare word


def text_warnings(
    tokens: Iterable[str], counts: np.ndarray, vocabulary: Vocabulary, missing: Sequence[str] = ()
) -> list[str]:
    """Returns warnings about a text, one line each.

    Args:
      tokens: its tokens, "\\n" for a line end.
      counts: `[types]` occurrences of each.
      vocabulary: the vocabulary that encodes the text.
      missing: words of the options `unk` and `drop` that the text lacks.
    """
    words = list(tokens)
    lines = []
    new = np.array([word not in vocabulary.ids and word != "\n" for word in words])
    unknown, total = int(counts[new].sum()), int(counts.sum())
    if unknown:
        most = np.argsort(-np.where(new, counts, 0), kind="stable")[:EXAMPLES]
        shown = ", ".join(f"{shorten(words[i])} ({counts[i]:,})" for i in most if new[i] and counts[i])
        treatment = f"are read as {UNK}" if vocabulary.unk is not None else f"are left out, since there is no {UNK}"
        lines.append(f"{unknown:,} of {total:,} words ({unknown / total:.2%}) {treatment}; the most frequent: {shown}")
    if vocabulary.eos is None and "\n" in words:
        ends = int(counts[words.index("\n")])
        lines.append(f"{ends:,} line ends are left out, since the vocabulary has no {EOS}")
    if missing:
        lines.append(f"it has no word {' '.join(map(shorten, missing))}, which `unk` or `drop` names")
    return lines + _markers(words, counts) + _uncut(words, counts)


def shared_file_warnings(texts: Mapping[str, Sequence[Path]]) -> list[str]:
    """Returns a warning for each pair of texts that share a file, which makes their perplexity meaningless."""
    lines = []
    for (first, ours), (second, theirs) in itertools.combinations(texts.items(), 2):
        known = {path.resolve() for path in ours}
        if shared := [path for path in theirs if path.resolve() in known]:
            lines.append(f"{shared[0]} is in the {first} and in the {second} text: leave it out of one of them")
    return lines


def unicode_form_warning(words: Iterable[str], vocabulary: Collection[str]) -> str:
    """Returns a warning if words are words of the vocabulary in another Unicode form; "" if not.

    A letter with an accent is one character in NFC, and two in NFD, which macOS and some PDF readers write.
    """
    beyond_ascii = [word for word in words if not word.isascii()]
    for form in ("NFC", "NFD"):
        normalized = ((word, unicodedata.normalize(form, word)) for word in beyond_ascii)
        found = [word for word, other in normalized if other != word and other in vocabulary]
        if found:
            return (
                "words differ from those of the vocabulary only in their Unicode form:"
                f" {', '.join(map(shorten, found[:3]))} ({len(found):,} in all). Convert the text to {form}:"
                " python3 -X utf8 -c"
                f" \"import sys, unicodedata as u; sys.stdout.writelines(u.normalize('{form}', s) for s in sys.stdin)\""
                " < TEXT > NEW_TEXT"
            )
    return ""


def _markers(words: list[str], counts: np.ndarray) -> list[str]:
    """Names markers of other toolkits that would be words like all others."""
    frequent = np.flatnonzero(counts >= max(2, MARKER_SHARE * counts.sum()))
    found = {words[i]: int(counts[i]) for i in frequent}
    lines = [
        f'{word} occurs {found[word]:,} times. If it stands for unknown words, prepare with `unk` "{word}"'
        for word in UNK_MARKERS
        if word in found
    ]
    ends = [word for word in SENTENCE_MARKERS if word in found]
    if ends:
        times = ", ".join(f"{word} {found[word]:,} times" for word in ends)
        options = " ".join(f'"{word}"' for word in ends)
        lines.append(f"it has {times}. Line ends are {EOS} already: leave these markers out with `drop` {options}")
    return lines


def _uncut(words: list[str], counts: np.ndarray) -> list[str]:
    """Warns of a text that is written without spaces between words."""
    spaceless = np.array([SPACELESS.search(word) is not None for word in words])
    number, total = int(counts[spaceless].sum()), int(counts.sum())
    if number <= SHARE * total:
        return []
    mean = float(counts[spaceless] @ np.array(list(map(len, words)))[spaceless]) / number
    if mean <= LONG_WORD:
        return []
    return [
        f"{number / total:.0%} of the words are in a language written without spaces, and have {mean:.0f} characters on"
        " average: they are whole phrases. Cut the text into words first, with a space between them (jieba, MeCab and"
        " PyThaiNLP do that), and prepare it with `tokenization` whitespace"
    ]
