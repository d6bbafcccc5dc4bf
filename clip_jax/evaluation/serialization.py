"""Results as JSON and back: frozen dataclasses and the objects that stand for them.

A dataclass is a JSON object with a key for each field, in their order. A field that defaults to
None is left out while it is None. A trailing underscore, as in `lambda_`, is left out of the key. A
`Thumbnail` is its name.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import types
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from clip_jax.io.files import JsonObject

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """A small copy of an image, encoded; empty on processes that write no report."""

    content: bytes = dataclasses.field(repr=False)

    @functools.cached_property
    def name(self) -> str:
        """The name of the thumbnail in reports: a digest of its content."""
        return hashlib.sha256(self.content).hexdigest()[:16] if self.content else ""


def to_json(value: Any) -> Any:
    """Converts a result to a JSON value.

    The result may consist of dataclasses, lists, tuples, mappings and plain values.
    """
    if isinstance(value, Thumbnail):
        return value.name
    if dataclasses.is_dataclass(value):
        items = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {
            _key(field): to_json(item)
            for field, item in items
            if not (item is None and field.default is None)
        }
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def _key(field: dataclasses.Field[Any]) -> str:
    return field.name.removesuffix("_")


def thumbnails_in(value: Any) -> dict[str, bytes]:
    """Returns the content of every thumbnail in a result, by name."""
    if isinstance(value, Thumbnail):
        return {value.name: value.content} if value.content else {}
    items: Sequence[Any] = ()
    if dataclasses.is_dataclass(value):
        items = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif isinstance(value, Mapping):
        items = list(value.values())
    elif isinstance(value, list | tuple):
        items = value
    thumbnails: dict[str, bytes] = {}
    for item in items:
        thumbnails |= thumbnails_in(item)
    return thumbnails


def from_json(kind: type[T], value: Any, thumbnails: Mapping[str, bytes]) -> T:
    """Rebuilds a result from its JSON value; the inverse of `to_json`.

    Args:
      kind: the dataclass of the result.
      value: the JSON value.
      thumbnails: content by name; a thumbnail that is not among them is empty.

    Raises:
      TypeError: the value is not of this type.
    """
    return cast(T, _decode(kind, value, thumbnails))


def _decode(kind: Any, value: Any, thumbnails: Mapping[str, bytes]) -> Any:
    decode = functools.partial(_decode, thumbnails=thumbnails)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _decode_union(arguments, value, thumbnails)
    if origin is list and isinstance(value, list):
        return [decode(arguments[0], item) for item in value]
    if origin is tuple and isinstance(value, list):
        return tuple(decode(arguments[0], item) for item in value)
    if origin is dict and isinstance(value, dict):
        return {key: decode(arguments[1], item) for key, item in value.items()}
    if kind is Thumbnail and isinstance(value, str):
        return Thumbnail(thumbnails.get(value, b""))
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _decode_dataclass(cast(type, kind), value, thumbnails)
    if kind is float and type(value) in (int, float):
        return value
    if isinstance(kind, type) and type(value) is kind and not origin:
        return value
    raise TypeError(f"{value!r:.80} is not {kind}")


def _decode_union(kinds: Sequence[Any], value: Any, thumbnails: Mapping[str, bytes]) -> Any:
    for kind in kinds:
        try:
            return _decode(kind, value, thumbnails)
        except TypeError:
            continue
    raise TypeError(f"{value!r:.80} is none of {kinds}")


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _decode_dataclass(kind: type, value: JsonObject, thumbnails: Mapping[str, bytes]) -> Any:
    hints = _hints(kind)
    fields = {_key(field): field.name for field in dataclasses.fields(kind)}
    if unknown := value.keys() - fields.keys():
        raise TypeError(f"{kind.__name__} has no {sorted(unknown)[0]}")
    return kind(
        **{
            fields[key]: _decode(hints[fields[key]], item, thumbnails)
            for key, item in value.items()
        }
    )
