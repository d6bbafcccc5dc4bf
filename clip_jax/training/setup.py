"""What a config means on a mesh: the model, the optimizer, and the training step.

Training and plans share this module, so that a plan compiles the very step that training runs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from clip_jax import optim
from clip_jax.config.checks import check
from clip_jax.config.schema import Config
from clip_jax.distributed import hardware, sharding
from clip_jax.distributed.param_spec import param_specs
from clip_jax.errors import UserError
from clip_jax.losses.objective import (
    Objective,
    extra_arrays,
    reads_image_features,
    unused_parts,
)
from clip_jax.losses.registry import make_objective, needed_heads
from clip_jax.models.clip import CLIP, abstract_model, variables
from clip_jax.models.convolution import BatchNorm
from clip_jax.models.model_config import CLIPConfig
from clip_jax.optim import group_patterns, param_groups
from clip_jax.training import flops, layer_chunking, user_parts
from clip_jax.training import train_step as step_lib


def checked(config: Any, devices: int | None = None) -> tuple[Config, CLIPConfig, Objective]:
    """Checks a config, and returns it as dataclasses with its architecture and its objective.

    Args:
      config: a `ConfigDict`, or a `Config`.
      devices: the number of devices that train; None: the batch size is not checked against it.

    Returns:
      The typed config, the architecture and the objective.

    Raises:
      UserError: something is wrong; names the key, its value and what to do.
    """
    c = check(config, devices)
    optim.OPTIMIZERS.get(c.optimizer.name, "config.optimizer.name")
    c = _with_heads(c)
    architecture = CLIPConfig.from_dict(c.model, trusted=True)
    if architecture.heads:  # with all their keys, as a later version compares them
        heads = architecture.to_dict()["heads"]
        c = dataclasses.replace(c, model={**c.model, "heads": heads})
    objective = make_objective(c, architecture)
    user_parts.check_towers(c, architecture)
    c = _with_unused_frozen(c, architecture, objective)
    groups = check_groups(c, architecture)
    _check_feature_cache(c, architecture, objective, groups)
    _check_patches(c, architecture)
    batch = batch_like(c, architecture, objective, architecture.text.context_length)
    user_parts.check_objective(c, architecture, objective, batch)
    return c, architecture, objective


def batch_like(
    c: Config, architecture: CLIPConfig, objective: Objective, context_length: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a global batch whose texts have `context_length` tokens."""
    rows = c.batch_size
    batch = {"tokens": jax.ShapeDtypeStruct((rows, context_length), np.int32)}
    if c.data.cache_features:
        features = jax.ShapeDtypeStruct((rows, architecture.embed_dim), np.float32)
        batch["image_features"] = features
    else:
        batch["image"] = jax.ShapeDtypeStruct((rows, *architecture.vision.input_shape), np.uint8)
    extra = {
        "group": jax.ShapeDtypeStruct((rows, 2), np.uint32),
        "label": jax.ShapeDtypeStruct((rows,), np.int32),
        "span": jax.ShapeDtypeStruct((rows, 2), np.int32),
    }
    names = extra_arrays(objective)
    if unknown := [name for name in names if name not in extra]:
        raise UserError(
            f"the objective needs the array {unknown[0]!r:.60}, which the data does not give: "
            f"extra_arrays may name {', '.join(extra)}"
        )
    return batch | {name: extra[name] for name in names}


def with_patches(architecture: CLIPConfig, patches: int | None) -> CLIPConfig:
    """Returns the same model for images of at most that many patches; None: as it is."""
    return architecture if patches is None else architecture.with_vision(max_num_patches=patches)


def _with_heads(c: Config) -> Config:
    """Adds the heads that the objectives need to `model.heads`, unless it has them."""
    needed = needed_heads(c.objective)
    heads = {**needed, **c.model.get("heads", {})}
    return dataclasses.replace(c, model={**c.model, "heads": heads}) if needed else c


def _with_unused_frozen(c: Config, architecture: CLIPConfig, objective: Objective) -> Config:
    """Adds the parts of the model that the objective does not use to `optimizer.freeze`.

    Otherwise weight decay would change them.
    """
    if not unused_parts(objective):
        return c
    parts = variables(abstract_model(architecture, lora=c.lora))[0]
    frozen = [part for part in map(str.strip, c.optimizer.freeze.split(",")) if part]
    unused = [
        part for part in unused_parts(objective) if _has_part(parts, part) and part not in frozen
    ]
    if not unused:
        return c
    freeze = ",".join([*frozen, *unused])
    return dataclasses.replace(c, optimizer=dataclasses.replace(c.optimizer, freeze=freeze))


def _has_part(parts: Any, name: str) -> bool:
    """Returns whether a tree of parameters has a part such as `text` or `text.projection`."""
    outer, _, inner = name.partition(".")
    return outer in parts and (not inner or _has_part(parts[outer], inner))


def _check_feature_cache(
    c: Config, architecture: CLIPConfig, objective: Objective, groups: param_groups.ParamGroups
) -> None:
    if not c.data.cache_features:
        if c.data.views:
            raise UserError(f"config.data.views={c.data.views} needs config.data.cache_features")
        return
    if "vision" not in groups.frozen_towers:
        raise UserError(
            "config.data.cache_features needs an image tower that does not learn: set "
            "config.optimizer.freeze=vision"
        )
    if not reads_image_features(objective):
        raise UserError(
            f"config.data.cache_features: the objective {c.objective.name!r:.80} needs images"
        )
    if dropped := getattr(architecture.vision, "patch_dropout", 0):
        raise UserError(
            "config.data.cache_features: features are computed with all patches, set "
            f"config.model.vision.patch_dropout={dropped} to 0"
        )


