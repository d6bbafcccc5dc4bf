"""Torch's archives: the tensors that their pickles describe, read as data.

A small interpreter knows the opcodes of pickles. It imports nothing and calls nothing, and needs no
torch: what is made by a class or function that tensors do not need is only the name of that.
"""

from __future__ import annotations

import os
import pickletools
import struct
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from clip_jax.weights import prefixes
from clip_jax.weights.raw import (
    MAX_NAME,
    BadFileError,
    Entry,
    UnreadableError,
    check_name,
    check_shape,
    is_count,
    read_into,
    size_of,
)

MAX_PICKLE = 4 << 20  # bytes; those of OpenAI have under 1 MiB
MAX_OPCODES = 500_000
_MAX_DEPTH = 3  # of wrappers in wrappers
_MAX_MODULES = 16  # of torch, side by side
_ZIP = b"PK\3\4"
_BROKEN_ZIP = (  # RuntimeError: encrypted, or of a method that Python lacks
    *(zipfile.BadZipFile, zlib.error, struct.error),
    *(ValueError, RuntimeError, EOFError, OverflowError),
)
DTYPES = {
    "torch BoolStorage": np.dtype(np.bool_),
    "torch ByteStorage": np.dtype(np.uint8),
    "torch CharStorage": np.dtype(np.int8),
    "torch ShortStorage": np.dtype(np.int16),
    "torch IntStorage": np.dtype(np.int32),
    "torch LongStorage": np.dtype(np.int64),
    "torch HalfStorage": np.dtype(np.float16),
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch FloatStorage": np.dtype(np.float32),
    "torch DoubleStorage": np.dtype(np.float64),
}
_DICTS = ("collections OrderedDict", "collections defaultdict", "builtins dict")
_TENSOR = "torch._utils _rebuild_tensor_v2"
_PARAMETERS = ("torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state")
# Which of several state dicts is meant by what it is called, the likeliest first.
WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "module", "network", "net", "weights", "params"),
    *("ema_state_dict", "state_dict_ema", "model_ema", "ema"),
)
_OLD = (
    "it is in the format of torch before 1.6: open it with torch and save it again, "
    "torch.save(torch.load(FILE), NEW)"
)
_LEGACY = (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19",)  # torch's magic number


class Archive:
    """The members of an archive that torch wrote, by their names below its one folder.

    Raises:
      BadFileError: `file` is none.
    """

    def __init__(self, file: BinaryIO) -> None:
        head = os.pread(file.fileno(), 16, 0)
        if head.startswith(_LEGACY):
            raise UnreadableError(_OLD)
        if not head.startswith(_ZIP):
            raise BadFileError("it is no archive as torch writes them since 1.6")
        try:
            self._archive = zipfile.ZipFile(file)
        except _BROKEN_ZIP as error:
            raise BadFileError(f"it is a broken archive: {type(error).__name__}") from None
        self.file = file
        infos = self._archive.infolist()
        self._infos = {info.filename.partition("/")[2]: info for info in infos}
        folders = {info.filename.partition("/")[0] for info in infos}
        if len(folders) != 1 or len(self._infos) < len(infos):
            raise BadFileError("it is an archive, and none of torch")
        for name in self:
            check_name(name)
        if "byteorder" in self and self.read("byteorder", 16) != b"little":
            raise UnreadableError("it was written on a big-endian machine")

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def read(self, name: str, limit: int) -> bytes:
        """A small member."""
        info = self._infos.get(name)
        if info is None or info.file_size > limit:
            raise BadFileError(f"it has no {name}, or one of impossible size")
        try:
            return self._archive.read(info)
        except _BROKEN_ZIP:
            raise BadFileError(f"its {name} is broken") from None

    def span(self, name: str) -> tuple[int, int]:
        """Where a member that is not compressed begins in the file, and its size."""
        info = self._infos.get(name)
        if info is None:
            raise BadFileError(f"it has no {name[:80]!a}")
        head = os.pread(self.file.fileno(), 30, info.header_offset)
        if len(head) < 30 or head[:4] != _ZIP:
            raise BadFileError(f"its {name} is not where it should be")
        start = info.header_offset + 30 + sum(struct.unpack("<HH", head[26:]))
        stored = info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1
        if not stored or start + info.file_size > size_of(self.file):
            raise BadFileError(f"its {name} is compressed or cut short")
        return start, info.file_size

    def unpickled(self) -> Any:
        """What was saved: plain containers, `Tensor`s, `Object`s and `Opaque`s."""
        info = self._infos.get("data.pkl")
        if info is not None and info.file_size > MAX_PICKLE:
            raise UnreadableError(
                f"its data.pkl has {info.file_size >> 20} MiB, as where arrays of NumPy are saved: "
                "save tensors of torch, or safetensors"
            )
        raw = self.read("data.pkl", MAX_PICKLE)
        try:
            return _parse(raw)
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
            raise BadFileError("its data.pkl is broken") from None


class _Storage(NamedTuple):
    kind: str
    key: str
    numel: int


class Tensor(NamedTuple):
    """A view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def entry(self, archive: Archive, name: str) -> Entry:
        """Where it is in its archive.

        Raises:
          BadFileError: the storage is not there, or too small.
        """
        check_name(name)
        (kind, key, numel), offset, shape, strides = self
        if kind not in DTYPES:
            raise UnreadableError(f"{name} is of {kind[:80]!a}, which is not read here")
        dtype = DTYPES[kind]
        start, size = archive.span(f"data/{key}")
        last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        reach = 1 + last if all(shape) else 0
        if size != numel * dtype.itemsize or offset + reach > numel:
            raise BadFileError(f"{name} has not the size of its shape")
        start += offset * dtype.itemsize
        steps = [
            s * dtype.itemsize if n > 1 and reach else 0
            for n, s in zip(shape, strides, strict=True)
        ]

        def fill(out: np.ndarray) -> None:
            held = np.empty(reach, dtype)
            view = np.lib.stride_tricks.as_strided(held, shape, steps)
            if view.flags.c_contiguous:
                read_into(archive.file, start, out)
            else:
                read_into(archive.file, start, held)
                np.copyto(out, view)

        return Entry(shape, dtype, fill)


class _Global(str):
    """The name of a class or function; nothing is imported for it."""


class Object:
    """An instance of a class that is only a name."""

    def __init__(self, kind: Any) -> None:
        if not isinstance(kind, _Global | Object):
            raise TypeError
        self.kind: str = kind.kind if isinstance(kind, Object) else kind
        self.state: dict[str, Any] = {}


class Opaque(Object):
    """What a call would give of which only the function's name is known."""


def _called(function: Any, args: Any) -> Any:
    """What a call would give: a tensor, a dictionary, or a thing that is of no matter."""
    if isinstance(function, Object):  # a method or an instance: what it gives is not known
        return Opaque(function.kind)
    if not isinstance(function, _Global) or not isinstance(args, tuple):
        raise TypeError
    if function in _DICTS:
        return {}
    if function in _PARAMETERS:
        return args[0]
    if function != _TENSOR:
        return Opaque(function)
    storage, offset, shape, strides = args[:4]
    if not isinstance(storage, _Storage) or not is_count(offset):
        raise TypeError
    if not isinstance(strides, tuple) or not all(map(is_count, strides)):
        raise TypeError
    if len(check_shape("a tensor", shape)) != len(strides):
        raise ValueError
    return Tensor(storage, offset, shape, strides)


def _stored(about: Any) -> _Storage:
    kind, storage, key, _, numel = about
    if kind != "storage" or not isinstance(storage, _Global) or not isinstance(key, str):
        raise TypeError
    if not is_count(numel):
        raise ValueError
    return _Storage(str(storage), key, numel)


def _put(target: Any, keys: list[Any], values: list[Any]) -> None:
    if isinstance(target, Object):
        return  # of what is not known nothing is needed
    if type(target) is not dict:
        raise TypeError
    # tensors have names; and the hash of a deep tuple has no end
    target.update((k, v) for k, v in zip(keys, values, strict=True) if type(k) is str)


def _parse(raw: bytes) -> Any:
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
    for count, (opcode, argument, _) in enumerate(opcodes):
        if count == MAX_OPCODES:
            raise BadFileError("its data.pkl is longer than any model's")
        match opcode.name:
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(memo[argument])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8":
                stack.append(argument)
            case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                stack.append(None)
            case "BINSTRING" | "SHORT_BINSTRING":
                stack.append(None)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append(None)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST" | "EMPTY_SET":
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
            case "FROZENSET":
                since_mark()
                stack.append([])
            case "APPEND":
                stack.pop()  # of lists nothing is needed
            case "APPENDS" | "ADDITEMS":
                since_mark()
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _put(stack[-1], [key], [value])
            case "SETITEMS":
                items = since_mark()
                _put(stack[-1], items[::2], items[1::2])
            case "GLOBAL":
                stack.append(_Global(argument))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                if type(name) is not str or type(module) is not str:
                    raise TypeError
                stack.append(_Global(f"{module} {name}"))
            case "BINPERSID":
                stack.append(_stored(stack.pop()))
            case "REDUCE":
                args, function = stack.pop(), stack.pop()
                stack.append(_called(function, args))
            case "NEWOBJ":
                stack.pop()
                stack.append(Object(stack.pop()))
            case "NEWOBJ_EX":
                del stack[-2:]
                stack.append(Object(stack.pop()))
            case "BUILD":
                state = stack.pop()
                one = stack[-1]
                # a dictionary's own state is its _metadata
                if isinstance(one, Object) and type(state) is dict:
                    one.state = state
                elif isinstance(one, Object) and one.kind.startswith("__torch__"):
                    raise TypeError  # a module of TorchScript has its attributes in one
            case "STOP":
                return stack.pop()
            case "PROTO" | "FRAME":
                pass
            case unknown:
                raise UnreadableError(
                    f"its data.pkl has the opcode {unknown}: open it with torch and save it again, "
                    "torch.save(torch.load(FILE), NEW)"
                )
    raise ValueError


def state_dict(archive: Archive) -> tuple[dict[str, Entry], list[str]]:
    """The tensors of a model's state dict, wherever it stands in what a program saved.

    Of a pickled module these are its parameters and buffers.

    Returns:
      the tensors by name; the keys under which models stand, that of the tensors first.

    Raises:
      UnreadableError: there is no state dict, or there are several and none is the usual one.
    """
    dicts = _dicts_of_tensors(archive.unpickled())
    if not dicts:
        raise UnreadableError("it is no state_dict and holds none: no tensors by name")
    # what is beside a model, such as a loss or the state of a generator, are tensors too
    models = [key for key, found in dicts.items() if any(map(prefixes.is_tower, found))]
    ranked = sorted(models or dicts, key=_rank)
    if len(models) > 1 and _rank(ranked[0]) == len(WRAPPERS):
        several = ", ".join(ascii(key[:80]) for key in ranked[:5])
        raise UnreadableError(
            f"it holds {len(models)} models, under {several}: save one of them alone, "
            f"torch.save(torch.load(FILE)[{ranked[0][:80]!a}], NEW)"
        )
    entries = {}
    for name, value in dicts[ranked[0]].items():
        if isinstance(value, Tensor):
            entries[name] = value.entry(archive, name)
        elif _is_tensor(value):
            raise UnreadableError(f"its {name[:80]!a} is made by {value.kind[:80]!a}")
    return entries, ranked if models else []


def _rank(path: str) -> int:
    """How likely a state dict is meant by where it stands: the place in `WRAPPERS`, or the last."""
    keys = path.split("/")
    places = [WRAPPERS.index(key) if key in WRAPPERS else len(WRAPPERS) for key in keys]
    return max(places) if path else -1


def _dicts_of_tensors(saved: Any) -> dict[str, dict[str, Any]]:
    """Every dictionary that has tensors in it, by the keys that lead to it, such as `a/b`."""
    found: dict[str, dict[str, Any]] = {}
    waiting, seen, modules = deque([("", saved, 0)]), 0, 0
    while waiting:
        path, one, depth = waiting.popleft()
        if isinstance(one, Object):
            is_module = "_modules" in one.state
            modules += is_module
            one = _of_module(one) if is_module else one.state
        if not isinstance(one, dict):
            continue
        # things may be shared, and a hostile file have them share each other
        seen += len(one)
        if seen > MAX_OPCODES or modules > _MAX_MODULES:
            raise BadFileError("it has more dictionaries or modules than any checkpoint")
        if any(map(_is_tensor, one.values())):
            found[path] = one
        if depth < _MAX_DEPTH:
            for key, value in one.items():
                if isinstance(value, dict | Object) and len(key) < MAX_NAME:
                    waiting.append((f"{path}/{key}" if path else key, value, depth + 1))
    return found


def _is_tensor(value: Any) -> bool:
    """Whether it is a tensor, or one of a kind that is not read."""
    return isinstance(value, Tensor) or (isinstance(value, Opaque) and "_rebuild" in value.kind)


def _of_module(module: Object) -> dict[str, Any]:
    """The parameters and buffers of a pickled `torch.nn.Module`, as its state dict names them."""
    found: dict[str, Any] = {}
    waiting, seen = [("", module)], 0
    while waiting:
        prefix, one = waiting.pop()
        for part in ("_parameters", "_buffers", "_modules"):
            inner = one.state.get(part)
            for name, value in inner.items() if isinstance(inner, dict) else ():
                seen += 1  # modules may be shared, and a hostile file have them share each other
                if seen > MAX_OPCODES:
                    raise BadFileError("it has more modules than any model")
                if isinstance(value, Object) and part == "_modules":
                    waiting.append((f"{prefix}{name}.", value))
                elif value is not None and len(prefix) < MAX_NAME:
                    found[prefix + name] = value
    return found
