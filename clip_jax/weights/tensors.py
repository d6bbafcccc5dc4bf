"""Named tensors in files: safetensors and their shards, read one tensor at a time."""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from clip_jax import files
from clip_jax.errors import UserError

MAX_HEADER = 100_000_000  # bytes, as the safetensors format has it
MAX_NAME = 256
MAX_RANK = 64  # as numpy has it
_CHUNK = 1 << 28  # macOS reads at most 2 GiB at once
_FOLDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


class _BadFileError(Exception):
    """What is wrong inside a file; `open_tensors` adds which file and what to do."""


class _Entry(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype
    fill: Callable[[np.ndarray], None]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of a file by name; each is read from the file when it is asked for.

    Attributes:
      path: what was opened, for messages.
      shapes, dtypes: of every tensor, by name.
      nbytes: of all tensors together.
    """

    def __init__(self, path: Path, entries: dict[str, _Entry], close: Callable[[], None]) -> None:
        self.path = path
        self.shapes = {name: entry.shape for name, entry in entries.items()}
        self.dtypes = {name: entry.dtype for name, entry in entries.items()}
        self.nbytes = sum(entry.nbytes for entry in entries.values())
        self.close = close
        self._entries = entries

    def read(self, name: str, out: np.ndarray | None = None) -> np.ndarray:
        """One tensor in plain memory of its own, or in `out`.

        Args:
          name: one of `shapes`.
          out: where to put it; contiguous, of the tensor's shape and dtype.

        Raises:
          KeyError: there is no such tensor.
          UserError: the file cannot be read, or changed since it was opened.
        """
        entry = self._entries[name]
        if out is None:
            out = np.empty(entry.shape, entry.dtype)
        elif (out.shape, out.dtype) != entry[:2] or not out.flags.carray:
            raise ValueError(f"{name} is {entry.dtype} {entry.shape}: no such place to put it")
        entry.fill(out)
        return out

    def __getitem__(self, name: str) -> np.ndarray:
        return self.read(name)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __enter__(self) -> Tensors:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Tensors({str(self.path)!r}, {len(self):,} tensors, {self.nbytes:,} bytes)"


def open_tensors(path: str | Path) -> Tensors:
    """The tensors of a file, or of a folder of shards, without reading them yet.

    Args:
      path: X.safetensors; X.safetensors.index.json; a folder with either.

    Raises:
      UserError: it is missing, of another kind, cut short or otherwise wrong.
    """
    path = Path(path).expanduser()
    try:
        if path.is_dir():
            path = _in_folder(path)
        if path.name.endswith(".index.json"):
            return _open_shards(path)
        if path.suffix != ".safetensors":
            raise UserError(f"{path} is none of .safetensors, .safetensors.index.json")
        return _open_safetensors(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except _BadFileError as error:
        raise UserError(f"{path} cannot be read ({error}); fetch the file again") from None


def _in_folder(folder: Path) -> Path:
    for name in _FOLDER:
        if (folder / name).exists():
            return folder / name
    found = sorted(p for p in folder.iterdir() if p.suffix == ".safetensors")
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{folder} holds {len(found)} .safetensors files and no index: name one")
    raise UserError(f"{folder} holds no weights: expected {_FOLDER[0]} or {_FOLDER[1]} in it")


def _open(path: Path) -> BinaryIO:
    # a pipe would be waited for
    if not stat.S_ISREG(path.stat().st_mode):
        raise UserError(f"{path} is no plain file")
    file = open(path, "rb", buffering=0)  # noqa: SIM115
    try:
        head = os.pread(file.fileno(), 512, 0)
        if not head:
            raise UserError(f"{path} is empty: fetch the file again")
        if head.startswith(b"version https://git-lfs"):
            raise UserError(
                f"{path} is a git-lfs pointer: download the file itself (`git lfs pull`)"
            )
        if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
            raise UserError(f"{path} is a web page and no weights: download the file itself")
    except BaseException:
        file.close()
        raise
    return file


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _read_into(file: BinaryIO, offset: int, out: np.ndarray) -> None:
    """Fills the contiguous `out` with the bytes of `file` from `offset`.

    Read and not mapped: the pages of a mapped file count as memory of the process.
    """
    rest = out.reshape(-1).view(np.uint8).data
    try:
        while rest:
            count = os.preadv(file.fileno(), [rest[:_CHUNK]], offset)
            if not count:
                raise UserError(f"{file.name} is cut short: it changed since it was opened")
            rest, offset = rest[count:], offset + count
    except OSError as error:
        raise UserError(f"{file.name} cannot be read ({error.strerror})") from None


def _json(raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name stands in it twice")
        return found

    try:
        found = json.loads(raw.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _BadFileError(f"its json is wrong: {error}") from None
    if not isinstance(found, dict):
        raise _BadFileError("its json is no object")
    return found


def _check_name(name: str) -> None:
    if not name.isprintable() or len(name) > MAX_NAME:
        raise _BadFileError(f"{name[:80]!a} is no name of a tensor")


def _is_count(n: object) -> bool:
    return type(n) is int and 0 <= n < 1 << 63


def _check_shape(name: str, shape: Any, dtype: np.dtype) -> tuple[int, ...]:
    if not isinstance(shape, list | tuple) or len(shape) > MAX_RANK:
        raise _BadFileError(f"{name} has no shape")
    # numpy multiplies all but the zeros, too
    if not all(map(_is_count, shape)) or math.prod(n for n in shape if n) >= 1 << 59:
        raise _BadFileError(f"{name} has an impossible shape")
    return tuple(shape)


def _open_safetensors(path: Path) -> Tensors:
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_open(path))
        number, size = file.fileno(), _size(file)
        length = int.from_bytes(os.pread(number, 8, 0), "little")
        if length > min(MAX_HEADER, size - 8):
            raise _BadFileError("it is cut short or no safetensors file")
        raw = os.pread(number, length, 8)
        if not raw.startswith(b"{"):
            raise _BadFileError("it is no safetensors file")
        entries = _entries(file, _json(raw), 8 + length, size - 8 - length)
        return Tensors(path, entries, stack.pop_all().close)


def _entries(
    file: BinaryIO, header: dict[str, Any], start: int, available: int
) -> dict[str, _Entry]:
    header.pop("__metadata__", None)
    entries, spans = {}, []
    for name, about in header.items():
        _check_name(name)
        if not isinstance(about, dict):
            raise _BadFileError(f"{name} is not described")
        code, offsets = about.get("dtype"), about.get("data_offsets")
        dtype = _DTYPES.get(code) if isinstance(code, str) else None
        if dtype is None:
            raise _BadFileError(f"{name} is of dtype {str(code)[:20]!a}, which is not known")
        shape = _check_shape(name, about.get("shape"), dtype)
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
            raise _BadFileError(f"{name} has no place in it")
        begin, end = offsets
        entries[name] = _Entry(shape, dtype, _filler(file, start + begin))
        if end - begin != entries[name].nbytes:
            raise _BadFileError(f"{name} has not the size of its shape")
        spans.append((begin, end, name))
    reached = 0
    for begin, end, name in sorted(spans):
        if begin != reached:
            raise _BadFileError(f"{name} does not begin where the tensor before it ends")
        reached = end
    if reached != available:
        raise _BadFileError(f"it holds {available:,} bytes of tensors and names {reached:,}")
    return entries


def _filler(file: BinaryIO, offset: int) -> Callable[[np.ndarray], None]:
    return lambda out: _read_into(file, offset, out)


def _open_shards(path: Path) -> Tensors:
    with _open(path) as file:
        if _size(file) > MAX_HEADER:
            raise _BadFileError("it is no index of shards")
        found = _json(file.read()).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise _BadFileError("it has no weight_map")
    with contextlib.ExitStack() as stack:
        shards: dict[str, Tensors] = {}
        entries = {}
        for name, shard in found.items():
            if not isinstance(shard, str):
                raise _BadFileError(f"{name!a} has no shard")
            if shard not in shards:
                shards[shard] = stack.enter_context(open_tensors(_beside(path, shard)))
            if name not in shards[shard]:
                raise UserError(
                    f"{path.parent / shard} holds no {name[:80]!a}, though its index says so"
                )
            entries[name] = shards[shard]._entries[name]
        return Tensors(path, entries, stack.pop_all().close)


def _beside(index: Path, name: str) -> Path:
    """A shard in the folder of its index.

    Only a cache of Hugging Face, whose snapshots are links to its blobs, leads out of the folder.
    """
    folder = index.parent.resolve()
    plain = name.isprintable() and not any(c in name for c in "/\\:") and name not in ("", "..")
    if not plain or not name.endswith((".safetensors", ".bin")):
        raise _BadFileError(f"its shard {name[:80]!a} is no file beside it")
    shard = index.parent / name
    if not shard.exists():
        raise UserError(f"{shard} is missing, which {index.name} names: fetch it, too")
    if shard.resolve().parent not in (folder, folder.parent.parent / "blobs"):
        raise UserError(f"{shard} leads out of its folder: put the file itself there")
    return shard


class Lazy(NamedTuple):
    """An array that is made when its turn to be written comes."""

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]


def write_safetensors(
    path: str | Path,
    tensors: Mapping[str, np.ndarray | Lazy],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a safetensors file, whole or not at all.

    Args:
      path: over what has that name.
      tensors: arrays by name; of those that are `Lazy`, one at a time is in memory.
      metadata: of the file; {"format": "pt"}, which transformers asks for, when None.

    Raises:
      ValueError: a dtype that the format does not have, or a `Lazy` that makes another array.
    """
    # the widest first, so that each stands at a multiple of its width
    order = sorted(tensors, key=lambda name: (-np.dtype(tensors[name].dtype).itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    reached = 0
    for name in order:
        shape, dtype = tuple(tensors[name].shape), np.dtype(tensors[name].dtype)
        if name in header or dtype not in _CODES:
            raise ValueError(f"no {name!r} of {dtype} can be written as safetensors")
        begin, reached = reached, reached + math.prod(shape) * dtype.itemsize
        header[name] = dict(dtype=_CODES[dtype], shape=shape, data_offsets=(begin, reached))
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    with files.whole(Path(path)) as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name in order:
            file.write(_made(name, tensors[name]).reshape(-1).view(np.uint8).data)


def _made(name: str, tensor: np.ndarray | Lazy) -> np.ndarray:
    """The array, in order."""
    array = np.asarray(tensor.make() if isinstance(tensor, Lazy) else tensor, order="C")
    if array.shape != tuple(tensor.shape) or array.dtype != tensor.dtype:
        raise ValueError(f"{name} became {array.dtype} {array.shape}, not as it said")
    return array
