"""LiteRT (.tflite) files for phones: one word and the states in, built-in operators only."""

from pathlib import Path

import numpy as np
import tensorflow as tf

from convert import comparison
from convert.saved_model import Network, step_function
from jaxlm.errors import InputError
from jaxlm.model import LanguageModel


def write(model: LanguageModel, target: Path, *, logits: bool = False, int8: bool = False) -> None:
    """Writes a single step at batch 1, signature `step`: token_ids `[1]`, h_1, c_1, ... `[1, hidden_size]` each
    to probabilities `[1, vocab_size]` and the new states.

    Args:
      model: the language model.
      target: file to write.
      logits: whether the softmax is left out.
      int8: whether weights are int8 (dynamic range: activations stay float32).
    """
    network = Network(model, logits)
    step = step_function(network, 1).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([step], network)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]  # no Flex delegate
    if int8:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    target.write_bytes(converter.convert())


def subject(path: Path) -> comparison.Subject:
    """Returns a .tflite file of `write` as a `Subject`.

    Raises:
      InputError: the file is not such a model.
    """
    interpreter = tf.lite.Interpreter(model_content=path.read_bytes())
    signatures = interpreter.get_signature_list()
    if len(signatures) != 1:
        raise InputError(f"{path} is not a model of one signature; expected what jaxlm-convert writes.")
    runner = interpreter.get_signature_runner(next(iter(signatures)))
    inputs, outputs = runner.get_input_details(), runner.get_output_details()
    results = {"logits", "probabilities"} & set(outputs)
    if "token_ids" not in inputs or len(results) != 1 or set(inputs) - {"token_ids"} != set(outputs) - results:
        raise InputError(f"{path}: expected token_ids and states in, probabilities or logits and states out.")
    (result,) = results
    zeros = {key: np.zeros(detail["shape"], np.float32) for key, detail in inputs.items() if key != "token_ids"}
    int8 = any(detail["dtype"] == np.int8 for detail in interpreter.get_tensor_details())
    return comparison.step_subject(
        path.name,
        int(outputs[result]["shape"][-1]),
        lambda ids, carry: runner(token_ids=ids, **carry),
        zeros,
        result,
        "int8" if int8 else "float32",
        batch_one=True,
    )
