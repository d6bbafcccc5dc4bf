"""L-BFGS for many smooth convex problems at once, spread over all devices.

Limited-memory BFGS: Nocedal & Wright 2006, "Numerical Optimization", algorithms 7.4 and 7.5. The
line search accepts what Hager & Zhang 2005, "A new conjugate gradient method with guaranteed
descent", call the approximate Wolfe conditions: near an optimum they look at slopes, which float32
resolves long after values no longer differ.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

MEMORY = 10  # pairs of differences, and evaluations between two looks at what is done
DECREASE, CURVATURE = 0.1, 0.9  # the Wolfe conditions' δ and σ
TRIES = 30  # step lengths tried along a direction before it counts as exhausted
ROUNDING = 3e-7  # by how much of itself a value may rise: float32's rounding

Objective = Callable[[Any, Any, Any], tuple[Any, Any]]


class Minima(NamedTuple):
    """The minima of all problems.

    Attributes:
      x: the arguments.
      value: the value of the objective at `x`.
      iterations: the number of accepted steps.
      converged: whether the tolerance was met; if not, the iterations or the digits of float32 were
        exhausted.
    """

    x: Float[np.ndarray, " problems *shape"]
    value: Float[np.ndarray, " problems"]
    iterations: Int[np.ndarray, " problems"]
    converged: Bool[np.ndarray, " problems"]


class _State(NamedTuple):
    """The state of each problem: the point, the direction from it, and the search along it."""

    x: Float[Array, " p *shape"]
    gradient: Float[Array, " p *shape"]
    direction: Float[Array, " p *shape"]
    value: Float[Array, " p"]  # infinite before the first evaluation
    slope: Float[Array, " p"]
    gained: Float[Array, " p"]  # by how much the value fell so far
    step: Float[Array, " p"]  # to try next
    low: Float[Array, " p"]  # the step is between these two
    high: Float[Array, " p"]
    low_slope: Float[Array, " p"]
    high_slope: Float[Array, " p"]
    gamma: Float[Array, " p"]  # what the newest pair makes of the scaling
    tries: Int[Array, " p"]
    iterations: Int[Array, " p"]
    converged: Bool[Array, " p"]
    done: Bool[Array, " p"]
    s: Float[Array, "p memory *shape"]
    y: Float[Array, "p memory *shape"]
    rho: Float[Array, "p memory"]  # 0: no pair


def _begin(start: Array) -> _State:
    count, zero = len(start), jnp.zeros(len(start), jnp.float32)
    pairs = jnp.zeros((count, MEMORY, *start.shape[1:]), jnp.float32)
    number, no = jnp.zeros(count, jnp.int32), jnp.zeros(count, bool)
    return _State(
        *(start, jnp.zeros_like(start), jnp.zeros_like(start), zero + jnp.inf, zero, zero),
        *(zero, zero, zero + jnp.inf, zero, zero, zero + 1, number, number, no, no),
        *(pairs, pairs, jnp.zeros((count, MEMORY), jnp.float32)),
    )


def _dot(a: Array, b: Array) -> Array:
    return (a * b).sum(range(1, a.ndim))


def _per_problem(scalar: Array, like: Array) -> Array:
    """Reshapes a number for each problem to broadcast against `like`."""
    return scalar.reshape(-1, *(1,) * (like.ndim - 1))


def _descent(state: _State, gradient: Array, scaling: Array, newest: Array) -> Array:
    """Returns the direction -Hg, computed by the two-loop recursion.

    The initial H is `scaling` times the newest pair's ratio.
    """

    def pair(j: Any) -> tuple[Array, Array, Array]:
        i = (newest - j) % MEMORY
        return tuple(jax.lax.dynamic_index_in_dim(a, i, 1, False) for a in state[-3:])

    def back(j: Any, carry: Any) -> Any:
        q, alphas = carry
        s, y, rho = pair(j)
        alpha = rho * _dot(s, q)
        return q - _per_problem(alpha, q) * y, alphas.at[j].set(alpha)

    def forth(j: Any, r: Array) -> Array:
        j = MEMORY - 1 - j
        s, y, rho = pair(j)
        return r + _per_problem(alphas[j] - rho * _dot(y, r), r) * s

    alphas = jnp.zeros((MEMORY, len(gradient)), jnp.float32)
    q, alphas = jax.lax.fori_loop(0, MEMORY, back, (gradient, alphas))
    r = _per_problem(state.gamma, q) * scaling * q
    return -jax.lax.fori_loop(0, MEMORY, forth, r)


def _accepts(state: _State, value: Array, slope: Array) -> Array:
    """Returns whether a trial's value and slope end the line search."""
    rise = value - state.value
    falls = rise <= DECREASE * state.step * state.slope
    level = (rise <= ROUNDING * jnp.abs(state.value)) & (slope <= (2 * DECREASE - 1) * state.slope)
    return (falls | level) & (slope >= CURVATURE * state.slope)


