"""One step of training as a pure function of state and batch, compiled over a mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from clip_jax import partition
from clip_jax.models.clip import CLIP, MAX_LOGIT_SCALE
from clip_jax.models.zoo import CLIPConfig
from clip_jax.objectives import Objective

Params = dict[str, Any]
Metrics = dict[str, Float[Array, ""]]


@partial(
    jax.tree_util.register_dataclass, data_fields=["step", "params", "opt_state"], meta_fields=[]
)
@dataclasses.dataclass
class TrainState:
    """All that a step changes. `step` counts the updates done."""

    step: Int[Array, ""]
    params: Params
    opt_state: Any


TrainStep = Callable[[TrainState, dict[str, Any]], tuple[TrainState, Metrics]]


def abstract_model(config: CLIPConfig, dtype: str, remat: str) -> CLIP:
    """The model's structure with shapes in place of arrays: nothing is allocated."""
    return nnx.eval_shape(partial(_model, config, dtype, remat, 0))


def _model(config: CLIPConfig, dtype: str, remat: str, seed: int) -> CLIP:
    return CLIP(config, dtype=dtype, remat=remat, rngs=nnx.Rngs(seed))


def init_params(config: CLIPConfig, seed: int) -> Params:
    """Fresh parameters as nested dictionaries of arrays."""
    return nnx.to_pure_dict(nnx.state(_model(config, "float32", "none", seed), nnx.Param))


def clamp_logit_scale(params: Params) -> Params:
    """The temperature kept where its scale is between 1 and 100 (section 2.5)."""
    return {**params, "logit_scale": jnp.clip(params["logit_scale"], 0.0, MAX_LOGIT_SCALE)}


def make_train_step(
    graph: nnx.GraphDef, objective: Objective, optimizer: optax.GradientTransformation, seed: int
) -> TrainStep:
    """The step: loss, gradients, update. Pure; what is random depends on seed and step alone."""

    def train_step(state: TrainState, batch: dict[str, Any]) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def loss_fn(params: Params) -> tuple[Float[Array, ""], Metrics]:
            return objective(nnx.merge(graph, params), batch, key)

        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = clamp_logit_scale(optax.apply_updates(state.params, updates))
        metrics = {"loss": loss, "gradient_norm": optax.global_norm(grads), **metrics}
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def _create(config: CLIPConfig, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    params = init_params(config, seed)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def abstract_state(
    config: CLIPConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The state's shapes, each with the sharding that it will have."""
    shapes = jax.eval_shape(partial(_create, config, optimizer, 0))
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        partition.shardings(shapes, mesh),
    )


def init_state(
    config: CLIPConfig, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh
) -> TrainState:
    """A fresh state, created where it will live: the same values on any mesh."""
    where = partition.shardings(jax.eval_shape(partial(_create, config, optimizer, 0)), mesh)
    return jax.jit(partial(_create, config, optimizer, seed), out_shardings=where)()


def compile_step(train_step: TrainStep, state: Any, mesh: Mesh) -> jax.stages.Wrapped:
    """`train_step` jitted over the mesh; it takes over (donates) the state it is given."""
    where = partition.shardings(state, mesh)
    return jax.jit(
        train_step,
        in_shardings=(where, partition.batch_sharding(mesh)),
        out_shardings=(where, partition.replicated(mesh)),
        donate_argnums=0,
    )
