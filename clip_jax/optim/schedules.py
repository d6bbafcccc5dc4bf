"""Learning rate schedules."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike


def learning_rate(
    peak: float, warmup_steps: int, steps: int, final: float = 0.0, course: str = "cosine"
) -> optax.Schedule:
    """Linear warm-up to `peak`, then a cosine (section 2.5) or linear decay to `final`.

    Update `i` (from 0) of the warm-up has the rate `peak * (i + 1) / warmup_steps`, as in
    open_clip: a first update with the rate 0 would change nothing.

    Args:
      peak: the rate of the warm-up's last update, and of the one after it.
      warmup_steps: updates of the warm-up.
      steps: updates until `final`.
      final: the rate from then on.
      course: `cosine` or `linear`.
    """
    decay = max(steps - warmup_steps, 1)
    if course == "linear":
        down = optax.linear_schedule(peak, final, decay)
    else:
        down = optax.cosine_decay_schedule(peak, decay, alpha=final / peak)
    if not warmup_steps:
        return down

    def up(step: ArrayLike) -> Array:
        return peak * (jnp.asarray(step, jnp.float32) + 1) / warmup_steps

    return optax.join_schedules([up, down], [warmup_steps])
