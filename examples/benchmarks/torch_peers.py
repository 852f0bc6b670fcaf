"""PyTorch's LSTM with the full softmax, its adaptive softmax, or a sampled softmax by hand, which PyTorch lacks.

Looked-up rows have sparse gradients, with Adagrad, or with lazy Adam (`SparseAdam`). All other parameters have the
fused optimizer, if PyTorch has it. On a GPU the LSTM is cuDNN's. Adaptive softmax: Grave et al. 2017,
https://arxiv.org/abs/1609.04309.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from peers import Peer, Start, perplexity
from problem import Problem
from torch.nn.functional import cross_entropy

from jaxlm.data.batches import evaluation_batches
from jaxlm.matmul import fast_dtype

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def torch_lstm(start: Start) -> torch.nn.LSTM:
    """Returns PyTorch's LSTM with the values of jaxlm's."""
    lstm = torch.nn.LSTM(start.kernel.shape[0], start.recurrent_kernel.shape[0], batch_first=True)
    arrays = (start.kernel.T, start.recurrent_kernel.T, start.bias, np.zeros_like(start.bias))
    for parameter, array in zip(lstm.parameters(), arrays, strict=True):
        parameter.data.copy_(torch.from_numpy(array))
    return lstm


def table(rows: np.ndarray) -> torch.nn.Embedding:
    """Returns a table with sparse gradients."""
    return torch.nn.Embedding.from_pretrained(torch.from_numpy(np.array(rows)), freeze=False, sparse=True)


def sample(num_sampled: int, size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the first distinct ones of four times as many log-uniform draws, and the tries; waits for no GPU."""
    uniform = torch.rand(4 * num_sampled, generator=generator, device=generator.device, dtype=torch.float64)
    draws = torch.exp(uniform * math.log(size + 1)).long().clamp(1, size) - 1
    ordered, order = torch.sort(draws, stable=True)
    is_repeated = torch.zeros_like(draws, dtype=torch.bool)
    is_repeated[order[1:]] = ordered[1:] == ordered[:-1]
    first = torch.argsort(is_repeated.int(), stable=True)[:num_sampled]
    return draws[first], first[-1] + 1


def sampled_loss(hidden, rows, bias, labels, sampled, tries, size: int):
    """Returns the mean sampled softmax loss.

    Args:
      hidden: `[N, D]`.
      rows, bias: `[N + S, D]` and `[N + S]`, of the labels and of the sampled classes.
      labels, sampled, tries: `[N]` ids, `[S]` ids, and the number of draws.
      size: number of classes.
    """

    def log_count(ids):
        return torch.log(-torch.expm1(tries * torch.log1p(-torch.log1p(1.0 / (ids + 1.0)) / math.log(size + 1))))

    count = labels.numel()
    true = (hidden * rows[:count]).sum(1) + bias[:count] - log_count(labels)
    logits = hidden @ rows[count:].T + bias[count:] - log_count(sampled)
    logits = logits.masked_fill(labels[:, None] == sampled[None, :], -1e30)
    return cross_entropy(torch.cat([true[:, None], logits], dim=1), torch.zeros_like(labels))


def full_softmax(start: Start) -> torch.nn.Linear:
    """Returns the softmax layer as a dense layer."""
    layer = torch.nn.Linear(*start.weights.T.shape)
    layer.weight.data.copy_(torch.from_numpy(start.weights))
    layer.bias.data.copy_(torch.from_numpy(start.biases))
    return layer


def has_fused_adagrad() -> bool:
    """Returns whether Adagrad has a fused kernel for the device; for CUDA, only new versions of PyTorch have it."""
    parameter = torch.nn.Parameter(torch.zeros(1, device=DEVICE))
    parameter.grad = torch.zeros_like(parameter)
    try:
        torch.optim.Adagrad([parameter], fused=True).step()
    except RuntimeError:
        return False
    return True


def make_optimizers(problem: Problem, sparse: list, dense: list) -> list[torch.optim.Optimizer]:
    """Returns optimizers of the tables and of the rest."""
    if problem.optimizer == "adagrad":
        return [torch.optim.Adagrad(sparse), torch.optim.Adagrad(dense, fused=has_fused_adagrad())]
    betas = (0.9, problem.beta_2)
    return [torch.optim.SparseAdam(sparse, betas=betas), torch.optim.Adam(dense, betas=betas, fused=True)]


