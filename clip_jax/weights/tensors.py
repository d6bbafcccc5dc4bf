"""Named tensors in files, read one at a time: safetensors, shards of them, torch's files.

No pickle is executed: a state dict is read by torch's weights-only reader, and of a TorchScript
archive, which that refuses, the few opcodes that name its tensors are read as data.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import pickletools
import re
import stat
import struct
import warnings
import zipfile
import zlib
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
MAX_PICKLE = 4 << 20  # bytes; those of OpenAI have under 1 MiB
MAX_CODE = 64 << 20
MAX_ATTRIBUTES = 200_000
_TORCH = (".bin", ".pt", ".pth")
_REMAP = 128 << 20  # bytes read
_ZIP = b"PK\3\4"
_BROKEN_ZIP = (  # RuntimeError: encrypted, or of a method that Python lacks
    *(zipfile.BadZipFile, zlib.error, struct.error),
    *(ValueError, RuntimeError, EOFError, OverflowError),
)
_CHUNK = 1 << 28  # macOS reads at most 2 GiB at once
_MODULE = re.compile(
    r"^class (\w+)\(Module\):\n((?:  __(?:parameters|buffers)__ = \[.*\]\n)*)", re.MULTILINE
)
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
_STORAGES = {
    "torch BoolStorage": _DTYPES["BOOL"],
    "torch ByteStorage": _DTYPES["U8"],
    "torch CharStorage": _DTYPES["I8"],
    "torch ShortStorage": _DTYPES["I16"],
    "torch IntStorage": _DTYPES["I32"],
    "torch LongStorage": _DTYPES["I64"],
    "torch HalfStorage": _DTYPES["F16"],
    "torch BFloat16Storage": _DTYPES["BF16"],
    "torch FloatStorage": _DTYPES["F32"],
    "torch DoubleStorage": _DTYPES["F64"],
}
_TORCH_DTYPES = {f"torch.{dtype.name}": dtype for dtype in _STORAGES.values()}


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

    A state dict under "state_dict", and names that all begin with "module.", are unwrapped.

    Args:
      path: .safetensors; .bin, .pt or .pth of torch, a TorchScript archive among them; the
        .index.json of shards; a folder with one of these.

    Raises:
      UserError: it is missing, of another kind, cut short or otherwise wrong.
    """
    path = Path(path).expanduser()
    try:
        if path.is_dir():
            path = _in_folder(path)
        if path.name.endswith(".index.json"):
            return _open_shards(path)
        if path.suffix == ".safetensors":
            return _open_safetensors(path)
        if path.suffix in _TORCH:
            return _open_torch(path)
        raise UserError(f"{path} is no file of weights: expected .safetensors, {', '.join(_TORCH)}")
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


def _check_shape(name: str, shape: Any) -> tuple[int, ...]:
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
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _BadFileError("its metadata is no text by name")
    entries, spans = {}, []
    for name, about in header.items():
        _check_name(name)
        if not isinstance(about, dict):
            raise _BadFileError(f"{name} is not described")
        code, offsets = about.get("dtype"), about.get("data_offsets")
        dtype = _DTYPES.get(code) if isinstance(code, str) else None
        if dtype is None:
            raise _BadFileError(f"{name} is of dtype {str(code)[:20]!a}, which is not known")
        shape = _check_shape(name, about.get("shape"))
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
                raise _BadFileError(f"{name[:80]!a} has no shard")
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
    if not shard.is_file():
        raise UserError(f"{shard} is missing, which {index.name} names: fetch it, too")
    if shard.resolve().parent not in (folder, folder.parent.parent / "blobs"):
        raise UserError(f"{shard} leads out of its folder: put the file itself there")
    return shard


def _check_total(entries: dict[str, _Entry], size: int) -> None:
    """Tensors may share what a file holds, within reason."""
    if not entries:
        raise _BadFileError("it holds no tensors")
    if sum(entry.nbytes for entry in entries.values()) > 4 * size:
        raise _BadFileError("its tensors are many times as big as the file")


