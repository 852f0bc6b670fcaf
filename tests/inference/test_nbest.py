"""N-best lists: the forms of Kaldi and Moses, there and back, and their totals."""

import numpy as np
import pytest

from jaxlm.cli import run
from jaxlm.errors import InputError
from jaxlm.inference.nbest import best_paths, rescore
from jaxlm.inference.nbest_costs import read_costs, read_scales
from jaxlm.inference.nbest_forms import format_best, format_scored, read_nbest
from jaxlm.inference.scoring import score
from jaxlm.runs.directory import load_model

TEXTS = ["the whale", "the sea of", "", "ship zebra", "and the whale"]
KEYS = ["a-b-1", "a-b-2", "a-b-10", "c-1", "c-2"]
KALDI = [f"{key} {text}".strip() for key, text in zip(KEYS, TEXTS, strict=True)]
MOSES = [
    "0 ||| the whale ||| LM0= -9.5 Distortion0= 0 ||| -4.5",
    "0 ||| the sea of ||| LM0= -7 ||| -4.25 ||| 0-0 1-1",
    "0 |||  ||| LM0= -7 ||| -99",
    "1 ||| ship zebra |||  ||| 1e1",
    "1 ||| and the whale ||| LM0= -1 ||| 9",
]
BAD = [
    (KALDI + ["nonumber words"], "list, line 6: expected `utterance-N words`"),
    (KALDI + MOSES, "list, line 6: expected `utterance-N words`"),
    (MOSES + KALDI, "list, line 6: expected `id"),
    (MOSES[:2] + ["0 ||| a ||| b ||| high"], "list, line 3: expected a number in the fourth field"),
    (["0 ||| a ||| b ||| nan"], "list, line 1: expected a number in the fourth field"),
    (["0 ||| a ||| b ||| inf"], "list, line 1: expected a number in the fourth field"),
    (["0 ||| a ||| high"], "list, line 1: expected a number in the third field"),
    (["a-1 the", "a-1 sea"], "list, line 2: expected each key once; a-1"),
    (["1089-134686-0000 the sea", "1089-134686-0001 a ship"], "a transcript or JSON is not a list"),
    (['{"utts": {"u1": 3}}'], "a transcript or JSON is not a list"),
    (["1 the dog", "u-1 the"], "list, line 2: expected `id words`"),
    (["0\tthe dog\t-3"], "list, line 1: expected words after the first blank"),
    (["u-1 the", "u-2\tthe dog\t-3"], "list, line 2: expected words after the first blank"),
    (["NBestList1.0", "(-12) the", "the"], "list, line 3: expected `\\(score\\) words`"),
    (["-1.5 -2 1 the", "-1.5 nan 1 the"], "list, line 2: expected a number"),
]
OTHER_FORMS = [  # lines, scores, scores of the language model, texts
    (["0 ||| the dog ||| -3.5", "0 ||| a ||| -inf"], [-3.5, -np.inf], [0, 0], ["the dog", "a"]),
    (["1 ||| the dog .", "1 ||| a"], [0, 0], [0, 0], ["the dog .", "a"]),
    (["1 the dog", "1 ", "2 a"], [0, 0, 0], [0, 0, 0], ["the dog", "", "a"]),
    (["NBestList1.0", "(-10000.5) the dog", "(0) a"], [-1024, 0], [0, 0], ["the dog", "a"]),
    (["-1250.5 -12.25 2 the dog", "0 0 0"], [-1250.5 * np.log(10), 0], [-12.25 * np.log(10), 0], ["the dog", ""]),
]


@pytest.mark.parametrize(("lines", "scores", "lm_scores", "texts"), OTHER_FORMS)
def test_lists_of_other_toolkits(lines, scores, lm_scores, texts):
    found = list(read_nbest(lines, "utterance-1"))  # a name like a key of Kaldi
    assert [hypothesis.text for hypothesis in found] == texts
    np.testing.assert_allclose([hypothesis.score for hypothesis in found], scores)
    np.testing.assert_allclose([hypothesis.lm_score for hypothesis in found], lm_scores)