def make_peer(name: str, problem: Problem, start: Start) -> Peer:
    """Sets up "torch-sampled", "torch-sampled-compiled", "torch-adaptive" or "torch-full"."""
    torch.manual_seed(0)
    adaptive, size = name == "torch-adaptive", problem.vocab_size
    generator = torch.Generator(DEVICE).manual_seed(0)
    dtype = fast_dtype() if problem.compute_dtype == "auto" else problem.compute_dtype
    embedding, lstm, bottleneck = table(start.embedding), torch_lstm(start), torch.nn.Identity()
    if problem.projection_size:
        bottleneck = torch.nn.Linear(problem.hidden_size, problem.projection_size, bias=False)
    if adaptive:
        heads = [torch.nn.AdaptiveLogSoftmaxWithLoss(problem.softmax_size, size, [size // 100, size // 10, size // 2])]
    elif name == "torch-full":
        heads = [full_softmax(start)]
    else:
        heads = [table(start.weights), table(start.biases[:, None])]
    modules = torch.nn.ModuleList([embedding, lstm, bottleneck, *heads]).to(DEVICE)
    sparse = [module.weight for module in modules if isinstance(module, torch.nn.Embedding)]
    dense = [p for p in modules.parameters() if all(p is not other for other in sparse)]
    optimizers = make_optimizers(problem, sparse, dense)
    loss_function = torch.compile(sampled_loss) if name.endswith("-compiled") else sampled_loss
    carry: Any = None

    def loss_of(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if adaptive:
            return heads[0](hidden, labels).loss
        if name == "torch-full":
            return cross_entropy(heads[0](hidden), labels)
        sampled, tries = sample(min(problem.num_sampled, size), size, generator)
        ids = torch.cat([labels, sampled])
        return loss_function(hidden, heads[0](ids), heads[1](ids)[:, 0], labels, sampled, tries, size)

    def step(inputs: np.ndarray, labels: np.ndarray, learning_rate: float) -> torch.Tensor:
        nonlocal carry
        for optimizer in optimizers:
            optimizer.zero_grad()
            optimizer.param_groups[0]["lr"] = learning_rate
        with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == "bfloat16"):
            hidden, new_carry = lstm(embedding(_ids(inputs)), carry)
            loss = loss_of(bottleneck(hidden).flatten(0, 1), _ids(labels).flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(dense, 10.0)
        for optimizer in optimizers:
            optimizer.step()
        carry = tuple(state.detach().float() for state in new_carry)
        return loss.detach()

    evaluate = _evaluate_adaptive(embedding, lstm, heads[0]) if adaptive else _evaluate(problem, embedding, lstm, heads)
    return Peer(step, evaluate)


def _ids(words: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(words)).long().to(DEVICE)


def _evaluate(problem: Problem, embedding, lstm, heads: list) -> Callable[[np.ndarray, int], float]:
    def evaluate(tokens: np.ndarray, max_tokens: int) -> float:
        kernel, recurrent_kernel, *two = (parameter.detach().cpu().numpy().T for parameter in lstm.parameters())
        params = [parameter for head in heads for parameter in head.parameters()]
        embedded, weights, biases = (x.detach().cpu().numpy() for x in (embedding.weight, *params))
        values = Start(embedded, weights, biases.ravel(), kernel, recurrent_kernel, sum(two))
        return perplexity(problem, values, tokens, max_tokens)

    return evaluate


def _evaluate_adaptive(embedding, lstm, softmax) -> Callable[[np.ndarray, int], float]:
    def evaluate(tokens: np.ndarray, max_tokens: int) -> float:
        total, count, state = 0.0, 0, None
        with torch.no_grad():
            for batch in evaluation_batches(tokens, 32, 35, max_tokens):
                hidden, state = lstm(embedding(_ids(batch.inputs)), state)
                counted = torch.from_numpy(batch.weights.ravel() > 0).to(DEVICE)
                labels = _ids(batch.labels).flatten()[counted]
                total -= float(softmax(hidden.flatten(0, 1)[counted], labels).output.double().sum())
                count += len(labels)
        return math.exp(total / count)

    return evaluate
