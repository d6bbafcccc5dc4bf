"""Reading the variables of a run: live or averaged, with its adapters merged."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from clip_jax.distributed.param_spec import path_name
from clip_jax.models import lora
from clip_jax.models.clip import Variables, abstract_model, specs_of, variables
from clip_jax.optim import group_patterns, param_groups
from clip_jax.training import checkpointing
from clip_jax.training.run_config import RunConfig


def read_run(
    workdir: Path, step: int, run: RunConfig, like: Variables, *, ema: bool = False
) -> Variables:
    """Reads the parameters and batch statistics of a checkpoint, with adapters merged.

    Args:
      workdir: the run's folder.
      step: the step of the checkpoint.
      run: the run's config.
      like: the shapes of the variables, with the shardings that they get.
      ema: whether trainable parameters are replaced by their averages.

    Raises:
      UserError: the checkpoint is of another model, or damaged and without digests.
    """
    config = run.finetuning.lora
    params, stats = read_unmerged(workdir, step, run, like, ema=ema)
    if config.rank:
        where = jax.tree.map(lambda leaf: leaf.sharding, like[0])
        merge = partial(lora.merge, scale=lora.scale_of(config))
        params = jax.jit(merge, out_shardings=where)(params)
    return params, stats


def read_unmerged(
    workdir: Path, step: int, run: RunConfig, like: Variables, *, ema: bool = False
) -> Variables:
    """Reads a checkpoint as `read_run` does, but leaves adapters beside the kernels.

    The shapes in `like` are those without adapters.
    """
    config, optimizer = run.finetuning.lora, run.finetuning.optimizer
    params = _adapted(run, like[0]) if config.rank else like[0]
    parts = {"params": params, "stats": like[1]}
    if not ema:
        state = checkpointing.read_parts(workdir, step, parts)
        return state["params"], state["stats"]
    groups = group_patterns.resolve(optimizer, specs_of(run.model, config), params)
    state = checkpointing.read_parts(workdir, step, {**parts, "ema": _trainable(groups, params)})
    return groups.merge(state["ema"], state["params"]), state["stats"]


def _adapted(run: RunConfig, params: Any) -> Any:
    """Returns the shapes `params` with those of the adapters, which every device gets whole."""
    where = jax.tree.leaves(params)[0].sharding
    if isinstance(where, NamedSharding):
        where = NamedSharding(where.mesh, PartitionSpec())
    abstract = variables(abstract_model(run.model, lora=run.finetuning.lora))[0]
    adapters = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        lora.adapters_in(abstract),
    )
    return lora.with_adapters(params, adapters)


def _trainable(groups: param_groups.ParamGroups, params: Any) -> Any:
    """Returns the shapes of the trainable parameters, with the shardings of `params`."""
    where = {path_name(p): x.sharding for p, x in jax.tree_util.tree_leaves_with_path(params)}
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where[path_name(path)]),
        jax.eval_shape(groups.trainable, params),
    )
