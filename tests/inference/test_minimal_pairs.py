"""Minimal pairs: the forms of their files, the accuracy by group, and its interval."""

import csv
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from jaxlm.cli import run
from jaxlm.errors import InputError
from jaxlm.inference.minimal_pairs import Accuracy, accuracies, read_pairs, score_pairs
from jaxlm.inference.nbest_costs import read_costs
from jaxlm.inference.nbest_forms import read_nbest
from jaxlm.inference.scoring import LineScore, score
from jaxlm.runs.directory import load_model

PAIRS = [("the whale", "whale the the", "0"), ("sea of and", "the sea of", "1"), ("a zebra", "a walrus", "0")]
FORMS = {
    "pairs.jsonl": [json.dumps({"sentence_good": g, "sentence_bad": b, "UID": int(u)}) for g, b, u in PAIRS],
    "pairs.tsv": ["\t".join(pair) for pair in PAIRS],
    "short_names.tsv": ["Group\tBad\tGood \tid", *("\t".join((u, b, g, "7")) for g, b, u in PAIRS)],
    "header.tsv": ["UID\tsentence_bad\tsentence_good", *("\t".join((u, b, g)) for g, b, u in PAIRS)],
}


def _add(line: LineScore, number: int) -> LineScore:
    return line._replace(log_probabilities=line.log_probabilities - 1e-7 * number)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_same_accuracy(run_dir, tmp_path, capsys, form):
    model, vocabulary, _ = load_model(run_dir)
    found = list(score_pairs(model, vocabulary, read_pairs(["", *FORMS[form]], form)))
    assert [pair[:3] for pair in found] == PAIRS
    right = []
    for pair in found:
        good, bad = (line.log_probability for line in score(model, vocabulary, pair[:2]))
        np.testing.assert_allclose(pair[3:], (good, bad), rtol=1e-6)
        right.append(good > bad)
    assert not right[2]  # the same ids are no success, with or without rounding
    others = read_pairs(FORMS[form], form)
    rounded = list(score_pairs(model, vocabulary, others, seen=lambda lines: map(_add, lines, itertools.count())))
    assert [pair.is_right for pair in rounded] == right
    expected = [("0", 2, right[0] + right[2]), ("1", 1, right[1]), ("all", 3, sum(right))]
    assert [tuple(row) for row in accuracies(found)] == expected
    (tmp_path / form).write_text("\n".join(FORMS[form]))
    assert run(["compare", str(run_dir), str(tmp_path / form), "--failed", str(tmp_path / "failed.tsv")]) == 0
    output = capsys.readouterr()
    assert "1 of 3 pairs have equal log-probabilities, and count as wrong" in output.err
    rows = list(csv.DictReader(output.out.splitlines(), delimiter="\t"))
    assert [row["group"] for row in rows] == ["0", "1", "all"]
    np.testing.assert_allclose([float(row["accuracy"]) for row in rows], [n / m for _, m, n in expected])
    failed = list(csv.DictReader((tmp_path / "failed.tsv").open(), delimiter="\t"))
    assert [row["sentence_good"] for row in failed] == [p[0] for p, ok in zip(PAIRS, right, strict=True) if not ok]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('"Go," he said\t"Go," said he', ('"Go," he said', '"Go," said he')),
        ('"Go!" "Stay!"\t"', ('"Go!" "Stay!"', '"')),
        ('"say ""go"""\tsay "go"', ('say "go"', 'say "go"')),
        ("don't\tdo'nt\tx", ("don't", "do'nt")),
    ],
)
def test_quotation_marks_within_a_column_belong_to_the_sentence(line, expected):
    assert next(read_pairs([line], "pairs"))[:2] == expected


@pytest.mark.parametrize(("pairs", "right"), [(1, 0), (7, 7), (67, 41), (1000, 988)])
def test_the_interval_is_that_of_scipy(pairs, right):
    expected = binomtest(right, pairs).proportion_ci(method="wilson")
    np.testing.assert_allclose(Accuracy("", pairs, right).interval, expected, atol=1e-6)


@pytest.mark.parametrize(
    "line",
    [
        "one sentence",
        '{"sentence_good": "a"}',
        "{",
        '{"sentence_good": "a", "sentence_bad": 3}',
        "a\t",
        "[1]",
        "a\tb\tc\td",
    ],
)
def test_a_bad_line_is_named(line):
    with pytest.raises(InputError, match="pairs, line 2: expected a JSON object"):
        list(read_pairs(["a\tb", line], "pairs"))


LINE = (
    st.text(st.sampled_from('ab-1 .|\t"{}:0,()')) | st.text() | st.sampled_from(["a-1 b", "0 ||| a ||| b ||| 1", "1 a"])
)


@settings(max_examples=300, deadline=None)
@given(st.lists(LINE, max_size=4))
def test_any_lines_are_read_or_refused(lines):
    for read in (read_pairs, read_nbest, read_costs):
        try:
            list(read(lines, "file"))
        except InputError as error:
            assert str(error).startswith(("file, line ", "file has no "))
