"""What a config names as data: one source, or a mixture of several, each with what is its own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from clip_jax.data import captions
from clip_jax.data.filters import Filter
from clip_jax.data.sources import source_kind
from clip_jax.data.sources.table_options import TableOptions
from clip_jax.errors import UserError

# of an entry, and of `config.data` for all of them
_FORM = ("separator", "quoting", "encoding")
_KEYS = ("source", "image", "root", *_FORM, "captions", "caption_weights", "filter")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A source as a config names it; `key` is where. Either weight or epochs is given, or none."""

    key: str
    data: str
    source: str = ""
    image: str = ""
    root: str = ""
    separator: str = ""
    quoting: str = ""
    encoding: str = ""
    weight: float | None = None
    epochs: float | None = None
    captions: tuple[str, ...] = ("{caption}",)
    caption_weights: tuple[float, ...] = ()
    filter: Filter = dataclasses.field(default_factory=Filter)

    def __post_init__(self) -> None:
        for name in ("data", "source", "image", "root", *_FORM):
            if not isinstance(value := getattr(self, name), str):
                raise UserError(f"{self.key}.{name}={value!r} must be text")
        if self.source:
            source_kind(self.source, f"{self.key}.source")
        TableOptions.of(self.separator, self.quoting, self.encoding, self.key)
        for name in ("weight", "epochs"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 < value < math.inf):
                raise UserError(f"{self.key}.{name}={value!r} must be a number above 0")
        templates, weights = self.captions, self.caption_weights
        if not templates:
            raise UserError(f"{self.key}.captions is empty: give a template such as {{caption}}")
        for template in templates:
            try:
                captions.fields(template)
            except UserError as error:
                raise UserError(f"{self.key}.captions: {error}") from None
        good = all(_is_number(weight) and 0 < weight < math.inf for weight in weights)
        if weights and not (good and len(weights) == len(templates)):
            raise UserError(
                f"{self.key}.caption_weights={weights!r} must be a number above 0 for each of the "
                f"{len(templates)} templates in {self.key}.captions"
            )

    @property
    def table_options(self) -> TableOptions:
        """How its text tables are written."""
        return TableOptions.of(self.separator, self.quoting, self.encoding, self.key)

    @property
    def columns(self) -> frozenset[str]:
        """Those of a table that captions and the filter need."""
        fields = [field for template in self.captions for field in captions.fields(template)]
        return frozenset(field.partition(".")[0] for field in (*fields, *self.filter.fields))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _texts(key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, (tuple, list)) or not all(isinstance(one, str) for one in value):
        raise UserError(f"{key}={value!r:.200} must be templates such as ('{{caption}}',)")
    return tuple(value)


def _numbers(key: str, value: Any) -> tuple[float, ...]:
    if not isinstance(value, (tuple, list)):
        raise UserError(f"{key}={value!r:.200} must be numbers such as (3.0, 1.0)")
    return tuple(value)


def of(data: Mapping[str, Any]) -> dict[str, Entry]:
    """The sources of `config.data` by name, in the order of their names; '' is a single one.

    Raises:
      UserError: both or neither of `train` and `mix` is given, or a key of it is wrong.
    """
    train, mix = data["train"], data.get("mix") or {}
    if train and mix:
        raise UserError(
            f"config.data.train={train!r} and config.data.mix are both given: set one of them, "
            "config.data.train= or config.data.mix={}"
        )
    own = _entry("config.data", {k: data[k] for k in _KEYS if k in data}, {"data": train})
    if not mix:
        return {"": own}
    found = {}
    for name in sorted(mix):
        key, values = f"config.data.mix.{name}", mix[name]
        known = ("data", "weight", "epochs", *_KEYS)
        if not isinstance(values, Mapping) or not values.get("data"):
            raise UserError(f"{key} must hold data: tars, a folder, a table or tfds:NAME:SPLIT")
        if unknown := sorted(set(values) - set(known)):
            raise UserError(f"unknown config key {key}.{unknown[0]}; known: {', '.join(known)}")
        own_weights = "captions" in values  # those of config.data are of its templates
        default = {
            k: data[k] for k in _KEYS if k in data and not (own_weights and k == "caption_weights")
        }
        found[name] = _entry(key, values, default)
    kinds = {name: (e.weight is None, e.epochs is None) for name, e in found.items()}
    one, *_ = kinds
    for name, kind in kinds.items():
        if kind == (False, False) or kind != kinds[one]:
            raise UserError(
                f"config.data.mix.{name}: of weight and epochs every source has the same one, "
                f"or none has any (then each comes once an epoch); see config.data.mix.{one}"
            )
    return found


def _entry(key: str, values: Mapping[str, Any], default: Mapping[str, Any]) -> Entry:
    given = {**default, **values}
    for name, read in (("captions", _texts), ("caption_weights", _numbers)):
        if name in given:
            given[name] = read(f"{key}.{name}", given[name])
    where = key if "filter" in values else "config.data"
    given["filter"] = Filter.from_dict(given.get("filter") or {}, f"{where}.filter")
    return Entry(key, **given)
