"""The commands that use a trained model: score, generate."""

import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jaxlm.cli.arguments import Run, TextOrInput
from jaxlm.errors import InputError

if TYPE_CHECKING:
    from jaxlm.scoring import LineScore

Row = dict[str, int | float | str]


def score(
    run: Run,
    text: TextOrInput = Path("-"),
    /,
    per_word: bool = False,
    carry: bool = False,
    format: Literal["tsv", "jsonl"] = "tsv",
    unk_log_prob: float = 0.0,
    ignore_unk: bool = False,
) -> None:
    """Print the exact log-probability of each line of a text, or the surprisal of each word.

    Args:
      run: Run directory.
      text: Text: plain, .gz or .xz, in UTF-8, one sentence a line; - for the standard input.
      per_word: Print a line for each word: log-probability, surprisal, rank, and entropy of the distribution.
      carry: Read the lines as one text. Otherwise each line stands alone, between two line ends.
      format: Table with a header (tsv), or a JSON object a line (jsonl).
      unk_log_prob: Added to the log-probability of <unk> for each unknown word, in nats. To spread <unk> evenly over
        100,000 unseen words, give -11.5, minus the logarithm of their number.
      ignore_unk: Unknown words do not count. They remain in the context.
    """
    from jaxlm.lines import read_lines
    from jaxlm.run import load_model
    from jaxlm.scoring import score as score_lines

    model, vocabulary, _ = load_model(run)
    lines = score_lines(
        model, vocabulary, read_lines(text), carry=carry, unk_log_prob=unk_log_prob, ignore_unk=ignore_unk
    )
    numbered = enumerate(lines, start=1)
    rows = (row for number, line in numbered for row in (_words(number, line) if per_word else [_line(number, line)]))
    _print_rows(rows, format)


def _line(number: int, line: "LineScore") -> Row:
    return {
        "line": number,
        "log_probability": line.log_probability,
        "words": line.num_words,
        "perplexity": line.perplexity,
        "unknown": line.num_unknown,
    }


def _words(number: int, line: "LineScore") -> Iterator[Row]:
    for position, values in enumerate(zip(*line, strict=True), start=1):
        word, unknown, log_probability, rank, entropy = values
        yield {
            "line": number,
            "position": position,
            "word": word,
            "unknown": int(unknown),
            "log_probability": float(log_probability),
            "surprisal_bits": float(-log_probability / math.log(2)),
            "rank": int(rank),
            "entropy_bits": float(entropy / math.log(2)),
        }


def _print_rows(rows: Iterable[Row], format: Literal["tsv", "jsonl"]) -> None:
    """Prints rows as they come: numbers with 9 digits, no number as nan or null."""
    for n, row in enumerate(rows):
        if format == "jsonl":
            finite = {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in row.items()
            }
            print(json.dumps(finite, ensure_ascii=False))
            continue
        if n == 0:
            print(*row, sep="\t")
        print(*(f"{v:.9g}" if isinstance(v, float) else " ".join(str(v).split()) for v in row.values()), sep="\t")


def generate(
    run: Run,
    /,
    prompt: str = "",
    num_words: int = 100,
    temperature: float = 0.8,
    top_k: int = 0,
    seed: int = 0,
) -> None:
    """Write text from a prompt with a run's best model.

    Args:
      run: Run directory.
      prompt: Text to continue. Without it, the text begins a line.
      num_words: Words to write.
      temperature: Below 1 favors likely words; 0 takes the most likely one.
      top_k: Sample among the k most likely words; 0 for all.
      seed: Random seed for sampling.
    """
    import jax
    import numpy as np

    from jaxlm.generation import generate as generate_words
    from jaxlm.run import load_model

    model, vocabulary, _ = load_model(run)
    ids = vocabulary.encode(prompt)
    words = dict.fromkeys(vocabulary.tokenize(prompt.replace("\n", " ")))
    unknown = [word for word in words if word not in vocabulary.ids]
    if unknown:
        fate = "left out" if vocabulary.unk is None else "read as <unk>"
        print(f"(not in the vocabulary, so {fate}: {', '.join(unknown)})", file=sys.stderr)
    start = np.array([] if vocabulary.eos is None else [vocabulary.eos], np.int32)  # the text begins a line
    if not start.size + ids.size:
        raise InputError("The vocabulary has no <eos> to begin with: give a `prompt` of words it has.")
    drawn = generate_words(
        model,
        np.concatenate([start, ids]),
        num_words,
        temperature=temperature,
        top_k=top_k,
        avoid=vocabulary.placeholders,
        key=jax.random.key(seed),
    )
    print(vocabulary.decode([*ids.tolist(), *drawn]))
