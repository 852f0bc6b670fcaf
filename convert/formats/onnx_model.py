"""ONNX files: writes the graph directly, and runs it in ONNX Runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from convert.checks.predictor import Predictions, Predictor, log_probabilities, result_and_states
from convert.options import DEFAULT_OPTIONS, ExportOptions
from convert.weights.run_model import RunModel
from convert.weights.table import language_model_weights, to_keras_weights
from jaxlm.config import ModelConfig

OPSET, IR_VERSION = 17, 8  # of 2022
EXTERNAL_BYTES = 1 << 31  # a protobuf message cannot be larger

Shape = list[str | int | None]  # a name stands for any size


class Graph:
    """An ONNX graph under construction."""

    def __init__(self) -> None:
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, np.ndarray] = {}

    def add(self, operator: str, inputs: str, outputs: str, **attributes: Any) -> None:
        """Adds a node; `inputs` and `outputs` are names separated by spaces, "-" is a missing input."""
        names = ["" if name == "-" else name for name in inputs.split()]
        self.nodes.append(helper.make_node(operator, names, outputs.split(), **attributes))

    def make(self) -> onnx.ModelProto:
        """Returns the model."""
        arrays = {name: np.ascontiguousarray(array) for name, array in self.tensors.items()}
        initializers = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
        graph = helper.make_graph(self.nodes, "language_model", self.inputs, self.outputs, initializers)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="jaxlm")


def write(run: RunModel, target: Path, options: ExportOptions = DEFAULT_OPTIONS) -> None:
    """Writes a model with the LSTM states as inputs and outputs.

    It takes token_ids `[batch, time]` int64 and the states h_1, c_1, ... `[batch, hidden_size]`, zeros at the
    beginning of a text, and returns probabilities `[batch, time, vocab_size]` and the new states h_1_out, ...

    Args:
      run: its model is written.
      target: file to write. Weights of more than 2 GB go to a second file, with `.data` after its name.
      options: `logits` leaves out the softmax.

    Raises:
      InputError: a weight is NaN or infinite.

    References:
      https://onnx.ai/onnx/operators/onnx__LSTM.html: gates in the order i, o, f, c.
    """
    config = run.model.config
    weights = to_keras_weights(language_model_weights(run.model), config)
    graph = Graph()
    graph.tensors = {
        "embedding": weights["embedding/embeddings"],
        "axis_0": np.array([0], np.int64),
        "axis_1": np.array([1], np.int64),
    }
    graph.inputs.append(helper.make_tensor_value_info("token_ids", TensorProto.INT64, ["batch", "time"]))
    graph.add("Transpose", "token_ids", "ids", perm=[1, 0])
    graph.add("Gather", "embedding ids", "layer_0")  # [time, batch, embedding_size]
    result = "logits" if options.logits else "probabilities"
    shape: Shape = ["batch", "time", config.vocab_size]
    graph.outputs.append(helper.make_tensor_value_info(result, TensorProto.FLOAT, shape))
    for n, layer in enumerate(config.lstms, start=1):
        _add_lstm(graph, n, layer.size, {name.split("/")[-1]: w for name, w in weights.items() if f"lstm_{n}/" in name})
    _add_softmax(graph, config, weights, options.logits)
    large = sum(array.nbytes for array in weights.values()) >= EXTERNAL_BYTES - (1 << 20)
    location = f"{target.name}.data" if large else None
    onnx.save_model(graph.make(), target, "protobuf", save_as_external_data=large, location=location)
    onnx.checker.check_model(str(target))


def _add_lstm(graph: Graph, n: int, hidden_size: int, weights: dict[str, np.ndarray]) -> None:
    """Adds LSTM n, from layer_{n - 1} to layer_{n}, `[time, batch, hidden_size]`."""
    weights = {name: _iofc(array) for name, array in weights.items()}
    bias = weights.get("bias", np.zeros(4 * hidden_size, np.float32))
    graph.tensors |= {f"W_{n}": weights["kernel"].T[None], f"R_{n}": weights["recurrent_kernel"].T[None]}
    graph.tensors[f"B_{n}"] = np.concatenate([bias, np.zeros_like(bias)])[None]  # [directions = 1, ...]
    for state in (f"h_{n}", f"c_{n}"):
        shape: Shape = ["batch", hidden_size]
        graph.inputs.append(helper.make_tensor_value_info(state, TensorProto.FLOAT, shape))
        graph.outputs.append(helper.make_tensor_value_info(f"{state}_out", TensorProto.FLOAT, shape))
        graph.add("Unsqueeze", f"{state} axis_0", f"{state}_first")
    inputs = f"layer_{n - 1} W_{n} R_{n} B_{n} - h_{n}_first c_{n}_first"
    graph.add("LSTM", inputs, f"Y_{n} h_{n}_last c_{n}_last", hidden_size=hidden_size)
    graph.add("Squeeze", f"Y_{n} axis_1", f"layer_{n}")
    for state in (f"h_{n}", f"c_{n}"):
        graph.add("Squeeze", f"{state}_last axis_0", f"{state}_out")


def _add_softmax(graph: Graph, config: ModelConfig, weights: dict[str, np.ndarray], logits: bool) -> None:
    """Adds the Dense layers and the softmax."""
    outputs = f"layer_{len(config.lstms)}"
    for n, layer in enumerate(config.dense, start=1):
        outputs = _add_dense(graph, f"dense_{n}", outputs, weights)
        if layer.activation != "linear":
            graph.add("Relu" if layer.activation == "relu" else "Tanh", outputs, f"{outputs}_activated")
            outputs = f"{outputs}_activated"
    graph.add("Transpose", outputs, "hidden", perm=[1, 0, 2])  # [batch, time, softmax_size]
    outputs = _add_dense(graph, "softmax", "hidden", weights)
    graph.add("Identity", outputs, "logits") if logits else graph.add("Softmax", outputs, "probabilities", axis=-1)


def _add_dense(graph: Graph, name: str, inputs: str, weights: dict[str, np.ndarray]) -> str:
    """Adds a Dense layer without its activation; returns the name of its outputs."""
    graph.tensors[f"{name}_kernel"] = weights[f"{name}/kernel"]
    graph.add("MatMul", f"{inputs} {name}_kernel", f"{name}_products")
    if f"{name}/bias" not in weights:
        return f"{name}_products"
    graph.tensors[f"{name}_bias"] = weights[f"{name}/bias"]
    graph.add("Add", f"{name}_products {name}_bias", f"{name}_outputs")
    return f"{name}_outputs"


def _iofc(array: np.ndarray) -> np.ndarray:
    """Reorders gates from i, f, c, o to i, o, f, c, along the last axis."""
    i, f, c, o = np.split(array, 4, axis=-1)
    return np.concatenate([i, o, f, c], axis=-1)


def load_predictor(path: Path) -> Predictor:
    """Returns the `Predictor` of a file from `write`, run by ONNX Runtime.

    Raises:
      InputError: the file is another kind of model.
    """
    import onnxruntime

    session_options = onnxruntime.SessionOptions()
    session_options.log_severity_level = 4  # errors are raised as well
    session = onnxruntime.InferenceSession(str(path), session_options, providers=["CPUExecutionProvider"])
    shapes = {value.name: value.shape for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    result, states = result_and_states(path.name, shapes, names, "_out")
    vocab_size = session.get_outputs()[names.index(result)].shape[-1]

    def predict(ids: np.ndarray) -> Predictions:
        zeros = {name: np.zeros((len(ids), shapes[name][-1]), np.float32) for name in states}
        outputs = dict(zip(names, session.run(names, {"token_ids": ids.astype(np.int64)} | zeros), strict=True))
        carry = {name: outputs[f"{name}_out"] for name in states}
        return Predictions(log_probabilities(outputs[result], result == "logits"), carry)

    return Predictor(path.name, int(vocab_size), predict)
