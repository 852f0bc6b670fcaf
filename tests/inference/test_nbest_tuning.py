"""Weight and acoustic scale by word error rate."""

import pytest

pytest.importorskip("rapidfuzz")

from jaxlm.errors import InputError
from jaxlm.inference.nbest import Hypothesis
from jaxlm.inference.nbest_tuning import read_references, tune

HYPOTHESES = [  # the acoustic model alone is right for a, the language model alone for b
    Hypothesis("a", "the sea of", -10.0, ("a-1",), log_probability=-3.0),
    Hypothesis("a", "the seas", -90.0, ("a-2",), log_probability=-2.0),
    Hypothesis("b", "a ship", -10.0, ("b-1",), log_probability=-9.0),
    Hypothesis("b", "the ship", -12.0, ("b-2",), log_probability=-5.0),
]


def test_the_settings_with_the_fewest_errors_are_found():
    found = tune(HYPOTHESES, read_references(["a the sea of", "", "b the ship"], by_line=False))
    assert found.word_error_rate == 0
    assert 80 * found.acoustic_scale > found.weight and 4 * found.weight > 2 * found.acoustic_scale
    wrong = tune(HYPOTHESES, {"a": "the sea of it", "b": "a ship"})
    assert wrong.word_error_rate == pytest.approx(1 / 6)


def test_references_by_line_and_their_absence():
    assert read_references(["the sea", "", "a"], by_line=True) == {"0": "the sea", "1": "", "2": "a"}
    for references in ({"a": "the sea"}, {"a": "", "b": ""}):
        with pytest.raises(InputError, match="references"):
            tune(HYPOTHESES, references)
