"""LiteRT (.tflite) files for phones: one word per call, with the LSTM states, by built-in operators only."""

from pathlib import Path

import numpy as np
import tensorflow as tf

from convert.checks.predictor import Predictor, result_and_states, step_predictor
from convert.formats.tf_network import Network
from convert.options import DEFAULT_OPTIONS, ExportOptions
from convert.weights.run_model import RunModel
from jaxlm.errors import InputError


def write(run: RunModel, target: Path, options: ExportOptions = DEFAULT_OPTIONS) -> None:
    """Writes a model that reads one word at a time.

    Its signature `step` takes token_ids `[1]` and the states h_1, c_1, ... `[1, hidden_size]`, and returns
    probabilities `[1, vocab_size]` and the new states.

    Args:
      run: its model is written.
      target: file to write.
      options: `logits` leaves out the softmax; `dtype` int8 stores int8 weights (dynamic range quantization:
        activations stay float32).

    Raises:
      InputError: a weight is NaN or infinite.
    """
    network = Network(run.model, options.logits)
    step = network.step_function(1).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([step], network)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]  # no Flex delegate
    if options.dtype == "int8":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    target.write_bytes(converter.convert())


def load_predictor(path: Path) -> Predictor:
    """Returns the `Predictor` of a file from `write`.

    Raises:
      InputError: the file is another kind of model.
    """
    interpreter = tf.lite.Interpreter(model_content=path.read_bytes())
    signatures = interpreter.get_signature_list()
    if len(signatures) != 1:
        raise InputError(
            f"{path}: expected one signature, as in files of `jaxlm-convert`. Received: {len(signatures)}."
        )
    runner = interpreter.get_signature_runner(next(iter(signatures)))
    inputs, outputs = runner.get_input_details(), runner.get_output_details()
    result, states = result_and_states(path.name, inputs, outputs)
    zeros = {key: np.zeros(inputs[key]["shape"], np.float32) for key in states}
    int8 = any(detail["dtype"] == np.int8 for detail in interpreter.get_tensor_details())
    return step_predictor(
        path.name,
        int(outputs[result]["shape"][-1]),
        lambda ids, carry: runner(token_ids=ids, **carry),
        zeros,
        result,
        "int8" if int8 else "float32",
        batch_of_one=True,
    )
