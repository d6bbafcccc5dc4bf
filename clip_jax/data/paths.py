"""Path patterns: braces, globs, `~`, and `embedded:` for the data sets that ship with the package."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from clip_jax.errors import UserError

EMBEDDED = "embedded:"
_HOME = Path(__file__).parent
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")


def resolve(path: str) -> str:
    """The path on this machine: `embedded:emoji/x` in the package's folder, `~` expanded."""
    if not path.startswith(EMBEDDED):
        return str(Path(path).expanduser())
    inner = Path(path.removeprefix(EMBEDDED))
    if inner.is_absolute() or ".." in inner.parts:
        raise UserError(f"{path!r} leaves the embedded data: give a name such as embedded:emoji/x")
    return str(_HOME / inner)


def braces(pattern: str) -> list[str]:
    """`a{0..2}b` → a0b, a1b, a2b (widths kept); `{x,y}` → x, y."""
    if found := _RANGE.search(pattern):
        first, last = found.groups()
        parts = [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
    elif found := _CHOICE.search(pattern):
        parts = found[1].split(",")
    else:
        return [pattern]
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [whole for part in parts for whole in braces(head + part + tail)]


def expand(pattern: str) -> list[str]:
    """The files that a pattern names, in order.

    Raises:
      UserError: a file or every match of a glob is missing.
    """
    files: list[str] = []
    for path in braces(resolve(pattern)):
        found = sorted(glob.glob(path)) if glob.has_magic(path) else [path]
        missing = [f for f in found if not Path(f).is_file()]
        if missing or not found:
            raise UserError(f"no file {missing[0] if missing else path} (from {pattern!r})")
        files += found
    return files
