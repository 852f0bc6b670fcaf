"""Token files and batches: the vocabulary from training text alone, streams contiguous, every label once."""

import numpy as np
import pytest
from jaxlm.data import (
    batches_per_epoch,
    evaluation_batches,
    load_corpus,
    load_tokens,
    oov_rate,
    prepare,
    train_batch,
    unigram_loss,
)

from jaxlm.errors import InputError
from jaxlm.vocabulary import UNK


def test_vocabulary_comes_from_the_training_text_alone(tmp_path):
    for name, text in (("train", "a a b\n" * 9), ("valid", "a c\n" * 9), ("test", "d\n" * 9)):
        (tmp_path / name).write_text(text)
    corpus = prepare(
        [tmp_path / "train"], tmp_path / "out", valid=tmp_path / "valid", test=tmp_path / "test", vocab_size=10
    )
    assert set(corpus.vocabulary.words) == {"a", "b", "<eos>", UNK}
    assert corpus.vocabulary.counts[corpus.vocabulary.ids[UNK]] == 0
    assert {name: tokens.size for name, tokens in corpus.parts.items()} == {"train": 36, "valid": 27, "test": 18}
    assert oov_rate(corpus.valid, corpus.vocabulary) == pytest.approx(1 / 3)
    counts = np.maximum(np.bincount(corpus.train, minlength=4), 1)
    expected = -np.log(counts / counts.sum())[corpus.valid[1:]].mean()
    assert unigram_loss(corpus.valid, corpus.vocabulary) == pytest.approx(expected, rel=1e-5)


def test_held_out_tail_is_no_part_of_the_vocabulary(tmp_path):
    path = tmp_path / "text"
    path.write_text("a b c d\n" * 1000 + "only in the tail\n")
    corpus = prepare([path], tmp_path / "out", vocab_size=100)
    assert "tail" not in corpus.vocabulary.ids
    sizes = {name: tokens.size for name, tokens in corpus.parts.items()}
    assert sum(sizes.values()) == 5005
    assert 200 <= sizes["valid"] <= 260 and 200 <= sizes["test"] <= 260
    end = corpus.vocabulary.ids["<eos>"]
    assert corpus.train[-1] == end and corpus.valid[-1] == end


def test_several_files_and_an_existing_directory(tmp_path, text_file):
    out = tmp_path / "out"
    corpus = prepare([text_file, text_file], out, vocab_size=50)
    once = prepare([text_file], tmp_path / "once", vocab_size=50)
    total = sum(tokens.size for tokens in corpus.parts.values())
    assert total == 2 * sum(tokens.size for tokens in once.parts.values())
    before = (out / "train.npy").read_bytes()
    with pytest.raises(InputError, match="exists already"):
        prepare([text_file], out)
    assert (out / "train.npy").read_bytes() == before


def test_nothing_is_left_of_a_failure(tmp_path):
    (tmp_path / "bad").write_bytes(b"good text\n" * 99 + b"\xff\n")
    with pytest.raises(InputError, match="not UTF-8"):
        prepare([tmp_path / "bad"], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_training_batches_are_contiguous_streams():
    tokens = np.arange(1000, 1101, dtype=np.int32)
    assert batches_per_epoch(tokens.size, 4, 6) == 4
    rows = [train_batch(tokens, step, 4, 6) for step in range(5)]
    stream = np.concatenate([batch.inputs for batch in rows[:4]], axis=1)
    np.testing.assert_array_equal(stream, 1000 + np.arange(4)[:, None] * 25 + np.arange(24))
    for batch in rows:
        np.testing.assert_array_equal(batch.labels, batch.inputs + 1)
    np.testing.assert_array_equal(rows[4].inputs, rows[0].inputs)  # the next epoch
    with pytest.raises(InputError, match="too few"):
        batches_per_epoch(24, 4, 6)


@pytest.mark.parametrize(("size", "batch_size"), [(2, 1), (101, 4), (103, 4), (50, 49), (98, 7)])
def test_evaluation_has_each_word_once(size, batch_size):
    tokens = np.arange(size, dtype=np.int32)
    labels, last = [], None
    for inputs, label, mask in evaluation_batches(tokens, batch_size, 5):
        assert inputs.shape == label.shape == mask.shape == (batch_size, 5)
        labels += label[mask].tolist()
        np.testing.assert_array_equal(label[mask], inputs[mask] + 1)
        if last is not None:
            np.testing.assert_array_equal(inputs[:, 0][mask[:, 0]], last[mask[:, 0]])
        last = label[:, -1]
    assert sorted(labels) == list(range(1, size))


def test_part_of_an_evaluation_lies_evenly_over_the_text():
    tokens = np.arange(10_001, dtype=np.int32)
    labels = np.concatenate([label[mask] for _, label, mask in evaluation_batches(tokens, 10, 7, 95)])
    assert labels.size == 100
    assert set(labels // 1000) == set(range(10))


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


def test_a_given_vocabulary_is_used_as_it_is(text_file, corpus_dir, tmp_path):
    """Words that the text does not hold keep their places; words of the text alone become <unk>."""
    whole = load_corpus(corpus_dir)
    part = tmp_path / "part.txt"
    part.write_text("whale Leviathan the\n" * 40, encoding="utf-8")
    other = tmp_path / "other.txt"
    other.write_text("sea\n" * 9, encoding="utf-8")  # a word that the training text does not hold
    corpus = prepare([part], tmp_path / "data", valid=other, vocabulary=whole.vocabulary)
    assert corpus.valid[0] == whole.vocabulary.ids["sea"]
    assert corpus.vocabulary == whole.vocabulary
    ids = [whole.vocabulary.ids[word] for word in ("whale", "<unk>", "the", "<eos>")]
    assert corpus.train[:8].tolist() == ids + ids
