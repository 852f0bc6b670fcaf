"""N-best lists: the forms of Kaldi and Moses, there and back, and their totals."""

import numpy as np
import pytest

from jaxlm.cli import run
from jaxlm.errors import InputError
from jaxlm.inference.nbest import best_paths, format_best, format_scored, read_costs, read_nbest, rescore
from jaxlm.inference.scoring import score
from jaxlm.runs.directory import load_model

TEXTS = ["the whale", "the sea of", "", "ship zebra", "and the whale"]
KEYS = ["a-b-1", "a-b-2", "a-b-10", "c-1", "c-2"]
KALDI = [f"{key} {text}".strip() for key, text in zip(KEYS, TEXTS, strict=True)]
MOSES = [
    "0 ||| the whale ||| LM0= -9.5 Distortion0= 0 ||| -4.5",
    "0 ||| the sea of ||| LM0= -7 ||| -4.25 ||| 0-0 1-1",
    "0 |||  ||| LM0= -7 ||| -99",
    "17 ||| ship zebra |||  ||| 1e1",
    "17 ||| and the whale ||| LM0= -1 ||| 9",
]
BAD = [
    (KALDI + ["nonumber words"], "list, line 6: expected `utterance-N words`"),
    (KALDI + MOSES, "list, line 6: expected `utterance-N words`"),
    (MOSES + KALDI, "list, line 6: expected `id"),
    (MOSES[:2] + ["0 ||| a ||| b ||| high"], "list, line 3: expected a number in the fourth field"),
    (["0 ||| a ||| 3"], "list, line 1: expected `id"),
]


def totals(scores: list[float], log_probabilities: list[float], weight: float) -> list[float]:
    return [(1 - weight) * own + weight * other for own, other in zip(scores, log_probabilities, strict=True)]


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
    with pytest.raises(InputError, match="list, line 2: expected a cost of a-b-2"):
        list(read_nbest(KALDI, "list", {"a-b-1": 1.0}))


def test_hypotheses_that_do_not_stand_together_are_refused():
    with pytest.raises(InputError, match="'a' do not stand together"):
        list(best_paths(read_nbest(["a-1 x", "b-1 y", "a-2 z"], "list")))


def test_the_command_prints_the_best_or_all(run_dir, tmp_path, capsys):
    path, costs = tmp_path / "nbest", tmp_path / "ac_cost"
    path.write_text("\n".join(KALDI) + "\n")
    costs.write_text("".join(f"{key} {n % 2}\n" for n, key in enumerate(KEYS)))
    arguments = ["rescore", str(run_dir), str(path)]
    assert run([*arguments, "--weight", "0", "--costs", str(costs), str(costs)]) == 0
    assert capsys.readouterr().out.splitlines() == ["a-b the whale", "c and the whale"]
    assert run([*arguments, "--output", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == KEYS
    path.write_text("\n".join(MOSES) + "\n0 ||| the\n")
    assert run([*arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "nbest, line 6" in error and error.count("\n") == 1
    assert run([*arguments, "--weight", "2"]) == 2
    assert "Invalid --weight" in capsys.readouterr().err
