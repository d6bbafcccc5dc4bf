"""Path patterns: braces, globs, `~`, and `embedded:` for the data that ships with the package.

What is far away (`gs://bucket/{000..999}.tar`) has braces too, and globs where it can be listed.
"""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from clip_jax.errors import UserError
from clip_jax.io import remote

EMBEDDED = "embedded:"
_HOME = Path(__file__).parents[1] / "data"
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")


def resolve(path: str) -> str:
    """The path of a file: `embedded:emoji/x` in the package's folder, `~` expanded.

    Raises:
      UserError: it leaves the embedded data, or names an unknown home.
    """
    if remote.is_remote(path):
        return path
    if not path.startswith(EMBEDDED):
        try:
            return str(Path(path).expanduser())
        except RuntimeError:
            raise UserError(f"{path!r} is in the home of an unknown user") from None
    inner = Path(path.removeprefix(EMBEDDED))
    if inner.is_absolute() or ".." in inner.parts:
        raise UserError(f"{path!r} leaves the embedded data: give a name such as embedded:emoji/x")
    return str(_HOME / inner)


def suffix(path: str) -> str:
    """How a path ends, in lower case: `.parquet`; a URL's question does not count."""
    return Path(remote.shown(path)).suffix.lower()


def braces(pattern: str) -> list[str]:
    """`a{0..2}b` → a0b, a1b, a2b (widths kept, `{2..0}` counts down); `{x,y}` → x, y."""
    found = _BRACES.search(pattern)
    if not found:
        return [pattern]
    if found[3] is not None:
        parts = found[3].split(",")
    else:
        first, last = int(found[1]), int(found[2])
        numbers = range(first, last + 1) if first <= last else range(first, last - 1, -1)
        parts = [str(i).zfill(len(found[1])) for i in numbers]
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return list(dict.fromkeys(whole for part in parts for whole in braces(head + part + tail)))


def expand(pattern: str) -> list[str]:
    """The files that a pattern names, in order.

    Raises:
      UserError: a file or every match of a glob is missing. Whether a file that is far away is
        there shows when it is asked for.
    """
    files: list[str] = []
    whole = resolve(pattern)
    if remote.is_remote(whole):
        return [file for path in braces(whole) for file in _far(path, pattern)]
    there = _existing(whole)
    for inner in braces(whole[len(there) :]):
        magic = glob.has_magic(inner)
        found = [there + inner]
        if magic:
            found = sorted(glob.glob(glob.escape(there) + inner, recursive=True))
        missing = [f for f in found if not Path(f).is_file()]
        if missing or not found:
            missed = missing[0] if missing else there + inner
            raise UserError(f"no file {missed} (from {pattern!r}){_instead(missed)}")
        files += found
    return files


def _existing(path: str) -> str:
    """The longest beginning of a path that is there as it is written: no pattern is in it."""
    end = len(path)
    while end > 0 and not os.path.exists(path[:end]):
        end = path.rfind("/", 0, end)
    return path[: max(end, 0)]


def _instead(path: str) -> str:
    """What to give in place of a folder, as the end of an error."""
    if Path(path).is_dir() and any(Path(path).glob("*.tar")):
        return f": it is a folder, use {path}/*.tar"
    return ""


def _far(path: str, pattern: str) -> list[str]:
    if not glob.has_magic(remote.shown(path)):
        return [path]
    if found := remote.glob(path):
        return found
    raise UserError(f"no file {path} (from {pattern!r})")
