"""Layers of one shape, stacked on a leading axis and scanned; rematerialisation by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from clip_jax.distributed import pieces, sharding
from clip_jax.distributed.param_spec import (
    ParamSpec,
    ParamSpecs,
    add_layer_axis,
    map_params,
    param_specs,
)
from clip_jax.errors import UserError
from clip_jax.models import dropout
from clip_jax.models.layers import RESULT

# What is saved for the backward pass, which recomputes everything else.
REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names(RESULT),
}

Layer = TypeVar("Layer", bound=nnx.Module)
Apply = Callable[..., Array]


def check_remat(remat: str) -> str:
    """Returns `remat` if it is a name of `REMAT_POLICIES`, or `full:N`.

    Raises:
      UserError: it is not.
    """
    name, colon, group = remat.partition(":")
    is_group = name == "full" and group.isascii() and group.isdecimal() and int(group) > 1
    if name not in REMAT_POLICIES or (colon and not is_group):
        known = ", ".join(REMAT_POLICIES)
        raise UserError(f"unknown remat {remat!r:.40}; known: {known}, and full:N such as full:2")
    return remat


def is_full(remat: str) -> bool:
    """Returns whether the backward pass computes all layers again."""
    return remat.partition(":")[0] == "full"


def _group(remat: str) -> int:
    """Returns the number of layers between two whose inputs are saved."""
    return int(remat.partition(":")[2] or 1)


def stack(make: Callable[..., Layer], count: int, rngs: nnx.Rngs) -> Layer:
    """Makes `count` layers as one module whose variables have a leading layer axis.

    Args:
      make: `make(rngs=…)` makes one layer.
      count: the number of layers.
      rngs: the source of the initial values.
    """

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=0, out_axes=0)
    def stacked(rngs: nnx.Rngs) -> Layer:
        return make(rngs=rngs)

    layers = stacked(rngs)
    add_layer_axis(layers)
    return layers


def _layer(graph: nnx.GraphDef, apply: Apply) -> Callable[..., tuple[Array, nnx.State]]:
    """Returns a layer as a function of (parameters, statistics), its input and more arguments."""

    def layer(variables: Any, x: Array, *rest: Any) -> tuple[Array, nnx.State]:
        module = nnx.merge(graph, *variables)
        y = sharding.row_major_on_gpus(apply(module, sharding.row_major_on_gpus(x), *rest))
        return y, nnx.state(module, nnx.BatchStat)

    return layer


def _unchunked(
    graph: nnx.GraphDef, apply: Apply, specs: ParamSpecs, remat: str, rest: tuple[Any, ...]
) -> Callable[[Array, Any], tuple[Array, nnx.State]]:
    """Returns a body of `jax.lax.scan` that applies a layer to all rows of the batch."""
    layer = _layer(graph, apply)

    def body(x: Array, variables: Any) -> tuple[Array, nnx.State]:
        params, stats = variables
        x, stats = layer(
            (sharding.gather_params(params, specs), stats), sharding.constrain_rows(x), *rest
        )
        return sharding.constrain_rows(x), stats

    if remat == "none":
        return body
    policy = REMAT_POLICIES[remat.partition(":")[0]]
    return jax.checkpoint(body, policy=policy, prevent_cse=False)


def _chunked(
    graph: nnx.GraphDef, apply: Apply, specs: ParamSpecs, chunk: int, rest: tuple[Any, ...]
) -> Callable[[Array, Any], tuple[Array, nnx.State]]:
    """Returns a body of `jax.lax.scan` that applies a layer to a few rows at a time.

    Each device takes at most `chunk` of its rows. Intermediate values of a layer then stay in
    on-chip memory. The backward pass recomputes them, chunk by chunk, and sums gradients in
    float32.
    """
    layer = _layer(graph, apply)

    def gathered(params: nnx.State, dtype: Any) -> nnx.State:
        """Parameters that are all-gathered, matrices in the dtype of the products: half the bytes.

        The barrier keeps the compiler from moving the gathering into the loop over chunks.
        """
        params = map_params(partial(_cast, dtype), specs, params)
        return jax.lax.optimization_barrier(sharding.gather_params(params, specs))

    def applied(stats: Any) -> Callable[[Any, Any], Array]:
        return lambda params, rows: layer((params, stats), rows[0], *rows[1])[0]

    @jax.custom_vjp
    def run(params: Any, stats: Any, x: Array, rest: tuple[Any, ...]) -> Array:
        shared = gathered(params, x.dtype)
        return pieces.map_pieces(applied(stats), shared, (x, rest), chunk)

    def run_forward(*arguments: Any) -> tuple[Array, Any]:
        return run(*arguments), arguments

    def run_backward(saved: Any, gradient: Array) -> tuple[Any, None, Array, None]:
        params, stats, x, rest = saved
        shared = gathered(params, x.dtype)
        sums, to_x = pieces.pull_pieces(applied(stats), shared, (x, rest), gradient, chunk)
        grads = jax.tree.map(
            lambda g, p: g.astype(p.dtype), sharding.constrain_params(sums, specs), params
        )
        return grads, None, to_x, None

    run.defvjp(run_forward, run_backward)

    def body(x: Array, variables: Any) -> tuple[Array, nnx.State]:
        params, stats = variables
        return sharding.constrain_rows(run(params, stats, sharding.constrain_rows(x), rest)), stats

    return body


def _cast(dtype: Any, spec: ParamSpec, param: Array) -> Array:
    return param.astype(dtype) if spec.matrix else param


def _layer_specs(params: nnx.State) -> ParamSpecs:
    """Returns the metadata of one layer's parameters inside its body."""
    return {name: spec.in_layer() for name, spec in param_specs(params).items()}


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
    """Applies the layers of a `stack` in turn; only one layer is compiled.

    Args:
      stacked: the layers, as `stack` returns them.
      x: rows of a batch.
      apply: `apply(layer, x, *rest)` is the output of a layer.
      remat: a name of `REMAT_POLICIES`, or `full:N`.
      train: whether new batch statistics of the layers are written to `stacked`.
      chunk: the rows of each device that a layer takes at a time; 0 for all. Only for layers
        without batch statistics whose rows are independent; requires `remat` full.
      rest: more rows of the same batch (arrays, or None).
      last: applied in place of `apply` to the last layer.
    """
    graph, params, stats = nnx.split(stacked, nnx.Param, nnx.BatchStat)
    specs = _layer_specs(params)
    count = jax.tree.leaves(params)[0].shape[0]

    def layer(apply: Apply) -> Callable[[Array, Any], tuple[Array, nnx.State]]:
        if chunk and len(x) % sharding.row_shards() == 0:  # rows of a training batch
            return _chunked(graph, apply, specs, chunk, rest)
        return _unchunked(graph, apply, specs, remat, rest)

    x = sharding.constrain_rows(x)
    if last is None:
        numbers = dropout.layer_numbers(count)
        body = dropout.numbered(layer(apply))
        x, stats = _scan_groups(body, x, ((params, stats), numbers), _group(remat))
    else:
        before = jax.tree.map(lambda p: p[:-1], params)
        final = jax.tree.map(lambda p: p[-1], params)
        if count > 1:
            numbers = dropout.layer_numbers(count - 1)
            body = dropout.numbered(layer(apply))
            x, _ = _scan_groups(body, x, ((before, stats), numbers), _group(remat))
        final_layer = dropout.numbered(layer(last))
        x, _ = final_layer(sharding.constrain_rows(x), ((final, stats), count - 1))
    x = sharding.constrain_rows(x)
    if train:
        nnx.update(stacked, stats)
    return x


