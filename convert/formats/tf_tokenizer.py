"""The tokenization of `jaxlm prepare` in TensorFlow operations, so that a SavedModel accepts strings."""

import functools

import tensorflow as tf
from tokenizers import Regex, pre_tokenizers

from jaxlm.data.tokenization import PATTERNS, PUNCTUATION, KerasTokenizer, Tokenization
from jaxlm.data.vocabulary import EOS, UNK


@functools.cache
def character_class(pattern: str) -> str:
    """Returns the characters that a `tokenizers` class such as \\w matches, as RE2 ranges without the brackets.

    RE2's \\w is ASCII only, so every character is tested with the tokenizer.
    """
    splitter = pre_tokenizers.Split(Regex(f"{pattern}+"), "removed", invert=True)
    ranges = []
    for start, stop in ((0, 0xD800), (0xE000, 0x110000)):  # all but the surrogates
        runs = splitter.pre_tokenize_str("".join(map(chr, range(start, stop))))
        ranges += [(start + first, start + last - 1) for _, (first, last) in runs]
    return "".join(f"\\x{{{first:x}}}-\\x{{{last:x}}}" for first, last in ranges)


class TfTokenizer(tf.Module):
    """Turns text into ids like `jaxlm.Vocabulary.encode`, with TensorFlow tables and regular expressions.

    Line ends (`<eos>`) and unknown words (`<unk>`) that the vocabulary has no token for are left out.

    Args:
      words: in the order of the ids.
      tokenization: of the texts.
      dropped: words that are removed from texts.

    Attributes:
      words: string variable `[V]`.
      eos: id of `<eos>`; None without one.

    References:
      https://github.com/google/re2/wiki/Syntax
    """

    def __init__(self, words: tuple[str, ...], tokenization: Tokenization, dropped: tuple[str, ...] = ()):
        super().__init__(name="words")
        ids = {word: i for i, word in enumerate(words)}
        ids["\n"] = ids.get(EOS, ids.get("\n", -1))
        table = tf.lookup.KeyValueTensorInitializer(tf.constant(list(ids)), tf.constant(list(ids.values()), tf.int32))
        self.table = tf.lookup.StaticHashTable(table, ids.get(UNK, -1))
        self.words = tf.Variable(list(words), trainable=False)
        self.eos = words.index(EOS) if EOS in words else None
        self.tokenization = tokenization
        self.left_out = ("", *dropped)
        self.space = character_class(r"[^\S\n]")
        if tokenization == "words":
            self.pattern = PATTERNS["words"].removeprefix(r"\n|").replace(r"\p{M}", character_class(r"\p{M}"))
            for name in (r"[^\w\s]", r"\w"):
                self.pattern = self.pattern.replace(name, f"[{character_class(name)}]")

    def __len__(self) -> int:
        return self.words.shape[0]

    def encode(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Returns the ids, ragged `[batch, None]` int32, of strings `[batch]`.

        Line ends become `<eos>`. An `<eos>` before a line end counts once with it.
        """
        texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")
        texts = tf.strings.regex_replace(texts, r"\r\n?", "\n")  # as Python reads text files
        texts = tf.strings.regex_replace(self._divide(texts), "\n", " \n ")
        words = tf.strings.split(texts, " ")
        for word in self.left_out:
            words = tf.ragged.boolean_mask(words, words != word)
        words = tf.concat([words, tf.fill([tf.size(texts), 1], "")], axis=1)  # separates the texts
        is_double = (words.flat_values == EOS) & (tf.roll(words.flat_values, -1, 0) == "\n")
        words = tf.ragged.boolean_mask(words, words.with_flat_values((words.flat_values != "") & ~is_double))
        ids = self.table.lookup(words)
        return tf.ragged.boolean_mask(ids, ids >= 0)

    def _divide(self, texts: tf.Tensor) -> tf.Tensor:
        """Returns texts whose words are separated by spaces or line ends."""
        if isinstance(self.tokenization, KerasTokenizer):
            texts = tf.strings.regex_replace(texts, r"\x00", "\ufffd")  # `lower` would end the text there
            texts = tf.strings.lower(texts, encoding="utf-8") if self.tokenization.lower else texts
            filtered = _characters(self.tokenization.filters.replace("\n", ""))
            return tf.strings.regex_replace(texts, filtered, " ") if filtered else texts
        if self.tokenization == "text_vectorization":
            texts = tf.strings.regex_replace(tf.strings.lower(texts), _characters(PUNCTUATION), "")
            return tf.strings.regex_replace(texts, r"[\t\v\f]", " ")
        if self.tokenization == "words":
            texts = tf.strings.regex_replace(texts, f"({self.pattern})", r" \1 ")
        return tf.strings.regex_replace(texts, f"[{self.space}]", " ")


def _characters(characters: str) -> str:
    """Returns the RE2 class of some characters; "" for none."""
    return "[" + "".join(f"\\x{{{ord(character):x}}}" for character in characters) + "]" if characters else ""
