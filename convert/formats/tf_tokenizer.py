"""The tokenization of `jaxlm prepare` in TensorFlow's own operations, so that a SavedModel accepts strings."""

import functools

import numpy as np
import tensorflow as tf
from tokenizers import Regex, pre_tokenizers

from jaxlm.data.tokenization import PATTERNS, PUNCTUATION, KerasTokenizer, Tokenization
from jaxlm.data.vocabulary import EOS, UNK


@functools.cache
def character_class(pattern: str) -> str:
    """Returns the characters that a `tokenizers` class such as \\w matches, as RE2 ranges without the brackets.

    RE2's own \\w is ASCII only, so the tokenizer is asked about every character.
    """
    splitter = pre_tokenizers.Split(Regex(f"{pattern}+"), "removed", invert=True)
    ranges = []
    for start, stop in ((0, 0xD800), (0xE000, 0x110000)):  # all but the surrogates
        runs = splitter.pre_tokenize_str("".join(map(chr, range(start, stop))))
        ranges += [(start + first, start + last - 1) for _, (first, last) in runs]
    return "".join(f"\\x{{{first:x}}}-\\x{{{last:x}}}" for first, last in ranges)


class TfTokenizer(tf.Module):
    """Turns text into ids like `jaxlm.Vocabulary.encode`, with TensorFlow tables and regular expressions.

    Args:
      words: in the order of the ids.
      tokenization: how text is cut.

    Attributes:
      words: string variable `[V]`.
      eos: id of `<eos>`; None without one, so that line ends are left out, as unknown words without `<unk>` are.

    References:
      https://github.com/google/re2/wiki/Syntax
    """

    def __init__(self, words: tuple[str, ...], tokenization: Tokenization):
        super().__init__(name="words")
        ids = np.arange(len(words), dtype=np.int32)
        table = tf.lookup.KeyValueTensorInitializer(tf.constant(words), tf.constant(ids))
        self.table = tf.lookup.StaticHashTable(table, words.index(UNK) if UNK in words else -1)
        self.words = tf.Variable(list(words), trainable=False)
        self.eos = words.index(EOS) if EOS in words else None
        self.line_end = " " if self.eos is None else f" {EOS} "
        self.tokenization = tokenization
        self.space = character_class(r"\s")
        if tokenization == "words":
            self.pattern = PATTERNS["words"].removeprefix(r"\n|").replace(r"\p{M}", character_class(r"\p{M}"))
            for name in (r"[^\w\s]", r"\w"):
                self.pattern = self.pattern.replace(name, f"[{character_class(name)}]")

    def __len__(self) -> int:
        return self.words.shape[0]

    def encode(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Returns the ids, ragged `[batch, None]` int32, of strings `[batch]`. Line ends become `<eos>`."""
        texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")
        texts = tf.strings.regex_replace(texts, r"\r\n?", "\n")  # as Python reads text files
        ids = self.table.lookup(self._split(texts))
        return tf.ragged.boolean_mask(ids, ids >= 0)

    def _split(self, texts: tf.Tensor) -> tf.RaggedTensor:
        if isinstance(self.tokenization, KerasTokenizer):
            texts = tf.strings.regex_replace(texts, r"\x00", "\ufffd")  # where `lower` would cut a text off
            texts = tf.strings.lower(texts, encoding="utf-8") if self.tokenization.lower else texts
            filtered = _characters(self.tokenization.filters.replace("\n", ""))
            texts = tf.strings.regex_replace(texts, filtered, " ") if filtered else texts
            words = tf.strings.split(tf.strings.regex_replace(texts, "\n", self.line_end), " ")
            return tf.ragged.boolean_mask(words, words != "")
        if self.tokenization == "text_vectorization":
            texts = tf.strings.regex_replace(tf.strings.lower(texts), _characters(PUNCTUATION), "")
            return tf.strings.split(tf.strings.regex_replace(texts, "\n", self.line_end))
        texts = tf.strings.regex_replace(texts, "\n", self.line_end)
        if self.tokenization == "words":
            texts = tf.strings.regex_replace(texts, f"({self.pattern})", r" \1 ")
        texts = tf.strings.regex_replace(texts, f"[{self.space}]+", " ")
        return tf.strings.split(texts)


def _characters(characters: str) -> str:
    """Returns the RE2 class of some characters; "" for none."""
    return "[" + "".join(f"\\x{{{ord(character):x}}}" for character in characters) + "]" if characters else ""
