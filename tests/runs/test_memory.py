"""Too little memory is told before anything is allocated, with settings that would fit; freed memory is returned."""

import ctypes
import platform
import resource
from pathlib import Path

import jax
import pytest

from jaxlm.config import ModelConfig, TrainConfig
from jaxlm.errors import InputError
from jaxlm.runs import memory
from jaxlm.runs.glibc import return_freed_memory
from jaxlm.runs.memory import available_bytes, full_loss_bytes, require_memory, state_bytes

MODEL = ModelConfig(200_000)


@pytest.mark.parametrize(("optimizer", "copies"), [("adam", 3), ("adagrad", 2), ("sgd", 1)])
def test_the_state_has_tables_and_moments(optimizer, copies):
    numbers = 200_000 * (256 + 1024 + 1) + 4 * 1024 * (256 + 1024 + 1)
    assert state_bytes(MODEL, TrainConfig(optimizer=optimizer)) == pytest.approx(4 * copies * numbers, rel=1e-6)


@pytest.mark.parametrize(
    ("batch_size", "mesh", "expected"),
    [
        (32, (1, 1), 4 * 200_000 * 1024 + 2 * 200_000 * 1120),  # the gradient of the softmax, and the exponentials
        (32, (1, 2), 2 * 200_000 * 1024 + 200_000 * 1120),
        (64, (1, 1), 4 * 200_000 * 1024),  # more exponentials than are kept
        (256, (8, 1), 4 * 200_000 * 1024 + 2 * 200_000 * 1120),
    ],
)
def test_the_full_softmax_needs_its_gradient(batch_size, mesh, expected):
    config = TrainConfig(loss="full", batch_size=batch_size, sequence_length=35, compute_dtype="bfloat16")
    assert full_loss_bytes(MODEL, config, mesh) == expected


def test_this_machine_has_memory():
    assert available_bytes() > 1e8
    require_memory(ModelConfig(1000), TrainConfig())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep less")
def test_what_was_freed_is_returned_to_the_system():
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    blocks = [libc.malloc(100_000) for _ in range(1001)]  # 100 MB; glibc maps only larger ones by themselves
    for block in blocks:
        ctypes.memset(block, 1, 100_000)
    kept = blocks[::100]  # what lies between them is not the end of the heap, which free() may return
    for block in set(blocks) - set(kept):
        libc.free(block)
    before = resident_bytes()
    return_freed_memory()
    assert before - resident_bytes() > 80e6
    for block in kept:
        libc.free(block)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def test_what_would_fit_is_named(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: int(3e9))
    with pytest.raises(InputError, match="needs about 3.7 GB of memory, and 3.0 GB are free") as error:
        require_memory(MODEL, TrainConfig())
    assert "These would fit: `optimizer` adagrad; `optimizer` sgd; `projection_size` 512" in str(error.value)
    with pytest.raises(InputError, match="needs about 5.0 GB of memory"):
        require_memory(MODEL, TrainConfig(loss="full", compute_dtype="bfloat16"))
    monkeypatch.setattr(memory, "available_bytes", lambda: int(1e7))
    with pytest.raises(InputError, match="Use a smaller vocabulary or a smaller model"):
        require_memory(MODEL, TrainConfig())


def test_a_device_that_knows_its_memory_is_asked(monkeypatch):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 80, "bytes_in_use": 30}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert available_bytes() == 50
