"""The tokenization of `jaxlm prepare` in TensorFlow's own operations, so that a SavedModel accepts strings."""

import numpy as np
import tensorflow as tf
from tokenizers import Regex, pre_tokenizers

from jaxlm.text import Tokenization
from jaxlm.vocabulary import EOS, UNK


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
      eos: id of `<eos>`.

    References:
      https://github.com/google/re2/wiki/Syntax
    """

    def __init__(self, words: tuple[str, ...], tokenization: Tokenization):
        super().__init__(name="words")
        ids = np.arange(len(words), dtype=np.int32)
        table = tf.lookup.KeyValueTensorInitializer(tf.constant(words), tf.constant(ids))
        self.table = tf.lookup.StaticHashTable(table, words.index(UNK))
        self.words = tf.Variable(list(words), trainable=False)
        self.eos, self.tokenization = words.index(EOS), tokenization
        self.space = character_class(r"\s")
        self.word = character_class(r"\w")

    def __len__(self) -> int:
        return self.words.shape[0]

    def encode(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Returns the ids, ragged `[batch, None]` int32, of strings `[batch]`. Line ends become `<eos>`."""
        texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")
        texts = tf.strings.regex_replace(texts, r"\r\n?|\n", f" {EOS} ")  # as Python reads text files
        if self.tokenization == "words":
            pattern = f"({UNK}|{EOS}|[{self.word}]+|[^{self.word}{self.space}])"
            texts = tf.strings.regex_replace(texts, pattern, r" \1 ")
        texts = tf.strings.regex_replace(texts, f"[{self.space}]+", " ")
        return self.table.lookup(tf.strings.split(texts))
