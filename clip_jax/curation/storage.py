"""Whole files of a curation, on this machine or in a bucket that all workers reach."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np

from clip_jax.errors import UserError
from clip_jax.io import files, remote
from clip_jax.training import workdir_lock

_MOST = 8 << 30  # bytes of a remote file


def join(folder: str, name: str) -> str:
    """Returns the path of a file in a folder."""
    return f"{folder.rstrip('/')}/{name}"


def read(path: str) -> bytes | None:
    """Returns the content of a file, or None if there is none."""
    if remote.is_remote(path):
        try:
            return remote.read_whole(path, _MOST)
        except remote.MissingError:
            return None
    try:
        return Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


@contextlib.contextmanager
def alone(folder: str, flag: str = "--out") -> Iterator[None]:
    """Locks a folder of results on this machine, so that two commands never mix theirs.

    Args:
      folder: the folder, which is made.
      flag: the flag that names another folder, for the error.

    Raises:
      UserError: another one is writing there.
    """
    with contextlib.ExitStack() as stack:
        if not remote.is_remote(folder):
            advice = f"wait for its end, or give another {flag}"
            stack.enter_context(workdir_lock.locked(Path(folder), False, print, advice))
        yield


def write_arrays(path: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays into one `.npz`, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub mixes in `allow_pickle`
    remote.write(path, buffer.getvalue())


def read_arrays(path: str, names: Collection[str] = ()) -> dict[str, np.ndarray] | None:
    """Returns the arrays of a `.npz`, or None if there is no such file or it is damaged.

    Args:
      path: the file.
      names: the arrays to read; none for all.
    """
    content = read(path)
    if content is None:
        return None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {name: archive[name] for name in names or archive.files}
    except Exception:  # a damaged archive fails in many ways, and is made again
        return None


def write_json(path: str, values: files.JsonObject) -> None:
    """Writes an object as JSON, whole or not at all."""
    text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    remote.write(path, text.encode("utf-8", "surrogatepass"))  # names of files may be no UTF-8


def read_json(path: str, what: str) -> files.JsonObject:
    """Reads an object from JSON.

    Args:
      path: the file.
      what: what its folder should hold, for errors.

    Raises:
      UserError: there is no such file, or it holds something else.
    """
    content = read(path)
    if content is None:
        raise UserError(f"there is no {path}: that folder holds no {what}")
    return files.parse_json(content, path)
