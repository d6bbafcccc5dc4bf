"""Config files: from a path or a name to a `ConfigDict`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict, FrozenConfigDict

from clip_jax.config.overrides import override
from clip_jax.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent


def folder() -> Path:
    """The folder `configs`: the checkout's, or the one that is installed with the package."""
    installed = ROOT / "clip_jax" / "configs"
    return installed if installed.is_dir() else ROOT / "configs"


def find_config(config: str) -> Path:
    """The file of a config that is given as a path, or as the name of one in `folder()`.

    Raises:
      UserError: there is no such file; names those that there are.
    """
    path = Path(config)
    if path.is_file():
        return path
    # `configs/vit_b16.py` means the installed one where there is no checkout
    is_shipped = path.parent in (Path(), Path("configs")) and path.suffix in ("", ".py")
    shipped = folder() / f"{path.stem}.py"
    if is_shipped and path.stem != "__init__" and shipped.is_file() and not path.is_dir():
        return shipped
    names = sorted(p.stem for p in folder().glob("*.py") if p.stem not in ("__init__", "common"))
    raise UserError(f"no config {config}; in {folder()}/ there are: {', '.join(names)}")


def _make_importable() -> None:
    """Makes the shipped configs the package `configs`, so that a config can import from them.

    `sys.path` stays as it is: with an installed package it would need the folder `clip_jax`, whose
    packages would hide others of the same name, such as `tokenizers`.
    """
    if "configs" in sys.modules:
        return
    init = folder() / "__init__.py"
    spec = importlib.util.spec_from_file_location(
        "configs", init, submodule_search_locations=[str(folder())]
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["configs"] = module
    spec.loader.exec_module(module)


def load(path: str, overrides: Sequence[str] = ()) -> tuple[ConfigDict, str]:
    """The config of a file after `KEY=VALUE` overrides, and the file's docstring.

    Args:
      path: a config file, or the name of a shipped one, such as `quickstart`.
      overrides: applied in order.

    Raises:
      UserError: there is no such file, it has no `get_config`, it fails, or an override is wrong.
    """
    file = find_config(path)
    spec = importlib.util.spec_from_file_location(f"clip_jax_config_{file.stem}", file)
    if not spec or not spec.loader:
        raise UserError(f"config {path} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        _make_importable()
        if file.parent != folder() and str(file.parent.resolve()) not in sys.path:
            sys.path.append(str(file.parent.resolve()))  # a config may import its neighbours
        spec.loader.exec_module(module)
        config = module.get_config()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        line = " ".join(str(error).split())
        raise UserError(f"config {path} fails: {type(error).__name__}: {line}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"config {path}: get_config() must return a ConfigDict, not {config!r:.40}")
    if isinstance(config, FrozenConfigDict):
        config = ConfigDict(config)
    for item in overrides:
        override(config, item)
    return config.lock(), module.__doc__ or ""
