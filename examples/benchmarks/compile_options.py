"""Times the compilation of the training step, and the compiled step, under XLA's options for a GPU.

    python examples/benchmarks/compile_options.py

Each row has a process of its own, which compiles the step with an empty cache, compiles it again from the filled cache,
and runs it. On a processor the options have no effect, and the table only shows that the script works.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Literal

import jax
import jax.numpy as jnp
import tyro
from measure import machine, print_table
from problem import Problem, ProblemOptions

from jaxlm.data.batch_blocks import BatchBlocks
from jaxlm.training.step import step_in_block

OPTIONS: dict[str, dict[str, bool | int | str]] = {
    "XLA's own": {},
    "no autotuner of fusions": {"xla_gpu_experimental_enable_fusion_autotuner": False},
    "autotuner of products: level 1": {"xla_gpu_autotune_level": 1},
    "autotuner of products: off": {"xla_gpu_autotune_level": 0},
    "no Triton products": {"xla_gpu_enable_triton_gemm": False},
    "neither autotuner": {"xla_gpu_experimental_enable_fusion_autotuner": False, "xla_gpu_autotune_level": 0},
}


def measure(problem: Problem, options: dict[str, bool | int | str], steps: int) -> tuple[float, float, float]:
    """Returns the seconds of compilation, without and with what the cache holds, and the median ms of a step."""
    state = problem.state()
    blocks = BatchBlocks(problem.texts(steps).ravel(), problem.train_config, None)
    block = blocks.with_step(0, jax.jit(lambda steps: jnp.full(steps.shape, 1e-3)))
    compiling, times = [], []
    for _ in range(2):
        start = time.perf_counter()
        compiled = step_in_block.lower(state, block).compile(compiler_options=options)
        compiling.append(time.perf_counter() - start)
        jax.clear_caches()
    for _ in range(steps):
        start = time.perf_counter()
        # a block has few batches: each step reads its first one
        state, loss = compiled(dataclasses.replace(state, step=jnp.zeros_like(state.step)), block)
        loss.block_until_ready()
        times.append(time.perf_counter() - start)
    return compiling[0], compiling[1], 1e3 * statistics.median(times)


def measure_apart(problem: Problem, options: dict[str, bool | int | str], steps: int, limit: float) -> list[str]:
    """Returns the cells of a row from a process of its own with an empty cache, ended after a number of seconds."""
    arguments = json.dumps([dataclasses.asdict(problem), options, steps])
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, __file__, "measure", cache, arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return [f"over {limit:.0f} in all", "", ""]
    if done.returncode:
        return [f"failed: {done.stderr.strip().splitlines()[-1][:80]}", "", ""]
    cold, cached, step = json.loads(done.stdout.splitlines()[-1])
    return [f"{cold:.1f}", f"{cached:.1f}", f"{step:.2f}"]


def main(
    problem: ProblemOptions = Problem(),  # noqa: B008
    compute_dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("bfloat16", "float32"),
    steps: int = 50,
    limit: float = 60.0,
) -> None:
    """Prints a table.

    Args:
      problem: Sizes of the step; its `compute_dtype` has no effect.
      compute_dtypes: Data types of the operands of products.
      steps: Timed steps.
      limit: Seconds after which a row is given up.
    """
    rows = (
        [dtype, name, *measure_apart(dataclasses.replace(problem, compute_dtype=dtype), options, steps, limit)]
        for dtype in compute_dtypes
        for name, options in OPTIONS.items()
    )
    print(problem)
    print_table(["data type", "options", "compilation s", "from the cache s", "median ms per step"], rows)
    print(machine(), file=sys.stderr)  # last, since it makes JAX take memory of the GPU


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        jax.config.update("jax_compilation_cache_dir", sys.argv[2])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        sizes, chosen, number = json.loads(sys.argv[3])
        print(json.dumps(measure(Problem(**sizes), chosen, number)))
    else:
        tyro.cli(main)