def test_the_weight_interpolates_language_models_and_the_scale_is_that_of_acoustic_costs(run_dir):
    model, vocabulary, _ = load_model(run_dir)
    costs, lm_costs = {"a-1": 120.0, "a-2": np.inf}, {"a-1": 9.0, "a-2": 2.0}
    given = list(read_nbest(["a-1 the whale", "a-2 the"], "list", costs, lm_costs))
    first, second = rescore(model, vocabulary, given, weight=0.3, acoustic_scale=1 / 12)
    np.testing.assert_allclose(first.total, -10 - 0.7 * 9 + 0.3 * first.log_probability)
    assert second.total == -np.inf
    (_, free) = rescore(model, vocabulary, given, weight=1, acoustic_scale=0)
    np.testing.assert_allclose(free.total, free.log_probability)
    with pytest.raises(InputError, match="weight"):
        list(rescore(model, vocabulary, given, weight=1.5))


def test_ids_that_moses_skips_are_empty_lines(caplog):
    lines = ["0 ||| a ||| ||| 1", "3 ||| b ||| ||| 1", "4 ||| c ||| ||| 1", "² ||| d ||| ||| 1"]
    assert [format_best(one) for one in best_paths(read_nbest(lines, "list"))] == ["a", "", "", "b", "c", "d"]
    assert not caplog.text
    assert [format_best(one) for one in best_paths(read_nbest(lines[1:3], "list"))] == ["b", "c"]
    assert "begins with id 3" in caplog.text
    with pytest.raises(InputError, match="Id 3 comes after 4; sort"):
        list(best_paths(read_nbest([lines[0], lines[2], lines[1]], "list")))


def totals(scores: list[float], log_probabilities: list[float], weight: float) -> list[float]:
    return [own + weight * other for own, other in zip(scores, log_probabilities, strict=True)]


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("form", ["kaldi", "moses"])
def test_lists_are_rescored_and_read_again(run_dir, form, weight):
    model, vocabulary, _ = load_model(run_dir)
    costs = {key: cost for key, cost in zip(KEYS, (1.0, 2.0, 30.0, 1.0, 4.0), strict=True)}
    lines = KALDI if form == "kaldi" else MOSES
    given = list(read_nbest([lines[0], "", *lines[1:]], "list", costs if form == "kaldi" else None))
    own = [-cost for cost in costs.values()] if form == "kaldi" else [-4.5, -4.25, -99.0, 10.0, 9.0]
    assert [hypothesis.text for hypothesis in given] == TEXTS and [one.score for one in given] == own
    found = list(rescore(model, vocabulary, given, weight=weight))
    log_probabilities = [line.log_probability for line in score(model, vocabulary, TEXTS)]
    expected = totals(own, log_probabilities, weight)
    np.testing.assert_allclose([hypothesis.total for hypothesis in found], expected, rtol=1e-6)
    best = [int(np.argmax(expected[:3])), 3 + int(np.argmax(expected[3:]))]
    names = [] if form == "moses" else ["a-b ", "c "]
    paths = [name + TEXTS[n] for name, n in zip(names or ["", ""], best, strict=True)]
    assert [format_best(hypothesis) for hypothesis in best_paths(found)] == [path.rstrip() for path in paths]
    written = [format_scored(hypothesis) for hypothesis in found]
    if form == "kaldi":
        np.testing.assert_allclose(list(read_costs(written, "costs").values()), [-n for n in log_probabilities])
        return
    again = list(read_nbest(written, "list"))
    np.testing.assert_allclose([hypothesis.score for hypothesis in again], expected, rtol=1e-6)
    for before, after in zip(found, again, strict=True):
        assert (before.group, before.text, before.fields[4:]) == (after.group, after.text, after.fields[4:])
        features, _, number = after.fields[2].rpartition("jaxlm= ")
        assert features.strip() == before.fields[2]
        np.testing.assert_allclose(float(number), before.log_probability)


