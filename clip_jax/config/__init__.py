"""Configs: the schema of all keys, config files, overrides, and a run's saved config.

A config file returns a `ConfigDict`, which overrides change; `checks.check` turns it into the
frozen dataclasses of `schema`, which is all that other packages see.
"""

from clip_jax.config.comparing import changes, differences, is_place, to_json, without_secrets
from clip_jax.config.loading import ROOT, load
from clip_jax.config.overrides import flatten, override
from clip_jax.config.reference import describe, key_docs
from clip_jax.config.schema import Config
from clip_jax.config.values import typed

__all__ = [
    "ROOT", "Config", "changes", "describe", "differences", "flatten", "is_place",
    "key_docs", "load", "override", "to_json", "typed", "without_secrets",
]  # fmt: skip
