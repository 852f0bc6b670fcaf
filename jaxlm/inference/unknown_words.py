"""Counts the unknown words of a scored text, and names the likely reason if there are many."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from jaxlm.data.text_warnings import SENTENCE_MARKERS, UNK_MARKERS, unicode_form_warning
from jaxlm.data.vocabulary import EOS, UNK, Vocabulary
from jaxlm.errors import shorten
from jaxlm.inference.scoring import LineScore

MANY = 0.3  # of all words; ordinary texts have a few per cent
MAX_TYPES = 10_000  # distinct unknown words that are kept, so that memory stays flat
REASON_SHARE = 0.4  # of the unknown words that a reason must explain
FEW_CAPITALS = 0.01  # of the words of a vocabulary in lower case, such as <UNK> and N


class UnknownWords:
    """Counts words, and unknown words, of lines that pass through."""

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        self.num_words = self.num_unknown = 0
        self.types: Counter[str] = Counter()

    def count(self, lines: Iterable[LineScore]) -> Iterator[LineScore]:
        """Yields lines of `jaxlm.score` unchanged."""
        for line in lines:
            self.num_words += sum(word != EOS for word in line.words)
            self.num_unknown += line.num_unknown
            for word, unknown in zip(line.words, line.unknown.tolist(), strict=True):
                if unknown and (len(self.types) < MAX_TYPES or word in self.types):
                    self.types[word] += 1
            yield line

    def describe(self) -> str | None:
        """Returns one line about the unknown words; None if there are none."""
        if not self.num_unknown:
            return None
        share = self.num_unknown / self.num_words
        line = f"{self.num_unknown:,} of {self.num_words:,} words ({share:.1%}) are not in the vocabulary"
        if self.vocabulary.unk is None:
            line += f", which has no {UNK}: they do not count"
        if warning := unicode_form_warning(self.types, self.vocabulary.ids):
            return f"WARNING: {line}; {warning}"
        if markers := [word for word in SENTENCE_MARKERS if word in self.types]:
            return f"WARNING: {line}; {' '.join(markers)}: remove these markers of another toolkit"
        if share <= MANY:
            return line
        examples = ", ".join(shorten(word) for word, _ in self.types.most_common(5))
        return f"WARNING: {line}, such as {examples}. The scores say little. {self._reason()}"

    def _reason(self) -> str:
        ids = self.vocabulary.ids
        cased = sum(word != word.lower() for word in ids)
        case = "is in lower case" if cased <= FEW_CAPITALS * len(ids) else "has both cases"
        reasons = [
            (
                f"The text is in upper case, and the vocabulary {case}: lower-case the text.",
                lambda word: word.isupper() and (word.lower() in ids or word.capitalize() in ids),
            ),
            (
                f"The text has capitals, and the vocabulary {case}: lower-case the words that it has in lower case.",
                lambda word: word != word.lower() and word.lower() in ids,
            ),
            (
                "The text is in lower case, and the vocabulary has capitals.",
                lambda word: word.upper() in ids or word.capitalize() in ids,
            ),
            ("The words are numbers: replace ids by words first.", lambda word: re.fullmatch(r"\d+", word)),
            (
                "The text is JSON: take the sentences out of it; `jaxlm compare` reads pairs of sentences.",
                lambda word: self.types["{"] and self.types[":"] or len(word) > 1 and word.startswith(("{", '"')),
            ),
            ("The text has markers of another toolkit: remove them.", lambda word: word in UNK_MARKERS),
            (
                "The text is cut into subwords: join them to words first.",
                lambda word: word.startswith(("▁", "##", "Ġ")) or word.endswith("@@"),
            ),
            (
                "The vocabulary is that of tokenized text: put spaces around punctuation marks.",
                lambda word: re.sub(r"^\W+|\W+$", "", word) != word and re.sub(r"^\W+|\W+$", "", word) in ids,
            ),
        ]
        total = sum(self.types.values())
        for reason, explains in reasons:
            if sum(count for word, count in self.types.items() if explains(word)) >= REASON_SHARE * total:
                return reason
        return "The text may be in another language, or tokenized in another way, than the training text."
