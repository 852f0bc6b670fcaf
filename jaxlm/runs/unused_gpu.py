"""Detects an NVIDIA GPU that JAX does not use."""

import glob
import importlib.util
import os

import jax

# one for each GPU, also in a container; on WSL2, a program of NVIDIA's driver, since /dev/dxg is any maker's GPU
DRIVER_FILES = ("/dev/nvidia[0-9]*", "/usr/lib/wsl/lib/nvidia-smi")
PLATFORM_VARIABLES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")
PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
HIDDEN = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES; the last one is of SLURM


def unused_gpu() -> str:
    """Returns advice in one line if this machine seems to have an NVIDIA GPU and JAX uses the processor; else "".

    A user who chose the processor, with JAX_PLATFORMS (formerly JAX_PLATFORM_NAME) or CUDA_VISIBLE_DEVICES, gets none.
    """
    is_chosen = any(map(os.environ.get, PLATFORM_VARIABLES)) or os.environ.get("CUDA_VISIBLE_DEVICES") in HIDDEN
    if is_chosen or jax.default_backend() != "cpu" or not any(map(glob.glob, DRIVER_FILES)):
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
