"""Models as plain data: two towers and what they share. Importing this is cheap."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from clip_jax.errors import UserError, only_user_errors
from clip_jax.io.files import JsonObject
from clip_jax.models import fields
from clip_jax.models.encoder_configs import M2MConfig, RobertaConfig, T5Config
from clip_jax.models.head import Head
from clip_jax.models.registry import HEADS, TEXT_TOWERS, VISION_TOWERS, kind_of
from clip_jax.models.text_configs import BertConfig, TextConfig
from clip_jax.models.tower import ACTIVATIONS, TextTower, VisionTower
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
    "SIDES",
    "STD",
    "BertConfig",
    "CLIPConfig",
    "EfficientNetConfig",
    "M2MConfig",
    "ResNetConfig",
    "RobertaConfig",
    "T5Config",
    "TextConfig",
    "TextTower",
    "VisionConfig",
    "VisionTower",
]

# What a model computes in. `mixed`: bfloat16 products between float32 activations.
DTYPES = ("float32", "bfloat16", "mixed")
SIDES = ("vision", "text")  # the names of the towers
_MAX_KIND = 200  # characters of a tower's name, which messages quote


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Two towers and the embedding space that they share.

    Attributes:
      embed_dim: the number of features of an image or a text.
      activation: the activation of the Transformers' MLPs: `quick_gelu`, `gelu` or `gelu_tanh`.
      temperature: initial value of the learned temperature; the logit scale is its inverse.
      log_scale: whether the logarithm of the logit scale is learned (CLIP), or the temperature
        itself (ALIGN).
      max_logit_scale: upper bound of the logit scale in training; 0 for no bound.
      logit_bias: initial value of the learned bias of a sigmoid loss; None for no bias.
      projection_width: above 0: features of both towers' linear projections, from which a ReLU and
        a second linear layer make `embed_dim` (ConVIRT); 0: a linear projection alone.
      vision, text: the towers.
      heads: the names and configs of further parts, which objectives train.
    """

    embed_dim: int = 512
    activation: str = "quick_gelu"
    temperature: float = 0.07
    log_scale: bool = True
    max_logit_scale: float = 100.0
    logit_bias: float | None = None
    projection_width: int = 0
    vision: VisionTower = dataclasses.field(default_factory=VisionConfig)
    text: TextTower = dataclasses.field(default_factory=TextConfig)
    heads: tuple[tuple[str, Head], ...] = ()

    def __post_init__(self) -> None:
        self.vision.check(self.tower_features)
        self.text.check()
        text: Any = self.text
        projection = getattr(text, "projection", True)
        if projection in (False, "none") and text.width != self.tower_features:
            raise UserError(
                f"with model.text.projection={projection!r}, model.text.width={text.width} must be "
                f"model.embed_dim={self.tower_features}"
            )
        if self.max_logit_scale and not self.log_scale:
            raise UserError("model.max_logit_scale needs model.log_scale: set it to 0")
        if not self.temperature > 0 or self.max_logit_scale < 0:
            raise UserError(
                f"model.temperature={self.temperature} must be above 0 and "
                f"model.max_logit_scale={self.max_logit_scale} at least 0 (no bound)"
            )

    @property
    def tower_features(self) -> int:
        """The number of features that the towers themselves give."""
        return self.projection_width or self.embed_dim

    def with_vision(self, **values: Any) -> CLIPConfig:
        """Returns the same model with other values of the image tower's fields."""
        return dataclasses.replace(self, vision=_replace(self.vision, values))

    def with_text(self, **values: Any) -> CLIPConfig:
        """Returns the same model with other values of the text tower's fields."""
        return dataclasses.replace(self, text=_replace(self.text, values))

    def head(self, name: str) -> Head | None:
        """Returns the config of a head; None if the model has no such head."""
        return dict(self.heads).get(name)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes of the model's classifier; empty without a classifier."""
        return tuple(getattr(self.head("classifier"), "labels", ()))

    def without_heads(self, names: Collection[str] | None = None) -> CLIPConfig:
        """Returns the same model without the heads of these names; None: without any."""
        kept = () if names is None else tuple(head for head in self.heads if head[0] not in names)
        return dataclasses.replace(self, heads=kept)

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
        for side in SIDES:
            if side not in values:
                raise UserError(f"model.{side} is missing: the config of a tower")
            registry, protocol = _TOWERS[side]
            towers[side] = _part(f"model.{side}", values.pop(side), registry, protocol, trusted)
        heads = _heads(values.pop("heads", {}), trusted)
        values = fields.checked(cls, values, "model.")
        if values.get("activation", "gelu") not in ACTIVATIONS:
            raise UserError(
                f"model.activation={values['activation']!r:.80} must be one of "
                f"{', '.join(ACTIVATIONS)}"
            )
        with only_user_errors("model: checking its values"):  # by a user's tower, maybe
            return cls(**towers, heads=heads, **values)

    def to_dict(self) -> JsonObject:
        """Returns nested dictionaries; the `kind` of each tower or head names its class.

        Without heads there is no key `heads`.
        """
        values = dataclasses.asdict(self)
        for side, tower in (("vision", self.vision), ("text", self.text)):
            values[side] = {"kind": kind_of(tower), **values[side]}
        heads = {
            name: {"kind": kind_of(head), **head_values}
            for (name, head), (_, head_values) in zip(self.heads, values.pop("heads"), strict=True)
        }
        return values | ({"heads": heads} if heads else {})


