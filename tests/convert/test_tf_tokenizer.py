"""The tokens of a SavedModel are those of `jaxlm prepare`, for any text."""

import hypothesis
import hypothesis.strategies as st
import pytest
import tensorflow as tf

from convert.tf_tokenizer import TfTokenizer
from jaxlm.text import read_chunks
from jaxlm.vocabulary import Vocabulary

WORDS = ("the", "<eos>", "<unk>", ",", "don", "’", "t", "é", "naïve", "x_1", "_", "🎉", "日本語", "½", "a\u0301", ".")
WORDS += ("<", ">", "-", "\u200d", "Straße", "word٣")


def prepared_ids(text: str, vocabulary: Vocabulary, tmp_path) -> list[int]:
    """Returns the ids that `jaxlm prepare` makes of a file."""
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode("utf-8"))
    return [int(i) for chunk in read_chunks([path]) for i in vocabulary.encode(chunk)]


@pytest.fixture(scope="module", params=["words", "whitespace"])
def tokenizers(request):
    vocabulary = Vocabulary(WORDS, (0,) * len(WORDS), request.param)
    return vocabulary, TfTokenizer(WORDS, request.param)


TEXTS = [
    "the naïve don’t x_1 <unk> <eos> a\u0301 <eo s>",
    "  the\tthe\u00a0the\u3000the\u2028the\x85the\x1cthe\x0bthe\x0cthe ",
    "🎉🎉 👩\u200d👩\u200d👧 日本語 日本 ½½ Straße word٣ word3",
    "one\r\ntwo\rthree\n\nfour",
    "<<unk>> <unk><eos>the<unk>the",
    "\x00the\ufeff\ufffd\U0010ffff\ue000 the\u0000",
    "the " * 5000,
]


@pytest.mark.parametrize("text", TEXTS)
def test_difficult_texts_are_cut_as_by_prepare(tokenizers, text, tmp_path):
    vocabulary, tokenizer = tokenizers
    expected = prepared_ids(text + "\n", vocabulary, tmp_path)
    assert tokenizer.encode(tf.constant([text + "\n", ""])).to_list() == [expected, []]


@hypothesis.settings(deadline=None, max_examples=60, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(
    st.lists(st.one_of(st.text(max_size=8), st.sampled_from(WORDS), st.sampled_from(" \n\t")), min_size=1).map("".join)
)
def test_any_text_is_cut_as_by_the_vocabulary(tokenizers, text):
    vocabulary, tokenizer = tokenizers
    text = text.replace("\r", " ")  # only files are read with universal newlines
    assert tokenizer.encode(tf.constant([text])).to_list() == [vocabulary.encode(text).tolist()]


def test_a_corpus_is_cut_as_by_prepare(text_file, corpus_dir, tmp_path):
    vocabulary = Vocabulary.load(corpus_dir / "vocabulary.json")
    lines = text_file.read_text(encoding="utf-8").splitlines(keepends=True)
    ids = TfTokenizer(vocabulary.words, vocabulary.tokenization).encode(tf.constant(lines))
    assert ids.flat_values.numpy().tolist() == prepared_ids("".join(lines), vocabulary, tmp_path)
