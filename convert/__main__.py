"""Convert jaxlm runs to ordinary Keras models (also `python -m convert`)."""

import os
import sys
from pathlib import Path

import tyro

from jaxlm.__main__ import run_command

app = tyro.extras.SubcommandApp()


@app.command(name="to-keras")
def to_keras(run: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path], /, overwrite: bool = False) -> None:
    """Write a run's best model as an ordinary Keras model, and prove that it gives the same.

    The file is loaded again and compared with the JAX model before it takes its name.

    Args:
      run: Run directory of `jaxlm train`.
      out: File to write, ending in .keras.
      overwrite: Replace the file if it is there.
    """
    from convert import formats
    from jaxlm.checkpoint import load_model

    formats.check_output(out, overwrite)
    model, _, _ = load_model(run)
    parity = formats.save_keras(model, out, overwrite=overwrite)
    print(f"{out}: {out.stat().st_size / 1e6:,.0f} MB, {parity}")


@app.command
def verify(run: tyro.conf.Positional[Path], keras_file: tyro.conf.Positional[Path], /) -> int:
    """Compare a Keras model with the run it was made from; exit code 1 if they differ.

    Args:
      run: Run directory of `jaxlm train`.
      keras_file: Keras model, .keras.
    """
    from convert import formats
    from convert.verify import compare
    from jaxlm.checkpoint import load_model

    keras_model = formats.load_keras(keras_file)
    parity = compare(load_model(run)[0], keras_model)
    print(parity)
    return 0 if parity.holds else 1


def main() -> None:
    """Entry point of the `jaxlm-convert` command."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's remarks on the machine
    sys.exit(run_command(lambda: app.cli(prog="jaxlm-convert", description=__doc__)))


if __name__ == "__main__":
    main()
