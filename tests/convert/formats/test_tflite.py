"""LiteRT files: built-in operators only, all digits kept, int8 close and small."""

import pytest
import tensorflow as tf

from convert.checks.comparison import compare
from convert.checks.predictor import language_model_predictor
from convert.files.export import export
from convert.formats import tflite
from convert.options import ExportOptions
from convert.weights.run_model import RunModel


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_only_built_in_operators_are_needed(random_run, tmp_path, dtype):
    path = tmp_path / "a.tflite"
    export(random_run(), path, ExportOptions(dtype=dtype))
    interpreter = tf.lite.Interpreter(model_path=str(path))
    interpreter.allocate_tensors()  # raises if the Flex delegate is needed
    operators = {operator["op_name"] for operator in interpreter._get_ops_details()}
    assert "GATHER" in operators and not any("Flex" in name or "CUSTOM" in name for name in operators)
    (signature,) = interpreter.get_signature_list().values()
    assert sorted(signature["inputs"]) == ["c_1", "c_2", "h_1", "h_2", "token_ids"]
    assert sorted(signature["outputs"]) == ["c_1", "c_2", "h_1", "h_2", "probabilities"]


def test_digits_are_kept_beside_biases_far_from_zero(random_model, tmp_path):
    model = random_model(1, vocab_size=300, hidden_size=1024)
    for weight in (model.weights, model.lstms[0].kernel, model.lstms[0].recurrent_kernel):
        weight[...] *= 0.1  # so that the states themselves do not differ
    model.biases[...] -= 30.0
    tflite.write(RunModel(model, (), "words"), tmp_path / "a.tflite", ExportOptions(logits=True))
    comparison = compare(language_model_predictor(model), tflite.load_predictor(tmp_path / "a.tflite"))
    assert comparison.max_difference < 1.2e-5  # 6.6e-5 if the bias is fused into the product


def test_int8_is_close_and_small(random_run, tmp_path):
    run = random_run(vocab_size=1000, embedding_size=32, hidden_size=48)  # LiteRT leaves smaller tensors as they are
    comparison = export(run, tmp_path / "small.tflite", ExportOptions(dtype="int8"))
    export(run, tmp_path / "large.tflite")
    assert 1e-4 < comparison.max_difference < 0.3
    assert (tmp_path / "small.tflite").stat().st_size < 0.4 * (tmp_path / "large.tflite").stat().st_size
