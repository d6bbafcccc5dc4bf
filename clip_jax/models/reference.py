"""The keys of `config.model` for readers: from the docstrings of the config dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping
from typing import Any

from clip_jax.models.model_config import CLIPConfig
from clip_jax.models.registry import TEXT_TOWERS, VISION_TOWERS
from clip_jax.registry import Registry

_TOWERS: dict[str, Registry[type]] = {"vision": VISION_TOWERS, "text": TEXT_TOWERS}
_NOT_SET = ("model.heads",)  # made for the objective, from the labels of the data
_ATTRIBUTE = re.compile(r"  (\w+(?:, \w+)*): (.*(?:\n    .*)*)")

_INTRODUCTION = """\
## `config.model`

{title}

`common.get_config("ViT-B/16")` sets these keys for an architecture by its name. A config file or
the command line can change any of them: `--config.model.vision.patch_dropout=0.5`. A tower of
another kind, or [of your own](extending.md#a-text-tower), replaces the group, and has defaults for
keys that are left out: `c.model.text = ConfigDict(dict(kind="bert", width=384))`.
"""


def key_docs(model: Mapping[str, Any]) -> dict[str, str]:
    """Returns the meaning of each key of a config's `model`, by its name as `model.vision.width`.

    Args:
      model: the values, of which only the towers' kinds are read. Towers of the user's own have
        no docs.
    """
    docs = {f"model.{name}": doc for name, doc in field_docs(CLIPConfig).items()}
    for side, registry in _TOWERS.items():
        kind = model.get(side, {}).get("kind", registry.names[0])
        if kind in registry:
            fields = field_docs(registry.get(kind))
            docs |= {f"model.{side}.{name}": doc for name, doc in fields.items()}
    return docs


def field_docs(kind: type) -> dict[str, str]:
    """Returns the docs of a dataclass's fields, from the `Attributes:` of it and of its bases."""
    documented: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        docstring = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        for names, doc in _ATTRIBUTE.findall(docstring.partition("\nAttributes:\n")[2]):
            for name in names.split(", "):
                documented[name] = " ".join(doc.split()).removesuffix(".")
    fields = dataclasses.fields(kind)
    return {field.name: documented[field.name] for field in fields if field.name in documented}


def sections() -> str:
    """Returns the sections of docs/config.md on `config.model`: a table for each kind of tower."""
    introduction = _INTRODUCTION.format(title=_first_line(CLIPConfig))
    parts = [f"{introduction}\n{_table('model.', CLIPConfig)}"]
    for side, registry in _TOWERS.items():
        for name in registry.names:
            kind = registry.get(name)
            heading = f"### `config.model.{side}` of the kind `{name}`"
            table = _table(f"model.{side}.", kind)
            parts.append(f"{heading}\n\n{_first_line(kind)}\n\n{table}")
    return "\n".join(parts)


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").partition("\n")[0]


def _table(prefix: str, kind: type) -> str:
    docs, rows = field_docs(kind), []
    for field in dataclasses.fields(kind):
        key = f"{prefix}{field.name}"
        if field.default is not dataclasses.MISSING and key not in _NOT_SET:
            meaning = docs[field.name].replace("|", "\\|")
            rows.append(f"| `{key}` | `{field.default!r}` | {meaning} |")
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows, ""])
