"""The training step: a pure function of state and batch, compiled over a mesh."""

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
from jax.tree_util import GetAttrKey
from jaxtyping import Array, Int

from clip_jax.config.finetune_schema import Ema, Lora
from clip_jax.distributed import sharding
from clip_jax.distributed.param_spec import param_specs
from clip_jax.losses.objective import Metrics, Objective
from clip_jax.models import attention as attention_lib
from clip_jax.models.clip import CLIP, Params, Variables, specs_of, variables
from clip_jax.models.model_config import CLIPConfig
from clip_jax.optim import low_precision
from clip_jax.optim.param_groups import ParamGroups
from clip_jax.training import grad_cache
from clip_jax.training.grad_cache import Batch


@dataclasses.dataclass
class TrainState:
    """Everything that a step changes.

    An empty average is no part of the tree, so a state without one has the same structure as the
    states of versions that had no averages.

    Attributes:
      step: the number of updates done.
      params: the parameters, float32 except those that `optimizer.text_weights` and
        `optimizer.frozen_weights` keep in bfloat16.
      stats: the running statistics of batch normalization; empty for a model without it.
      opt_state: the optimizer's state for the parameters that learn.
      ema: the exponential moving average of the parameters that learn, float32; empty: none.
    """

    step: Int[Array, ""]
    params: Params
    stats: Params
    opt_state: Any
    ema: Params = dataclasses.field(default_factory=dict)

    @property
    def variables(self) -> Variables:
        """The parameters and the batch statistics."""
        return self.params, self.stats

    def children(self) -> list[tuple[str, Any]]:
        """Returns the names and values of the fields that are part of the tree."""
        names = ("step", "params", "stats", "opt_state", *(("ema",) if self.ema else ()))
        return [(name, getattr(self, name)) for name in names]


jax.tree_util.register_pytree_with_keys(
    TrainState,
    lambda state: ([(GetAttrKey(name), part) for name, part in state.children()], None),
    lambda _, parts: TrainState(*parts),
    lambda state: ([part for _, part in state.children()], None),
)


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def init_variables(config: CLIPConfig, seed: int, lora: Lora | None = None) -> Variables:
    """Returns initial parameters and batch statistics."""
    return variables(CLIP(config, lora=lora, rngs=nnx.Rngs(seed)))


NO_EMA = Ema()


def update_ema(ema: Ema, average: Params, params: Params, step: Int[Array, ""]) -> Params:
    """Returns the exponential moving average after an update.

    Args:
      ema: the decay, and the number of updates before the average begins. Until then the average is
        the parameters themselves.
      average: the average before the update.
      params: the parameters that learn, after the update, float32.
      step: the number of updates before this one.
    """
    decay = jnp.where(step < ema.start, 0.0, ema.decay) if ema.start else ema.decay
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, params)


def averaged_variables(state: TrainState, groups: ParamGroups | None) -> Variables:
    """Returns the variables of a state with averages in place of the parameters that learn."""
    average = groups.merge(state.ema, state.params) if groups else state.ema
    return average, state.stats


def clamp_logit_scale(params: Params, maximum: float) -> Params:
    """Limits the factor on the logits to the range from 1 to `maximum` (section 2.5).

    A `maximum` of 0 means no bounds.
    """
    if not maximum or "logit_scale" not in params:
        return params
    return {**params, "logit_scale": jnp.clip(params["logit_scale"], 0.0, math.log(maximum))}


def make_train_step(
    graph: nnx.GraphDef,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    seed: int,
    max_logit_scale: float = 100.0,
    *,
    accumulate: int = 1,
    sharded_optimizer: bool = False,
    groups: ParamGroups | None = None,
    ema: Ema = NO_EMA,
) -> TrainStep:
    """Makes a pure function that does one step: loss, gradients, update.

    Random numbers depend on seed and step alone.

    Args:
      graph: the graph of the model.
      objective: computes the loss that is minimized.
      optimizer: computes updates from gradients.
      seed: the seed of all random numbers.
      max_logit_scale: see `clamp_logit_scale`.
      accumulate: parts in which a batch goes through the towers, see `grad_cache.accumulated`.
      sharded_optimizer: whether the optimizer's state is sharded over the data axis too.
      groups: the parameters that learn differently, as given to `optim.make_optimizer`.
      ema: how the state averages the parameters.
    """
    trainable, merge = _split_and_merge(groups)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        params, stats = _with_gradient_dtypes(graph, state.variables)
        loss, metrics, stats, grads = grad_cache.compute_gradients(
            graph,
            objective,
            (trainable(params), stats),
            batch,
            key,
            accumulate,
            lambda params: merge(params, state.params),
        )
        norm = optax.global_norm(low_precision.upcast(grads))
        specs = param_specs(nnx.merge(graph, *state.variables))
        grads = low_precision.upcast(
            sharding.constrain_params(grads, specs, over_data=sharded_optimizer)
        )
        old = trainable(state.params)
        params = low_precision.upcast(old)
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        params = clamp_logit_scale(optax.apply_updates(params, updates), max_logit_scale)
        average = update_ema(ema, state.ema, params, state.step) if ema.decay else state.ema
        params = low_precision.downcast_like(old, params, state.step)
        params = merge(params, state.params)
        metrics = {**metrics, "loss": loss, "gradient_norm": norm}
        return TrainState(state.step + 1, params, stats, opt_state, average), metrics

    return train_step


