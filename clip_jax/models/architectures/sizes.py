"""Sizes of Transformers that several families share."""

from __future__ import annotations

from clip_jax.io.files import JsonObject

BASE: JsonObject = dict(width=768, layers=12, heads=12)
LARGE: JsonObject = dict(width=1024, layers=24, heads=16)
HUGE: JsonObject = dict(width=1280, layers=32, heads=16)
SO400M: JsonObject = dict(width=1152, layers=27, heads=16, mlp_ratio=4304 / 1152)
GIANT: JsonObject = dict(width=1536, layers=40, heads=16)