def _next_try(state: _State, value: Array, slope: Array) -> dict[str, Array]:
    """Returns the bracket around the best step, and a step by the secant of the slope."""
    short = (slope < 0) & (value - state.value <= ROUNDING * jnp.abs(state.value))
    here = jnp.stack([state.step, slope])
    low, low_slope = jnp.where(short, here, jnp.stack([state.low, state.low_slope]))
    high, high_slope = jnp.where(short, jnp.stack([state.high, state.high_slope]), here)
    bounded = jnp.isfinite(high)
    least = jnp.where(bounded, low + 0.1 * (high - low), 2 * low)
    most = jnp.where(bounded, high - 0.1 * (high - low), 10 * low)
    other = jnp.stack([state.low, state.low_slope])
    other, other_slope = jnp.where(bounded, jnp.stack([high, high_slope]), other)
    guess = low - low_slope * (other - low) / (other_slope - low_slope)
    straight = jnp.isfinite(guess) & (state.tries % 2 == 0)  # a bracket is halved in between
    middle = jnp.where(bounded, (low + high) / 2, 4 * low)
    step = jnp.clip(jnp.where(straight, guess, middle), least, most)
    names = ("step", "low", "high", "low_slope", "high_slope")
    return dict(zip(names, (step, low, high, low_slope, high_slope), strict=True))


def _advance(
    state: _State, trial: tuple[Array, Array, Array], scaling: Array, slot: Array, limits: Any
) -> _State:
    """Returns the state after one evaluation: a new point and direction, or a better step."""
    x, value, gradient = trial
    tolerance, most = limits
    slope = _dot(gradient, state.direction)
    first = jnp.isinf(state.value)
    moved = (first | _accepts(state, value, slope)) & ~state.done
    paired = moved & ~first
    s = _per_problem(state.step, x) * state.direction
    y = gradient - state.gradient
    product = _dot(s, y)
    paired &= product > 0
    new = {
        "s": jnp.where(_per_problem(paired, x), s, 0),
        "y": jnp.where(_per_problem(paired, x), y, 0),
        "rho": jnp.where(paired, 1 / product, 0),
    }
    # the mean slope times the step; a difference of nearly equal values would be all rounding
    gained = state.gained - jnp.where(paired, state.step * (state.slope + slope) / 2, 0)
    put = partial(jax.lax.dynamic_update_index_in_dim, index=slot, axis=1)
    state = state._replace(
        gained=gained,
        gamma=jnp.where(paired, product / _dot(y * scaling, y), state.gamma),
        **{name: put(getattr(state, name), pair) for name, pair in new.items()},
    )
    direction = _descent(state, gradient, scaling, slot)
    descent = _dot(gradient, direction)
    tries = jnp.where(moved, 0, state.tries + 1)
    iterations = state.iterations + moved
    converged = state.converged | moved & (-descent <= tolerance * jnp.minimum(value, gained))
    zero = jnp.zeros_like(value)
    at = {
        **{"x": x, "gradient": gradient, "direction": direction, "value": value},
        **{"slope": descent, "step": zero + 1, "low": zero, "high": zero + jnp.inf},
        **{"low_slope": descent, "high_slope": zero},
    }
    still = {name: getattr(state, name) for name in at} | _next_try(state, value, slope)
    return state._replace(
        **{k: jnp.where(_per_problem(moved, v), v, still[k]) for k, v in at.items()},
        tries=tries,
        iterations=iterations,
        converged=converged,
        done=state.done | converged | (iterations > most) | (tries >= TRIES),
    )


@partial(jax.jit, static_argnames=("objective", "mesh", "most"), donate_argnames="state")
def _round(
    state: _State, problem: Any, shared: Any, *, objective: Objective, mesh: Mesh, most: int
) -> _State:
    """Runs at most `MEMORY` evaluations of each problem.

    A device stops when all of its own problems are done.
    """

    def own(state: _State, problem: Any, shared: Any) -> _State:
        parameters, scaling, tolerance = problem

        def step(carry: tuple[Array, _State]) -> tuple[Array, _State]:
            i, state = carry
            x = state.x + _per_problem(state.step, state.x) * state.direction
            trial = (x, *objective(x, parameters, shared))
            return i + 1, _advance(state, trial, scaling, i, (tolerance, most))

        def going(carry: tuple[Array, _State]) -> Array:
            return (carry[0] < MEMORY) & ~carry[1].done.all()

        return jax.lax.while_loop(going, step, (jnp.int32(0), state))[1]

    split = P(mesh.axis_names)
    return jax.shard_map(
        own, mesh=mesh, in_specs=(split, split, P()), out_specs=split, check_vma=False
    )(state, problem, shared)


@partial(jax.jit, static_argnames="mesh")
def _packed(
    state: _State, slots: Array, is_kept: Array, empty: Array, start: Array, mesh: Mesh
) -> Any:
    """Packs the problems of these slots together; other slots start new problems or stay empty."""
    new = _begin(start)

    def choose(old: Array, new: Array) -> Array:
        return jnp.where(_per_problem(is_kept, new), old[slots], new)

    state = jax.tree.map(choose, state, new)
    state = state._replace(done=state.done | empty)
    return jax.lax.with_sharding_constraint(state, NamedSharding(mesh, P(mesh.axis_names)))


