"""ONNX files: the graph written directly, ids and states in, probabilities and states out."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from convert import comparison
from convert.weights import language_model_weights, to_keras
from jaxlm.errors import InputError
from jaxlm.model import LanguageModel

OPSET, IR_VERSION = 17, 8  # of 2022: read by every ONNX runtime of today
EXTERNAL_BYTES = 1 << 31  # a protobuf message cannot be larger


def write(model: LanguageModel, target: Path, *, logits: bool = False) -> None:
    """Writes token_ids `[batch, time]` int64, h_1, c_1, ... `[batch, hidden_size]` to probabilities
    `[batch, time, vocab_size]` and the new states; the zero states begin a text.

    Args:
      model: the language model.
      target: file to write; weights of more than 2 GB go to a second file, `.data`, beside it.
      logits: whether the softmax is left out.

    Raises:
      InputError: a weight is NaN or infinite.

    References:
      https://onnx.ai/onnx/operators/onnx__LSTM.html: gates in the order i, o, f, c.
    """
    weights = list(to_keras(language_model_weights(model), model.config).values())
    size, width, result = model.config.vocab_size, model.config.hidden_size, "logits" if logits else "probabilities"
    tensors = {"embedding": weights[0], "kernel": weights[-2], "bias": weights[-1], "first": np.array([0], np.int64)}
    value = helper.make_tensor_value_info
    inputs = [value("token_ids", TensorProto.INT64, ["batch", "time"])]
    outputs = [value(result, TensorProto.FLOAT, ["batch", "time", size])]
    nodes = [
        helper.make_node("Transpose", ["token_ids"], ["ids"], perm=[1, 0]),
        helper.make_node("Gather", ["embedding", "ids"], ["layer_0"]),  # [time, batch, embedding_size]
    ]
    for n in range(1, model.config.num_layers + 1):
        kernel, recurrent_kernel, bias = map(_iofc, weights[3 * n - 2 : 3 * n + 1])
        tensors |= {f"W_{n}": kernel.T[None], f"R_{n}": recurrent_kernel.T[None]}
        tensors[f"B_{n}"] = np.concatenate([bias, np.zeros_like(bias)])[None]
        for state in (f"h_{n}", f"c_{n}"):
            inputs.append(value(state, TensorProto.FLOAT, ["batch", width]))
            outputs.append(value(f"{state}_out", TensorProto.FLOAT, ["batch", width]))
            nodes.append(helper.make_node("Unsqueeze", [state, "first"], [f"{state}_first"]))
        arguments = [f"layer_{n - 1}", f"W_{n}", f"R_{n}", f"B_{n}", "", f"h_{n}_first", f"c_{n}_first"]
        results = [f"Y_{n}", f"h_{n}_last", f"c_{n}_last"]
        nodes.append(helper.make_node("LSTM", arguments, results, hidden_size=width))
        nodes.append(helper.make_node("Squeeze", [f"Y_{n}", "second"], [f"layer_{n}"]))
        nodes += [helper.make_node("Squeeze", [f"{s}_{n}_last", "first"], [f"{s}_{n}_out"]) for s in "hc"]
    tensors["second"] = np.array([1], np.int64)
    top = f"layer_{model.config.num_layers}"
    if model.config.projection_size:
        tensors["projection"] = weights[-3]
        nodes.append(helper.make_node("MatMul", [top, "projection"], ["projected"]))
        top = "projected"
    nodes += [
        helper.make_node("Transpose", [top], ["hidden"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["hidden", "kernel"], ["products"]),
        helper.make_node("Add", ["products", "bias"], ["logits"]),
    ]
    if not logits:
        nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1))
    initializers = [onnx.numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "language_model", inputs, outputs, initializers)
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="jaxlm"
    )
    large = sum(array.nbytes for array in weights) >= EXTERNAL_BYTES - (1 << 20)
    onnx.save_model(proto, target, save_as_external_data=large, location=f"{target.name}.data" if large else None)
    onnx.checker.check_model(str(target))


def _iofc(array: np.ndarray) -> np.ndarray:
    """Gates from the order i, f, c, o to i, o, f, c, along the last axis."""
    i, f, c, o = np.split(array, 4, axis=-1)
    return np.concatenate([i, o, f, c], axis=-1)


def subject(path: Path) -> comparison.Subject:
    """Returns an ONNX file of `write` as a `Subject`, through onnxruntime.

    Raises:
      InputError: the file is not such a model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is raised, too
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    shapes = {value.name: value.shape for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    results = {"logits", "probabilities"} & set(names)
    states = [name for name in shapes if name != "token_ids"]
    if "token_ids" not in shapes or len(results) != 1 or {f"{name}_out" for name in states} != set(names) - results:
        raise InputError(f"{path}: expected token_ids and states in, probabilities or logits and states out.")
    (result,) = results
    vocab_size = session.get_outputs()[names.index(result)].shape[-1]

    def predict(ids: np.ndarray) -> comparison.Predictions:
        zeros = {name: np.zeros((len(ids), shapes[name][-1]), np.float32) for name in states}
        outputs = dict(zip(names, session.run(names, {"token_ids": ids.astype(np.int64)} | zeros), strict=True))
        carry = {name: outputs[f"{name}_out"] for name in states}
        return comparison.Predictions(comparison.log_probabilities(outputs[result], result == "logits"), carry)

    return comparison.Subject(path.name, int(vocab_size), predict)
