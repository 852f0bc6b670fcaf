"""Times the scoring of sentences with a large vocabulary beside PyTorch's full softmax on the same sentences.

    python examples/benchmarks/score.py

Both have the same weights. PyTorch scores batches of sentences of equal length, as a user would write it. The floor is
that of the products of LSTM and softmax, at the speed of a 2048 x 2048 product of the same run. It needs the extra
`torch`.
"""

import itertools
import statistics
from collections.abc import Callable

import numpy as np
import torch
import tyro
from measure import interleaved, machine, matmul_speed, milliseconds, print_table, set_equal_terms
from peers import start_of
from problem import Problem, ProblemOptions
from torch_peers import torch_lstm

import jaxlm


def torch_scorer(model: jaxlm.LanguageModel, batch_size: int) -> Callable[[list[np.ndarray]], np.ndarray]:
    """Returns a function from sentences of ids, `<eos>` at both ends, to their log-probabilities."""
    embedding, weights, biases = (
        torch.from_numpy(np.array(table[...])) for table in (model.embedding, model.weights, model.biases)
    )
    lstm = torch_lstm(start_of(model))

    def score(sentences: list[np.ndarray]) -> np.ndarray:
        scores = np.zeros(len(sentences))
        by_length = sorted(range(len(sentences)), key=lambda index: len(sentences[index]))
        with torch.no_grad():
            for _, group in itertools.groupby(by_length, key=lambda index: len(sentences[index])):
                same = list(group)
                for indices in (same[start : start + batch_size] for start in range(0, len(same), batch_size)):
                    ids = torch.from_numpy(np.stack([sentences[index] for index in indices])).long()
                    hidden, _ = lstm(torch.nn.functional.embedding(ids[:, :-1], embedding))
                    logits = hidden.flatten(0, 1) @ weights.T + biases
                    losses = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
                    scores[indices] = -losses.reshape(len(indices), -1).sum(dim=1).numpy()
        return scores

    return score


def main(
    problem: ProblemOptions = Problem(),  # noqa: B008
    sentences: int = 120,
    repeats: int = 3,
) -> None:
    """Prints a table.

    Args:
      problem: Sizes of the model.
      sentences: Number of sentences, of 1 to 30 words.
      repeats: Timed calls of each.
    """
    vocab_size, model = problem.vocab_size, problem.state().model
    words = (*(f"w{n}" for n in range(vocab_size - 1)), "<eos>")
    vocabulary = jaxlm.Vocabulary(words, None, "whitespace")
    rng, end = np.random.default_rng(0), vocab_size - 1
    texts = [rng.integers(0, vocab_size - 1, rng.integers(1, 31)) for _ in range(sentences)]
    lines = [" ".join(words[index] for index in text) for text in texts]
    ids = [np.array([end, *text, end]) for text in texts]
    theirs = torch_scorer(model, batch_size=32)
    calls = {
        "jaxlm.score": lambda: np.array([score.log_probability for score in jaxlm.score(model, vocabulary, lines)]),
        "PyTorch, full softmax": lambda: theirs(ids),
    }
    difference = np.abs(calls["jaxlm.score"]() - calls["PyTorch, full softmax"]()).max()
    times = interleaved(calls, repeats, warm_up=0)
    predicted = sum(map(len, ids)) - len(ids)
    flop = predicted * (2 * problem.hidden_size * vocab_size + problem.lstm_flop // problem.words)
    floor = flop / matmul_speed()
    print(machine("torch"))
    print(f"{predicted:,} words in {sentences} sentences, {problem}")
    print(f"floor: {flop / 1e9:,.0f} GFLOP, {1e3 * floor:,.0f} ms; log-probabilities differ by {difference:.1e}")
    ours = statistics.median(times["jaxlm.score"])
    rows = []
    for name, seconds in times.items():
        median = statistics.median(seconds)
        rows.append([name, *milliseconds(seconds), f"{median / ours:.2f}", f"{floor / median:.0%}"])
    print_table(["what", "median ms", "min ms", "time over jaxlm's", "share of floor"], rows)


if __name__ == "__main__":
    set_equal_terms()
    tyro.cli(main)
