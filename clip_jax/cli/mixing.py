"""What `interpolate` and `soup` share: their flags, their config, and writing a mixture."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clip_jax.errors import megabytes
from clip_jax.io.redirects import allow_redirects
from clip_jax.weights.param_mapping import MAPPINGS

if TYPE_CHECKING:
    from clip_jax.config import Config
    from clip_jax.inference.model_source import ModelSource


def add_output_flags(p: argparse.ArgumentParser) -> None:
    """Adds the flags of what is written and evaluated."""
    p.add_argument("--out", required=True, metavar="FOLDER", help="the folder to write to")
    p.add_argument(
        "--to",
        default="open_clip",
        metavar="LIBRARY",
        help=f"the library to write a mixture for: {', '.join(MAPPINGS.names)} "
        "(default: %(default)s)",
    )
    p.add_argument("--overwrite", action="store_true", help="replace existing files")
    p.add_argument(
        "--config",
        default="common",
        metavar="CONFIG",
        help="a config whose evaluate group names test sets; --config.KEY=VALUE sets its keys",
    )
    p.add_argument("--sets", default="", metavar="NAME,…", help="test sets, as for evaluate")
    p.add_argument("--suite", default="", metavar="NAME,…", help="evaluators, as for evaluate")


def open_config(name: str, overrides: Sequence[str]) -> Config:
    """Loads the config that names the test sets.

    Args:
      name: a file or the name of a shipped config.
      overrides: `KEY=VALUE` for each key that the command line sets.
    """
    from clip_jax import config as config_lib

    config = config_lib.typed(config_lib.load(name, list(overrides))[0])
    allow_redirects(config.data.redirects)
    return config


def print_note(line: str) -> None:
    """Prints a line that the user should know on standard error."""
    print(f"note: {line}", file=sys.stderr)


def write_mixture(source: ModelSource, args: argparse.Namespace) -> None:
    """Writes a mixture for another library, and prints the files.

    Args:
      source: the mixture.
      args: the flags of `add_output_flags`.
    """
    from clip_jax.inference.conversion import convert

    conversion = convert(
        source,
        args.out,
        args.to,
        overwrite=args.overwrite,
        note=print_note,
    )
    for path, size in conversion.files.items():
        print(f"wrote {path}  {megabytes(size)}")
