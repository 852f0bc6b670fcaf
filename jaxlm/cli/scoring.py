"""The score and compare commands."""

import csv
import io
import json
import math
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby, tee
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jaxlm.cli.arguments import RunPath, TextOrInput
from jaxlm.cli.results import print_unknown
from jaxlm.errors import InputError

if TYPE_CHECKING:
    from jaxlm.inference.scoring import LineScore

Row = dict[str, int | float | str]


def score(
    run: RunPath,
    text: TextOrInput = Path("-"),
    /,
    per_word: bool = False,
    by_word: bool = False,
    carry: bool = False,
    format: Literal["tsv", "jsonl"] = "tsv",
    unk_log_prob: float = 0.0,
    ignore_unk: bool = False,
) -> None:
    """Print the exact log-probability of each line of a text, or the surprisal of each word.

    Args:
      run: Run directory.
      text: Text in UTF-8, plain or compressed, one sentence per line; - for the standard input.
      per_word: Print a line for each word: log-probability, surprisal, rank, and entropy of the distribution.
      by_word: Print a line for each word between blanks, with the sum over its parts: "don't" and "end." are one each.
        A word that the tokenization leaves out has no sum.
      carry: Read the lines as one text. Otherwise each line stands alone, between two line ends.
      format: Table with a header (tsv), or one JSON object per line (jsonl).
      unk_log_prob: Added to the log-probability of <unk> for each unknown word, in nats. To spread <unk> evenly over
        100,000 unseen words, give -11.5, minus the logarithm of their number.
      ignore_unk: Unknown words do not count. They remain in the context.
    """
    from jaxlm.data.text_files import read_lines
    from jaxlm.inference.scoring import score as score_lines
    from jaxlm.inference.unknown_words import UnknownWords
    from jaxlm.runs.directory import load_model

    if per_word and by_word:
        raise InputError("`per_word` and `by_word` are mutually exclusive.")
    loaded = load_model(run)
    unknown = UnknownWords(loaded.vocabulary)
    given, texts = tee(read_lines(text))
    lines = score_lines(
        loaded.model, loaded.vocabulary, given, carry=carry, unk_log_prob=unk_log_prob, ignore_unk=ignore_unk
    )
    rows_of = _regions if by_word else _words if per_word else _line
    scored = enumerate(zip(unknown.count(lines), texts, strict=True), start=1)
    _print_rows((row for number, (line, text) in scored for row in rows_of(number, line, text)), format)
    print_unknown(unknown)


def _line(number: int, line: "LineScore", _: str) -> Iterator[Row]:
    yield {
        "line": number,
        "log_probability": line.log_probability,
        "words": line.num_words,
        "perplexity": line.perplexity,
        "unknown": line.num_unknown,
    }


def _words(number: int, line: "LineScore", _: str) -> Iterator[Row]:
    for position, values in enumerate(zip(*line, strict=True), start=1):
        word, unknown, log_probability, rank, entropy, region = values
        yield {
            "line": number,
            "position": position,
            "word": word,
            "unknown": int(unknown),
            "log_probability": float(log_probability),
            "surprisal_bits": float(-log_probability / math.log(2)),
            "rank": int(rank),
            "entropy_bits": float(entropy / math.log(2)),
            "region": int(region),
        }


def _regions(number: int, line: "LineScore", text: str) -> Iterator[Row]:
    """Yields a row for each word between blanks, and one for the line end. The surprisals of the parts add up."""
    from jaxlm.inference.scoring import between_blanks

    regions = line.regions.tolist()
    parts_of = {region: list(parts) for region, parts in groupby(range(len(regions)), key=regions.__getitem__)}
    words = between_blanks(text)
    for region in range(1, max(len(words), *parts_of, 0) + 1):
        parts = parts_of.get(region, [])
        log_probability = float(line.log_probabilities[parts].sum()) if parts else math.nan
        yield {
            "line": number,
            "region": region,
            "word": words[region - 1] if region <= len(words) else line.words[-1],
            "parts": " ".join(line.words[n] for n in parts),
            "unknown": int(line.unknown[parts].sum()),
            "log_probability": log_probability,
            "surprisal_bits": -log_probability / math.log(2),
        }


def _print_rows(rows: Iterable[Row], format: Literal["tsv", "jsonl"]) -> None:
    """Prints rows as they come: numbers with 9 digits, no number as nan or null, quotes doubled as in CSV."""
    writer = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n")
    for n, row in enumerate(rows):
        if format == "jsonl":
            finite = {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in row.items()
            }
            print(json.dumps(finite, ensure_ascii=False))
            continue
        if n == 0:
            writer.writerow(row)
        writer.writerow(f"{v:.9g}" if isinstance(v, float) else " ".join(str(v).split()) for v in row.values())


def compare(
    run: RunPath,
    pairs: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PAIRS")],
    /,
    failed: Path | None = None,
    unk_log_prob: float = 0.0,
) -> None:
    """Print the accuracy over minimal pairs of an acceptable and an unacceptable sentence, by group.

    Args:
      run: Run directory.
      pairs: JSON lines with sentence_good and sentence_bad (BLiMP), or columns divided by tabs: good, bad, group; - for
        the standard input. The UID of a JSON object is its group.
      failed: File to write with the pairs whose unacceptable sentence is at least as likely, as a table.
      unk_log_prob: Added to the log-probability of <unk> for each unknown word, in nats.
    """
    from jaxlm.data.text_files import read_lines
    from jaxlm.files import require_output_file, write_text
    from jaxlm.inference.minimal_pairs import accuracies, read_pairs, score_pairs
    from jaxlm.inference.unknown_words import UnknownWords
    from jaxlm.runs.directory import load_model

    if failed:
        require_output_file(failed)
    loaded = load_model(run)
    unknown = UnknownWords(loaded.vocabulary)
    given = read_pairs(read_lines(pairs), str(pairs))
    scored = list(score_pairs(loaded.model, loaded.vocabulary, given, unk_log_prob=unk_log_prob, seen=unknown.count))
    header = ("group", "pairs", "accuracy", "low_95", "high_95")
    groups = ((each.group, each.pairs, each.accuracy, *each.interval) for each in accuracies(scored))
    _print_rows((dict(zip(header, values, strict=True)) for values in groups), "tsv")
    if failed:
        file = io.StringIO()
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["group", "sentence_good", "sentence_bad", "log_probability_good", "log_probability_bad"])
        writer.writerows([pair.group, pair.good, pair.bad, *pair[3:5]] for pair in scored if not pair.is_right)
        write_text(failed, file.getvalue())
    print_unknown(unknown)
    if equal := sum(pair.log_probability_good == pair.log_probability_bad for pair in scored):
        print(f"{equal:,} of {len(scored):,} pairs have equal log-probabilities, and count as wrong", file=sys.stderr)