def _open_torch(path: Path) -> Tensors:
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_open(path))
        size = _size(file)
        # torch's files of before 2020 are no archives
        zipped = os.pread(file.fileno(), 4, 0) == _ZIP
        members = _Members(file) if zipped else None
        if members and "constants.pkl" in members:
            entries = _torchscript(members)
            _check_total(entries, size)
            return Tensors(path, entries, stack.pop_all().close)
        state = _StateDict(path, mapped=zipped)
        entries = state.entries()
        _check_total(entries, size)
        return Tensors(path, entries, state.close)


def _import_torch(why: str) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(why) from None
    return torch


class _StateDict:
    """A state dict as torch's weights-only reader gives it.

    Pages of a mapped file count as memory once they are read: it is mapped anew now and then.
    """

    def __init__(self, path: Path, mapped: bool) -> None:
        self._torch = _import_torch(
            f"{path} needs torch to be read: pip install torch, "
            "or give the .safetensors file of the same model"
        )
        self._path, self._mapped, self._touched = path, mapped, 0
        self._tensors = self._load()

    def _load(self) -> dict[str, Any]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = self._torch.load(
                    self._path, weights_only=True, map_location="cpu", mmap=self._mapped
                )
        except Exception as error:  # of any kind, from broken and from hostile files
            asked = re.search(r"GLOBAL ([\w.]{1,80})", str(error))
            why = f"it asks for {asked[1]}" if asked else type(error).__name__
            raise UserError(
                f"{self._path} cannot be read by torch's weights-only reader ({why}): fetch it "
                "again, or save its model.state_dict() alone where you trust it"
            ) from None
        if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
            found = found["state_dict"]
        pairs = found.items() if isinstance(found, dict) else ()
        tensors = {name: t for name, t in pairs if isinstance(t, self._torch.Tensor)}
        if not tensors or not all(isinstance(name, str) for name in tensors):
            raise UserError(
                f"{self._path} holds no tensors by name, nor under 'state_dict': "
                "save model.state_dict() instead"
            )
        if all(name.startswith("module.") for name in tensors):
            tensors = {name.removeprefix("module."): t for name, t in tensors.items()}
        return tensors

    def entries(self) -> dict[str, _Entry]:
        """Where each tensor is."""
        entries = {}
        for name, tensor in self._tensors.items():
            _check_name(name)
            dtype = _TORCH_DTYPES.get(str(tensor.dtype))
            if dtype is None or tensor.layout != self._torch.strided or tensor.is_meta:
                kind = f"{tensor.layout} {tensor.dtype}".replace("torch.", "")
                raise _BadFileError(f"{name} is {kind}, which is not known")
            entries[name] = _Entry(tuple(tensor.shape), dtype, functools.partial(self._fill, name))
        return entries

    def _fill(self, name: str, out: np.ndarray) -> None:
        if self._mapped and self._touched > _REMAP:
            self._tensors = {}
            self._tensors, self._touched = self._load(), 0
        tensor = self._tensors[name].detach()
        if tuple(tensor.shape) != out.shape:
            raise UserError(f"{self._path} changed since it was opened")
        if out.dtype == _DTYPES["BF16"]:
            np.copyto(out.view(np.int16), tensor.view(self._torch.int16).numpy())
        else:
            np.copyto(out, tensor.numpy())
        self._touched += out.nbytes

    def close(self) -> None:
        """Lets go of the file."""
        self._tensors = {}


