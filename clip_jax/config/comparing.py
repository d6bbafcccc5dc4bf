"""A run's saved config: without secrets, and compared with the config that resumes the run."""

from __future__ import annotations

import json
import re
from typing import Any

from clip_jax.config.overrides import flatten
from clip_jax.config.schema import defaults
from clip_jax.config.values import may_change
from clip_jax.errors import UserError, redacted
from clip_jax.io.files import JsonObject

# Keys that say where something is, not what it is.
# The content of each is compared elsewhere: of data and tokenizer by fingerprints, of labels in the
# model's classifier.
_PLACES = re.compile(
    r"data\.(train|source|root)|data\.mix\..+\.(data|source|root)|tokenizer|classifier\.labels"
)


def to_json(config: Any) -> str:
    """The config as the text of a run's `config.json`, without secrets in URLs."""
    return json.dumps(without_secrets(config.to_dict()), indent=1, sort_keys=True) + "\n"


def without_secrets(values: Any) -> Any:
    """Nested values whose URLs have neither passwords nor signatures."""
    if isinstance(values, dict):
        return {key: without_secrets(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)(map(without_secrets, values))
    return redacted(values) if isinstance(values, str) else values


def is_place(key: str) -> bool:
    """Whether what a key names may have moved, so that its fingerprint identifies it."""
    return bool(_PLACES.fullmatch(key))


def differences(old: JsonObject, new: JsonObject) -> list[str]:
    """Lines `key: old → new` for what a resumed run may not change, see `changes`."""
    return list(changes(old, new).values())


def changes(old: JsonObject, new: JsonObject) -> dict[str, str]:
    """Lines `key: old → new`, by their keys, for what a resumed run may not change.

    A run that began before a key existed has that key's default.

    Raises:
      UserError: `old` is nested too deeply to be a config.
    """
    try:
        return _changes(without_secrets(old), without_secrets(new))
    except RecursionError:
        raise UserError("the run's config is nested too deep to be one") from None


def _changes(old: JsonObject, new: JsonObject) -> dict[str, str]:
    # an empty group counts as absent: it may be filled later
    before, after = (
        {k: v for k, v in flatten(json.loads(json.dumps(c))) if v != {}} for c in (old, new)
    )
    standing = dict(flatten(json.loads(json.dumps(defaults({})))))
    before |= {key: standing[key] for key in (after.keys() - before.keys()) & standing.keys()}
    different = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    return {
        key: f"{key}: {before.get(key)!r} → {after.get(key)!r}"
        for key in different
        if not may_change(key)
    }
