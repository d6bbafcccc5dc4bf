"""Reading the variables of a run: live or averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from clip_jax.distributed.param_spec import path_name
from clip_jax.models.clip import Variables, specs_of
from clip_jax.optim import param_groups
from clip_jax.training import checkpointing
from clip_jax.training.checkpointing import RunConfig


def read_run(
    workdir: Path, step: int, run: RunConfig, like: Variables, *, ema: bool = False
) -> Variables:
    """The parameters and batch statistics of a checkpoint.

    Args:
      workdir: the run's folder.
      step: the step.
      run: the run's config.
      like: shapes with the shardings that they get.
      ema: averages in place of the parameters that learn.

    Raises:
      UserError: the checkpoint is of another model, or damaged and without digests.
    """
    parts = dict(zip(("params", "stats"), like, strict=True))
    if not ema:
        state = checkpointing.read_parts(workdir, step, parts)
        return state["params"], state["stats"]
    groups = param_groups.resolve(run.finetuning.optimizer, specs_of(run.model), like[0])
    state = checkpointing.read_parts(workdir, step, {**parts, "ema": _trainable(groups, like[0])})
    return groups.merge(state["ema"], state["params"]), state["stats"]


def _trainable(groups: param_groups.ParamGroups, params: Any) -> Any:
    """The shapes of the parameters that learn, with the shardings of `params`."""
    where = {path_name(p): x.sharding for p, x in jax.tree_util.tree_leaves_with_path(params)}
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where[path_name(path)]),
        jax.eval_shape(groups.trainable, params),
    )