class _Members:
    """The members of an archive that torch wrote, by their names below its one folder."""

    def __init__(self, file: BinaryIO) -> None:
        try:
            self._archive = zipfile.ZipFile(file)
        except _BROKEN_ZIP as error:
            raise _BadFileError(f"it is a broken archive: {type(error).__name__}") from None
        self.file = file
        infos = self._archive.infolist()
        self._infos = {info.filename.partition("/")[2]: info for info in infos}
        folders = {info.filename.partition("/")[0] for info in infos}
        if len(folders) != 1 or len(self._infos) < len(infos):
            raise _BadFileError("it is an archive, and none of torch")

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def read(self, name: str, limit: int) -> bytes:
        """A small member."""
        info = self._infos.get(name)
        if info is None or info.file_size > limit:
            raise _BadFileError(f"it has no {name}, or one of impossible size")
        try:
            return self._archive.read(info)
        except _BROKEN_ZIP:
            raise _BadFileError(f"its {name} is broken") from None

    def span(self, name: str) -> tuple[int, int]:
        """Where a member that is not compressed begins in the file, and its size."""
        info = self._infos.get(name)
        if info is None:
            raise _BadFileError(f"it has no {name}")
        head = os.pread(self.file.fileno(), 30, info.header_offset)
        if len(head) < 30 or head[:4] != _ZIP:
            raise _BadFileError(f"its {name} is not where it should be")
        start = info.header_offset + 30 + sum(struct.unpack("<HH", head[26:]))
        stored = info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1
        if not stored or start + info.file_size > _size(self.file):
            raise _BadFileError(f"its {name} is compressed or cut short")
        return start, info.file_size


class _Global(str):
    """The name of a class or function; nothing is imported for it."""


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str
    numel: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Object:
    def __init__(self, kind: Any) -> None:
        if not isinstance(kind, _Global):
            raise TypeError
        self.kind = kind
        self.state: dict[Any, Any] = {}


def _named(name: str) -> _Global:
    plain = name in ("collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch device")
    if plain or name in _STORAGES or name.startswith(("__torch__", "torch.jit._pickle ")):
        return _Global(name)
    raise _BadFileError(f"it asks for {name[:80]!a}, which no model needs")


def _called(function: Any, args: Any) -> Any:
    """What a call would give: a tensor, or a thing whose content is of no matter."""
    if not isinstance(function, _Global) or not isinstance(args, tuple):
        raise TypeError
    if function != "torch._utils _rebuild_tensor_v2":
        return None
    storage, offset, shape, strides = args[:4]
    if not isinstance(storage, _Storage) or not _is_count(offset):
        raise TypeError
    if not isinstance(strides, tuple) or not all(map(_is_count, strides)):
        raise TypeError
    if len(_check_shape("a tensor", shape)) != len(strides):
        raise ValueError
    return _Tensor(storage, offset, shape, strides)


def _stored(about: Any) -> _Storage:
    kind, storage, key, _, numel = about
    if kind != "storage" or not isinstance(storage, _Global) or not isinstance(key, str):
        raise TypeError
    if not _is_count(numel):
        raise ValueError
    return _Storage(_STORAGES[storage], key, numel)


def _put(target: Any, keys: list[Any], values: list[Any]) -> None:
    if type(target) is not dict:
        raise TypeError
    # attributes have names; and the hash of a deep tuple has no end
    target.update((k, v) for k, v in zip(keys, values, strict=True) if type(k) is str)


