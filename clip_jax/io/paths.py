"""Path patterns: braces, globs, `~`, and `embedded:` for the data that ships with the package.

Remote paths (`gs://bucket/{000..999}.tar`) have braces too, and globs if they can be listed.
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
    """Resolves `embedded:emoji/x` to the package's folder, and expands `~`.

    Raises:
      UserError: the path leaves the embedded data, or names the home of an unknown user.
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
    """Returns the ending of a path in lower case, such as `.parquet`, without a URL's query."""
    return Path(remote.redact(path)).suffix.lower()


def braces(pattern: str) -> list[str]:
    """Expands the braces of a pattern.

    `a{0..2}b` gives a0b, a1b, a2b; `{x,y}` gives x, y. Numbers keep their leading zeros, and
    `{2..0}` counts down.
    """
    match = _BRACES.search(pattern)
    if not match:
        return [pattern]
    if match[3] is not None:
        parts = match[3].split(",")
    else:
        first, last = int(match[1]), int(match[2])
        numbers = range(first, last + 1) if first <= last else range(first, last - 1, -1)
        parts = [str(i).zfill(len(match[1])) for i in numbers]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return list(dict.fromkeys(path for part in parts for path in braces(head + part + tail)))


def expand(pattern: str) -> list[str]:
    """Returns the files that a pattern names, in order.

    Whether a remote file exists is not checked.

    Raises:
      UserError: a local file is missing, or a glob matches nothing.
    """
    files: list[str] = []
    resolved = resolve(pattern)
    if remote.is_remote(resolved):
        return [file for path in braces(resolved) for file in _expand_remote(path, pattern)]
    start = _existing(resolved)
    for rest in braces(resolved[len(start) :]):
        matches = [start + rest]
        if glob.has_magic(rest):
            matches = sorted(glob.glob(glob.escape(start) + rest, recursive=True))
        missing = [path for path in matches if not Path(path).is_file()]
        if missing or not matches:
            path = missing[0] if missing else start + rest
            raise UserError(f"no file {path}{_origin(path, pattern)}{_hint(path)}")
        files += matches
    return files


def _existing(path: str) -> str:
    """Returns the longest start of a path that exists as written, and so contains no pattern."""
    end = len(path)
    while end > 0 and not os.path.exists(path[:end]):
        end = path.rfind("/", 0, end)
    return path[: max(end, 0)]


def _origin(path: str, pattern: str) -> str:
    """Returns the pattern that a path was made from, for an error; empty if they are equal."""
    return "" if path == pattern else f" (from {pattern!r})"


def _hint(path: str) -> str:
    """Returns the end of an error that says what to give instead of a folder."""
    if Path(path).is_dir() and any(Path(path).glob("*.tar")):
        return f": it is a folder, use {path}/*.tar"
    return ""


def _expand_remote(path: str, pattern: str) -> list[str]:
    if not glob.has_magic(remote.redact(path)):
        return [path]
    if paths := remote.glob(path):
        return paths
    raise UserError(f"no file {path}{_origin(path, pattern)}")
