"""The commands that score what people wrote, or what machines heard: score, rescore."""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jaxlm.cli.arguments import RunPath, TextOrInput

if TYPE_CHECKING:
    from jaxlm.inference.scoring import LineScore

Row = dict[str, int | float | str]


def score(
    run: RunPath,
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
    from jaxlm.data.text_files import read_lines
    from jaxlm.inference.scoring import score as score_lines
    from jaxlm.runs.directory import load_model

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


def rescore(
    run: RunPath,
    nbest: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="NBEST")],
    /,
    weight: float = 0.5,
    costs: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH [PATH ...]")] = (),
    output: Literal["best", "list"] = "best",
    unk_log_prob: float = 0.0,
) -> None:
    """Choose the best of the hypotheses of a speech recognizer or a translation system.

    Reads the forms of Kaldi (utterance-N words) and Moses (id ||| text ||| features ||| score). The total is
    (1 - weight) * score + weight * log-probability.

    Args:
      run: Run directory.
      nbest: N-best list; - for the standard input. The hypotheses of an utterance stand together.
      weight: Weight of the language model, from 0 to 1.
      costs: Kaldi's tables (utterance-N cost), such as ac_cost and lm_cost. The score is minus their sum; without
        them it is 0.
      output: The best path of each utterance, or the list with the score added: a cost for each key for Kaldi, a
        feature and the total for Moses.
      unk_log_prob: Added to the log-probability of <unk> for each unknown word, in nats.
    """
    from jaxlm.data.text_files import read_lines
    from jaxlm.inference import nbest as forms
    from jaxlm.runs.directory import load_model

    model, vocabulary, _ = load_model(run)
    total: dict[str, float] | None = None
    for path in costs:
        table = forms.read_costs(read_lines(path), str(path))
        total = table if total is None else {key: total[key] + table[key] for key in total.keys() & table.keys()}
    hypotheses = forms.rescore(
        model,
        vocabulary,
        forms.read_nbest(read_lines(nbest), str(nbest), total),
        weight=weight,
        unk_log_prob=unk_log_prob,
    )
    if output == "best":
        for hypothesis in forms.best_paths(hypotheses):
            print(forms.format_best(hypothesis))
    else:
        for hypothesis in hypotheses:
            print(forms.format_scored(hypothesis))
