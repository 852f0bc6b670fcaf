"""LSTM language models in PyTorch, after the code of Merity et al. 2018, https://github.com/salesforce/awd-lstm-lm."""

from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # for arrays this small, threads cost more than they save


def torch_params(tables: dict[str, jax.Array], dense: dict[str, Any]) -> dict[str, Any]:
    """Returns trained copies of tables and dense parameters, by name."""
    flat = {"/".join(map(str, path)): value for path, value in flatten_dict(dense).items()}
    return {name: torch.tensor(np.asarray(value), requires_grad=True) for name, value in (tables | flat).items()}


def zero_carry(params: dict[str, Any], streams: int) -> list[Any]:
    """Returns the zero state of each LSTM."""
    widths = [len(value) for name, value in params.items() if name.endswith("recurrent_kernel")]
    return [(torch.zeros(1, streams, width), torch.zeros(1, streams, width)) for width in widths]


def lstm_outputs(
    params: dict[str, Any], inputs: Any, carry: list[Any], masks: Any = None
) -> tuple[Any, Any, list[Any]]:
    """Returns the outputs of the last LSTM before and after dropout, and the carry: `RNNModel.forward`.

    `masks` are scaled ones: of all words `[V, 1]`, of each recurrent kernel, and of the rows and each LSTM's outputs.
    """
    words, kernels, outputs = masks or (1.0, [1.0] * len(carry), [1.0] * (len(carry) + 1))
    rows = params.get("embedding", params["weights"]) * words
    hidden, new_carry = torch.nn.functional.embedding(torch.tensor(inputs).long(), rows) * outputs[0], []
    for layer, (kernel, mask) in enumerate(zip(kernels, outputs[1:], strict=True)):
        own = {name: params[f"lstms/{layer}/{name}"] for name in ("kernel", "recurrent_kernel", "bias")}
        biases = own["bias"], torch.zeros_like(own["bias"])
        flat = [own["kernel"].T, (own["recurrent_kernel"] * kernel).T, *biases]
        raw, h, c = torch.lstm(hidden, carry[layer], flat, True, 1, 0.0, True, False, True)
        hidden = raw * mask
        new_carry.append((h.detach(), c.detach()))
    return raw, hidden, new_carry


def cross_entropy(params: dict[str, Any], hidden: Any, labels: Any) -> Any:
    """Returns the mean of the exact losses."""
    logits = hidden @ params["weights"].T + params["biases"]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(labels).long().flatten())


def clipped_step(
    loss: Any, params: dict[str, Any], learning_rate: float, max_norm: float, weight_decay: float = 0.0
) -> bool:
    """Runs one step of SGD, clipped by the global norm before weight decay; returns whether it was clipped.

    `torch.optim` is not used: it imports Triton, which crashes in a process where XLA and TensorFlow are loaded.
    """
    grads = torch.autograd.grad(loss, params.values())
    norm = torch.cat([grad.flatten() for grad in grads]).norm()
    with torch.no_grad():
        for param, grad in zip(params.values(), grads, strict=True):
            param -= learning_rate * (grad * min(1.0, max_norm / norm) + weight_decay * param)
    return bool(norm > max_norm)
