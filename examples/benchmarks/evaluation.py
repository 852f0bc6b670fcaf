"""Times exact evaluation, scoring and generation with a large vocabulary against the matrix products they consist of.

    python examples/benchmarks/evaluation.py

Evaluation and scoring take 2 H V FLOP per word besides the LSTM. Generation, one word at a time, has to read all
softmax rows for each word: 4 H V bytes.
"""

import statistics

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from measure import MATMUL_FLOP, interleaved, machine, matmul, milliseconds, print_table, set_equal_terms
from problem import Problem, ProblemOptions

import jaxlm


def main(
    problem: ProblemOptions = Problem(),  # noqa: B008
    words: int = 2240,
    generated: int = 50,
    repeats: int = 5,
) -> None:
    """Prints a table.

    Args:
      problem: Sizes of the model.
      words: Words evaluated per call.
      generated: Words generated per call.
      repeats: Timed calls of each.
    """
    vocab_size, model = problem.vocab_size, problem.state().model
    tokens = np.random.default_rng(0).integers(0, vocab_size, words + 1).astype(np.int32)
    vocabulary = jaxlm.Vocabulary((*(f"w{n}" for n in range(vocab_size - 1)), "<eos>"), None, "whitespace")
    lines = [" ".join(vocabulary.words[i % (vocab_size - 1)] for i in tokens[n : n + 19]) for n in range(0, words, 20)]
    product = matmul()
    read = jax.jit(lambda rows: jnp.sum(rows, axis=1))  # as many bytes as generating a word has to read
    rows = model.weights[...]
    functions = {
        f"evaluate, {words:,} words": lambda: jaxlm.evaluate(model, tokens),
        f"score, {20 * len(lines):,} words in lines": lambda: list(jaxlm.score(model, vocabulary, lines)),
        f"generate, {generated} words": lambda: jaxlm.generate(
            model, vocabulary, lines[0], generated, key=jax.random.key(0)
        ),
        "read the softmax rows once": lambda: read(rows).block_until_ready(),
        "ten products of 2048 x 2048": lambda: [product() for _ in range(10)],
    }
    times = interleaved(functions, repeats)
    (evaluate, evaluated), (score, scored), (generate, wrote), (_, read_once), (_, products) = times.items()
    flop = words * (2 * problem.hidden_size * vocab_size + problem.lstm_flop // problem.words)
    floor = flop / (10 * MATMUL_FLOP / statistics.median(products))
    print(machine())
    print(f"floor of evaluation: {flop / 1e9:,.0f} GFLOP, {1e3 * floor:,.0f} ms; of generation: {generated} reads")
    table = [
        [evaluate, *milliseconds(evaluated), f"{floor / statistics.median(evaluated):.0%}"],
        [score, *milliseconds(scored), f"{floor / statistics.median(scored):.0%}"],
        [generate, *milliseconds(wrote), f"{generated * statistics.median(read_once) / statistics.median(wrote):.0%}"],
    ]
    print_table(["what", "median ms", "min ms", "share of floor"], table)


if __name__ == "__main__":
    set_equal_terms()
    tyro.cli(main)
