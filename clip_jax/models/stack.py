"""Layers of one shape, stacked on a leading axis and scanned over; rematerialisation by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx
from jaxtyping import Array

from clip_jax import partition
from clip_jax.errors import UserError
from clip_jax.models.linear import RESULT

# What the backward pass finds saved; the rest it computes again.
REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names(RESULT),
}

Layer = TypeVar("Layer", bound=nnx.Module)
Apply = Callable[[Any, Array], Array]


def check_remat(remat: str) -> str:
    """`remat` itself; UserError where it names nothing in `REMAT_POLICIES`."""
    if remat not in REMAT_POLICIES:
        raise UserError(f"unknown remat {remat!r}; known: {', '.join(REMAT_POLICIES)}")
    return remat


def stack(make: Callable[..., Layer], count: int, rngs: nnx.Rngs) -> Layer:
    """`count` layers of `make(rngs=…)` as one module whose variables lead with such an axis."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=0, out_axes=0)
    def stacked(rngs: nnx.Rngs) -> Layer:
        return make(rngs=rngs)

    return stacked(rngs)


def _pure(graph: nnx.GraphDef, apply: Apply, remat: str) -> Callable[[Array, Any], tuple[Any, Any]]:
    """A layer as a function of its input and its (parameters, statistics)."""

    def layer(x: Array, variables: tuple[nnx.State, nnx.State]) -> tuple[Array, nnx.State]:
        params, stats = variables
        module = nnx.merge(graph, partition.gathered(params), stats)
        x = partition.rows(apply(module, partition.rows(x)))
        return x, nnx.state(module, nnx.BatchStat)

    if remat == "none":
        return layer
    return jax.checkpoint(layer, policy=REMAT_POLICIES[remat], prevent_cse=False)


def scan(stacked: nnx.Module, x: Array, apply: Apply, remat: str, train: bool = False) -> Array:
    """`apply(layer, x)` for each layer of a `stack` in turn: one is compiled, whatever the depth.

    With `train`, what `apply` changes in the layers' batch statistics is kept in `stacked`.
    """
    graph, params, stats = nnx.split(stacked, nnx.Param, nnx.BatchStat)
    x, stats = jax.lax.scan(_pure(graph, apply, remat), partition.rows(x), (params, stats))
    x = partition.rows(x)
    if train:
        nnx.update(stacked, stats)
    return x


def once(module: nnx.Module, x: Array, apply: Apply, remat: str, train: bool = False) -> Array:
    """`apply(module, x)` for a layer that stands alone, rematerialised like those of `scan`."""
    graph, params, stats = nnx.split(module, nnx.Param, nnx.BatchStat)
    x, stats = _pure(graph, apply, remat)(x, (params, stats))
    if train:
        nnx.update(module, stats)
    return x
