"""What people should know of a prepared text: words that its vocabulary lacks, and text that needs cutting first."""

import re
from collections.abc import Iterable

import numpy as np

from jaxlm.data.vocabulary import EOS, UNK, Vocabulary

EXAMPLES = 8
# Thai, Lao, Burmese, Khmer, Chinese and Japanese: written without spaces between words
SPACELESS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]")
LONG_WORD = 6.0  # characters; cut words of these languages have a mean of 2 to 4, phrases of 8 and more
SHARE = 0.2  # of all words


def text_warnings(tokens: Iterable[str], counts: np.ndarray, vocabulary: Vocabulary) -> list[str]:
    """Returns lines for people about a text.

    Args:
      tokens: its distinct tokens, "\\n" for a line end.
      counts: `[types]` occurrences of each.
      vocabulary: that it is encoded with.
    """
    words = list(tokens)
    lines = []
    new = np.array([word not in vocabulary.ids and word != "\n" for word in words])
    unknown, total = int(counts[new].sum()), int(counts.sum())
    if unknown:
        most = np.argsort(-np.where(new, counts, 0), kind="stable")[:EXAMPLES]
        shown = ", ".join(f"{words[i]} ({counts[i]:,})" for i in most if new[i] and counts[i])
        treatment = f"are read as {UNK}" if vocabulary.unk is not None else f"are left out, since there is no {UNK}"
        lines.append(f"{unknown:,} of {total:,} words ({unknown / total:.2%}) {treatment}; the most frequent: {shown}")
    if vocabulary.eos is None and "\n" in words:
        ends = int(counts[words.index("\n")])
        lines.append(f"{ends:,} line ends are left out, since the vocabulary has no {EOS}")
    return lines + _uncut(words, counts)


def _uncut(words: list[str], counts: np.ndarray) -> list[str]:
    """Says so if the text is written without spaces between words."""
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
        " PyThaiNLP do that), and prepare it with --tokenization whitespace"
    ]