@pytest.mark.parametrize(("lines", "message"), BAD)
def test_a_bad_line_is_named(lines, message):
    with pytest.raises(InputError, match=message):
        list(read_nbest(lines, "list"))


def test_costs_are_complete_numbers():
    with pytest.raises(InputError, match="costs, line 2: expected `utterance-N cost`"):
        read_costs(["a-1 3", "a-2"], "costs")
    for bad in ("nan", "-inf", "x"):
        with pytest.raises(InputError, match="costs, line 1: expected a number"):
            read_costs([f"a-1 {bad}"], "costs")
    with pytest.raises(InputError, match="costs, line 3: expected each key once"):
        read_costs(["a-1 3", "a-2 inf", "a-1 4"], "costs")
    with pytest.raises(InputError, match="list, line 2: expected a cost of a-b-2"):
        list(read_nbest(KALDI, "list", {"a-b-1": 1.0}))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {}),
        (["ac_cost=0.083", "b/lm_cost=1e-1"], {"a/ac_cost": 0.083, "b/lm_cost": 0.1}),
        (["a=b=2"], {"a=b": 2.0}),
        (["ac_cost=0"], {"a/ac_cost": 0.0}),
        (["cost=1"], "there are a/ac_cost, a/lm_cost, b/lm_cost, a=b"),
        (["lm_cost=1"], "for one table of costs each"),
        (["ac_cost=1", "a/ac_cost=2"], "for one table of costs each"),
        (["0.083"], "expected NAME=NUMBER"),
        *(
            (["ac_cost=" + number], "expected NAME=NUMBER")
            for number in ("", "-1", "nan", "inf", "1e999", "1.2.3", "x")
        ),
    ],
)
def test_scales_of_tables(options, expected):
    names = ["a/ac_cost", "a/lm_cost", "b/lm_cost", "a=b"]
    if isinstance(expected, dict):
        assert read_scales(options, names) == expected
        return
    with pytest.raises(InputError, match=expected):
        read_scales(options, names)


def test_hypotheses_that_are_not_consecutive_are_refused():
    with pytest.raises(InputError, match="'a' are not consecutive"):
        list(best_paths(read_nbest(["a-1 x", "b-1 y", "a-2 z"], "list")))


def test_the_command_prints_the_best_or_all(run_dir, tmp_path, capsys):
    path, costs = tmp_path / "nbest", tmp_path / "ac_cost"
    path.write_text("\n".join(KALDI) + "\n")
    costs.write_text("".join(f"{key} {n % 2}\n" for n, key in enumerate(KEYS)))
    arguments = ["rescore", str(run_dir), str(path)]
    assert run([*arguments, "--weight", "0", "--costs", str(costs)]) == 0
    assert capsys.readouterr().out.splitlines() == ["a-b the whale", "c and the whale"]
    (tmp_path / "other").write_text("".join(f"{key} inf\n" if key == "c-1" else f"{key} 1\n" for key in KEYS))
    for scales, best in ((["ac_cost=0"], "c and the whale"), (["other=0", "ac_cost=0"], "c ship zebra")):
        tables = ["--costs", str(costs), str(tmp_path / "other")]
        assert run([*arguments, "--weight", "0", *tables, "--scale", *scales]) == 0
        assert capsys.readouterr().out.splitlines()[1] == best
    assert run([*arguments, "--costs", str(costs), "--lm-costs", str(costs)]) == 2
    assert "each table once" in capsys.readouterr().err
    assert run([*arguments, "--scale", "ac_cost=2"]) == 2
    assert "there are no tables" in capsys.readouterr().err
    assert run([*arguments, "--output", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == KEYS
    path.write_text("\n".join(MOSES) + "\n0 ||| the\n")
    assert run([*arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "nbest, line 6" in error and error.count("\n") == 1
    assert run([*arguments, "--weight", "-2"]) == 2
    assert "Invalid --weight" in capsys.readouterr().err
