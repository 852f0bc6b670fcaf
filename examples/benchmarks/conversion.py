"""Times conversions and measures their peak memory, beside copying the same bytes to disk twice.

    python examples/benchmarks/conversion.py

Each conversion is a process of its own; its start and the comparison at its end are included. The first row is a
process that only imports what the others import. Each "from" row makes a run from the file of the row above it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import tyro
from measure import machine, print_table

FORMATS = ("keras", "h5", "weights.h5", "savedmodel", "onnx", "tflite")


def write_run(directory: Path, vocab_size: int) -> None:
    """Makes a run of an untrained model."""
    from flax import nnx

    import jaxlm
    from convert.files import run_directory

    words = ("<unk>", "<eos>", *(f"word{n}" for n in range(2, vocab_size)))
    vocabulary = jaxlm.Vocabulary(words, tuple(10**7 // (n + 1) for n in range(vocab_size)), "words")
    model = jaxlm.LanguageModel(jaxlm.ModelConfig(vocab_size), vocabulary.log_unigram, rngs=nnx.Rngs(0))
    run_directory.write(directory, model, vocabulary)


def measured(*arguments: str) -> tuple[float, float]:
    """Runs Python; returns seconds and the peak memory in bytes, which is at least that of this process."""
    start = time.perf_counter()
    with open(os.devnull, "wb") as quiet:
        process = subprocess.Popen([sys.executable, *arguments], stdout=quiet, stderr=quiet)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(arguments)}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def conversions(directory: Path, formats: Sequence[str]) -> Iterator[tuple[str, Path, float, float]]:
    """Converts a run to each format, and some of them back; yields a label, the file, seconds and peak memory."""
    run = f"{directory}/run"
    for name in formats:
        out = directory / f"model.{name}".removesuffix(".savedmodel")
        yield f"to {name}", out, *measured("-m", "convert", "to-keras", run, str(out), "--format", name)
        if name in ("keras", "h5"):
            arguments = ("from-keras", str(out), f"{directory}/again", "--vocabulary", f"{run}/vocabulary.json")
            yield f"from {name}", out, *measured("-m", "convert", *arguments)
            shutil.rmtree(directory / "again")


def copy_twice(path: Path) -> float:
    """Returns the seconds of copying a file or directory to disk twice."""
    start = time.perf_counter()
    copies = [path.with_name(f"copy{n}") for n in range(2)]
    for copy in copies:
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, copy)
    os.sync()
    seconds = time.perf_counter() - start
    for copy in copies:
        shutil.rmtree(copy) if copy.is_dir() else copy.unlink()
    return seconds


def main(vocab_size: int = 200_000, formats: tuple[str, ...] = FORMATS) -> None:
    """Prints a table.

    Args:
      vocab_size: Number of words of the model (E = 256, H = 1024).
      formats: Those that `jaxlm-convert to-keras` writes.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        measured(__file__, "run", f"{directory}/run", str(vocab_size))  # a process, so that this one stays small
        seconds, imports = measured("-c", "import convert.files.export, tensorflow")
        rows = [["imports only", f"{seconds:.1f}", f"{imports / 1e6:,.0f}", ""]]
        size, copying, before = 0, 0.0, None
        for label, out, seconds, peak in conversions(directory, formats):
            if not size:
                size = sum(path.stat().st_size for path in (out, *out.rglob("*")) if path.is_file())
                copying = copy_twice(out)
            rows.append([label, f"{seconds:.1f}", f"{peak / 1e6:,.0f}", f"{(peak - imports) / size:.2f}"])
            if before not in (None, out):  # so that the disk need not hold all of them
                shutil.rmtree(before) if before.is_dir() else before.unlink()
            before = out
    print(machine("tensorflow"))
    print(f"a model of {size / 1e6:,.0f} MB; copying it to disk twice takes {copying:.1f} s")
    print_table(["conversion", "s", "peak memory MB", "(peak - imports) / model"], rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        write_run(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        tyro.cli(main)
