"""`jaxlm prepare`'s tokens by TensorFlow's operators, so that a SavedModel takes strings."""

import numpy as np
import tensorflow as tf
from tokenizers import Regex, pre_tokenizers

from jaxlm.text import Tokenization
from jaxlm.vocabulary import EOS, UNK


def character_class(pattern: str) -> str:
    """Returns the characters of a `tokenizers` character class as a class of RE2, without the brackets.

    RE2's own \\w is ASCII only; this is found by asking the tokenizer about every character there is.
    """
    splitter = pre_tokenizers.Split(Regex(f"{pattern}+"), "removed", invert=True)
    ranges = []
    for start, stop in ((0, 0xD800), (0xE000, 0x110000)):  # all but the surrogates
        runs = splitter.pre_tokenize_str("".join(map(chr, range(start, stop))))
        ranges += [(start + first, start + last - 1) for _, (first, last) in runs]
    return "".join(f"\\x{{{first:x}}}-\\x{{{last:x}}}" for first, last in ranges)


class Words(tf.Module):
    """A vocabulary as TensorFlow tables, and `jaxlm prepare`'s tokens by TensorFlow's regular expressions."""

    def __init__(self, words: tuple[str, ...], split: Tokenization):
        super().__init__(name="words")
        ids = np.arange(len(words), dtype=np.int32)
        table = tf.lookup.KeyValueTensorInitializer(tf.constant(words), tf.constant(ids))
        self.table = tf.lookup.StaticHashTable(table, words.index(UNK))
        self.words = tf.Variable(list(words), trainable=False)
        self.eos, self.split = words.index(EOS), split
        self.space = character_class(r"\s")
        self.word = character_class(r"\w")

    def __len__(self) -> int:
        return self.words.shape[0]

    def encode(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """`[batch]` strings to ragged ids `[batch, None]` int32; line ends become `<eos>`."""
        texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")
        texts = tf.strings.regex_replace(texts, r"\r\n?|\n", f" {EOS} ")  # as Python reads text files
        if self.split == "words":
            pattern = f"({UNK}|{EOS}|[{self.word}]+|[^{self.word}{self.space}])"
            texts = tf.strings.regex_replace(texts, pattern, r" \1 ")
        texts = tf.strings.regex_replace(texts, f"[{self.space}]+", " ")
        return self.table.lookup(tf.strings.split(texts))