def _parse(raw: bytes) -> Any:
    """What TorchScript pickled, in plain containers, `_Object` and `_Tensor`.

    An interpreter of the opcodes that TorchScript writes; it imports nothing and calls nothing.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        at = marks.pop()
        if at > len(stack):
            raise IndexError
        found = stack[at:]
        del stack[at:]
        return found

    opcodes: Iterator[tuple[Any, Any, Any]] = pickletools.genops(raw)
    for opcode, argument, _ in opcodes:
        match opcode.name:
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append(None)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                first = len(stack) - int(name[-1])
                stack[first:] = [tuple(stack[first:])]
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "APPEND":
                stack.pop()  # of lists nothing is needed
            case "APPENDS":
                since_mark()
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _put(stack[-1], [key], [value])
            case "SETITEMS":
                items = since_mark()
                _put(stack[-1], items[::2], items[1::2])
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_named(argument))
            case "BINPERSID":
                stack.append(_stored(stack.pop()))
            case "REDUCE":
                args, function = stack.pop(), stack.pop()
                stack.append(_called(function, args))
            case "NEWOBJ":
                stack.pop()
                stack.append(_Object(stack.pop()))
            case "BUILD":
                state = stack.pop()
                if not isinstance(stack[-1], _Object) or type(state) is not dict:
                    raise TypeError
                stack[-1].state = state
            case "STOP":
                return stack.pop()
            case "PROTO":
                pass
            case unknown:
                raise _BadFileError(f"its data.pkl has the opcode {unknown}")
    raise ValueError


def _torchscript(members: _Members) -> dict[str, _Entry]:
    """The parameters and buffers of a TorchScript archive, as its state dict names them."""
    if "byteorder" in members and members.read("byteorder", 16) != b"little":
        raise _BadFileError("it was written on a big-endian machine")
    raw = members.read("data.pkl", MAX_PICKLE)
    try:
        root = _parse(raw)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
        raise _BadFileError("its data.pkl is broken") from None
    declared = _declared(members)
    entries = {}
    waiting, seen = [("", root)], 0
    while waiting:
        prefix, module = waiting.pop()
        # modules may be shared, and a hostile file have them share each other
        seen += 1 + len(module.state) if isinstance(module, _Object) else 1
        if seen > MAX_ATTRIBUTES:
            raise _BadFileError("it has more attributes than any model")
        if not isinstance(module, _Object) or module.kind not in declared:
            continue
        for name, value in module.state.items():
            _check_name(prefix + name)
            if isinstance(value, _Object):
                waiting.append((f"{prefix}{name}.", value))
            elif isinstance(value, _Tensor) and name in declared[module.kind]:
                entries[prefix + name] = _stored_entry(members, prefix + name, value)
    return entries


def _declared(members: _Members) -> dict[str, set[str]]:
    """Which attributes of each class of modules are its parameters and buffers.

    Other tensors, which the code uses as constants, are no part of a state dict.
    """
    found, left = {}, MAX_CODE
    for member in members:
        if not member.startswith("code/") or not member.endswith(".py"):
            continue
        code = members.read(member, left)
        left -= len(code)
        package = member.removeprefix("code/").removesuffix(".py").replace("/", ".")
        for name, lists in _MODULE.findall(code.decode(errors="replace")):
            found[f"{package} {name}"] = set(re.findall(r'"([^"\\]*)"', lists))
    return found


def _stored_entry(members: _Members, name: str, tensor: _Tensor) -> _Entry:
    storage, offset, shape, strides = tensor
    start, size = members.span(f"data/{storage.key}")
    dtype = storage.dtype
    reach = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if all(shape) else 0
    if size != storage.numel * dtype.itemsize or offset + reach > storage.numel:
        raise _BadFileError(f"{name} has not the size of its shape")
    start += offset * dtype.itemsize
    steps = [
        s * dtype.itemsize if n > 1 and reach else 0 for n, s in zip(shape, strides, strict=True)
    ]

    def fill(out: np.ndarray) -> None:
        held = np.empty(reach, dtype)
        view = np.lib.stride_tricks.as_strided(held, shape, steps)
        if view.flags.c_contiguous:
            _read_into(members.file, start, out)
        else:
            _read_into(members.file, start, held)
            np.copyto(out, view)

    return _Entry(shape, dtype, fill)


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


def write_torch(path: str | Path, tensors: Mapping[str, np.ndarray | Lazy]) -> None:
    """Writes a state dict that `torch.load` reads, whole or not at all.

    All tensors are in memory together.

    Raises:
      UserError: torch is not installed.
      ValueError: a dtype that torch does not have, or a `Lazy` that makes another array.
    """
    torch = _import_torch(
        f"{path} needs torch to be written: pip install torch, or name it .safetensors"
    )
    state = {}
    for name, tensor in tensors.items():
        array = _made(name, tensor)
        if array.dtype not in _TORCH_DTYPES.values():
            raise ValueError(f"no {name!r} of {array.dtype} can be written for torch")
        is_bfloat16 = array.dtype == _DTYPES["BF16"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it shares what may not be written to
            held = torch.from_numpy(array.view(np.int16) if is_bfloat16 else array)
        state[name] = held.view(torch.bfloat16) if is_bfloat16 else held
    with files.whole(Path(path)) as file:
        torch.save(state, file)
