"""What a config names as data: one source, or a mixture of several with settings of their own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from clip_jax.config import schema
from clip_jax.config.values import is_number
from clip_jax.data import captions
from clip_jax.data.filter_conditions import Filter
from clip_jax.data.sources import TableOptions, source_kind
from clip_jax.errors import UserError

# keys of `config.data` that an entry of a mixture may override
_TABLE = ("separator", "quoting", "encoding")
_KEYS = (
    *("source", "image", "root", *_TABLE),
    *("captions", "caption_weights", "label", "selection", "filter"),
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A source as a config names it, checked.

    Attributes:
      key: the group of config keys, such as `config.data.mix.coco`.
      data: the spec of the source.

    The other fields are the keys of `config.data`. At most one of weight and epochs is given.
    """

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
    label: str = ""
    selection: str = ""
    filter: Filter = dataclasses.field(default_factory=Filter)

    def __post_init__(self) -> None:
        for name in ("data", "source", "image", "root", "label", "selection", *_TABLE):
            if not isinstance(value := getattr(self, name), str):
                raise UserError(f"{self.key}.{name}={value!r} must be text")
        if self.source:
            source_kind(self.source, f"{self.key}.source")
        TableOptions.from_config(self.separator, self.quoting, self.encoding, self.key)
        for name in ("weight", "epochs"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and 0 < value < math.inf):
                raise UserError(f"{self.key}.{name}={value!r} must be a number above 0")
        self._check_captions()

    def _check_captions(self) -> None:
        templates, weights = self.captions, self.caption_weights
        if not templates:
            raise UserError(f"{self.key}.captions is empty: give a template such as {{caption}}")
        for template in templates:
            try:
                captions.fields(template)
            except UserError as error:
                raise UserError(f"{self.key}.captions: {error}") from None
        are_positive = all(is_number(weight) and 0 < weight < math.inf for weight in weights)
        if weights and not (are_positive and len(weights) == len(templates)):
            raise UserError(
                f"{self.key}.caption_weights={weights!r} must be a number above 0 for each of the "
                f"{len(templates)} templates in {self.key}.captions"
            )

    @property
    def table_options(self) -> TableOptions:
        """The separator, quoting and encoding of this source's text tables."""
        return TableOptions.from_config(self.separator, self.quoting, self.encoding, self.key)

    @property
    def columns(self) -> frozenset[str]:
        """The columns of a table that the captions, the label and the filter need."""
        fields = [field for template in self.captions for field in captions.fields(template)]
        fields += [self.label] if self.label else []
        return frozenset(field.partition(".")[0] for field in (*fields, *self.filter.fields))


def _as_templates(key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, (tuple, list)) or not all(isinstance(item, str) for item in value):
        raise UserError(f"{key}={value!r:.200} must be templates such as ('{{caption}}',)")
    return tuple(value)


def _as_numbers(key: str, value: Any) -> tuple[float, ...]:
    if not isinstance(value, (tuple, list)):
        raise UserError(f"{key}={value!r:.200} must be numbers such as (3.0, 1.0)")
    return tuple(value)


def entries(data: Mapping[str, Any]) -> dict[str, Entry]:
    """Returns the sources of `config.data` by name, sorted; the name of a single source is empty.

    Raises:
      UserError: both `train` and `mix` are given, or a key of one of them is wrong.
    """
    data = schema.Data.with_defaults(data)
    train, mix = data["train"], data["mix"]
    if train and mix:
        raise UserError(
            f"config.data.train={train!r} and config.data.mix are both given: set one of them, "
            "config.data.train= or config.data.mix={}"
        )
    single = _entry("config.data", {k: data[k] for k in _KEYS}, {"data": train})
    if not mix:
        return {"": single}
    by_name = {name: _mix_entry(name, mix[name], data) for name in sorted(mix)}
    shares = {name: (e.weight is None, e.epochs is None) for name, e in by_name.items()}
    first, *_ = shares
    for name, share in shares.items():
        if share == (False, False) or share != shares[first]:
            raise UserError(
                f"config.data.mix.{name}: of weight and epochs every source has the same one, "
                f"or none has any (then each comes once an epoch); see config.data.mix.{first}"
            )
    return by_name


def _mix_entry(name: str, values: Any, data: Mapping[str, Any]) -> Entry:
    """Returns one entry of `config.data.mix`; keys that it leaves out come from `config.data`."""
    key, known = f"config.data.mix.{name}", ("data", "weight", "epochs", *_KEYS)
    if not isinstance(values, Mapping) or not values.get("data"):
        raise UserError(f"{key} must hold data: tars, a folder, a table or tfds:NAME:SPLIT")
    if unknown := sorted(set(values) - set(known)):
        raise UserError(f"unknown config key {key}.{unknown[0]}; known: {', '.join(known)}")
    # the caption_weights of config.data belong to the templates of config.data
    inherited = set(_KEYS) - ({"caption_weights"} if "captions" in values else set())
    return _entry(key, values, {k: data[k] for k in inherited})


def _entry(key: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Entry:
    fields = {**defaults, **values}
    for name, convert in (("captions", _as_templates), ("caption_weights", _as_numbers)):
        if name in fields:
            fields[name] = convert(f"{key}.{name}", fields[name])
    where = key if "filter" in values else "config.data"
    fields["filter"] = Filter.from_dict(fields.get("filter") or {}, f"{where}.filter")
    return Entry(key, **fields)
