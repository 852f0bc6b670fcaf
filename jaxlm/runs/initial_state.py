"""Initial training state: new, imported, or restored from the latest checkpoint."""

import dataclasses
import logging
import math
from pathlib import Path

import jax

from jaxlm.config import ModelConfig, TrainConfig
from jaxlm.data.corpus import Corpus
from jaxlm.device_config import MeshConfig
from jaxlm.parallel.mesh import Mesh, mesh_shape
from jaxlm.parallel.processes import from_first, on_first
from jaxlm.runs.checkpoint import Checkpoints
from jaxlm.runs.directory import RunConfig
from jaxlm.runs.progress import Progress
from jaxlm.runs.restoring import restore_model, restore_optimizer
from jaxlm.training.state import TrainState

logger = logging.getLogger(__name__)


def mesh_of_run(directory: Path) -> MeshConfig:
    """Returns the mesh that the latest checkpoint was written on, if there are as many devices; else the default."""
    progress = Checkpoints(directory).latest_progress()
    if progress is None or math.prod(progress.mesh) != len(jax.devices()):
        return MeshConfig()
    data, vocab = progress.mesh
    return MeshConfig(vocab, data)


def starting_state(
    checkpoints: Checkpoints, abstract: TrainState, corpus: Corpus, config: RunConfig, mesh: Mesh | None
) -> tuple[int, TrainState, Progress]:
    """Returns the number of steps done, the state after them, and the progress saved with it.

    `abstract` has the shapes and shardings of the state on `mesh`.
    """
    step = _latest_step(checkpoints)
    if step is None:
        settings = corpus, config.model, abstract.config
        state = TrainState.from_corpus(*settings, use_word_vectors=config.use_word_vectors, mesh=mesh)
        return 0, state, Progress(0.0)
    if step == 0:
        return 0, _imported_state(checkpoints, corpus, config.model, abstract.config, mesh), Progress(0.0)
    state, progress = checkpoints.restore(step, abstract, mesh), checkpoints.progress(step)
    _report_resumption(checkpoints.directory.parent, step, progress, mesh)
    return step, state, progress


def _latest_step(checkpoints: Checkpoints) -> int | None:
    """Returns the step of the latest intact checkpoint, which process 0 verifies; None if there is none."""
    step = on_first(checkpoints.latest_step)
    step = from_first(-1 if step is None else step)
    return None if step < 0 else step


def _report_resumption(directory: Path, step: int, resumed: Progress, mesh: Mesh | None) -> None:
    """Logs the step of resumption, and differences that may change the bits of the run."""
    logger.info("%s: resuming from step %d", directory, step)
    if resumed.jax_version != jax.__version__:
        logger.warning(
            "the run was saved with jax %s and resumes with %s: its bits may differ from those of an uninterrupted run",
            resumed.jax_version,
            jax.__version__,
        )
    before, now = (resumed.num_processes, *resumed.mesh), (jax.process_count(), *mesh_shape(mesh))
    if before != now:
        logger.warning(
            "the run was saved by %d process(es) on %d x %d devices (data x vocab) and resumes with %d on %d x %d:"
            " its last bits may differ from those of an uninterrupted run",
            *before,
            *now,
        )


def _imported_state(
    checkpoints: Checkpoints, corpus: Corpus, model_config: ModelConfig, config: TrainConfig, mesh: Mesh | None
) -> TrainState:
    """Returns the state of an imported model before its first step, with its optimizer state if it has one."""
    state = TrainState.create(restore_model(checkpoints, 0, model_config, mesh), config, corpus.counts)
    without_averages = dataclasses.replace(config, average_after=0, average_patience=0)  # which no import has
    opt_state = restore_optimizer(checkpoints, 0, model_config, without_averages, mesh)
    if opt_state is None:
        if any(name.startswith("opt_state/") for name in checkpoints.array_names(0)):
            logger.warning("the imported optimizer state is not that of %s, which starts anew", config.optimizer)
        return state
    if config.has_averages:
        opt_state = {name: each._replace(state=opt_state[name]) for name, each in state.opt_state.items()}
    return dataclasses.replace(state, opt_state=opt_state)
