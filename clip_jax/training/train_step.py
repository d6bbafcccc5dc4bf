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
from jaxtyping import Array, Int

from clip_jax.distributed import sharding
from clip_jax.distributed.param_spec import param_specs
from clip_jax.losses.objective import Metrics, Objective
from clip_jax.models.clip import CLIP, Params, Variables, specs_of, variables
from clip_jax.models.model_config import CLIPConfig
from clip_jax.optim import low_precision
from clip_jax.training import grad_cache


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "params", "stats", "opt_state"],
    meta_fields=[],
)
@dataclasses.dataclass
class TrainState:
    """All that a step changes.

    `step` counts the updates done; `params` are float32, or bfloat16 where they are to take half
    the memory; `stats` are the running statistics of batch normalisation, empty for a model
    without it.
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
    *,
    accumulate: int = 1,
    sharded_optimizer: bool = False,
) -> TrainStep:
    """The step: loss, gradients, update. Pure; what is random depends on seed and step alone.

    Args:
      graph: of the model.
      objective: what is minimized.
      optimizer: what makes updates of gradients.
      seed: of what is random.
      max_logit_scale: see `clamp_logit_scale`.
      accumulate: the parts that a batch goes through the towers in, see `grad_cache.accumulated`.
      sharded_optimizer: the optimizer's state lies over the data axis too, as in `abstract_state`.
    """

    def train_step(state: TrainState, batch: dict[str, Any]) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        held = _as_computed(graph, state.variables)
        loss, metrics, stats, grads = grad_cache.compute_gradients(
            graph, objective, held, batch, key, accumulate
        )
        norm = optax.global_norm(low_precision.upcast(grads))
        specs = param_specs(nnx.merge(graph, *state.variables))
        grads = low_precision.upcast(sharding.spread(grads, specs, over_data=sharded_optimizer))
        params = low_precision.upcast(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        params = clamp_logit_scale(optax.apply_updates(params, updates), max_logit_scale)
        params = low_precision.downcast_like(state.params, params, state.step)
        metrics = {"loss": loss, "gradient_norm": norm, **metrics}
        return TrainState(state.step + 1, params, stats, opt_state), metrics

    return train_step


def _as_computed(graph: nnx.GraphDef, held: Variables) -> Variables:
    """Variables whose parameters have the types that their gradients shall have.

    A gradient has its parameter's type. In a model that computes in bfloat16 those of matrices are
    made in it anyway; in any other they are float32, whatever the matrices are kept in.
    """
    dtype = jnp.dtype(nnx.merge(graph, *held).dtype)
    return held if dtype == jnp.bfloat16 else low_precision.upcast(held)


def _create(
    config: CLIPConfig, optimizer: optax.GradientTransformation, text_weights: str, seed: int
) -> TrainState:
    return _around(config, optimizer, text_weights, *init_variables(config, seed))


def _around(
    config: CLIPConfig,
    optimizer: optax.GradientTransformation,
    text_weights: str,
    params: Params,
    stats: Params,
) -> TrainState:
    opt_state = optimizer.init(params)
    held = low_precision.text_weights(params, specs_of(config), text_weights)
    return TrainState(jnp.zeros((), jnp.int32), held, stats, opt_state)


def _shardings(
    config: CLIPConfig, state: TrainState, mesh: Mesh, sharded_optimizer: bool
) -> TrainState:
    specs = specs_of(config)
    where = sharding.shardings(state, specs, mesh)
    moments = sharding.shardings(state.opt_state, specs, mesh, over_data=sharded_optimizer)
    return dataclasses.replace(where, opt_state=moments)


def abstract_state(
    config: CLIPConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    sharded_optimizer: bool = False,
    text_weights: str = "float32",
) -> TrainState:
    """The state's shapes, each with the sharding that it will have.

    With `sharded_optimizer` the optimizer's state is spread over the data axis too; `text_weights`
    is what the text tower's matrices are kept in.
    """
    shapes = jax.eval_shape(partial(_create, config, optimizer, text_weights, 0))
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        _shardings(config, shapes, mesh, sharded_optimizer),
    )


def init_state(
    config: CLIPConfig,
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh,
    *,
    sharded_optimizer: bool = False,
    text_weights: str = "float32",
) -> TrainState:
    """A fresh state, created where it will live: the same values on any mesh."""
    create = partial(_create, config, optimizer, text_weights, seed)
    shapes = jax.eval_shape(create)
    # LLVM takes half a second for each of a ResNet's random arrays, and they are made only once
    many = bool(jax.tree.leaves(shapes.stats)) and mesh.devices.flat[0].platform == "cpu"
    options = {"xla_backend_optimization_level": 0} if many else None
    where = _shardings(config, shapes, mesh, sharded_optimizer)
    return jax.jit(create, out_shardings=where, compiler_options=options)()


def state_of(
    config: CLIPConfig,
    held: Variables,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    sharded_optimizer: bool = False,
    text_weights: str = "float32",
) -> TrainState:
    """A state around variables that were trained before, laid out over the mesh; step 0."""
    create = partial(_around, config, optimizer, text_weights)
    where = _shardings(config, jax.eval_shape(create, *held), mesh, sharded_optimizer)
    placed = jax.device_put(held, (where.params, where.stats))
    return jax.jit(create, out_shardings=where)(*placed)


def compile_step(train_step: TrainStep, state: Any, mesh: Mesh) -> jax.stages.Wrapped:
    """`train_step` jitted over the mesh for states that lie as `state` (arrays or shapes) does.

    It takes over (donates) the state it is given.
    """

    def over_mesh(state: TrainState, batch: dict[str, Any]) -> tuple[TrainState, Metrics]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return train_step(state, batch)

    where = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(
        over_mesh,
        in_shardings=(where, sharding.batch_sharding(mesh)),
        out_shardings=(where, sharding.replicated(mesh)),
        donate_argnums=0,
    )
