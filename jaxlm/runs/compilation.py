"""Compiles the training step while the initial state is made."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

import jax

from jaxlm.data.batch_blocks import BatchBlock, BatchBlocks
from jaxlm.runs.glibc import return_freed_memory
from jaxlm.training.state import TrainState, sharded_shapes
from jaxlm.training.step import step_in_block

logger = logging.getLogger(__name__)

CompiledStep: TypeAlias = Callable[[TrainState, BatchBlock], tuple[TrainState, jax.Array]]


def start_compilation(state: TrainState, blocks: BatchBlocks) -> Future[CompiledStep]:
    """Starts to compile `step_in_block` in a thread. Only the shapes of the state are used.

    Args:
      state: abstract or not.
      blocks: of the training text.
    """
    pool = ThreadPoolExecutor(1, "compilation")
    future = pool.submit(compile_step, state, blocks)
    pool.shutdown(wait=False)
    return future


def compile_step(state: TrainState, blocks: BatchBlocks) -> CompiledStep:
    """Compiles `step_in_block`, and returns the 200 MB of memory that this frees to the system."""
    start = time.perf_counter()
    compiled = step_in_block.lower(sharded_shapes(state), blocks.shapes()).compile()
    return_freed_memory()
    logger.info("compiled the training step in %.1f s", time.perf_counter() - start)
    return compiled
