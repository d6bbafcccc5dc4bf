"""Reading tokenizer files with a size limit, and writing them completely or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clip_jax.errors import UserError
from clip_jax.io import files
from clip_jax.io.files import JsonObject

MAX_BYTES = 32 << 20  # bytes


def read_file(path: Path, most: int | None = None) -> bytes:
    """Reads a file of at most `most` bytes, 32 MiB without it.

    Raises:
        UserError: the file can't be read or is larger.
    """
    most = MAX_BYTES if most is None else most
    try:
        with open(path, "rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    if len(content) > most:
        raise UserError(
            f"{str(path)!r} is larger than {most >> 20} MiB: that is no tokenizer's file"
        )
    return content


def read_json(path: Path) -> JsonObject:
    """Reads the object in a JSON file.

    Raises:
        UserError: the file can't be read or holds anything else.
    """
    try:
        value = json.loads(read_file(path))
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{str(path)!r} is not JSON: {reason}") from error
    if not isinstance(value, dict):
        raise UserError(f"{str(path)!r} holds {type(value).__name__}, not a JSON object")
    return value


def nested_object(value: Any, *keys: str) -> JsonObject:
    """Returns the object at a path of keys in a JSON value, or an empty one if there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def write(path: Path, content: bytes) -> None:
    """Writes a file completely or not at all, and makes its folders.

    Raises:
        UserError: the file can't be written.
    """
    try:
        with files.atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


def write_json(path: Path, value: JsonObject) -> None:
    """Writes an indented JSON object.

    Raises:
        UserError: the file can't be written.
    """
    write(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
