"""The tokens of a SavedModel are those of `jaxlm prepare`, for any text."""

import hypothesis
import hypothesis.strategies as st
import pytest
import tensorflow as tf

from convert.formats.tf_tokenizer import TfTokenizer
from jaxlm.data.text_files import read_chunks
from jaxlm.data.tokenization import KerasTokenizer
from jaxlm.data.vocabulary import EOS, UNK, Vocabulary

WORDS = ("the", "<eos>", "<unk>", ",", "don", "’", "t", "é", "naïve", "x_1", "_", "🎉", "日本語", "½", "a\u0301", ".")
WORDS += (
    "<",
    ">",
    "-",
    "\u200d",
    "Straße",
    "word٣",
    "می\u200cخواهم",
    "क्\u200dष",
    "👩\u200d👩\u200d👧",
    "👍🏽",
    "🇩🇪",
    "❤\ufe0f",
    "1\ufe0f\u20e3",
)
TOKENIZATIONS = ["words", "whitespace", "text_vectorization", KerasTokenizer(), KerasTokenizer(False, "#")]


def prepared_ids(text: str, vocabulary: Vocabulary, tmp_path) -> list[int]:
    """Returns the ids that `jaxlm prepare` makes of a file."""
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode("utf-8"))
    return [int(i) for chunk in read_chunks([path]) for i in vocabulary.encode(chunk)]


@pytest.fixture(scope="module", params=TOKENIZATIONS, ids=str)
def tokenizers(request):
    vocabulary = Vocabulary(WORDS, (0,) * len(WORDS), request.param, ("<s>", "</s>"))
    return vocabulary, TfTokenizer(WORDS, request.param, vocabulary.dropped)


TEXTS = [
    "the naïve don’t x_1 <unk> <eos> a\u0301 <eo s>",
    "  the\tthe\u00a0the\u3000the\u2028the\x85the\x1cthe\x0bthe\x0cthe ",
    "🎉🎉 👩\u200d👩\u200d👧 日本語 日本 ½½ Straße word٣ word3",
    "one\r\ntwo\rthree\n\nfour",
    "<<unk>> <unk><eos>the<unk>the <|endoftext|>the [CLS] <unknown><bos> [the] <|the|>",
    "the\ufeff\ufffd\U0010ffff\ue000 the",
    "the " * 5000,
    "می\u200cخواهم क्\u200dष a\u0301, \u200dthe, the\u200d",
    "👩\u200d👩\u200d👧 👍🏽👍🏽, 🇩🇪🇩🇪 ❤\ufe0fthe 1\ufe0f\u20e3 🏳\ufe0f\u200d🌈",
    "the <eos>\n<eos>\n<eos><eos>\nthe <eos> \t\n the<eos>\n\n<eos> <eos>\n<EOS>\n<eos>",
    "<s> the </s>\n<s> the <eos> </s>\n<s> <s>\n</s>the<s> <S>",
    "The THE naïve NAÏVE É don't #the, ΟΔΟΣ. ΣΑΣ-Σ",
]


@pytest.mark.parametrize("text", TEXTS)
def test_difficult_texts_are_cut_as_by_prepare(tokenizers, text, tmp_path):
    vocabulary, tokenizer = tokenizers
    expected = prepared_ids(text + "\n", vocabulary, tmp_path)
    texts = [text + "\n", "", "<eos>", "\n"]  # the last line end is not that of the text before it
    assert tokenizer.encode(tf.constant(texts)).to_list() == [
        expected,
        *(vocabulary.encode(t).tolist() for t in texts[1:]),
    ]


def test_nul_bytes_are_cut_as_by_the_vocabulary(tokenizers):
    vocabulary, tokenizer = tokenizers
    text = "\x00the\ufeff\ufffd\U0010ffff\ue000 the\u0000"  # `jaxlm prepare` refuses files with such bytes
    assert tokenizer.encode(tf.constant([text])).to_list() == [vocabulary.encode(text).tolist()]


@hypothesis.settings(deadline=None, max_examples=25, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(
    st.lists(
        st.one_of(st.text(max_size=8), st.sampled_from((*WORDS, "<s>", "</s>")), st.sampled_from(" \n\t")), min_size=1
    ).map("".join)
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


def test_without_words_for_them_unknown_words_and_line_ends_are_left_out(tmp_path):
    words = tuple(word for word in WORDS if word not in (UNK, EOS))
    for tokenization in TOKENIZATIONS:
        vocabulary, tokenizer = Vocabulary(words, None, tokenization), TfTokenizer(words, tokenization)
        text = "the unheard\nnaïve the\n"
        ids = [words.index(word) for word in ("the", "naïve", "the")]
        assert tokenizer.encode(tf.constant([text])).to_list() == [ids] == [prepared_ids(text, vocabulary, tmp_path)]
