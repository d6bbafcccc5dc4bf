"""The keys of a config for readers: the text of `--help`, and the page docs/config.md."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from clip_jax.config.keys import Group, Key
from clip_jax.config.overrides import flatten
from clip_jax.config.schema import KEYS, Config, walk

_INTRODUCTION = """\
# Config keys

This page is made from the dataclasses of `clip_jax/config/schema.py` and
`clip_jax/models/model_config.py` by `python tools/build_config_docs.py`.

A config file is a Python file with a function `get_config()` that returns an
`ml_collections.ConfigDict`. Most begin with the defaults and say what differs:

```python
from configs import common


def get_config():
    c = common.get_config("ViT-B/16")
    c.batch_size = 4_096
    return c
```

On the command line `--config.KEY=VALUE` sets a key: `--config.optimizer.learning_rate=1e-3`.
`python -m clip_jax.main --config FILE --help` prints the keys with their values in that file.
Keys marked *resume* may have other values when a run is resumed; all others must be the same.
"""


def key_docs() -> dict[str, str]:
    """Returns the meaning of each key of the schema by its name."""
    return {name: key.doc for name, key in KEYS.items()}


def describe(
    config: ConfigDict, *, docs: Mapping[str, str] | None = None, groups: Sequence[str] = ()
) -> str:
    """The keys and their values, a line each.

    Args:
      config: the config.
      docs: the meanings of keys by their names, which are shown below the keys.
      groups: the keys, and the groups of keys, that are shown; empty: all.
    """
    lines = []
    for name, value in flatten(config):
        if groups and not any(f"{name}.".startswith(f"{group}.") for group in groups):
            continue
        lines.append(f"  --config.{name}={{}}" if isinstance(value, ConfigDict) else
                     f"  --config.{name}={value!r}")  # fmt: skip
        if doc := (docs or {}).get(name):
            lines += textwrap.wrap(doc, 90, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def page() -> str:
    """The part of docs/config.md on the schema: every key with its default, bounds and meaning."""
    groups: dict[str, list[str]] = {"": []}
    titles = {"": _first_line(Config)}
    for name, facts, default in walk():
        prefix = name.rpartition(".")[0]
        if isinstance(default, type) and issubclass(default, Group):
            titles[name] = _first_line(default)
            groups[name] = []
            continue
        groups[prefix].append(_row(name, facts, default))
    sections = [_INTRODUCTION]
    for prefix, rows in groups.items():
        heading = f"## `config.{prefix}`" if prefix else "## The run"
        table = "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])
        sections.append(f"{heading}\n\n{titles[prefix]}\n\n{table}\n")
    return "\n".join(sections)


def _first_line(kind: type[Group]) -> str:
    return (kind.__doc__ or "").partition("\n")[0]


def _row(name: str, facts: Key, default: Any) -> str:
    notes = [facts.doc]
    if facts.choices:
        notes.append(
            "one of " + ", ".join(f"`{choice}`" if choice else "empty" for choice in facts.choices)
        )
    elif facts.at_least > -math.inf or facts.at_most < math.inf:
        notes.append(_bounds(facts))
    if facts.resume:
        notes.append("*resume*")
    meaning = "; ".join(note.replace("|", "\\|") for note in notes)
    shown = "the architecture" if name == "model" else f"`{default!r}`"
    return f"| `{name}` | {shown} | {meaning} |"


def _bounds(facts: Key) -> str:
    if facts.at_most == math.inf:
        return f"at least {facts.at_least:g}"
    return f"from {facts.at_least:g} to {facts.at_most:.10g}"
