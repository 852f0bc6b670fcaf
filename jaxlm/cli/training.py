"""The train, resume, evaluate, report and doctor commands."""

import dataclasses
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxlm.cli.arguments import (
    BatchSize,
    Data,
    Devices,
    MeshOptions,
    Model,
    OptionalPositional,
    Processes,
    RunPath,
    Schedule,
    Step,
)
from jaxlm.cli.command_line import INTERRUPTED
from jaxlm.cli.results import print_evaluation, print_result
from jaxlm.config import ModelConfig, TrainConfig
from jaxlm.device_config import MeshConfig, ProcessConfig
from jaxlm.runs.glibc import keep_freed_memory

if TYPE_CHECKING:  # slow imports wait until a command needs them: --help does not
    from jax.sharding import Mesh

logger = logging.getLogger(__name__)


def train(
    data: Data,
    /,
    *,
    out: Path,
    batch_size: BatchSize = "auto",
    word_vectors: bool = True,
    model: Model,
    config: Step,
    schedule: Schedule,
    devices: Devices,
    processes: Processes,
) -> None:
    """Train a language model, or resume a run.

    Args:
      data: Directory made by `jaxlm prepare`.
      out: Run directory. Resumes the run it holds, if the settings of the model and of a training step are the
        same; the schedule may change.
      batch_size: Number of contiguous streams of text. "auto" is 32 on a processor and 128 on a GPU or TPU; a run keeps
        the number it began with.
      word_vectors: Start embedding and softmax rows of a new model at vectors counted from the training text, in which
        words with the same neighbors are close together, rather than at random.
      model: Shape of the model. Without any of these options, that of the existing run.
      config: Settings of a training step.
      schedule: Learning rate, length and evaluations.
      devices: Devices that share the model.
      processes: Processes that train together.
    """
    ModelConfig(1, **model)  # raises if the options are invalid, before JAX starts
    keep_freed_memory()
    mesh = _join(processes, devices, out)
    from jaxlm.data.corpus import load_corpus
    from jaxlm.runs.directory import CONFIG_FILE, load_config
    from jaxlm.runs.loop import train as train_model
    from jaxlm.training.settings import default_batch_size

    corpus = load_corpus(data)
    before = load_config(out) if (out / CONFIG_FILE).exists() else None  # of the run, or of an imported model
    vocab_size = len(corpus.vocabulary)  # another one than that of the run is refused as another vocabulary
    if before and not model:
        shape = dataclasses.replace(before.model, vocab_size=vocab_size)
    else:
        shape = ModelConfig(vocab_size, **model)
    if batch_size == "auto":
        batch_size = before.train.batch_size if before and before.train else default_batch_size()
    step = TrainConfig(**dataclasses.asdict(config) | {"batch_size": batch_size})
    evaluation = train_model(corpus, out, shape, step, schedule, use_word_vectors=word_vectors, data=data, mesh=mesh)
    print_result(out, corpus, evaluation, mesh)
    if evaluation is None:
        sys.exit(INTERRUPTED)


def _join(processes: ProcessConfig, devices: MeshOptions, run: Path) -> "Mesh | None":
    """Joins other processes, warns of an unused GPU, and returns the mesh, by default that of the run, or None."""
    given = MeshConfig(**devices)
    if processes.distributed:
        from jaxlm.parallel.processes import initialize_processes

        initialize_processes(processes)
    from jaxlm.parallel.mesh import open_mesh
    from jaxlm.runs.initial_state import mesh_of_run
    from jaxlm.runs.unused_gpu import unused_gpu

    if advice := unused_gpu():
        logger.warning(advice)
    return open_mesh(given if devices else mesh_of_run(run))


def resume(
    run: RunPath,
    /,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    minutes: float | None = None,
    learning_rate: float | None = None,
    data: Path | None = None,
    devices: Devices,
    processes: Processes,
) -> None:
    """Resume a run that was stopped or killed, without repeating its settings.

    Args:
      run: Run directory.
      steps: New length of the whole run in steps, those already done included.
      epochs: New length of the whole run in passes over the training text.
      minutes: New length of the whole run in minutes, not counting compilation and evaluation.
      learning_rate: New highest learning rate.
      data: Directory made by `jaxlm prepare`, if it was moved since training.
      devices: Devices that share the model.
      processes: Processes that train together.
    """
    keep_freed_memory()
    mesh = _join(processes, devices, run)
    from jaxlm.runs.directory import corpus_of_run, load_config
    from jaxlm.runs.loop import resume as resume_training

    evaluation = resume_training(
        run, data=data or "", mesh=mesh, steps=steps, epochs=epochs, minutes=minutes, learning_rate=learning_rate
    )
    print_result(run, corpus_of_run(run, load_config(run)), evaluation, mesh)
    if evaluation is None:
        sys.exit(INTERRUPTED)


def evaluate(
    run: RunPath,
    /,
    data: Path | None = None,
    max_tokens: int = 0,
    batch_size: int = 32,
) -> None:
    """Compute the exact perplexity of a run's best model on the validation and test texts.

    Args:
      run: Run directory.
      data: Directory made by `jaxlm prepare`, if it was moved since training.
      max_tokens: Number of words of each text, spread evenly over it, rounded up to a multiple of --batch-size; 0 for
        all.
      batch_size: Streams of text read side by side, each from the zero state: more streams read faster, and their
        perplexity is a little higher, since the first words of each have no context.
    """
    from jaxlm.inference.perplexity import evaluate as evaluate_model
    from jaxlm.parallel.mesh import open_mesh
    from jaxlm.runs.directory import corpus_of_run, load_model

    loaded = load_model(run, mesh=open_mesh())
    corpus = corpus_of_run(run, loaded.config, data or "")
    for split in ("valid", "test"):
        tokens = getattr(corpus, split)
        result = evaluate_model(loaded.model, tokens, max_tokens=max_tokens, batch_size=batch_size)
        streams = min(batch_size, tokens.size - 1)
        print_evaluation(split, result, corpus, f", read as {streams} streams, each from the zero state")


def report(
    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")],
    /,
    out: Path | None = None,
    max_tokens: int = 2048,
    seed: int = 0,
) -> None:
    """Write a report of one run, or of several side by side, as one HTML file. `jaxlm train` writes it at the end.

    Args:
      runs: Run directories.
      out: File to write; by default report.html in the first run directory.
      max_tokens: Words of the validation text whose surprisal is computed, from its beginning; 0 for all.
      seed: Random seed of the samples, from 0 to 4294967295.
    """
    from jaxlm.reports.report import write_report

    print(f"report: {write_report(runs, out, max_tokens=max_tokens, seed=seed)}")


def doctor(path: OptionalPositional = None, /) -> int:
    """Check this machine, and the files of a run or a corpus. Exits with 1 if a check fails.

    Args:
      path: Run directory, or directory made by `jaxlm prepare`.
    """
    from jaxlm.runs.doctor import examine

    findings = list(examine(path))
    width = max(len(finding.subject) for finding in findings)
    for subject, result, is_good in findings:
        print(f"{'ok' if is_good else 'WRONG':5}  {subject:{width}}  {result}")
    return 0 if all(finding.is_good for finding in findings) else 1
