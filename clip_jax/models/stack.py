"""Layers of one shape, stacked on a leading axis and scanned over; rematerialisation by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from clip_jax.distributed import sharding
from clip_jax.errors import UserError
from clip_jax.models.linear import RESULT

# What the backward pass finds saved; the rest it computes again.
REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names(RESULT),
}

Layer = TypeVar("Layer", bound=nnx.Module)
Apply = Callable[..., Array]


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


def _layer(graph: nnx.GraphDef, apply: Apply) -> Callable[..., tuple[Array, nnx.State]]:
    """A layer as a function of its (parameters, statistics), its input and what else it takes."""

    def layer(variables: Any, x: Array, *rest: Any) -> tuple[Array, nnx.State]:
        module = nnx.merge(graph, *variables)
        return apply(module, x, *rest), nnx.state(module, nnx.BatchStat)

    return layer


def _whole(
    graph: nnx.GraphDef, apply: Apply, remat: str, rest: tuple[Any, ...]
) -> Callable[[Array, Any], tuple[Array, nnx.State]]:
    """A layer over a whole batch, as `jax.lax.scan` takes it."""
    layer = _layer(graph, apply)

    def body(x: Array, variables: Any) -> tuple[Array, nnx.State]:
        params, stats = variables
        x, stats = layer((sharding.gathered(params), stats), sharding.rows(x), *rest)
        return sharding.rows(x), stats

    if remat == "none":
        return body
    return jax.checkpoint(body, policy=REMAT_POLICIES[remat], prevent_cse=False)


def _chunked(
    graph: nnx.GraphDef, apply: Apply, chunk: int, rest: tuple[Any, ...]
) -> Callable[[Array, Any], tuple[Array, nnx.State]]:
    """The same, of which each device does at most `chunk` of its rows at a time.

    What is between a layer's input and its output then never leaves the memory on the chip. Going
    backwards all of it is computed again, chunk by chunk; gradients are summed in float32.
    """
    layer = _layer(graph, apply)

    def used(params: nnx.State, dtype: Any) -> nnx.State:
        """Parameters whole, and matrices as they are multiplied: half the bytes to gather.

        Gathered before the loop over chunks: the compiler would move that into it.
        """
        params = jax.tree_util.tree_map_with_path(partial(_cast, dtype), params)
        return jax.lax.optimization_barrier(sharding.gathered(params))

    def of(params: Any, stats: Any, piece: tuple[Any, ...]) -> Array:
        return layer((params, stats), *piece)[0]

    @jax.custom_vjp
    def run(params: Any, stats: Any, x: Array, rest: tuple[Any, ...]) -> Array:
        def forward(params: Any, rows: Any) -> tuple[tuple[()], Array]:
            return (), _flat(jax.lax.map(partial(of, params, stats), _pieces(rows, chunk)))

        return sharding.by_device(forward, used(params, x.dtype), (x, *rest))[1]

    def run_forward(*held: Any) -> tuple[Array, Any]:
        return run(*held), held

    def run_backward(held: Any, gradient: Array) -> tuple[Any, None, Array, None]:
        params, stats, x, rest = held

        def backward(params: Any, rows: Any) -> tuple[Any, Array]:
            def one(sums: Any, piece: Any) -> tuple[Any, Array]:
                (x, *rest), gradient = piece
                _, pull = jax.vjp(lambda p, x: of(p, stats, (x, *rest)), params, x)
                more, to_x = pull(gradient)
                return jax.tree.map(lambda a, b: a + b.astype(a.dtype), sums, more), to_x

            zero = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
            sums, to_x = jax.lax.scan(one, zero, _pieces(rows, chunk))
            return sums, _flat(to_x)

        rows = ((x, *rest), gradient)
        sums, to_x = sharding.by_device(backward, used(params, x.dtype), rows)
        grads = jax.tree.map(lambda g, p: g.astype(p.dtype), sharding.spread(sums), params)
        return grads, None, to_x, None

    run.defvjp(run_forward, run_backward)

    def body(x: Array, variables: Any) -> tuple[Array, nnx.State]:
        params, stats = variables
        return sharding.rows(run(params, stats, sharding.rows(x), rest)), stats

    return body


def _cast(dtype: Any, path: Any, param: Array) -> Array:
    return param.astype(dtype) if sharding.name_of(path).endswith("kernel") else param


def _pieces(rows: Any, chunk: int) -> Any:
    """Rows [n, …] as [pieces, m, …], m at most `chunk`."""
    n = len(jax.tree.leaves(rows)[0])
    size = next(m for m in range(min(chunk, n), 0, -1) if n % m == 0)
    return jax.tree.map(lambda x: x.reshape(n // size, size, *x.shape[1:]), rows)


def _flat(pieces: Array) -> Array:
    return pieces.reshape(-1, *pieces.shape[2:])


def scan(
    stacked: nnx.Module,
    x: Array,
    apply: Apply,
    remat: str,
    train: bool = False,
    *,
    chunk: int = 0,
    rest: tuple[Any, ...] = (),
    last: Apply | None = None,
) -> Array:
    """`apply(layer, x, *rest)` for each layer of a `stack` in turn: one is compiled.

    Args:
      stacked: what `stack` made.
      x: rows of a batch.
      apply: what a layer does.
      remat: a name of `REMAT_POLICIES`.
      train: what `apply` changes in the layers' batch statistics is kept in `stacked`.
      chunk: rows of each device that a layer takes at once; 0 for all. Only for layers without
        batch statistics, each of whose rows goes its own way; then `remat` is full.
      rest: more rows of the same batch (arrays, or None).
      last: what the last layer does in place of `apply`.
    """
    graph, params, stats = nnx.split(stacked, nnx.Param, nnx.BatchStat)

    def layer(apply: Apply) -> Callable[[Array, Any], tuple[Array, nnx.State]]:
        if chunk:
            return _chunked(graph, apply, chunk, rest)
        return _whole(graph, apply, remat, rest)

    x = sharding.rows(x)
    if last is None:
        x, stats = jax.lax.scan(layer(apply), x, (params, stats))
    else:
        before = jax.tree.map(lambda p: p[:-1], params)
        final = jax.tree.map(lambda p: p[-1], params)
        if jax.tree.leaves(before)[0].shape[0]:
            x, _ = jax.lax.scan(layer(apply), x, (before, stats))
        x, _ = layer(last)(sharding.rows(x), (final, stats))
    x = sharding.rows(x)
    if train:
        nnx.update(stacked, stats)
    return x


def once(module: nnx.Module, x: Array, apply: Apply, remat: str, train: bool = False) -> Array:
    """`apply(module, x)` for a layer that stands alone, rematerialised like those of `scan`."""
    graph, params, stats = nnx.split(module, nnx.Param, nnx.BatchStat)
    x, stats = _whole(graph, apply, remat, ())(x, (params, stats))
    if train:
        nnx.update(module, stats)
    return x
