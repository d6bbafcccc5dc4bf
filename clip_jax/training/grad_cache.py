"""The gradients of a batch, at once or in parts: the same numbers for less memory."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from clip_jax.distributed import sharding
from clip_jax.losses.objectives import Metrics, Objective
from clip_jax.models.clip import CLIP, Output, Params, Variables, assembled, variables

Batch = dict[str, Any]
Found = tuple[Float[Array, ""], Metrics, Params, Params]  # loss, metrics, statistics, gradients


def of(
    graph: nnx.GraphDef,
    objective: Objective,
    held: Variables,
    batch: Batch,
    key: Key[Array, ""],
    parts: int = 1,
) -> Found:
    """The loss of a batch, what else is said of it, new batch statistics and the gradients.

    Args:
      graph: of the model.
      objective: what is minimised.
      held: parameters and batch statistics.
      batch: `image`, `tokens`, and what the objective asks for; rows first.
      key: for what is random. Each row's chance is its own, whatever part it is in.
      parts: 1, or as many as the batch goes through the towers in: see `cached`.
    """
    rows = jnp.arange(len(batch["tokens"]))
    batch = {**batch, "key": jax.vmap(jax.random.fold_in, (None, 0))(key, rows)}
    if parts == 1:
        return whole(graph, objective, held, batch)
    return cached(graph, objective, held, batch, parts)


def _forward(model: CLIP, batch: Batch) -> Output:
    return model(batch["image"], batch["tokens"], key=batch["key"])


def whole(graph: nnx.GraphDef, objective: Objective, held: Variables, batch: Batch) -> Found:
    """The batch at once; arguments as of `of`, the batch with a `key` for each row."""
    params, stats = held

    def loss_fn(params: Params) -> tuple[Float[Array, ""], tuple[Metrics, Params]]:
        model = assembled(graph, (params, stats))
        loss, metrics = objective(_forward(model, batch), batch)
        return loss, (metrics, variables(model)[1])

    (loss, (metrics, stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    return loss, metrics, stats, grads


def cached(
    graph: nnx.GraphDef, objective: Objective, held: Variables, batch: Batch, parts: int
) -> Found:
    """The batch in parts, with every negative of the whole (Gao et al. 2021, GradCache).

    All features first, a part at a time, and nothing else kept; then the loss of the whole batch
    and its gradients by the features; then each part again, backwards. The gradients are those
    of the whole batch, for one more forward pass and the activations of one part.

    Batch normalisation sees a part at a time: its statistics are a part's.
    """
    params, stats = held
    pieces = sharding.cut(batch, parts)

    def features(params: Params, stats: Params, piece: Batch) -> tuple[Any, Params]:
        model = assembled(graph, (params, stats))
        return _forward(model, piece)[:2], variables(model)[1]

    def loss_fn(params: Params, *found: Array) -> tuple[Float[Array, ""], Metrics]:
        model = nnx.merge(graph, params, stats)
        return objective(model.compared(*found), batch)

    found = jax.lax.map(lambda piece: features(params, stats, piece)[0], pieces)
    (loss, metrics), (grads, *by_features) = jax.value_and_grad(
        loss_fn, argnums=(0, 1, 2), has_aux=True
    )(params, *sharding.joined(found))

    def backwards(carry: Variables, piece: tuple[Batch, Any]) -> tuple[Variables, None]:
        grads, stats = carry
        rows, by_features = piece
        _, pull, stats = jax.vjp(lambda p: features(p, stats, rows), params, has_aux=True)
        (more,) = pull(by_features)
        return (sharding.spread(jax.tree.map(jnp.add, grads, more)), stats), None

    # beginning with those of the scale and the bias, which only the loss knows; sums are float32
    grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
    begin = (sharding.spread(grads), stats)
    (grads, stats), _ = jax.lax.scan(
        backwards, begin, (pieces, sharding.cut(tuple(by_features), parts))
    )
    return loss, metrics, stats, grads
