"""Texts to a corpus: the vocabulary comes from the training text alone; damaged files are named."""

from dataclasses import replace

import numpy as np
import pytest

from jaxlm.data.corpus import Corpus, load_corpus, load_tokens, oov_rate, unigram_loss
from jaxlm.data.preparation import prepare
from jaxlm.data.vocabulary import UNK, Vocabulary
from jaxlm.errors import InputError


def sizes_of(corpus: Corpus) -> dict[str, int]:
    return {name: tokens.size for name, tokens in zip(Corpus._fields[1:], corpus[1:], strict=True)}


def test_vocabulary_comes_from_the_training_text_alone(tmp_path):
    for name, text in (("train", "a a b\n" * 9), ("valid", "a c\n" * 9), ("test", "d\n" * 9)):
        (tmp_path / name).write_text(text)
    corpus = prepare(
        [tmp_path / "train"], tmp_path / "out", valid=tmp_path / "valid", test=tmp_path / "test", vocab_size=10
    )
    assert set(corpus.vocabulary.words) == {"a", "b", "<eos>", UNK}
    assert corpus.vocabulary.counts[corpus.vocabulary.ids[UNK]] == 0
    assert sizes_of(corpus) == {"train": 36, "valid": 27, "test": 18}
    assert oov_rate(corpus.valid, corpus.vocabulary) == pytest.approx(1 / 3)
    counts = np.maximum(np.bincount(corpus.train, minlength=4), 1)
    expected = -np.log(counts / counts.sum())[corpus.valid[1:]].mean()
    assert unigram_loss(corpus.valid, corpus.counts) == pytest.approx(expected, rel=1e-5)


def test_the_held_out_tail_is_not_counted_in_the_vocabulary(tmp_path):
    path = tmp_path / "text"
    path.write_text("a b c d\n" * 1000 + "only in the tail\n")
    corpus = prepare([path], tmp_path / "out", vocab_size=100)
    assert "tail" not in corpus.vocabulary.ids
    sizes = sizes_of(corpus)
    assert sum(sizes.values()) == 5005
    assert 200 <= sizes["valid"] <= 260 and 200 <= sizes["test"] <= 260
    end = corpus.vocabulary.ids["<eos>"]
    assert corpus.train[-1] == end and corpus.valid[-1] == end


def test_several_files_and_an_existing_directory(tmp_path, text_file):
    out = tmp_path / "out"
    corpus = prepare([text_file, text_file], out, vocab_size=50)
    once = prepare(str(text_file), str(tmp_path / "once"), vocab_size=50)
    assert sum(sizes_of(corpus).values()) == 2 * sum(sizes_of(once).values())
    before = (out / "train.npy").read_bytes()
    with pytest.raises(InputError, match="already exists"):
        prepare([text_file], out)
    assert (out / "train.npy").read_bytes() == before


def test_a_failure_leaves_nothing_behind(tmp_path):
    (tmp_path / "bad").write_bytes(b"good text\n" * 99 + b"\xff\n")
    with pytest.raises(InputError, match="not UTF-8"):
        prepare([tmp_path / "bad"], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


@pytest.mark.parametrize("tokenization", ["words", "whitespace"])
@pytest.mark.parametrize("chunk", [7, 1 << 18])
def test_markers_of_other_toolkits(tmp_path, tokenization, chunk, monkeypatch):
    monkeypatch.setattr("jaxlm.data.text_files.CHUNK_BYTES", chunk)
    lines = ["the sea", "a <UNK> whale", "", "the ship"] * 50
    (tmp_path / "plain").write_text("".join(f"{line}\n" for line in lines).replace("<UNK>", "<unk>"))
    (tmp_path / "marked").write_text("".join(f"<s> {line} </s> <eos> \n" for line in lines))
    options = {"tokenization": tokenization, "vocab_size": 6}
    for name in ("plain", "marked"):
        options |= {"valid": tmp_path / name, "test": tmp_path / name}
        if name == "plain":
            plain = prepare(tmp_path / name, tmp_path / "a", **options)
        else:
            marked = prepare(tmp_path / name, tmp_path / "b", **options, unk="<UNK>", drop=["<s>", "</s>"])
    assert plain.vocabulary == replace(marked.vocabulary, dropped=())
    text = "<s> the sea <eos> </s>\n<s> </s>\n"
    assert Vocabulary.load(tmp_path / "b" / "vocabulary.json").encode(text).tolist() == [
        *marked.vocabulary.encode("the sea\n\n")
    ]
    again = prepare(tmp_path / "marked", tmp_path / "c", vocabulary=marked.vocabulary)
    assert again.vocabulary == marked.vocabulary and again.train.tolist() == marked.train.tolist()[: again.train.size]
    np.testing.assert_array_equal(plain.train, marked.train)
    np.testing.assert_array_equal(plain.valid, marked.valid)
    text = "the sea <eos>\n<eos> \n"
    assert plain.vocabulary.encode(text).tolist() == plain.vocabulary.encode("the sea\n\n").tolist()


def test_damaged_files_are_named(corpus_dir, tmp_path):
    vocabulary = load_corpus(corpus_dir).vocabulary
    good = (corpus_dir / "train.npy").read_bytes()
    path = tmp_path / "train.npy"
    for data in (good[:-5], good[:40], b"", b"\0" * 200):
        path.write_bytes(data)
        with pytest.raises(InputError, match="train.npy"):
            load_tokens(path, vocabulary)
    for array in (np.zeros(5), np.zeros((2, 2), np.int32), np.array([0, len(vocabulary)], np.int32)):
        np.save(path, array)
        with pytest.raises(InputError, match="expected"):
            load_tokens(path, vocabulary)
    np.save(path, np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match="damaged"):
        load_tokens(path, vocabulary)
    for missing in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError):
            load_corpus(missing)


def test_a_given_vocabulary_is_used_unchanged(text_file, corpus_dir, tmp_path):
    """Words that the text lacks keep their ids; words that the vocabulary lacks become <unk>."""
    whole = load_corpus(str(corpus_dir))
    part = tmp_path / "part.txt"
    part.write_text("whale Leviathan the\n" * 40, encoding="utf-8")
    other = tmp_path / "other.txt"
    other.write_text("sea\n" * 9, encoding="utf-8")  # a word that the training text lacks
    corpus = prepare([part], tmp_path / "data", valid=other, vocabulary=whole.vocabulary)
    assert corpus.valid[0] == whole.vocabulary.ids["sea"]
    assert corpus.vocabulary == whole.vocabulary
    ids = [whole.vocabulary.ids[word] for word in ("whale", "<unk>", "the", "<eos>")]
    assert corpus.train[:8].tolist() == ids + ids
