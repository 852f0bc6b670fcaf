"""Times `jaxlm prepare` beside reading the text and beside tokenizing every word of it, and measures its memory.

    python examples/benchmarks/prepare.py [text.txt]

Without a text it makes one of words drawn by Zipf's law. Each measurement is a process of its own. The text
repeated four times shows that memory does not grow with it.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tyro
from measure import interleaved, machine, milliseconds, print_table
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from jaxlm.data.preparation import prepare
from jaxlm.data.text_files import read_chunks
from jaxlm.data.tokenization import PATTERNS, PieceEncoder
from jaxlm.data.vocabulary import UNK

COMMANDS = ("read", "tokenize", "prepare")


def zipf_text(words: int, types: int = 100_000) -> str:
    """Returns lines of ten words. Word n occurs in proportion to 1 / n."""
    ids = np.exp(np.random.default_rng(0).random(words) * np.log(types)).astype(int)
    return "\n".join(" ".join(f"w{i}" for i in line) for line in np.array_split(ids, max(1, words // 10)))


def work(command: str, text: Path, times: int, out: Path) -> None:
    """Runs one measurement, in its own process, and prints the peak memory in bytes."""
    if command == "prepare":
        prepare([text] * times, out)
    else:
        empty = Tokenizer(models.WordLevel({UNK: 0}, unk_token=UNK))  # looking a word up costs the least
        empty.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERNS["words"]), "removed", invert=True)
        for chunk in read_chunks([text] * times):
            if command == "tokenize":
                empty.encode_batch_fast(chunk.splitlines())  # on all cores
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main(text: Path | None = None, /, repeats: int = 3) -> None:
    """Prints a table.

    Args:
      text: Plain or compressed; None makes two million words.
      repeats: Timed processes of each.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if text is None:
            text = directory / "zipf.txt"
            text.write_text(zipf_text(2_000_000))
        peaks: dict[tuple[str, int], int] = {}

        def process(command: str, times: int) -> None:
            with tempfile.TemporaryDirectory(dir=directory) as out:
                arguments = ["work", command, str(text), str(times), f"{out}/data"]
                command_line = [sys.executable, __file__, *arguments]
                result = subprocess.run(command_line, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            peaks[command, times] = int(result.stdout)

        cases = [(command, 1) for command in COMMANDS] + [("prepare", 4)]
        encoder = PieceEncoder("words", len)  # any id will do
        times = interleaved({case: lambda case=case: process(*case) for case in cases}, repeats, warm_up=0)
        words = sum(encoder.encode(chunk).size for chunk in read_chunks([text]))
    print(f"{machine('tokenizers')}\n{words:,} words; one process each, including its start")
    rows = []
    for (command, count), seconds in times.items():
        speed = count * words / statistics.median(seconds)
        label = f"{command}, the text {count} times" if count > 1 else command
        rows.append([label, *milliseconds(seconds), f"{speed:,.0f}", f"{peaks[command, count] / 1e6:,.0f}"])
    print_table(["what", "median ms", "min ms", "words/s", "peak memory MB"], rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
    else:
        tyro.cli(main)
