"""The part of a run's config that is needed to use its model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from clip_jax.config.schema import Config
from clip_jax.config.values import typed
from clip_jax.distributed.param_spec import param_specs
from clip_jax.errors import UserError
from clip_jax.io import files
from clip_jax.io.buckets import as_path
from clip_jax.io.files import JsonObject
from clip_jax.models.clip import abstract_model, variables
from clip_jax.models.model_config import DTYPES, SIDES, CLIPConfig
from clip_jax.optim import group_patterns
from clip_jax.optim.param_groups import ParamGroups
from clip_jax.training import checkpointing
from clip_jax.weights.configs.essence import differences

START = "start.json"  # what a run keeps of the weights that it started from


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The part of a run's config that is needed to use its model.

    Attributes:
      model: the architecture.
      dtype: the dtype of activations.
      tokenizer: the tokenizer, as for `tokenizers.load`.
      finetuning: the keys that say which parameters learn, from which weights, and whether they are
        averaged.
      random_start: the towers that had random values in the weights that the run started from.
    """

    model: CLIPConfig
    dtype: str
    tokenizer: str
    finetuning: Config
    random_start: tuple[str, ...] = ()


def read_model_config(workdir: str | Path, step: int) -> RunConfig:
    """Reads the config of a run's model. The file may come from a stranger.

    Args:
      workdir: the run's folder.
      step: the checkpoint that will be read. It contains the config that it was written with, and
        the two must describe the same model.

    Raises:
      UserError: the folder holds no run, or a value that it needs is missing or wrong.
    """
    values, path = checkpointing.read_config(workdir), as_path(workdir) / checkpointing.CONFIG
    for key in ("model", "dtype", "tokenizer"):
        if key not in values:
            raise UserError(f"{path} is no config of a run: {key} is missing")
    dtype, tokenizer = values["dtype"], values["tokenizer"]
    if dtype not in DTYPES:
        raise UserError(f"{path}: dtype={dtype!r:.80} must be one of {', '.join(DTYPES)}")
    if not isinstance(tokenizer, str):
        raise UserError(f"{path}: tokenizer={tokenizer!r:.80} must be text")
    try:
        model = CLIPConfig.from_dict(values["model"])
        finetuning = _finetuning(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    run = RunConfig(model, dtype, tokenizer, finetuning, read_random_start(workdir))
    try:
        written = CLIPConfig.from_dict(
            (checkpointing.read_saved_config(workdir, step) or {})["model"]
        )
    except (KeyError, UserError):
        return run  # from an older version; restoring compares shapes
    for key, now, then in differences(model.to_dict(), written.to_dict()):
        raise UserError(
            f"{path}: model.{key}={now!r:.80}, but checkpoint {step} was written with {then!r:.80}:"
            " one of them was changed"
        )
    return run


def read_random_start(workdir: str | Path) -> tuple[str, ...]:
    """Reads which towers had random values in the weights that a run started from.

    Raises:
      UserError: the file is damaged.
    """
    path = as_path(workdir) / START
    if not path.exists():
        return ()
    towers = files.read_json(path, what="start").get("random")
    if not isinstance(towers, list) or any(tower not in SIDES for tower in towers):
        raise UserError(f"{path}: random={towers!r:.80} must be a list of {', '.join(SIDES)}")
    return tuple(side for side in SIDES if side in towers)


def write_random_start(workdir: str | Path, towers: tuple[str, ...]) -> None:
    """Writes the file that `read_random_start` reads, or removes it if there are no such towers."""
    path = as_path(workdir) / START
    if not towers:
        path.unlink(missing_ok=True)
        return
    with files.atomic_write(path) as file:
        file.write(json.dumps({"random": towers}).encode() + b"\n")


def _finetuning(values: JsonObject) -> Config:
    """Returns the keys of a run's config that say what its checkpoints hold besides parameters."""
    optimizer = values.get("optimizer")
    chosen = optimizer if isinstance(optimizer, dict) else {}
    chosen = {key: chosen[key] for key in ("freeze", "groups") if key in chosen}
    groups = {name: values[name] for name in ("ema", "lora") if name in values}
    weights = values.get("weights")
    given = weights if isinstance(weights, dict) else {}
    given = {key: given[key] for key in ("path", *SIDES) if key in given}
    return typed({"optimizer": chosen, "weights": given, **groups})


def untrained_towers(
    c: Config, model: CLIPConfig, random_start: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Returns the towers with random values: they do not learn, and no weights give them.

    A text tower does not count if the scale of the cosines learns: images are compared with its
    features, random as they are. It counts, too, if neither its projection nor the scale learns.

    Args:
      c: the config of a run, in which parts that the objective does not use are frozen.
      model: its architecture.
      random_start: the towers that have random values in the weights that the run starts from.
    """
    named = [side for side in SIDES if c.weights.path or getattr(c.weights, side)]
    given = [side for side in named if side not in random_start]
    if len(given) == len(SIDES) or (groups := _groups(c, model)) is None:
        return ()
    random = [side for side in SIDES if side in groups.frozen_towers and side not in given]
    scale = [name for name in groups.assignment if name in ("logit_scale", "temperature")]
    projection = ("text/projection", "text/second_projection")
    outputs = [name for name in groups.assignment if name.startswith(projection)]
    if not all(map(groups.is_frozen, scale)):  # random features of texts are compared, too
        return tuple(side for side in random if side != "text")
    if "text" not in random and outputs and all(map(groups.is_frozen, outputs)):
        random.append("text")
    return tuple(random)


def has_untrained_pool(c: Config, model: CLIPConfig, random_start: tuple[str, ...] = ()) -> bool:
    """Returns whether the parts that pool the features of images do not learn, and are not given.

    Then objectives used the features of places alone. Arguments as for `untrained_towers`.
    """
    given = (c.weights.path or c.weights.vision) and "vision" not in random_start
    if given or (groups := _groups(c, model)) is None:
        return False
    parts = tuple(f"vision/{part}/" for part in model.vision.pooling_parts)
    names = [name for name in groups.assignment if name.startswith(parts)]
    return (
        bool(names) and all(map(groups.is_frozen, names)) and "vision" not in groups.frozen_towers
    )


def _groups(c: Config, model: CLIPConfig) -> ParamGroups | None:
    """Returns which parameters of a run learn; None: all, or nobody knows."""
    if not (c.optimizer.freeze or c.optimizer.groups):
        return None
    abstract = abstract_model(model, lora=c.lora)
    try:
        return group_patterns.resolve(c.optimizer, param_specs(abstract), variables(abstract)[0])
    except UserError:  # patterns of another version
        return None