def _placed(tree: Any, mesh: Mesh, spec: P) -> Any:
    """Arrays that every process holds in full, as global arrays."""

    def place(array: Any) -> jax.Array:
        if isinstance(array, jax.Array):
            return array
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

    return jax.tree.map(place, tree)


def minimize(
    objective: Objective,
    start: Float[np.ndarray, " problems *shape"],
    parameters: Any,
    shared: Any,
    *,
    scaling: Float[np.ndarray, " problems *shape"] | None = None,
    tolerance: float | Float[np.ndarray, " problems"] = 1e-6,
    iterations: int = 1000,
    slots: int | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Minima:
    """Minimizes many convex functions of the same form, in float32.

    Problems are spread over the devices. Finished ones make room for waiting ones, and the slots
    shrink when few are left, so that finished problems cost nothing. A problem's result does not
    depend on the others, except for rounding.

    Args:
      objective: a module-level function: (x [p, …], parameters, shared) → the values [p] and
        gradients [p, …] of p problems.
      start: the initial arguments.
      parameters: arrays [problems, …] that differ between problems.
      shared: arrays that all problems use.
      scaling: a positive estimate of the inverse of the Hessian's diagonal; axes may have length 1.
      tolerance: a problem is done when the slope along its next step is at most this part of the
        value, and of what was gained since the start.
      iterations: the largest number of accepted steps.
      slots: the number of problems that run at a time; None: all.
      mesh: the devices; None: one device.
      progress: called with the number of finished problems and of all.
    """
    mesh = mesh or Mesh(np.array(jax.local_devices()[:1]), ("data",))
    count = len(start)
    if scaling is None:
        scaling = np.ones((count, *(1,) * (start.ndim - 1)), np.float32)
    tolerances = np.broadcast_to(np.float32(tolerance), count)
    problem = (parameters, scaling.astype(np.float32), tolerances)
    shared = _placed(shared, mesh, P())
    minima = Minima(
        np.zeros(start.shape, np.float32),
        *(np.zeros(count, kind) for kind in (np.float32, np.int32, bool)),
    )
    pool = _Pool(start, problem, min(slots or count, count), mesh)
    while pool.busy():
        pool.fill()
        state = _round(
            pool.state, pool.problem, shared, objective=objective, mesh=mesh, most=iterations
        )
        pool.state, ended = state, _gather(state.done) & (pool.slots >= 0)
        if ended.any():
            results = (state.x, state.value, state.iterations, state.converged)
            for mine, theirs in zip(minima, results, strict=True):
                mine[pool.slots[ended]] = _gather(theirs)[ended]
            pool.slots[ended] = -1
            if progress:
                progress(pool.begun - int((pool.slots >= 0).sum()), count)
    return minima


class _Pool:
    """The running problems by slot, and the waiting ones."""

    def __init__(self, start: np.ndarray, problems: Any, slots: int, mesh: Mesh) -> None:
        self._start, self._problems, self._mesh = start, problems, mesh
        self.slots = np.full(self._rounded(slots), -1)  # numbers of problems; -1: none
        self.begun = 0
        self.problem: Any = None
        self._state: _State | None = None

    @property
    def state(self) -> _State:
        """The state of the problem in each slot."""
        assert self._state is not None
        return self._state

    @state.setter
    def state(self, state: _State) -> None:
        self._state = state

    def _rounded(self, slots: int) -> int:
        return -(-slots // self._mesh.size) * self._mesh.size

    def busy(self) -> bool:
        """Whether a problem is running or waiting."""
        return self.begun < len(self._start) or bool((self.slots >= 0).any())

    def fill(self) -> None:
        """Starts waiting problems in free slots; halves the slots when few problems are left."""
        keep = np.flatnonzero(self.slots >= 0)
        keep = keep[np.argsort(self.slots[keep])]
        size = len(self.slots)
        left = len(self._start) - self.begun + len(keep)
        while (half := self._rounded(-(-size // 2))) < size and half >= left:
            size = half
        new = np.arange(self.begun, min(len(self._start), self.begun + size - len(keep)))
        if size == len(self.slots) and not len(new):
            return
        problems = np.full(size, -1)
        problems[: len(keep) + len(new)] = np.concatenate([self.slots[keep], new])
        slot = np.resize(keep, size) if len(keep) else np.zeros(size, int)
        # neighbouring problems take similar time: dealing them out keeps all devices busy
        deal = np.arange(size).reshape(-1, self._mesh.size).T.ravel()
        problems, slot, is_kept = problems[deal], slot[deal], deal < len(keep)
        own = np.maximum(problems, 0)
        rows = jax.tree.map(lambda a: a[own], self._problems)
        where = (slot, is_kept, problems < 0, self._start[own].astype(np.float32))
        split = P(self._mesh.axis_names)
        self.problem, placed = _placed((rows, where), self._mesh, split)
        if self._state is None:
            self._state = jax.jit(_begin)(placed[-1])
        self._state = _packed(self._state, *placed, mesh=self._mesh)
        self.slots, self.begun = problems, self.begun + len(new)


def _gather(array: jax.Array) -> np.ndarray:
    """Returns a global array in full, on every process."""
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
