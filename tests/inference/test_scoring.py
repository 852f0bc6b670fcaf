"""Scores of lines: the numbers of full logits and of `evaluate`, however the lines are cut into batches."""

import csv
import gzip
import io
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers import make_random_model

from jaxlm.cli import run
from jaxlm.data.text_files import read_lines
from jaxlm.data.vocabulary import Vocabulary
from jaxlm.errors import InputError
from jaxlm.inference.perplexity import evaluate
from jaxlm.inference.scoring import score
from jaxlm.inference.unknown_words import UnknownWords
from jaxlm.runs.directory import load_model

WORDS = ("the", "<eos>", "<unk>", ",", "whale", "sea", "of", "and", "ship", "a", "it", "was", "in", "x", "y", "z")
LINES = ["the whale, the sea", "", "the zebra of the unicorn", "z " * 300, "a", "it was in the sea and " * 7, "y, x"]


def make(missing: tuple[str, ...] = (), **change: int):
    words = tuple(word for word in WORDS if word not in missing)
    return make_random_model(vocab_size=len(words), **change), Vocabulary(words, None, "words")


def full_scores(model, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-probabilities, ranks and entropies of the ids after the first, from full logits."""
    padded = np.pad(ids[:-1], (0, -(len(ids) - 1) % 512))  # of few lengths, so that few programs are compiled
    log_probabilities = np.asarray(jax.nn.log_softmax(model(padded[None])[0][0]), np.float64)[: len(ids) - 1]
    own = log_probabilities[np.arange(len(ids) - 1), ids[1:]]
    ranks = 1 + (log_probabilities > own[:, None]).sum(axis=1)
    return own, ranks, -(np.exp(log_probabilities) * log_probabilities).sum(axis=1)


@pytest.mark.parametrize("batch_words", [1, 64, 1024])
def test_sentences_have_the_numbers_of_full_logits_in_their_order(batch_words):
    model, vocabulary = make()
    scores = list(score(model, vocabulary, LINES, batch_words=batch_words))
    assert [line.words for line in scores][:2] == [["the", "whale", ",", "the", "sea", "<eos>"], ["<eos>"]]
    for text, line in zip(LINES, scores, strict=True):
        log_probabilities, ranks, entropies = full_scores(model, np.array([1, *vocabulary.encode(text), 1]))
        np.testing.assert_allclose(line.log_probabilities, log_probabilities, atol=2e-5)
        np.testing.assert_allclose(line.entropies, entropies, atol=2e-5)
        assert line.ranks.tolist() == ranks.tolist()
        assert line.num_words == len(log_probabilities)
        assert math.isclose(line.perplexity, math.exp(-log_probabilities.mean()), rel_tol=1e-5)
    assert [line.num_unknown for line in scores] == [0, 0, 2, 0, 0, 0, 0]


@pytest.mark.parametrize("batch_words", [5, 1024])
def test_one_text_has_the_loss_of_evaluate(batch_words):
    model, vocabulary = make()
    lines = LINES * 5
    ids = np.array([1, *vocabulary.encode("".join(line + "\n" for line in lines))])
    scores = list(score(model, vocabulary, lines, carry=True, batch_words=batch_words))
    loss = evaluate(model, ids, batch_size=1)
    assert sum(line.num_words for line in scores) == loss.num_tokens == ids.size - 1
    np.testing.assert_allclose(sum(line.log_probability for line in scores), -loss.loss * loss.num_tokens, rtol=1e-5)
    log_probabilities, ranks, entropies = full_scores(model, ids)
    np.testing.assert_allclose(
        np.concatenate([line.log_probabilities for line in scores]), log_probabilities, atol=2e-5
    )
    np.testing.assert_allclose(np.concatenate([line.entropies for line in scores]), entropies, atol=2e-5)
    np.testing.assert_array_equal(np.concatenate([line.ranks for line in scores]), ranks)


@pytest.mark.parametrize("carry", [False, True])
def test_a_vocabulary_may_lack_line_ends_and_unknown_words(carry):
    model, vocabulary = make(missing=("<unk>", "<eos>"))
    lines = ["", "zebra", "the zebra of the sea", "", "whale", "it was the sea"]
    scores = list(score(model, vocabulary, lines, carry=carry))
    assert [line.words for line in scores] == [line.split() for line in lines]
    assert [line.num_unknown for line in scores] == [0, 1, 1, 0, 0, 0]
    assert [line.num_words for line in scores] == ([0, 0, 3, 0, 1, 4] if carry else [0, 0, 3, 0, 0, 3])
    assert math.isnan(scores[0].perplexity) and scores[0].log_probability == 0
    assert np.isnan(scores[2].log_probabilities).tolist() == [True, True, False, False, False]
    texts = [" ".join(lines)] if carry else lines
    for text in texts:
        ids = vocabulary.encode(text)
        expected = full_scores(model, ids)[0].sum() if ids.size > 1 else 0.0
        found = sum(line.log_probability for line in scores) if carry else scores[lines.index(text)].log_probability
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_unknown_words_share_unk_or_do_not_count():
    model, vocabulary = make()
    (plain,) = score(model, vocabulary, [LINES[2]])
    (shared,) = score(model, vocabulary, [LINES[2]], unk_log_prob=-3.0)
    (ignored,) = score(model, vocabulary, [LINES[2]], ignore_unk=True)
    np.testing.assert_allclose(shared.log_probability, plain.log_probability - 6.0, rtol=1e-6)
    np.testing.assert_allclose(
        ignored.log_probability, plain.log_probability - plain.log_probabilities[plain.unknown].sum(), rtol=1e-6
    )
    assert (plain.num_words, shared.num_words, ignored.num_words) == (6, 6, 4)
    assert plain.num_unknown == shared.num_unknown == ignored.num_unknown == 2


def test_one_text_is_a_sequence_of_one():
    model, vocabulary = make()
    (line,) = score(model, vocabulary, "the sea")
    assert line.words == ["the", "sea", "<eos>"]
    (same,) = score(model, vocabulary, ["the sea <eos>"])
    assert same.words == line.words and same.log_probability == line.log_probability


def test_parts_of_words_add_up_to_words_between_blanks(tmp_path, run_dir, capsys):
    model, vocabulary = make()
    (line,) = score(model, vocabulary, ["\tThe dog, didn't  see\u00a0it."])
    assert line.words == ["The", "dog", ",", "didn", "'", "t", "see", "it", ".", "<eos>"]
    assert line.regions.tolist() == [1, 2, 2, 3, 3, 3, 4, 4, 4, 5]
    (tmp_path / "s").write_text('don\'t, the "NA" null\n\nthe sea.\n')
    _, parts, _ = command(capsys, "score", run_dir, tmp_path / "s", "--per-word", "--format", "jsonl")
    _, table, _ = command(capsys, "score", run_dir, tmp_path / "s", "--by-word")
    rows = list(csv.DictReader(table, delimiter="\t"))
    words = ["don't,", "the", '"NA"', "null", "<eos>", "<eos>", "the", "sea.", "<eos>"]
    assert [row["word"] for row in rows] == words and rows[0]["parts"] == "don ' t ,"
    assert [row["region"] for row in rows] == list("123451123")
    for row in rows:
        place = int(row["line"]), int(row["region"])
        members = [part for part in map(json.loads, parts) if (part["line"], part["region"]) == place]
        total = sum(part["surprisal_bits"] for part in members)
        np.testing.assert_allclose(float(row["surprisal_bits"]), total, rtol=1e-6)
        assert row["parts"].split() == [part["word"] for part in members]
    assert command(capsys, "score", run_dir, tmp_path / "s", "--by-word", "--per-word")[0] == 2


@pytest.mark.parametrize(
    ("tokenization", "text", "words"),
    [
        (
            "text_vectorization",
            "The sea -- \t#",
            [("The", "the"), ("sea", "sea"), ("--", ""), ("#", ""), ("<eos>", "<eos>")],
        ),
        ("text_vectorization", "-", [("-", ""), ("<eos>", "<eos>")]),
        ("text_vectorization", "", [("<eos>", "<eos>")]),
        ("words", "<s> the </s>", [("<s>", ""), ("the", "the"), ("</s>", ""), ("<eos>", "<eos>")]),
        ("words", "the <eos>", [("the", "the"), ("<eos>", "<eos>")]),
        ("words", "the<eos>", [("the<eos>", "the"), ("<eos>", "<eos>")]),
    ],
)
def test_words_between_blanks_without_parts_have_rows(monkeypatch, capsys, tmp_path, tokenization, text, words):
    model, vocabulary = make()
    vocabulary = replace(vocabulary, tokenization=tokenization, dropped=("<s>", "</s>"))
    monkeypatch.setattr(
        "jaxlm.runs.directory.load_model", lambda _: SimpleNamespace(model=model, vocabulary=vocabulary)
    )
    (tmp_path / "s").write_text(text + "\nthe\n")
    _, lines, _ = command(capsys, "score", "run", tmp_path / "s", "--by-word", "--format", "jsonl")
    rows = [row for row in map(json.loads, lines) if row["line"] == 1]
    assert [(row["word"], row["parts"]) for row in rows] == words
    assert [row["surprisal_bits"] is None for row in rows] == [not parts for _, parts in words]


@pytest.mark.parametrize(
    ("lines", "reason", "others"),
    [
        (["THE WHALE OF THE SEA"], "is in upper case, and the vocabulary is in lower case: lower-case the text", {}),
        (["THE WHALE OF THE SEA"], "is in upper case, and the vocabulary has both cases", {"of": "Of"}),
        (["The Whale, The Sea"], "has capitals, and the vocabulary is in lower case", {}),
        (["The Whale, The Sea"], "has capitals, and the vocabulary has both cases", {"of": "Of"}),
        (["of of the sea"], "is in lower case, and the vocabulary has capitals", {"of": "Of"}),
        (
            ["se\u0301a of the whale"],
            "differ from those of the vocabulary only in their Unicode form",
            {"sea": "s\xe9a"},
        ),
        (["s\xe9a of the whale"], "Convert the text to NFD", {"sea": "se\u0301a"}),
        (["12 4 88", "7"], "replace ids by words", {}),
        (['{"sentence_good": "the sea", "sentence_bad": "sea the"}'], "jaxlm compare", {}),
        (["<s> the sea of the ship and a whale </s>"], "<s> </s>: remove these markers of another toolkit", {}),
        (["UNK sea UNK"], "has markers of another toolkit", {}),
        (["un@@ known"], "language", {}),
        (["Der Wal und das Meer"], "another language", {}),
        (['" Wal " " und "'], "another language", {}),
    ],
)
def test_many_unknown_words_have_a_likely_reason(lines, reason, others):
    model, vocabulary = make()
    vocabulary = replace(vocabulary, words=tuple(others.get(word, word) for word in WORDS))
    unknown = UnknownWords(vocabulary)
    list(unknown.count(score(model, vocabulary, lines)))
    assert reason in unknown.describe() and unknown.describe().startswith("WARNING")


def test_few_unknown_words_are_counted():
    model, vocabulary = make()
    unknown = UnknownWords(vocabulary)
    list(unknown.count(score(model, vocabulary, ["the whale of the zebra", "the sea of it"])))
    assert unknown.describe() == "1 of 9 words (11.1%) are not in the vocabulary"
    assert UnknownWords(vocabulary).describe() is None
    model, vocabulary = make(missing=("<unk>",))
    unknown = UnknownWords(vocabulary)
    list(unknown.count(score(model, vocabulary, ["the whale of the zebra", "the sea of it"])))
    assert unknown.describe().endswith("(11.1%) are not in the vocabulary, which has no <unk>: they do not count")


def test_lines_are_read_as_they_are_needed():
    model, vocabulary = make()
    read = []

    def endless():
        while True:
            read.append(1)
            yield "the whale"

    scores = score(model, vocabulary, endless(), batch_words=32)
    first = [next(scores) for _ in range(200)]
    assert len({line.log_probability for line in first}) < 4 and len(read) < 600


def test_arguments_out_of_range_raise():
    model, vocabulary = make()
    with pytest.raises(InputError, match="`lines`: expected texts. Received: b'abc'"):
        next(score(model, vocabulary, [b"abc"]))
    with pytest.raises(InputError, match="unk_log_prob"):
        score(model, vocabulary, [], unk_log_prob=1.0)
    with pytest.raises(InputError, match="vocabulary"):
        score(model, Vocabulary(("a",), None, "words"), [])
    with pytest.raises(InputError, match="has no <unk>, .*: leave out `unk_log_prob`"):
        score(*make(missing=("<unk>",)), [], unk_log_prob=-3.0)


def test_lines_of_files_of_every_kind(tmp_path, monkeypatch):
    text = "a long line " * 40_000 + "\n\nthe sea"
    (tmp_path / "plain").write_text("\ufeff" + text, encoding="utf-8")
    (tmp_path / "zipped.gz").write_bytes(gzip.compress(text.encode()))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbf" + text.encode() + b"\r\n")))
    for source in (tmp_path / "plain", tmp_path / "zipped.gz", "-"):
        assert list(read_lines(source)) == text.split("\n")


def command(capsys, *arguments: object) -> tuple[int, list[str], list[str]]:
    code = run([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return code, output.out.splitlines(), output.err.splitlines()


def test_score_prints_tables(run_dir, tmp_path, capsys):
    (tmp_path / "text").write_text("the whale of the sea\n\nthe zebra\n")
    model, vocabulary, _ = load_model(run_dir)
    expected = list(score(model, vocabulary, (tmp_path / "text").read_text().splitlines()))
    code, lines, _ = command(capsys, "score", run_dir, tmp_path / "text")
    assert code == 0 and lines[0].split("\t") == ["line", "log_probability", "words", "perplexity", "unknown"]
    for row, line in zip(lines[1:], expected, strict=True):
        np.testing.assert_allclose(float(row.split("\t")[1]), line.log_probability, rtol=1e-6)
    assert [row.split("\t")[::2] for row in lines[1:]][0][1:] == ["6", "0"]
    _, rows, _ = command(capsys, "score", run_dir, tmp_path / "text", "--per-word", "--format", "jsonl")
    objects = [json.loads(row) for row in rows]
    assert [row["word"] for row in objects] == "the whale of the sea <eos> <eos> the zebra <eos>".split()
    np.testing.assert_allclose(objects[1]["surprisal_bits"], -expected[0].log_probabilities[1] / math.log(2), rtol=1e-6)
    assert objects[8]["unknown"] == 1 and objects[1]["rank"] == expected[0].ranks[1]
    _, rows, _ = command(capsys, "score", run_dir, tmp_path / "text", "--per-word", "--ignore-unk")
    assert rows[9].split("\t")[4:] == ["nan", "nan", "0", "nan", "2"]


@pytest.mark.parametrize("form", ["file", "stdin"])
def test_bad_text_is_one_line_with_its_number(run_dir, tmp_path, capsys, monkeypatch, form):
    bad = b"the whale\nthe caf\xe9\n"
    (tmp_path / "text").write_bytes(bad)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(bad)))
    code, _, errors = command(capsys, "score", run_dir, *([tmp_path / "text"] if form == "file" else []))
    assert code == 2 and len(errors) == 1 and "line 2" in errors[0] and "0xe9" in errors[0]
    assert ("text" if form == "file" else "The standard input") in errors[0]


def test_a_closed_pipe_ends_quietly(run_dir):
    command = [sys.executable, "-m", "jaxlm", "score", run_dir, "--per-word"]
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run(command, input=b"the whale\n" * 50, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert result.returncode == 141 and result.stderr == b""