def _scan_groups(body: Callable[..., Any], x: Array, layers: Any, group: int) -> tuple[Array, Any]:
    """Scans layers, of which the backward pass finds the input of every `group`-th one saved.

    It computes the inputs between them again: less memory for at most one more forward pass.
    """
    count = jax.tree.leaves(layers)[0].shape[0]
    grouped = count - count % group if group > 1 else 0
    results = []
    if grouped:

        def run(x: Array, layers: Any) -> tuple[Array, Any]:
            # the last layer by itself: computing the others again does not need its result
            before = jax.tree.map(lambda leaf: leaf[:-1], layers)
            x, ys = jax.lax.scan(body, x, before)
            x, y = body(x, jax.tree.map(lambda leaf: leaf[-1], layers))
            return x, jax.tree.map(lambda ys, y: jnp.concatenate([ys, y[None]]), ys, y)

        def divided(leaf: Array) -> Array:
            return leaf[:grouped].reshape(grouped // group, group, *leaf.shape[1:])

        policy = REMAT_POLICIES["full"]
        run = jax.checkpoint(run, policy=policy, prevent_cse=False)
        x, ys = jax.lax.scan(run, x, jax.tree.map(divided, layers))
        results.append(jax.tree.map(lambda y: y.reshape(grouped, *y.shape[2:]), ys))
    if grouped < count:
        rest = jax.tree.map(lambda leaf: leaf[grouped:], layers) if grouped else layers
        x, ys = jax.lax.scan(body, x, rest)
        results.append(ys)
    if len(results) == 1:
        return x, results[0]
    return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), *results)


def first_layers(stacked: Layer, count: int) -> Layer:
    """Returns the first layers of a stack, as a stack."""
    graph, state = nnx.split(stacked)
    first: Layer = nnx.merge(graph, jax.tree.map(lambda array: array[:count], state))
    return first


def apply_once(
    module: nnx.Module, x: Array, apply: Apply, remat: str, train: bool = False
) -> Array:
    """Returns `apply(module, x)` for a single layer, rematerialised like those of `scan`."""
    graph, params, stats = nnx.split(module, nnx.Param, nnx.BatchStat)
    x, stats = _unchunked(graph, apply, _layer_specs(params), remat, ())(x, (params, stats))
    if train:
        nnx.update(module, stats)
    return x
