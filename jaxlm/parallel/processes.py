"""Training in several processes: start, detection of dead processes, and the decisions of process 0."""

import logging
import zlib
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlm.device_config import ProcessConfig
from jaxlm.errors import InputError, reason
from jaxlm.parallel.mesh import DATA, VOCAB

HEARTBEAT_SECONDS = 10  # after which a process that does not answer is taken for dead
SIGNS_OF_DEATH = ("Gloo", "NCCL", "UNAVAILABLE", "coordination service", "DEADLINE_EXCEEDED")
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory")  # in this process, whatever library reports it
START_SECONDS = 120  # within which all processes must have started

Result = TypeVar("Result")


def initialize_processes(config: ProcessConfig) -> None:
    """Connects to the other processes. Call it before any other function of JAX. Only process 0 shows messages.

    Args:
      config: the address of process 0 and the number of this process; under SLURM, Open MPI and Kubernetes JAX detects
        omitted values.

    Raises:
      InputError: the other processes cannot be found or reached.

    References:
      `jax.distributed.initialize`.
    """
    jax.config.update("jax_enable_preemption_service", False)  # which would take SIGTERM, and do nothing
    try:
        jax.distributed.initialize(
            config.coordinator_address or None,
            config.num_processes or None,
            config.process_id if config.process_id >= 0 else None,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"The processes of this run cannot find each other: {reason(error)} Outside of SLURM, Open MPI and"
            " Kubernetes, give each of them `coordinator_address`, `num_processes` and `process_id`."
        ) from error
    if not is_first():
        logging.getLogger("jaxlm").setLevel(logging.ERROR)


def is_peer_death(error: BaseException) -> bool:
    """Returns whether an error of JAX means that another process has died; XLA has no type of its own for it."""
    message = str(error)
    if jax.process_count() == 1 or any(word.lower() in message.lower() for word in OUT_OF_MEMORY):
        return False
    return any(word in message for word in SIGNS_OF_DEATH)


def is_first() -> bool:
    """Returns whether this is process 0, which makes the decisions and writes the files."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Waits until all processes have reached the same point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def from_first(value: int) -> int:
    """Returns the value of process 0."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def on_first(function: Callable[[], Result]) -> Result | None:
    """Runs a function in process 0 alone, while the others wait. Returns its result there, and None in the others.

    Raises:
      InputError: the function failed in process 0.
    """
    result: Result | None = None
    error: Exception | None = None
    if is_first():
        try:
            result = function()
        except Exception as raised:  # of any kind: the other processes wait for the outcome
            error = raised
    if from_first(error is not None):
        raise error or InputError("Process 0 failed to start; see its output.")
    return result


def require_same(value: bytes, advice: str) -> None:
    """Raises `InputError`, with advice at its end, if a value differs from that of process 0."""
    if jax.process_count() == 1:
        return
    checksum = zlib.crc32(value) >> 1
    if checksum != from_first(checksum):
        raise InputError(f"Process {jax.process_index()} differs from process 0. {advice}")


class Decision(NamedTuple):
    """The next action of all processes after a step."""

    stop: bool = False
    save: bool = False
    total_steps: int = 0  # 0 until it is known


class Decisions:
    """Distributes the decisions of process 0, and requests of any process to stop, one step late, without waiting."""

    def __init__(self, mesh: Mesh | None):
        self.mesh = mesh
        self.pending: jax.Array | None = None
        self.asked_to_save = False
        if mesh is not None:
            self.local_row = [device.process_index for device in mesh.devices.flat].index(jax.process_index())
            self.by_device = NamedSharding(mesh, PartitionSpec((DATA, VOCAB)))
            self.sum = jax.jit(lambda rows: rows.sum(axis=0), out_shardings=NamedSharding(mesh, PartitionSpec()))

    def exchange(self, own: Decision) -> Decision:
        """Returns the decision in force now, given the one this process would make."""
        if self.mesh is None or jax.process_count() == 1:
            return own
        # a request stays true until it is met, and is made once
        save, self.asked_to_save = own.save and not self.asked_to_save, own.save
        mine = np.array(own._replace(save=save) if is_first() else Decision(stop=own.stop), np.int32)
        rows = np.zeros((self.mesh.size, mine.size), np.int32)
        rows[self.local_row] = mine
        before = self.pending
        self.pending = self.sum(jax.make_array_from_callback(rows.shape, self.by_device, lambda index: rows[index]))
        if before is None:
            return Decision()
        stop, save, total_steps = np.asarray(before)
        return Decision(bool(stop), bool(save), int(total_steps))
