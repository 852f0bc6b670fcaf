"""Times what a user waits for before the first step, in fresh processes.

    python examples/benchmarks/startup.py

The first step with V = 200,000 takes the import, the parameters, the compilation and one step, with an empty
compilation cache and with a filled one.
"""

import os
import subprocess
import sys
import tempfile

import tyro
from measure import interleaved, machine, milliseconds, print_table

FIRST_STEP = """
import jax, numpy as np, jaxlm
from flax import nnx
model = jaxlm.LanguageModel(jaxlm.ModelConfig({vocab_size}), rngs=nnx.Rngs(0))
config = jaxlm.TrainConfig()
state = jaxlm.TrainState.create(model, config)
ids = np.zeros((config.batch_size, config.sequence_length), np.int32)
jax.block_until_ready(jaxlm.train_step(state, (ids, ids), 1e-3)[1])
"""


def process(*arguments: str, cache: str = "") -> None:
    """Runs a Python process."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
    subprocess.run([sys.executable, *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)


def main(vocab_size: int = 200_000, repeats: int = 5) -> None:
    """Prints a table.

    Args:
      vocab_size: Number of words of the first step.
      repeats: Timed processes of each.
    """
    code = FIRST_STEP.format(vocab_size=vocab_size)

    def empty_cache() -> None:
        with tempfile.TemporaryDirectory() as cache:
            process("-c", code, cache=cache)

    with tempfile.TemporaryDirectory() as cache:
        functions = {
            "python -c pass": lambda: process("-c", "pass"),
            "import jaxlm": lambda: process("-c", "import jaxlm"),
            "import jax": lambda: process("-c", "import jax"),
            "jaxlm --help": lambda: process("-m", "jaxlm", "--help"),
            "jaxlm-convert --help": lambda: process("-m", "convert", "--help"),
            f"first step at V = {vocab_size:,}, empty cache": empty_cache,
            f"first step at V = {vocab_size:,}, filled cache": lambda: process("-c", code, cache=cache),
        }
        times = interleaved(functions, repeats, warm_up=1)
    print(machine())
    print_table(["what", "median ms", "min ms"], [[name, *milliseconds(seconds)] for name, seconds in times.items()])


if __name__ == "__main__":
    tyro.cli(main)
