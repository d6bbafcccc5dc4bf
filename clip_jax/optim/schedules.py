"""Learning rate schedules: a linear warm-up, a course, and for some courses a linear cooldown."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

TIMESCALE = 10_000  # steps of `rsqrt`


def learning_rate(
    peak: float,
    warmup_steps: int,
    steps: int,
    final: float = 0.0,
    course: str = "cosine",
    *,
    cooldown_steps: int = 0,
    timescale: int = TIMESCALE,
) -> optax.Schedule:
    """Makes a schedule with a linear warm-up to `peak`, then a course to the end of the run.

    Update `i` (from 0) of the warm-up has the rate `peak * (i + 1) / warmup_steps`, as in
    open_clip: a first update with the rate 0 would change nothing.

    Args:
      peak: the rate of the warm-up's last update, and of the one after it.
      warmup_steps: the number of updates of the warm-up.
      steps: the number of updates until the rate is `final`.
      final: the rate from then on; for `constant` and `rsqrt` only with a cooldown.
      course: `cosine` (section 2.5) or `linear`: a decay to `final`. `constant`: `peak`. `rsqrt`:
        `peak / sqrt(1 + i / timescale)` in update `i` after the warm-up, as in big_vision.
      cooldown_steps: for `constant` and `rsqrt`: the number of last updates in which the distance
        to `final` falls linearly, as in open_clip's `const-cooldown` and big_vision's
        `cooldown_steps`.
      timescale: for `rsqrt`: updates after the warm-up until the rate is `peak / sqrt(2)`.
    """
    decay = max(steps - warmup_steps, 1)
    if course == "linear":
        down = optax.linear_schedule(peak, final, decay)
    elif course == "cosine":
        down = optax.cosine_decay_schedule(peak, decay, alpha=final / peak)
    else:
        course_timescale = timescale if course == "rsqrt" else None
        down = _prolongable(peak, decay, final, cooldown_steps, course_timescale)
    if not warmup_steps:
        return down

    def up(step: ArrayLike) -> Array:
        return peak * (jnp.asarray(step, jnp.float32) + 1) / warmup_steps

    return optax.join_schedules([up, down], [warmup_steps])


def prolonged(
    make: Callable[[int], optax.Schedule], steps: int, ends: Sequence[int], then: str
) -> optax.Schedule:
    """Makes the schedule of a run that was given more steps, once or several times.

    Args:
      make: makes the schedule of a run of a given number of steps.
      steps: the number of updates of the whole run.
      ends: the steps at which the run ended before, in order. The first part has the rates of a
        run of that length.
      then: the rates of each later part. `continue`: those of a run that was so long from the
        start. `rewarm`: those of a run of the part's length. `constant`: the rate of the update
        before.
    """
    if not ends:
        return make(steps)

    def part(start: int, end: int, before: optax.Schedule) -> optax.Schedule:
        if then == "continue":
            return make(end)
        if then == "rewarm":
            fresh = make(end - start)
            return lambda step: fresh(step - start)
        return lambda step: before(start - 1)

    def join(start: int, before: optax.Schedule, after: optax.Schedule) -> optax.Schedule:
        return lambda step: jnp.where(jnp.asarray(step) < start, before(step), after(step))

    rate = make(ends[0])
    for start, end in itertools.pairwise((*ends, steps)):
        rate = join(start, rate, part(start, end, rate))
    return rate


def _prolongable(
    peak: float, steps: int, final: float, cooldown_steps: int, timescale: int | None
) -> optax.Schedule:
    """Returns a course that does not depend on the length of the run before its cooldown.

    Args:
      peak: the first rate.
      steps: updates from there to the end.
      final: the rate at the end of a cooldown.
      cooldown_steps: updates of the cooldown; 0: none.
      timescale: of the inverse square root; None: the rate is constant.
    """

    def rate(step: ArrayLike) -> Array:
        step = jnp.asarray(step, jnp.float32)
        value = jnp.full_like(step, peak)
        if timescale is not None:
            value = value / jnp.sqrt(1 + step / timescale)
        if not cooldown_steps:
            return value
        share = jnp.clip((steps - step) / cooldown_steps, 0, 1)
        return final + (value - final) * share

    return rate
