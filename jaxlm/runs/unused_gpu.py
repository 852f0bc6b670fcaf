"""Detects an NVIDIA GPU that JAX does not use."""

import importlib.util
import os
from pathlib import Path

import jax

DEVICE_FILES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")  # of the driver, also in a container and in WSL2
PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
HIDDEN = ("", "-1")  # values of CUDA_VISIBLE_DEVICES


def unused_gpu() -> str:
    """Returns advice in one line if this machine seems to have an NVIDIA GPU and JAX uses the processor; else "".

    A user who chose the processor, with JAX_PLATFORMS or CUDA_VISIBLE_DEVICES, gets no advice.
    """
    is_chosen = bool(os.environ.get("JAX_PLATFORMS")) or os.environ.get("CUDA_VISIBLE_DEVICES") in HIDDEN
    if is_chosen or jax.default_backend() != "cpu" or not any(Path(file).exists() for file in DEVICE_FILES):
        return ""
    if any(map(importlib.util.find_spec, PLUGINS)):
        return (
            "JAX is installed for CUDA, but does not use the NVIDIA GPU of this machine; its warning has the reason."
            " With an old driver or GPU, install jax[cuda12] in place of jax[cuda13]; `nvidia-smi` shows both, and the"
            " programs that use the GPU."
        )
    return (
        "JAX does not use the NVIDIA GPU of this machine. Run: pip install"
        f" 'jax[cuda13]=={jax.__version__}' (with an old driver or GPU: cuda12), or set JAX_PLATFORMS=cpu."
    )
