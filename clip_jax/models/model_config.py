"""Models as plain data: two towers and what they share. Importing this is cheap."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from clip_jax.errors import UserError, only_user_errors
from clip_jax.io.files import JsonObject
from clip_jax.models import fields
from clip_jax.models.registry import TEXT_TOWERS, VISION_TOWERS, kind_of
from clip_jax.models.text_configs import BertConfig, TextConfig
from clip_jax.models.tower import TextTower, VisionTower
from clip_jax.models.vision_configs import (
    HALF,
    MEAN,
    STD,
    EfficientNetConfig,
    ResNetConfig,
    VisionConfig,
)
from clip_jax.registry import Registry

__all__ = [
    "ACTIVATIONS",
    "DTYPES",
    "HALF",
    "MEAN",
    "STD",
    "BertConfig",
    "CLIPConfig",
    "EfficientNetConfig",
    "ResNetConfig",
    "TextConfig",
    "TextTower",
    "VisionConfig",
    "VisionTower",
]

# What a model computes in. `mixed`: bfloat16 products between float32 activations.
DTYPES = ("float32", "bfloat16", "mixed")
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh")  # of the Transformers' MLPs
_MAX_KIND = 200  # characters of a tower's name, which messages quote


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Two towers and the embedding space that they share.

    Attributes:
      embed_dim: the number of features of an image or a text.
      activation: the activation of the Transformers' MLPs, one of `ACTIVATIONS`.
      temperature: initial value of the learned temperature; the logit scale is its inverse.
      log_scale: whether the logarithm of the logit scale is learned (CLIP), or the temperature
        itself (ALIGN).
      max_logit_scale: upper bound of the logit scale in training; 0 for no bound.
      logit_bias: initial value of the learned bias of a sigmoid loss; None for no bias.
      vision, text: the towers.
    """

    embed_dim: int = 512
    activation: str = "quick_gelu"
    temperature: float = 0.07
    log_scale: bool = True
    max_logit_scale: float = 100.0
    logit_bias: float | None = None
    vision: VisionTower = dataclasses.field(default_factory=VisionConfig)
    text: TextTower = dataclasses.field(default_factory=TextConfig)

    def __post_init__(self) -> None:
        self.vision.check(self.embed_dim)
        self.text.check()
        if self.max_logit_scale and not self.log_scale:
            raise UserError("model.max_logit_scale needs model.log_scale: set it to 0")
        if not self.temperature > 0 or self.max_logit_scale < 0:
            raise UserError(
                f"model.temperature={self.temperature} must be above 0 and "
                f"model.max_logit_scale={self.max_logit_scale} at least 0 (no bound)"
            )

    def with_vision(self, **values: Any) -> CLIPConfig:
        """Returns the same model with other values of the image tower's fields."""
        return dataclasses.replace(self, vision=_replace(self.vision, values))

    def with_text(self, **values: Any) -> CLIPConfig:
        """Returns the same model with other values of the text tower's fields."""
        return dataclasses.replace(self, text=_replace(self.text, values))

    @classmethod
    def from_dict(cls, values: Any, *, trusted: bool = False) -> CLIPConfig:
        """Makes a config from a config file's or a checkpoint's `model`; the reverse of `to_dict`.

        Args:
          values: nested dictionaries.
          trusted: whether the values are the user's own, whose towers may be imported by dotted
            paths. Towers named by others must be imported already.

        Raises:
          UserError: a value is missing, unknown, of another type or size than it can be.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"model={values!r:.80} must be an object")
        values = {key: _tuples(value) for key, value in values.items()}
        towers = {}
        for side in ("vision", "text"):
            if side not in values:
                raise UserError(f"model.{side} is missing: the config of a tower")
            towers[side] = _tower(side, values.pop(side), trusted)
        values = fields.checked(cls, values, "model.")
        if values.get("activation", "gelu") not in ACTIVATIONS:
            raise UserError(
                f"model.activation={values['activation']!r:.80} must be one of "
                f"{', '.join(ACTIVATIONS)}"
            )
        with only_user_errors("model: checking its values"):  # by a user's tower, maybe
            return cls(**towers, **values)

    def to_dict(self) -> JsonObject:
        """Returns nested dictionaries; the `kind` of each tower names its class."""
        values = dataclasses.asdict(self)
        for side, tower in (("vision", self.vision), ("text", self.text)):
            values[side] = {"kind": kind_of(tower), **values[side]}
        return values


def _replace(tower: Any, values: Mapping[str, Any]) -> Any:
    return dataclasses.replace(tower, **values)


_TOWERS: dict[str, tuple[Registry[type], type]] = {
    "vision": (VISION_TOWERS, VisionTower),
    "text": (TEXT_TOWERS, TextTower),
}


def _tower(side: str, values: Any, trusted: bool) -> Any:
    """Returns the config of the tower of a side, from its values."""
    if not isinstance(values, Mapping):
        raise UserError(f"model.{side}={values!r:.80} must be an object")
    registry, protocol = _TOWERS[side]
    values = {k: _tuples(v) for k, v in values.items()}
    kind = values.pop("kind", registry.names[0])
    if not isinstance(kind, str) or len(kind) > _MAX_KIND:
        raise UserError(
            f"model.{side}.kind={kind!r:.80} must be one of {', '.join(registry.names)}"
        )
    tower = registry.get(kind, f"model.{side}.kind", trusted=trusted)
    if protocol not in getattr(tower, "__mro__", ()) or not dataclasses.is_dataclass(tower):
        raise UserError(
            f"model.{side}.kind={kind} must be a dataclass that subclasses "
            f"clip_jax.models.tower.{protocol.__name__}"
        )
    try:
        config = tower(**fields.checked(tower, values, f"model.{side}."))
        hash(config)
    except TypeError as error:  # a field without a value, a method without a body, not frozen
        raise UserError(f"model.{side}.kind={kind}: {error}") from None
    return config


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
