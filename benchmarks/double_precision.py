"""clip_jax in float64: what a run would be without rounding.

The package computes in float32 or less, because devices do. To tell an error in a formula from
rounding, `install` makes Python read `float64` for `float32` in the source files that training
uses, and writes attention out, which `jax.nn.dot_product_attention` computes in float32.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_FOLDERS = ("config", "distributed", "losses", "models", "optim", "training")
PACKAGES = tuple(f"clip_jax.{name}" for name in _FOLDERS)


class _Loader(importlib.machinery.SourceFileLoader):
    """Reads a source file with `float64` for `float32`; writes no bytecode."""

    def get_data(self, path: str) -> bytes:
        data = super().get_data(path)
        return data.replace(b"float32", b"float64") if path.endswith(".py") else data

    def path_stats(self, path: str) -> Any:
        raise OSError  # no cached bytecode is read or written


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(PACKAGES):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin)
        return spec


def install() -> None:
    """Makes the modules of `PACKAGES` that are imported from now on compute in float64."""
    import jax

    loaded = [name for name in sys.modules if name.startswith(PACKAGES)]
    assert not loaded, f"imported before: {loaded}"
    jax.config.update("jax_enable_x64", True)
    jax.nn.dot_product_attention = _attention
    sys.meta_path.insert(0, _Finder())


def _attention(query: Any, key: Any, value: Any, mask: Any = None, is_causal: bool = False) -> Any:
    """`jax.nn.dot_product_attention` in the dtype of its arguments."""
    import jax
    import jax.numpy as jnp

    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    if is_causal:
        logits = jnp.where(jnp.tri(query.shape[1], dtype=bool), logits, -jnp.inf)
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits, axis=-1), value)
