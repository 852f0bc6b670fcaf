"""Learning rate schedule and length of a run."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.config import ScheduleConfig, TrainConfig
from jaxlm.data.batches import batches_per_epoch
from jaxlm.parallel.mesh import Mesh

WARM_UP = 3  # first steps of a process, not used to measure its speed, since they are compiled
MEASURED = 0.05  # minimum part of a length in minutes over which the speed is measured


def learning_rate_schedule(config: ScheduleConfig, total_steps: int) -> optax.Schedule:
    """Returns the learning rate as an Optax schedule: linear warmup, constant, linear decay to 0.

    With `epoch_decay`, the rate of epoch e (from 0) of E is learning_rate / epoch_decay ** max(0, e + 1 - C), where
    C = round((1 - decay_fraction) * E) epochs are constant.

    Args:
      config: `learning_rate`, `warmup_steps`, `decay_fraction`, `epoch_decay` and `epochs` are used.
      total_steps: length of the run; 0 if it is not known yet (no decay).

    Returns:
      A function from the number of steps done to the learning rate, float32.

    >>> schedule = learning_rate_schedule(ScheduleConfig(learning_rate=1.0, warmup_steps=4), total_steps=20)
    >>> [round(float(schedule(step)), 2) for step in (0, 1, 3, 10, 15, 20)]
    [0.25, 0.5, 1.0, 1.0, 0.5, 0.0]
    """
    warmup_steps, decay_steps = max(1, config.warmup_steps), config.decay_fraction * total_steps
    warmup = optax.linear_schedule(1.0 / warmup_steps, 1.0, warmup_steps - 1)
    if config.epoch_decay:
        decay = _decay_by_epochs(config, total_steps)
    else:
        decay = optax.linear_schedule(1.0, 0.0, decay_steps, total_steps - decay_steps)

    def schedule(step: int) -> float:
        rate = config.learning_rate
        rate = rate * warmup(step) if warmup_steps > 1 else rate
        return rate * decay(step) if decay_steps > 0 else rate

    return schedule


def _decay_by_epochs(config: ScheduleConfig, total_steps: int) -> optax.Schedule:
    steps = math.floor(total_steps / config.epochs + 1e-6)  # of an epoch: a last fraction of one is rounded up
    decayed = range(round((1.0 - config.decay_fraction) * config.epochs), math.ceil(config.epochs))
    return optax.piecewise_constant_schedule(1.0, {epoch * steps: 1 / config.epoch_decay for epoch in decayed})


def jit_learning_rates(
    config: ScheduleConfig, total_steps: int, mesh: Mesh | None
) -> Callable[[np.ndarray], jax.Array]:
    """Returns a compiled function from step numbers `[N]` to learning rates `[N]` float32, replicated on the mesh."""
    schedule = learning_rate_schedule(config, total_steps)

    def learning_rates(steps: jax.Array) -> jax.Array:
        return jnp.broadcast_to(jnp.asarray(schedule(steps), jnp.float32), steps.shape)

    everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.jit(learning_rates, out_shardings=everywhere)


def known_total_steps(schedule: ScheduleConfig, train: TrainConfig, num_tokens: int) -> int:
    """Returns the length of a run in steps, or 0 if the clock decides (`minutes`).

    Raises:
      InputError: the text is too short for one batch.
    """
    batches = batches_per_epoch(num_tokens, train.batch_size, train.sequence_length)
    if schedule.minutes:
        return 0
    return schedule.steps or max(1, math.ceil((schedule.epochs or 1) * batches - 1e-6))  # 0.07 * 100 is above 7


class StepEstimate:
    """Turns a length in minutes into a number of steps, once the decay of the learning rate begins.

    A decay over the whole run begins as soon as the speed is known. `first_step` is that of this process.
    """

    def __init__(self, schedule: ScheduleConfig, first_step: int):
        self.limit = schedule.minutes * 60  # seconds
        self.decay_begins = self.limit * (1.0 - schedule.decay_fraction)
        self.first_step = first_step
        self.warm = (0, 0.0)  # step and seconds from which the speed is measured

    def total_steps(self, step: int, seconds: float) -> int:
        """Returns the total number of steps, or 0 if it is not known yet, after a number of steps and seconds."""
        if step == self.first_step + WARM_UP:
            self.warm = (step, seconds)
        measured_until = min(self.warm[1] + MEASURED * self.limit, self.limit)
        if step <= self.first_step + WARM_UP or seconds < max(self.decay_begins, measured_until):
            return 0
        speed = (step - self.warm[0]) / (seconds - self.warm[1])
        return step + max(1, int((self.limit - seconds) * speed))
