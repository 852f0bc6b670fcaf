"""Forms that leave Keras behind: LiteRT without Flex, ONNX through onnxruntime; mutated files of each."""

import importlib.util
import shutil

import numpy as np
import pytest
import tensorflow as tf
from test_keras_files import mutated

from convert import comparison, export, keras_reader, saved_model, tflite
from convert.comparison import of_language_model
from convert.keras_model import Form
from convert.weights import language_model_weights
from jaxlm.errors import InputError

NO_ONNX = "onnx and onnxruntime are not installed: pip install jaxlm[onnx]"


def needs(name: str) -> None:
    if name.endswith("onnx"):
        pytest.importorskip("onnx", reason=NO_ONNX)
        pytest.importorskip("onnxruntime", reason=NO_ONNX)


@pytest.mark.parametrize("name", ["a.tflite", "a.onnx", "a"])
@pytest.mark.parametrize(("logits", "change"), [(False, {}), (True, {"projection_size": 5, "tied": True})])
def test_forms_of_three_layers(random_run, tmp_path, name, logits, change):
    needs(name)
    run = random_run(3, **change)
    parity = export.export(run, tmp_path / name, form=Form(logits=logits))
    assert {row.quantity for row in parity.differences} == {"log-probabilities"} | {
        f"{state}_{n}" for state in "hc" for n in (1, 2, 3)
    }
    again = comparison.compare(
        of_language_model(run.model), export.subject(tmp_path / name), batch_size=3, time=11, seed=5
    )
    assert again.holds, str(again)


@pytest.mark.parametrize("name", ["a.keras", "a.h5", "a.weights.h5", "a"])
@pytest.mark.parametrize("change", [{"projection_size": 4}, {"projection_size": 5, "tied": True}])
def test_bottlenecks_and_tied_rows_come_back_bit_for_bit(random_run, tmp_path, name, change):
    run = random_run(2, **change)
    export.export(run, tmp_path / name)
    read = saved_model.read_weights if name == "a" else keras_reader.read_file
    model = read(tmp_path / name)
    assert model.config == run.model.config
    expected = language_model_weights(run.model)
    for key, array in language_model_weights(model).items():
        np.testing.assert_array_equal(array, expected.pop(key))
    assert not expected


@pytest.mark.parametrize("int8", [False, True])
def test_lite_runs_with_built_in_operators_alone(random_run, tmp_path, int8):
    path = tmp_path / "a.tflite"
    export.export(random_run(), path, int8=int8)
    interpreter = tf.lite.Interpreter(model_path=str(path))
    interpreter.allocate_tensors()  # raises where the Flex delegate is missing
    operators = {operator["op_name"] for operator in interpreter._get_ops_details()}
    assert "GATHER" in operators and not any("Flex" in name or "CUSTOM" in name for name in operators)
    (signature,) = interpreter.get_signature_list().values()
    assert sorted(signature["inputs"]) == ["c_1", "c_2", "h_1", "h_2", "token_ids"]
    assert sorted(signature["outputs"]) == ["c_1", "c_2", "h_1", "h_2", "probabilities"]


def test_lite_keeps_its_digits_beside_biases_far_from_zero(random_model, tmp_path):
    model = random_model(1, vocab_size=300, hidden_size=1024)
    for weight in (model.weights, model.lstms[0].kernel, model.lstms[0].recurrent_kernel):
        weight[...] *= 0.1  # so that the states do not differ themselves
    model.biases[...] -= 30.0
    tflite.write(model, tmp_path / "a.tflite", logits=True)
    parity = comparison.compare(of_language_model(model), export.subject(tmp_path / "a.tflite"))
    assert parity.difference < 1.2e-5  # with the bias inside the product: 6.6e-5


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_onnx_that_is_not_installed_is_named_before_anything_is_done(tmp_path, monkeypatch, missing):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find_spec(name))
    with pytest.raises(InputError, match=r"pip install 'jaxlm\[onnx\]'"):
        export.check_output(tmp_path / "a.onnx", overwrite=False)


def test_onnx_weights_of_more_than_2_gb_lie_beside_it(random_run, tmp_path, monkeypatch):
    needs("onnx")
    from convert import onnx_model

    monkeypatch.setattr(onnx_model, "EXTERNAL_BYTES", 0)  # as if these were more
    run, path = random_run(vocab_size=300), tmp_path / "a.onnx"
    export.export(run, path)
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.onnx", "a.onnx.data"}
    assert path.stat().st_size < (tmp_path / "a.onnx.data").stat().st_size
    assert comparison.compare(of_language_model(run.model), export.subject(path)).holds
    export.export(run, path, overwrite=True)
    (tmp_path / "a.onnx.data").unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        export.subject(path)


def test_saved_models_are_replaced_whole(random_run, tmp_path):
    first, second = random_run(1), random_run(2)
    export.export(first, tmp_path / "a")
    with pytest.raises(InputError, match="exists already"):
        export.export(second, tmp_path / "a")
    export.export(second, tmp_path / "a", overwrite=True)
    assert comparison.compare(of_language_model(second.model), export.subject(tmp_path / "a")).holds
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("name", "file", "times"),
    [
        ("a.tflite", "", 150),
        ("a.onnx", "", 100),
        ("a", "saved_model.pb", 15),
        ("a", "variables/variables.data-00000-of-00001", 10),
        ("a", "variables/variables.index", 10),
    ],
)
def test_mutated_files_are_read_or_refused_in_one_line(random_run, tmp_path, name, file, times):
    needs(name)
    run, path = random_run(1), tmp_path / name
    export.export(run, path)
    data, rng = (path / file).read_bytes(), np.random.default_rng(0)
    refusals = 0
    for _ in range(times):
        (path / file).write_bytes(mutated(data, rng))
        try:
            comparison.compare(of_language_model(run.model), export.subject(path))  # a difference is seen there
        except InputError as error:
            refusals += 1
            assert "\n" not in str(error)
    assert refusals > times // 3
    if path.is_dir():
        shutil.rmtree(path)
