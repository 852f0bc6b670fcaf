"""Weight and acoustic scale by word error rate."""

import pytest

pytest.importorskip("rapidfuzz")

from jaxlm.cli import run
from jaxlm.errors import InputError
from jaxlm.inference.nbest_forms import Hypothesis
from jaxlm.inference.nbest_tuning import read_references, tune

HYPOTHESES = [  # the acoustic model alone is right for a, the language model alone for b
    Hypothesis("a", "the sea of", -10.0, ("a-1",), log_probability=-3.0),
    Hypothesis("a", "the seas", -90.0, ("a-2",), log_probability=-2.0),
    Hypothesis("b", "a ship", -10.0, ("b-1",), log_probability=-9.0),
    Hypothesis("b", "the ship", -12.0, ("b-2",), log_probability=-5.0),
]


def test_the_settings_with_the_fewest_errors_are_found(caplog):
    found = tune(HYPOTHESES, read_references(["a the sea of", "", "b the ship"], by_line=False))
    assert not caplog.text
    assert found.word_error_rate == 0
    assert 80 * found.acoustic_scale > found.weight and 4 * found.weight > 2 * found.acoustic_scale
    wrong = tune(HYPOTHESES, {"a": "the sea of it", "b": "a ship", "c": "the whale"})
    assert wrong.word_error_rate == pytest.approx(1 / 6)
    assert "1 of 3 references have no hypotheses" in caplog.text
    equal = tune(HYPOTHESES[::2], {"a": "the sea of", "b": "the ship"})  # nothing to choose: the middle of the grid
    assert (equal.weight, equal.acoustic_scale) == (0.5, 0.1)


def test_references_by_line_and_their_absence():
    assert read_references(["the sea", "", "a"], by_line=True) == {"0": "the sea", "1": "", "2": "a"}
    for references in ({"a": "the sea"}, {"a": "", "b": ""}, {"a": "THE SEA", "b": "A SHIP"}):
        with pytest.raises(InputError, match="references"):
            tune(HYPOTHESES, references)
    with pytest.raises(InputError, match="such as 'THE', is in the list"):
        tune(HYPOTHESES, {"a": "THE SEA", "b": ""})
    with pytest.raises(InputError, match="'a' twice"):
        read_references(["a the", "b the", "a sea"], by_line=False)
    with pytest.raises(InputError, match="'a' are not consecutive"):
        tune([*HYPOTHESES, HYPOTHESES[0]], {"a": "the sea", "b": "the ship"})


def test_the_scale_of_a_second_table_is_searched(run_dir, tmp_path, capsys):
    """Only a tenth of the second table's costs, beside the first ones, picks the right hypothesis of each group."""
    texts = {"a-1": "the sea", "a-2": "the whale", "b-1": "the sea", "b-2": "the whale"}
    tables = {
        "ac_cost": {"a-1": 10.0, "a-2": 12.0, "b-1": 12.0, "b-2": 10.0},
        "dur_cost": {"a-1": 10.0, "a-2": 0.0, "b-1": 10.0, "b-2": 0.0},
    }
    right = {"a": "the sea", "b": "the whale"}
    files = {"nbest": texts, "right": right} | tables
    for name, lines in files.items():
        (tmp_path / name).write_text("".join(f"{key} {value}\n" for key, value in lines.items()))
    costs = ["--costs", *(str(tmp_path / name) for name in tables)]
    arguments = ["rescore", str(run_dir), str(tmp_path / "nbest"), *costs]
    assert run([*arguments, "--tune", str(tmp_path / "right")]) == 0
    options, _, error_rate = capsys.readouterr().out.strip().partition(": word error rate ")
    assert error_rate == "0.00%" and float(options.rpartition("dur_cost=")[2]) <= 0.1
    assert run([*arguments, *options.split()]) == 0
    assert capsys.readouterr().out.splitlines() == ["a the sea", "b the whale"]
    scored = [Hypothesis(key[0], text, -tables["ac_cost"][key], (key,)) for key, text in texts.items()]
    assert tune(scored, right, {"ac_cost": tables["ac_cost"]}).scales == {}