def _replace(tower: Any, values: Mapping[str, Any]) -> Any:
    return dataclasses.replace(tower, **values)


_TOWERS: dict[str, tuple[Registry[type], type]] = {
    "vision": (VISION_TOWERS, VisionTower),
    "text": (TEXT_TOWERS, TextTower),
}


def _heads(values: Any, trusted: bool) -> tuple[tuple[str, Any], ...]:
    """Returns the names and configs of the heads; the `kind` is the name unless it is given."""
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise UserError(f"model.heads={values!r:.80} must be an object")
    heads = []
    for name in sorted(values):
        if not name.isidentifier() or name.startswith("_") or len(name) > _MAX_KIND:
            raise UserError(f"model.heads: {name!r:.80} must be a plain name, such as classifier")
        where = f"model.heads.{name}"
        heads.append((name, _part(where, values[name], HEADS, Head, trusted, usual=name)))
    return tuple(heads)


def _part(
    where: str,
    values: Any,
    registry: Registry[type],
    protocol: type,
    trusted: bool,
    usual: str = "",
) -> Any:
    """Returns the config of a tower or a head from its values.

    Args:
      where: the key in messages.
      values: the fields of the config, and its `kind`.
      registry: the registry of the kinds.
      protocol: the class that the config inherits from.
      trusted: as for `CLIPConfig.from_dict`.
      usual: the kind without a key `kind`; empty: the first of the registry.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where}={values!r:.80} must be an object")
    values = {k: _tuples(v) for k, v in values.items()}
    kind = values.pop("kind", usual or registry.names[0])
    if not isinstance(kind, str) or len(kind) > _MAX_KIND:
        raise UserError(f"{where}.kind={kind!r:.80} must be one of {', '.join(registry.names)}")
    part = registry.get(kind, f"{where}.kind", trusted=trusted)
    if protocol not in getattr(part, "__mro__", ()) or not dataclasses.is_dataclass(part):
        raise UserError(
            f"{where}.kind={kind} must be a dataclass that subclasses "
            f"{protocol.__module__}.{protocol.__name__}"
        )
    try:
        config = part(**fields.checked(part, values, f"{where}."))
        hash(config)
    except TypeError as error:  # a field without a value, a method without a body, not frozen
        raise UserError(f"{where}.kind={kind}: {error}") from None
    return config


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
