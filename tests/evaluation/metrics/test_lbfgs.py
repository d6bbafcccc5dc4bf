"""Minima of many convex functions at once are those of each alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from clip_jax.distributed import sharding
from clip_jax.evaluation.metrics import lbfgs


def quadratic(x: jax.Array, parameters: Any, _: Any) -> tuple[jax.Array, jax.Array]:
    """½ Σ steep (x − at)² + 1."""
    steep, at = parameters
    return (steep * (x - at) ** 2).sum((1, 2)) / 2 + 1, steep * (x - at)


def log_cosh(x: jax.Array, at: Any, _: Any) -> tuple[jax.Array, jax.Array]:
    """Flat far out, so that the first step is far too short."""
    return jnp.logaddexp(x - at, at - x).sum(1), jnp.tanh(x - at)


def cliff(x: jax.Array, steep: Any, _: Any) -> tuple[jax.Array, jax.Array]:
    """exp(steep·x) − x: infinite where a step is too long."""
    return (jnp.exp(steep * x) - x).sum(1), steep * jnp.exp(steep * x) - 1


def nowhere(x: jax.Array, _: Any, __: Any) -> tuple[jax.Array, jax.Array]:
    """A value that is not a number but for the start."""
    here = (x == 0).all(1)
    return jnp.where(here, 1.0, jnp.nan), jnp.ones_like(x)


def quadratics(count: int, spread: float = 4) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(count)
    steep = np.exp(rng.uniform(-spread, spread, (count, 3, 5))).astype(np.float32)
    return np.zeros((count, 3, 5), np.float32), (steep, rng.normal(size=steep.shape))


def made_mesh(devices: int) -> Mesh:
    return sharding.make_mesh({"data": devices}, jax.devices()[:devices])


@pytest.mark.parametrize(("count", "slots", "devices"), [(1, None, 1), (13, 5, 1), (13, 8, 8)])
def test_every_problem_finds_its_minimum(count: int, slots: int | None, devices: int) -> None:
    start, (steep, at) = quadratics(count)
    parameters = (steep, at.astype(np.float32))
    progress: list[tuple[int, int]] = []
    result = lbfgs.minimize(
        *(quadratic, start, parameters, ()),
        tolerance=1e-9,
        slots=slots,
        mesh=made_mesh(devices),
        progress=lambda *numbers: progress.append(numbers),
    )
    assert result.converged.all()
    np.testing.assert_allclose(result.x, at, atol=3e-3)
    np.testing.assert_allclose(result.value, 1, atol=1e-5)
    assert progress[-1] == (count, count) and progress == sorted(progress)


def test_an_answer_does_not_depend_on_the_others() -> None:
    start, (steep, at) = quadratics(9, 1)
    parameters = (steep, at.astype(np.float32))
    together = lbfgs.minimize(quadratic, start, parameters, (), slots=4)
    for i in range(9):
        own = tuple(a[i : i + 1] for a in parameters)
        alone = lbfgs.minimize(quadratic, start[i : i + 1], own, ())
        np.testing.assert_allclose(alone.x[0], together.x[i], rtol=1e-4, atol=1e-5)
        assert alone.iterations[0] == together.iterations[i]


def test_neighbours_are_dealt_out_among_the_devices() -> None:
    start, (steep, at) = quadratics(16)
    parameters = (steep, at.astype(np.float32))
    pool = lbfgs._Pool(start, (parameters,), 16, made_mesh(8))
    pool.fill()
    assert pool.slots.reshape(8, 2).tolist() == [[i, i + 8] for i in range(8)]
    pool.slots[pool.slots % 2 == 0] = -1
    pool.fill()
    assert pool.slots.tolist() == [1, 3, 5, 7, 9, 11, 13, 15]
    np.testing.assert_array_equal(pool.problem[0][0], steep[pool.slots])


def test_the_right_scaling_needs_one_step() -> None:
    start, (steep, at) = quadratics(4)
    parameters = (steep, at.astype(np.float32))
    scaled = lbfgs.minimize(quadratic, start, parameters, (), scaling=1 / steep)
    plain = lbfgs.minimize(quadratic, start, parameters, ())
    assert scaled.iterations.max() <= 3 < plain.iterations.min()


def test_steps_grow_and_shrink() -> None:
    far = np.array([[1.0], [100.0], [-3000.0]], np.float32)
    result = lbfgs.minimize(log_cosh, np.zeros((3, 1), np.float32), far, (), tolerance=1e-9)
    np.testing.assert_allclose(result.x, far, rtol=1e-3)
    assert result.iterations.max() < 40
    steep = np.array([[0.5], [4.0], [10.0]], np.float32)
    result = lbfgs.minimize(cliff, np.full((3, 1), -20, np.float32), steep, (), tolerance=1e-10)
    np.testing.assert_allclose(result.x, -np.log(steep) / steep, rtol=1e-3)


def test_problems_that_cannot_converge_end_and_are_marked() -> None:
    start, (steep, at) = quadratics(3)
    result = lbfgs.minimize(quadratic, start, (steep, at.astype(np.float32)), (), iterations=2)
    assert not result.converged.any() and result.iterations.max() <= 3
    result = lbfgs.minimize(nowhere, start[:, 0], np.zeros(3, np.float32), ())
    assert not result.converged.any()
    assert (result.x == 0).all(), "the last point that was sound"
