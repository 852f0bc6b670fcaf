"""Compiles the programs of a run in a thread, ahead of their first calls."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, TypeAlias

import jax
import numpy as np

from jaxlm.data.batch_blocks import BatchBlock, BatchBlocks
from jaxlm.data.batches import shard_batch
from jaxlm.inference.perplexity import lower_evaluation
from jaxlm.runs.finite import lower_not_finite
from jaxlm.runs.glibc import return_freed_memory
from jaxlm.training.batch_losses import exact_and_training_loss
from jaxlm.training.state import TrainState
from jaxlm.training.state_sharding import sharded_shapes
from jaxlm.training.step import step_in_block

logger = logging.getLogger(__name__)

Program: TypeAlias = Literal["evaluation", "sampling gap", "not finite"]  # besides the step
CompiledStep: TypeAlias = Callable[[TrainState, BatchBlock], tuple[TrainState, jax.Array]]


class Compilation:
    """Compiles the training step, and then the programs of evaluations and checkpoints, one after the other.

    The step is compiled while the initial state is made, the others during the first steps. A function of `jax.jit`
    that was lowered and compiled for the shapes, types and shardings of its arguments does not compile again when it is
    called with such arguments. Only the shapes of the state are used.

    Args:
      state: abstract or not.
      blocks: of the training text.
      valid: `[N]` ids of the validation text.
      eval_tokens: as in `ScheduleConfig`.
    """

    def __init__(self, state: TrainState, blocks: BatchBlocks, valid: np.ndarray, eval_tokens: int):
        shapes = sharded_shapes(state)
        self.pool = ThreadPoolExecutor(1, "compilation")
        self.step: Future[CompiledStep] = self.pool.submit(_compile_step, shapes, blocks)
        self.others: dict[Program, Future[None]] = {}
        if not compiles_ahead():
            return
        lower: dict[Program, Callable[[], jax.stages.Lowered]] = {
            "evaluation": lambda: lower_evaluation(shapes.model, valid, eval_tokens),
            "sampling gap": lambda: exact_and_training_loss.lower(shapes, shard_batch(blocks.batch(0), shapes.mesh)),
            "not finite": lambda: lower_not_finite(shapes),
        }
        self.others = {name: self.pool.submit(_compile, name, program) for name, program in lower.items()}

    def wait(self, name: Program) -> None:
        """Waits for a program if its compilation has begun; otherwise, its first call compiles it. Raises its error."""
        compilation = self.others.pop(name, None)
        if compilation is not None and not compilation.cancel():
            compilation.result()

    def close(self) -> None:
        """Drops the programs whose compilation has not begun."""
        self.pool.shutdown(wait=False, cancel_futures=True)


def compiles_ahead() -> bool:
    """Returns whether the programs of evaluations and checkpoints are compiled before their first calls.

    On a processor this would delay the first steps, which need all cores. Several processes may share the measurements
    of XLA's autotuner: if one of them stopped before it compiled a program, the others would wait for it.
    """
    return jax.default_backend() != "cpu" and jax.process_count() == 1


def _compile(name: str, lower: Callable[[], jax.stages.Lowered]) -> None:
    start = time.perf_counter()
    lower().compile()
    logger.debug("compiled the program %r in %.1f s", name, time.perf_counter() - start)


def _compile_step(state: TrainState, blocks: BatchBlocks) -> CompiledStep:
    """Compiles `step_in_block`, and returns the 200 MB of memory that this frees to the system."""
    start = time.perf_counter()
    compiled = step_in_block.lower(state, blocks.shapes()).compile()
    return_freed_memory()
    logger.info("compiled the training step in %.1f s", time.perf_counter() - start)
    return compiled
