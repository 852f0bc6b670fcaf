"""Settings of the devices and processes that train a model together."""

from dataclasses import dataclass

from jaxlm.config_checks import require_at_least, require_types
from jaxlm.errors import require


@dataclass(frozen=True)
class MeshConfig:
    """The devices that share a model. A run can be resumed on different ones.

    Args:
      vocab_shards: number of shards of the rows of the tables; 0 uses all devices. A run that is resumed without these
        options keeps its own, if there are as many devices.
      data_shards: number of replicas of the tables, each with its own streams of text.

    Raises:
      InputError: a value is out of range.
    """

    vocab_shards: int = 0
    data_shards: int = 1

    def __post_init__(self) -> None:
        require_types(self)
        require_at_least(self, 0, "vocab_shards")
        require_at_least(self, 1, "data_shards")


@dataclass(frozen=True)
class ProcessConfig:
    """Several processes that train one model together, each with its own devices.

    Args:
      distributed: whether this is one of several processes, all started with the same command. Under SLURM,
        Open MPI and Kubernetes the next three settings are detected.
      coordinator_address: host:port of process 0.
      num_processes: number of processes; 0 to detect.
      process_id: number of this process, from 0; -1 to detect.
    """

    distributed: bool = False
    coordinator_address: str = ""
    num_processes: int = 0
    process_id: int = -1

    def __post_init__(self) -> None:
        require_types(self)
        for name in ("coordinator_address", "num_processes", "process_id"):
            idle = not self.distributed and getattr(self, name) != getattr(type(self), name)
            require(not idle, name, "no value without `distributed`", getattr(self, name))
