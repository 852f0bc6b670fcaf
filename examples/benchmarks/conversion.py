"""Times conversions and reads their peak memory, beside copying the same bytes to disk twice.

    python examples/benchmarks/conversion.py

Each conversion is a process of its own, its start and the comparison at its end included; the first row is a process
that imports what they import and does nothing. "from" rows make a run of the file that the row before them wrote.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro
from measure import machine, print_table

FORMS = ("keras", "h5", "weights.h5", "savedmodel", "onnx", "tflite")


def write_run(directory: Path, vocab_size: int) -> None:
    """Makes a run of a model as it begins."""
    from flax import nnx

    import jaxlm
    from convert import runs

    words = ("<unk>", "<eos>", *(f"word{n}" for n in range(2, vocab_size)))
    vocabulary = jaxlm.Vocabulary(words, tuple(10**7 // (n + 1) for n in range(vocab_size)), "words")
    model = jaxlm.LanguageModel(jaxlm.ModelConfig(vocab_size), vocabulary.log_unigram, rngs=nnx.Rngs(0))
    runs.write(directory, model, vocabulary, None)


def measured(*arguments: str) -> tuple[float, float]:
    """Runs Python to its end; returns seconds and the peak of memory in bytes, at least that of this process."""
    start = time.perf_counter()
    with open(os.devnull, "wb") as quiet:
        process = subprocess.Popen([sys.executable, *arguments], stdout=quiet, stderr=quiet)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(arguments)}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def main(vocab_size: int = 200_000, forms: tuple[str, ...] = FORMS) -> None:
    """Prints a table.

    Args:
      vocab_size: Number of words of the model (E = 256, H = 1024).
      forms: Of those that `jaxlm-convert to-keras` writes.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        measured(__file__, "run", f"{directory}/run", str(vocab_size))  # not here, where memory is to stay small
        alone, imports = measured("-c", "import convert.formats, convert.runs, tensorflow")
        seconds, size, rows = 0.0, 0, [["imports alone", f"{alone:.1f}", f"{imports / 1e6:,.0f}", ""]]
        for form in forms:
            out = directory / f"model.{form}".removesuffix(".savedmodel")
            jobs = {f"to {form}": ("to-keras", f"{directory}/run", str(out), "--format", form)}
            if form in ("keras", "h5"):
                words = f"{directory}/run/vocabulary.json"
                jobs[f"from {form}"] = ("from-keras", str(out), f"{directory}/again", "--vocabulary", words)
            for label, arguments in jobs.items():
                took, peak = measured("-m", "convert", *arguments)
                size = size or sum(path.stat().st_size for path in (out, *out.rglob("*")) if path.is_file())
                ratio = (peak - imports) / size
                rows.append([label, f"{took:.1f}", f"{peak / 1e6:,.0f}", f"{ratio:.2f}"])
            shutil.rmtree(directory / "again", ignore_errors=True)
            if form == forms[0]:
                start = time.perf_counter()
                for n in range(2):
                    (shutil.copytree if out.is_dir() else shutil.copyfile)(out, directory / f"copy{n}")
                os.sync()
                seconds = time.perf_counter() - start
            for path in (directory / "copy0", directory / "copy1", out):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    print(machine("tensorflow"))
    print(f"a model of {size / 1e6:,.0f} MB; two copies of it to disk take {seconds:.1f} s")
    print_table(["conversion", "s", "peak memory MB", "peak less imports, over the model"], rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        write_run(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        tyro.cli(main)