def _split_and_merge(
    groups: ParamGroups | None,
) -> tuple[Callable[[Params], Params], Callable[[Params, Params], Params]]:
    """Returns `trainable` and `merge` of the groups; without groups all parameters learn."""
    if groups is None:
        return lambda params: params, lambda trained, _: trained
    return groups.trainable, groups.merge


def _with_gradient_dtypes(graph: nnx.GraphDef, model_variables: Variables) -> Variables:
    """Variables whose parameters have the dtypes that their gradients should have.

    A gradient has the dtype of its parameter. A model that computes in bfloat16 computes the
    gradients of matrices in bfloat16 anyway. In any other model gradients are float32, even of
    matrices that are stored in bfloat16.
    """
    dtype = jnp.dtype(nnx.merge(graph, *model_variables).dtype)
    return model_variables if dtype == jnp.bfloat16 else low_precision.upcast(model_variables)


@dataclasses.dataclass(frozen=True)
class StateOptions:
    """How a state is stored.

    Attributes:
      sharded_optimizer: whether the optimizer's state is sharded over the data axis too.
      text_weights: dtype in which the text tower's matrices are stored.
      frozen_weights: dtype in which frozen matrices are stored.
      groups: the parameters that learn differently; None: all parameters learn alike.
      ema: whether the state holds an average of the parameters.
      lora: the adapters of the model.
    """

    sharded_optimizer: bool = False
    text_weights: str = "float32"
    frozen_weights: str = "float32"
    groups: ParamGroups | None = None
    ema: bool = False
    lora: Lora | None = None


DEFAULT = StateOptions()


def _create(
    config: CLIPConfig, optimizer: optax.GradientTransformation, options: StateOptions, seed: int
) -> TrainState:
    return _state_with(config, optimizer, options, *init_variables(config, seed, options.lora))


def _state_with(
    config: CLIPConfig,
    optimizer: optax.GradientTransformation,
    options: StateOptions,
    params: Params,
    stats: Params,
) -> TrainState:
    groups, specs = options.groups, specs_of(config, options.lora)
    trainable = groups.trainable(params) if groups else params
    opt_state = optimizer.init(trainable)
    average = trainable if options.ema else {}
    stored = low_precision.text_weights(params, specs, options.text_weights)
    if groups:
        stored = groups.stored(stored, specs, options.frozen_weights)
    return TrainState(jnp.zeros((), jnp.int32), stored, stats, opt_state, average)


def _shardings(
    config: CLIPConfig, state: TrainState, mesh: Mesh, options: StateOptions
) -> TrainState:
    specs = specs_of(config, options.lora)
    where = sharding.shardings(state, specs, mesh)
    over_data = options.sharded_optimizer
    moments = sharding.shardings(state.opt_state, specs, mesh, over_data=over_data)
    return dataclasses.replace(where, opt_state=moments)


def abstract_state(
    config: CLIPConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    options: StateOptions = DEFAULT,
) -> TrainState:
    """Returns the shapes of the state, each with its sharding.

    Args:
      config: the architecture.
      optimizer: the optimizer whose state is part of it.
      mesh: the mesh.
      options: how the state is stored.
    """
    shapes = jax.eval_shape(partial(_create, config, optimizer, options, 0))
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        _shardings(config, shapes, mesh, options),
    )


def init_state(
    config: CLIPConfig,
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh,
    options: StateOptions = DEFAULT,
) -> TrainState:
    """Creates an initial state on its devices; the values are the same on any mesh."""
    create = partial(_create, config, optimizer, options, seed)
    shapes = jax.eval_shape(create)
    # LLVM takes half a second for each random array of a ResNet, and the program runs only once.
    is_resnet_on_cpu = (
        bool(jax.tree.leaves(shapes.stats)) and mesh.devices.flat[0].platform == "cpu"
    )
    compiling = {"xla_backend_optimization_level": 0} if is_resnet_on_cpu else None
    where = _shardings(config, shapes, mesh, options)
    return jax.jit(create, out_shardings=where, compiler_options=compiling)()


def state_of(
    config: CLIPConfig,
    model_variables: Variables,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    options: StateOptions = DEFAULT,
) -> TrainState:
    """Creates a state at step 0 from given variables, laid out over the mesh."""
    create = partial(_state_with, config, optimizer, options)
    where = _shardings(config, jax.eval_shape(create, *model_variables), mesh, options)
    placed = jax.device_put(model_variables, (where.params, where.stats))
    return jax.jit(create, out_shardings=where)(*placed)


def compile_step(
    train_step: TrainStep, state: Any, mesh: Mesh, attention: str = "auto"
) -> jax.stages.Wrapped:
    """Returns `train_step` jitted over the mesh, for states with the shardings of `state`.

    The state that it is called with is donated.

    Args:
      train_step: the step.
      state: arrays, or shapes with shardings.
      mesh: the mesh.
      attention: `config.attention`.
    """

    def over_mesh(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        mesh_context = jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
        with mesh_context, attention_lib.implementation(attention):
            return train_step(state, batch)

    where = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(
        over_mesh,
        in_shardings=(where, sharding.batch_sharding(mesh)),
        out_shardings=(where, sharding.replicated(mesh)),
        donate_argnums=0,
    )
