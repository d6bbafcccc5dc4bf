"""One step of training as a pure function of state and batch, compiled over a mesh."""

from __future__ import annotations

import dataclasses
import math
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
from clip_jax.models.clip import CLIP, Params, Variables, assembled, variables
from clip_jax.models.zoo import CLIPConfig
from clip_jax.objectives import Objective

Metrics = dict[str, Float[Array, ""]]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "params", "stats", "opt_state"],
    meta_fields=[],
)
@dataclasses.dataclass
class TrainState:
    """All that a step changes.

    `step` counts the updates done; `stats` are the running statistics of batch normalisation,
    empty for a model without it.
    """

    step: Int[Array, ""]
    params: Params
    stats: Params
    opt_state: Any

    @property
    def variables(self) -> Variables:
        """What a model needs of a state."""
        return self.params, self.stats


TrainStep = Callable[[TrainState, dict[str, Any]], tuple[TrainState, Metrics]]


def init_variables(config: CLIPConfig, seed: int) -> Variables:
    """Fresh parameters and statistics."""
    return variables(CLIP(config, rngs=nnx.Rngs(seed)))


def clamp_logit_scale(params: Params, most: float) -> Params:
    """The temperature kept where its scale is between 1 and `most` (section 2.5); 0: no bound."""
    if not most:
        return params
    return {**params, "logit_scale": jnp.clip(params["logit_scale"], 0.0, math.log(most))}


def make_train_step(
    graph: nnx.GraphDef,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    seed: int,
    max_logit_scale: float = 100.0,
) -> TrainStep:
    """The step: loss, gradients, update. Pure; what is random depends on seed and step alone."""

    def train_step(state: TrainState, batch: dict[str, Any]) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def loss_fn(params: Params) -> tuple[Float[Array, ""], tuple[Metrics, Params]]:
            model = assembled(graph, (params, state.stats))
            loss, metrics = objective(model, batch, key)
            return loss, (metrics, variables(model)[1])

        (loss, (metrics, stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = clamp_logit_scale(optax.apply_updates(state.params, updates), max_logit_scale)
        metrics = {"loss": loss, "gradient_norm": optax.global_norm(grads), **metrics}
        return TrainState(state.step + 1, params, stats, opt_state), metrics

    return train_step


def _create(config: CLIPConfig, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    return _around(optimizer, *init_variables(config, seed))


def _around(optimizer: optax.GradientTransformation, params: Params, stats: Params) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params))


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
    create = partial(_create, config, optimizer, seed)
    shapes = jax.eval_shape(create)
    # LLVM takes half a second for each of a ResNet's random arrays, and they are made only once
    many = bool(jax.tree.leaves(shapes.stats)) and mesh.devices.flat[0].platform == "cpu"
    options = {"xla_backend_optimization_level": 0} if many else None
    where = partition.shardings(shapes, mesh)
    return jax.jit(create, out_shardings=where, compiler_options=options)()


def state_of(held: Variables, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """A state around variables that were trained before, laid out over the mesh; step 0."""
    create = partial(_around, optimizer)
    where = partition.shardings(jax.eval_shape(create, *held), mesh)
    placed = jax.device_put(held, (where.params, where.stats))
    return jax.jit(create, out_shardings=where)(*placed)


def compile_step(train_step: TrainStep, state: Any, mesh: Mesh) -> jax.stages.Wrapped:
    """`train_step` jitted over the mesh; it takes over (donates) the state it is given."""
    where = partition.shardings(state, mesh)

    def over_mesh(state: TrainState, batch: dict[str, Any]) -> tuple[TrainState, Metrics]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return train_step(state, batch)

    return jax.jit(
        over_mesh,
        in_shardings=(where, partition.batch_sharding(mesh)),
        out_shardings=(where, partition.replicated(mesh)),
        donate_argnums=0,
    )
