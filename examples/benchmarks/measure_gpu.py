"""Measures the figures of docs/results.md for a GPU, part by part.

    jaxlm prepare TEXT --vocab-size 200000 --out data
    python examples/benchmarks/measure_gpu.py data --parts train steps

Each line of output is also written to PART.txt at once, so that a part that is cut off keeps its results. A command
that fails does not stop the others. The torch peers need the extra `torch`.
"""

import itertools
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Literal, get_args

import tyro
from measure import print_table

Part = Literal["train", "steps", "equal-time", "compilation"]
BENCHMARKS = Path(__file__).parent
ROOT = BENCHMARKS.parent.parent

README_MODEL = "--batch-size 128 --optimizer adam"
LSTM_2048_512 = (  # of Jozefowicz et al. 2016
    "--vocab-size 793471 --embedding-size 512 --hidden-size 2048 --projection-size 512 --num-sampled 8192"
    " --sequence-length 20 --batch-size 128"
)
SMALL = "--embedding-size 4 --hidden-size 8 --num-sampled 9 --batch-size 2"
SMALL_WORDS = f"--vocab-size 1000 {SMALL}"


def commands(part: Part, data: Path, out: Path, small: bool) -> list[str]:
    """Returns the commands of a part, each a script of this folder or a module with its arguments."""
    model, lstm, turns = README_MODEL, LSTM_2048_512, "--peers torch-sampled --steps 20 --repeats 8"
    length, training, steps, limit = "--minutes 1", "--minutes 1 --batch-size 128", "", "--limit 40"
    if small:
        model, lstm = f"{SMALL_WORDS} --optimizer adam", f"{SMALL_WORDS} --projection-size 4"
        turns, steps = "--peers torch-sampled --steps 2 --repeats 1", "--steps 2 --repeats 1"
        length = "--steps 20 --embedding-size 4 --hidden-size 8 --eval-tokens 100"
        training = f"--minutes 0.02 {SMALL} --eval-tokens 100"
        limit = f"--steps 2 {SMALL_WORDS} --compute-dtypes float32"
    data_name, run = shlex.quote(str(data)), shlex.quote(str(out / "run"))
    return {
        "train": [f"-m jaxlm train {data_name} --out {run} {length}"],
        "steps": [f"train_step.py {model} {turns}", f"train_step.py {lstm} {turns}", f"gpu.py {model} {steps}"],
        "equal-time": [f"equal_time.py {data_name} --methods jaxlm torch-sampled torch-full {training}"],
        "compilation": [f"compile_options.py {limit}"],
    }[part]


def run(command: str, out: Path, file: IO[str]) -> tuple[float, int]:
    """Runs a command, and copies its output to the terminal and to a file; returns its seconds and its exit code."""
    words = shlex.split(command)
    arguments = words if words[0] == "-m" else [str(BENCHMARKS / words[0]), *words[1:]]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(out / "cache"),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "PYTHONUNBUFFERED": "1",
    }
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in itertools.chain([f"$ python {command}\n"], process.stdout or ()):
            for stream in (sys.stdout, file):
                stream.write(line)
                stream.flush()
    return time.perf_counter() - start, process.returncode


def main(
    data: tyro.conf.Positional[Path],
    parts: tuple[Part, ...] = get_args(Part),
    out: Path = Path("build/measure-gpu"),
    small: bool = False,
) -> None:
    """Prints a table of the commands, after their own tables; exits with 1 if one of them failed.

    Args:
      data: Directory made by `jaxlm prepare`.
      parts: Parts to measure, in this order.
      out: Directory for PART.txt, the run and the compiled programs. The run and the programs are removed first, if the
        part `train` is measured.
      small: Small sizes and few steps, to test that the commands run, also on a processor.
    """
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, str, str, int]] = []
    for part in parts:
        if part == "train":
            for name in ("run", "cache"):
                shutil.rmtree(out / name, ignore_errors=True)
        with (out / f"{part}.txt").open("w", encoding="utf-8") as file:
            for command in commands(part, data.absolute(), out, small):
                seconds, code = run(command, out, file)
                rows.append((part, command.split()[0].replace("-m", "jaxlm train"), f"{seconds:.0f}", code))
    print_table(["part", "command", "s", "exit code"], rows)
    if any(code for *_, code in rows):
        sys.exit(1)


if __name__ == "__main__":
    tyro.cli(main)
