"""ONNX files: optional packages, and weights that are too large for one file."""

import sys

import pytest
from convert_helpers import skip_without

from convert.checks.comparison import compare
from convert.checks.predictor import language_model_predictor
from convert.files.export import check_output, export
from convert.files.format_table import load_predictor
from jaxlm.errors import InputError


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named_before_anything_is_computed(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InputError, match=rf"Not installed: {missing}\. Run: pip install 'jaxlm\[onnx\]'"):
        check_output(tmp_path / "a.onnx", overwrite=False)


@pytest.mark.parametrize("name", ["a.onnx", "a.json"])
def test_weights_of_more_than_2_gb_go_to_a_second_file(random_run, tmp_path, monkeypatch, name):
    skip_without("onnx")
    monkeypatch.setattr("convert.formats.onnx_model.EXTERNAL_BYTES", 0)  # as if these were more
    run, path, data = random_run(vocab_size=300), tmp_path / name, tmp_path / f"{name}.data"
    export(run, path, format="onnx")
    assert set(tmp_path.iterdir()) == {path, data}
    assert path.stat().st_size < data.stat().st_size
    assert compare(language_model_predictor(run.model), load_predictor(path, "onnx")).within_tolerance
    export(run, path, format="onnx", overwrite=True)
    data.unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        load_predictor(path, "onnx")
