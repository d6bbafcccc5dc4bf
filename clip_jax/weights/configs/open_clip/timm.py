"""Image towers of timm in open_clip's model_cfg: from a name to a tower, and back."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from clip_jax.errors import UserError
from clip_jax.io.files import JsonObject
from clip_jax.models.architectures import TOWERS
from clip_jax.models.model_config import CLIPConfig, TextConfig, VisionConfig
from clip_jax.models.registry import kind_of
from clip_jax.models.tower import VisionTower
from clip_jax.weights.configs.fields import Fields

# timm's names of poolings, by the `pool` of our towers; those of convolutions have none.
_POOLS = {"class": "token", "mean": "avg", "map": "map"}
# Kinds of towers that open_clip's published configs put beside a text tower whose parameters have
# no prefix.
_WITHOUT_PREFIX = ("convnext", "swin", "relpos_vit")


def read_timm(vision: Fields, embed_dim: int) -> VisionTower:
    """Reads the tower that `timm_model_name` names; it computes with its own activation.

    timm's model fixes the image size of a tower with positions, whatever `image_size` says.

    Raises:
      UserError: the name is unknown, or its pooling or projection is not supported.
    """
    name = vision.text("timm_model_name", "")
    towers = {name: tower for name, tower in TOWERS.items() if isinstance(tower, VisionTower)}
    if name not in towers:
        near = difflib.get_close_matches(name, towers, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{vision.where}: timm_model_name={name!r:.60} is not supported here{hint}")
    tower = towers[name]
    projection = vision.text("timm_proj", "")
    vision.only("timm_proj", "linear", "mlp", "none", "")
    usual = _POOLS[getattr(tower, "pool", "mean")]
    if projection in ("linear", "mlp"):  # an empty name is then timm's default
        vision.only("timm_pool", usual, "")
        vision.only("timm_proj_bias", False)
    elif vision.text("timm_pool", "avg") != usual:
        vision.only("timm_pool", usual)
        raise UserError(f"{vision.where}: timm_pool is missing: {name} has {usual!r}")
    size = vision.image_size(tower.image_size)
    if tower.any_size:
        tower = dataclasses.replace(tower, image_size=size)  # type: ignore[type-var]
    return with_projection(tower, projection, vision.where)


def with_projection(tower: Any, projection: str, where: str = "") -> Any:
    """Returns a tower with the projection that open_clip's `timm_proj` states.

    `linear` and `mlp` are layers of open_clip without a bias at their end; an empty text is timm's
    own classifier, which has one.
    """
    if not isinstance(tower, VisionConfig):
        return dataclasses.replace(
            tower, projection=projection or "linear", projection_bias=not projection
        )
    if projection == "mlp":
        raise UserError(f"{where}: timm_proj='mlp' is not supported here for a vision Transformer")
    return dataclasses.replace(
        tower, projection=projection != "none", projection_bias=not projection
    )


def projection_of(tower: Any) -> str:
    """Returns `timm_proj` of a tower: `linear`, `mlp`, `none`, or an empty text for timm's own."""
    if tower.projection_bias:
        return ""
    if isinstance(tower, VisionConfig):
        return "linear" if tower.projection else "none"
    projection: str = tower.projection
    return projection


def write_timm(config: CLIPConfig) -> JsonObject:
    """Returns the `vision_cfg` of a model whose image tower is timm's.

    Raises:
      UserError: timm has no such tower.
    """
    vision: Any = config.vision
    ours = dataclasses.asdict(_comparable(vision, config.activation))
    differences: dict[str, dict[str, Any]] = {}
    for name, tower in TOWERS.items():
        if kind_of(tower) != kind_of(vision):
            continue
        theirs = dataclasses.asdict(_comparable(tower, ""))
        differences[name] = {key: theirs[key] for key in theirs if theirs[key] != ours[key]}
        if not differences[name]:
            projection = projection_of(vision)
            usual = _POOLS[getattr(vision, "pool", "mean")]
            return {
                "image_size": vision.image_size,
                "timm_model_name": name,
                "timm_model_pretrained": False,
                "timm_pool": "" if projection in ("linear", "mlp") else usual,
                "timm_proj": projection or None,
            }
    if not differences:
        raise UserError(f"open_clip has no image tower like a {kind_of(vision)}")
    nearest = {name: (len(keys), "activation" not in keys) for name, keys in differences.items()}
    name = min(nearest, key=nearest.__getitem__)
    words = ", ".join(
        f"model.vision.{key}={value!r:.60} and not {ours[key]!r:.60}"
        for key, value in differences[name].items()
    )
    activation = differences[name].get("activation")
    way = f", or accept that with --activation {activation}" if activation else ""
    raise UserError(
        f"open_clip takes such image towers from timm by name, and the nearest, {name}, has "
        f"{words}: write it for hugging_face{way}"
    )


def _comparable(tower: Any, activation: str) -> Any:
    """Returns a tower without what its name in timm does not say."""
    fixed: JsonObject = dict(mean=(0.0,), std=(1.0,), projection_bias=False)
    fixed["projection"] = False if isinstance(tower, VisionConfig) else "none"
    names = {field.name for field in dataclasses.fields(tower)}
    for name, value in (("patch_dropout", 0.0), ("momentum", 0.0)):
        if name in names:
            fixed[name] = value
    if "activation" in names:
        fixed["activation"] = tower.activation or activation
    if "mlp_ratio" in names:
        fixed["mlp_ratio"] = round(tower.width * tower.mlp_ratio) / tower.width
    if tower.any_size:
        fixed["image_size"] = 1
    return dataclasses.replace(tower, **fixed)


def is_timm(config: CLIPConfig) -> bool:
    """Returns whether open_clip builds the image tower of a model by timm."""
    vision = config.vision
    if isinstance(vision, VisionConfig):
        return vision.patch_bias or vision.pool == "map" or vision.projection_bias
    return hasattr(vision, "projection_bias")


def has_text_prefix(config: CLIPConfig) -> bool:
    """Returns whether the names of text parameters start with `text.` in open_clip's own files.

    open_clip calls it `custom_text`. It reads files of both kinds, and so do we.
    """
    if type(config.text) is not TextConfig:
        return True
    vision = config.vision
    gap = isinstance(vision, VisionConfig) and vision.pool == "mean"
    return is_timm(config) and not gap and kind_of(vision) not in _WITHOUT_PREFIX
