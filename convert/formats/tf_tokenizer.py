"""The tokenization of `jaxlm prepare` in TensorFlow's own operations, so that a SavedModel accepts strings."""

import functools

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

    Without words for them, line ends (`<eos>`) and unknown words (`<unk>`) are left out.

    Args:
      words: in the order of the ids.
      tokenization: how text is cut.
      dropped: words that are left out of texts.

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
        words = tf.concat([words, tf.fill([tf.size(texts), 1], "")], axis=1)  # so that no text is next to another
        is_double = (words.flat_values == EOS) & (tf.roll(words.flat_values, -1, 0) == "\n")
        words = tf.ragged.boolean_mask(words, words.with_flat_values((words.flat_values != "") & ~is_double))
        ids = self.table.lookup(words)
        return tf.ragged.boolean_mask(ids, ids >= 0)

    def _divide(self, texts: tf.Tensor) -> tf.Tensor:
        """Returns texts whose words are divided by spaces or line ends."""
        if isinstance(self.tokenization, KerasTokenizer):
            texts = tf.strings.regex_replace(texts, r"\x00", "\ufffd")  # where `lower` would cut a text off
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