def _check_patches(c: Config, architecture: CLIPConfig) -> None:
    counts, budget = c.data.augment.num_patches, architecture.vision.patch_budget
    if not counts:
        return
    key = f"config.data.augment.num_patches={counts}"
    if budget is None or c.data.cache_features:
        raise UserError(f"{key} needs images in batches, and a model that keeps their shapes")
    if max(counts) > budget.patches:
        raise UserError(
            f"{key} must be at most config.model.vision.max_num_patches={budget.patches}"
        )


def check_groups(c: Config, architecture: CLIPConfig) -> param_groups.ParamGroups:
    """Returns the parameter groups that `optimizer.groups` and `optimizer.freeze` describe.

    Raises:
      UserError: one of them is wrong, or a group starts too late.
    """
    model = abstract_model(architecture, lora=c.lora)
    groups = group_patterns.resolve(c.optimizer, param_specs(model), variables(model)[0])
    for group in groups.groups:
        if c.steps and group.start >= c.steps:
            raise UserError(
                f"config.optimizer.groups: {group.name!r} starts at step {group.start}, but "
                f"config.steps={c.steps}"
            )
    return groups


def _freeze_statistics(model: CLIP, groups: param_groups.ParamGroups) -> None:
    """Makes frozen batch normalizations use their running statistics and keep them."""
    for path, module in nnx.iter_graph(model):
        if isinstance(module, BatchNorm):
            module.frozen = groups.is_frozen("/".join(map(str, [*path, "scale"])))


def learning_rate_schedule(c: Config) -> optax.Schedule:
    """Returns the learning rate as a function of the update, from 0.

    The `steps` of the config must be known.
    """
    o = c.optimizer

    def make(steps: int) -> optax.Schedule:
        return optim.learning_rate(
            o.learning_rate,
            o.warmup_steps,
            steps,
            o.final_learning_rate,
            o.schedule,
            cooldown_steps=o.cooldown_steps,
            timescale=o.timescale,
        )

    return optim.prolonged(make, c.steps, o.ends, o.then)


class Recipe:
    """The shapes and functions with which a config trains on a mesh; it holds no arrays.

    Args:
      c: the config, the first result of `checked`.
      architecture: the second result of `checked`.
      objective: the third result of `checked`.
      mesh: a mesh of real devices, or of devices that only a compiler knows.
    """

    def __init__(
        self, c: Config, architecture: CLIPConfig, objective: Objective, mesh: Mesh
    ) -> None:
        self.config, self.architecture, self.mesh = c, architecture, mesh
        self.objective = objective
        self.schedule = learning_rate_schedule(c)
        self.chunks = layer_chunking.choose_chunks(
            {"image": 0, "text": 0} if c.lora.dropout else c.chunk.to_dict(),
            architecture,
            hardware.chip_of_device(mesh.devices.flat[0]),
            c.batch_size // sharding.batch_shards(mesh) // c.accumulate,
            c.remat,
        )
        self.model = abstract_model(architecture, c.dtype, c.remat, self.chunks, c.lora)
        specs = param_specs(self.model)
        groups = group_patterns.resolve(c.optimizer, specs, variables(self.model)[0])
        self.groups = None if groups.everything_alike else groups
        if self.groups:
            _freeze_statistics(self.model, self.groups)
        self.graph = nnx.graphdef(self.model)
        self.optimizer = optim.make_optimizer(
            c.optimizer.to_dict(), self.schedule, specs, self.groups
        )
        self.state_options = step_lib.StateOptions(
            c.optimizer.sharded,
            c.optimizer.text_weights,
            c.optimizer.frozen_weights,
            self.groups,
            ema=c.ema.decay > 0,
            lora=c.lora,
        )
        self.state_like = step_lib.abstract_state(
            architecture, self.optimizer, mesh, self.state_options
        )
        self.train_step = step_lib.make_train_step(
            self.graph,
            objective,
            self.optimizer,
            c.seed,
            architecture.max_logit_scale,
            accumulate=c.accumulate,
            sharded_optimizer=c.optimizer.sharded,
            groups=self.groups,
            ema=c.ema,
        )

    def batch_like(
        self, context_length: int, patches: int | None = None
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of a global batch; arguments as for `lower`."""
        architecture = with_patches(self.architecture, patches)
        return batch_like(self.config, architecture, self.objective, context_length)

    def step_flops(self, tokens: int | None = None, patches: int | None = None) -> int:
        """Returns the model FLOPs of a step, see `flops`.

        Args:
          tokens: the number of tokens of a text; None: the tower's context length.
          patches: as for `lower`.
        """
        idle = {"vision"} if self.config.data.cache_features else set()
        idle.update(unused_parts(self.objective))
        return flops.step(
            with_patches(self.architecture, patches),
            self.objective,
            self.config.batch_size,
            tokens=tokens,
            groups=self.groups,
            lora=self.config.lora,
            idle=idle,
        )

    def lower(
        self, context_length: int | None = None, patches: int | None = None
    ) -> jax.stages.Lowered:
        """Traces the training step, but does not compile it.

        Args:
          context_length: the number of tokens of a text; None: that of the tower.
          patches: the number of patches of an image, if batches draw it; None: the tower's.
        """
        tokens = self.architecture.text.context_length if context_length is None else context_length
        jitted = step_lib.compile_step(
            self.train_step, self.state_like, self.mesh, self.config.attention
        )
        return jitted.lower(self.state_like, self.batch_like(tokens, patches))
