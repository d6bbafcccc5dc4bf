"""The gradients of a batch, in one pass or accumulated over parts, which takes less memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from clip_jax.distributed import sharding
from clip_jax.distributed.param_spec import param_specs
from clip_jax.losses.objective import Batch, Metrics, Objective
from clip_jax.models.clip import Params, Variables, assembled, variables

Gradients = tuple[Float[Array, ""], Metrics, Params, Params]  # loss, metrics, statistics, gradients
Complete = Callable[[Params], Params]  # all parameters, from those that have gradients


def _unchanged(params: Params) -> Params:
    return params


def compute_gradients(
    graph: nnx.GraphDef,
    objective: Objective,
    model_variables: Variables,
    batch: Batch,
    key: Key[Array, ""],
    parts: int = 1,
    complete: Complete = _unchanged,
) -> Gradients:
    """Computes the loss of a batch, its metrics, new batch statistics and the gradients.

    Args:
      graph: the graph of the model.
      objective: computes the loss that is minimized.
      model_variables: the parameters that get gradients, and the batch statistics.
      batch: `image`, `tokens`, and the other arrays that the objective needs; rows first.
      key: the random key of the step. Each row gets a key of its own, whatever part it is in.
      parts: the number of parts in which the batch goes through the towers, see `accumulated`.
      complete: adds the frozen parameters to those of `model_variables`.
    """
    rows = jnp.arange(len(batch["tokens"]))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
    if parts == 1:
        return in_one_pass(graph, objective, model_variables, batch, keys, complete)
    return accumulated(graph, objective, model_variables, batch, keys, parts, complete)


def in_one_pass(
    graph: nnx.GraphDef,
    objective: Objective,
    model_variables: Variables,
    batch: Batch,
    keys: Key[Array, " n"],
    complete: Complete = _unchanged,
) -> Gradients:
    """Computes the gradients of the whole batch at once.

    The arguments are those of `compute_gradients`, except `keys`: a key for each row.
    """
    params, stats = model_variables

    def loss_fn(params: Params) -> tuple[Float[Array, ""], tuple[Metrics, Params]]:
        model = assembled(graph, (complete(params), stats))
        features = objective.features(model, batch, keys)
        loss, metrics = objective.loss(features, model, batch)
        return loss, (metrics, variables(model)[1])

    (loss, (metrics, stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    return loss, metrics, stats, grads


def accumulated(
    graph: nnx.GraphDef,
    objective: Objective,
    model_variables: Variables,
    batch: Batch,
    keys: Key[Array, " n"],
    parts: int,
    complete: Complete = _unchanged,
) -> Gradients:
    """Computes the gradients of the whole batch, but runs the towers on parts of it (GradCache).

    First the features are computed one part at a time, and only they are kept. Then come the loss
    of the whole batch and its gradients with respect to the features. Last, each part runs again,
    with its backward pass. The gradients equal those of the whole batch, for one more forward pass
    and the activations of one part.

    Batch normalization sees one part at a time: its statistics are those of a part.

    The arguments are those of `compute_gradients`, except `keys`: a key for each row.

    Source: Gao et al. 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited
    Setup.
    """
    params, stats = model_variables
    specs = param_specs(nnx.merge(graph, complete(params), stats))
    pieces = sharding.split_chunks({"batch": batch, "keys": keys}, parts)

    def features_of(params: Params, stats: Params, piece: Batch) -> tuple[Any, Params]:
        model = assembled(graph, (complete(params), stats))
        features = objective.features(model, piece["batch"], piece["keys"])
        return features, variables(model)[1]

    def loss_fn(params: Params, features: Any) -> tuple[Float[Array, ""], Metrics]:
        return objective.loss(features, nnx.merge(graph, complete(params), stats), batch)

    features = jax.lax.map(lambda piece: features_of(params, stats, piece)[0], pieces)
    (loss, metrics), (grads, feature_grads) = jax.value_and_grad(
        loss_fn, argnums=(0, 1), has_aux=True
    )(params, sharding.merge_chunks(features))

    def backward(carry: Variables, piece: tuple[Batch, Any]) -> tuple[Variables, None]:
        grads, stats = carry
        rows, feature_grads = piece
        _, pull, stats = jax.vjp(lambda p: features_of(p, stats, rows), params, has_aux=True)
        (more,) = pull(feature_grads)
        return (sharding.constrain_params(jax.tree.map(jnp.add, grads, more), specs), stats), None

    # Start from the gradients that only the loss produces, those of scale and bias. Sums are fp32.
    grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
    carry = (sharding.constrain_params(grads, specs), stats)
    (grads, stats), _ = jax.lax.scan(
        backward, carry, (pieces, sharding.split_chunks(feature_grads, parts))
    )
    return loss, metrics, stats, grads
