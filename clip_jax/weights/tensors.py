"""Named tensors in files, read one at a time: safetensors, shards of them, torch's files.

No pickle is executed: see `torch_pickle`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import ml_dtypes
import numpy as np

from clip_jax.errors import UserError
from clip_jax.weights import prefixes, torch_pickle, torchscript
from clip_jax.weights.raw import (
    BadFileError,
    Entry,
    UnreadableError,
    check_name,
    check_shape,
    is_count,
    open_plain,
    read_into,
    size_of,
)
from clip_jax.weights.torch_pickle import Archive

MAX_HEADER = 4 << 20  # bytes of JSON; a thousand tensors take 0.1 MiB
_TORCH = (".bin", ".pt", ".pth", ".ckpt")
_FOLDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
DTYPES = {
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
CODES = {dtype: code for code, dtype in DTYPES.items()}


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of a file by name; each is read from the file when it is asked for.

    Attributes:
      path: what was opened, for messages.
      shapes, dtypes: of every tensor, by name.
      nbytes: of all tensors together.
      models: keys of a checkpoint under which models stand, such as `state_dict` and
        `state_dict_ema`; it is the first that is read.
    """

    def __init__(
        self,
        path: Path,
        entries: dict[str, Entry],
        close: Callable[[], None],
        models: Sequence[str] = (),
    ) -> None:
        self.path, self.models = path, models
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Tensors({str(self.path)!r}, {len(self):,} tensors, {self.nbytes:,} bytes)"


def open_tensors(path: str | Path) -> Tensors:
    """The tensors of a file, or of a folder of shards, without reading them yet.

    A state dict in a training program's dictionary is taken out of it: `torch_pickle.state_dict`.

    Args:
      path: .safetensors; .bin, .pt, .pth or .ckpt of torch, a TorchScript archive among them; the
        .index.json of shards; a folder with one of these. A file of another name is told by its
        first bytes.

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
        return _open_unnamed(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except UnreadableError as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    except BadFileError as error:
        raise UserError(f"{path} cannot be read ({error}); fetch the file again") from None


class ModelTensors(Tensors):
    """The tensors of a model by its own names, whatever a training program put before them.

    Attributes:
      prefix: what stands before the names in the file, such as `module.` or `clip_model.`.
      left_out: names in the file that do not begin with it, of something that is no CLIP.
    """

    def __init__(self, whole: Tensors) -> None:
        entries, self.prefix, self.left_out = prefixes.removed(whole._entries)
        super().__init__(whole.path, entries, whole.close, whole.models)


def open_model(path: str | Path) -> ModelTensors:
    """`open_tensors`, by the names of the model in it.

    Raises:
      UserError: as `open_tensors`, or there are several models.
    """
    tensors = open_tensors(path)
    try:
        return ModelTensors(tensors)
    except UnreadableError as error:
        tensors.close()
        raise UserError(f"{tensors.path} cannot be read: {error}") from None


def _open_unnamed(path: Path) -> Tensors:
    """A file whose name does not say what it is, such as a blob in Hugging Face's cache."""
    with open_plain(path) as file:
        head = os.pread(file.fileno(), 9, 0)
    if head.startswith(b"PK"):
        return _open_torch(path)
    if head[8:] == b"{":
        return _open_safetensors(path)
    raise UserError(f"{path} is no file of weights: expected .safetensors, {', '.join(_TORCH)}")


def _in_folder(folder: Path) -> Path:
    for name in _FOLDER:
        if (folder / name).exists():
            return folder / name
    # a name that a terminal would obey is in no message
    found = [p for p in folder.glob("*.safetensors") if p.name.isprintable()]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{folder} holds {len(found)} .safetensors files and no index: name one")
    raise UserError(f"{folder} holds no weights: expected {_FOLDER[0]} or {_FOLDER[1]} in it")


def _json(raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name stands in it twice")
        return found

    try:
        found = json.loads(raw.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise BadFileError(f"its json is wrong: {error}") from None
    if not isinstance(found, dict):
        raise BadFileError("its json is no object")
    return found


def _open_safetensors(path: Path) -> Tensors:
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_plain(path))
        number, size = file.fileno(), size_of(file)
        length = int.from_bytes(os.pread(number, 8, 0), "little")
        if length > min(MAX_HEADER, size - 8):
            raise BadFileError("it is cut short or no safetensors file")
        raw = os.pread(number, length, 8)
        if not raw.startswith(b"{"):
            raise BadFileError("it is no safetensors file")
        entries = _entries(file, _json(raw), 8 + length, size - 8 - length)
        return Tensors(path, entries, stack.pop_all().close)


def _entries(
    file: BinaryIO, header: dict[str, Any], start: int, available: int
) -> dict[str, Entry]:
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise BadFileError("its metadata is no text by name")
    entries, spans = {}, []
    for name, about in header.items():
        check_name(name)
        if not isinstance(about, dict):
            raise BadFileError(f"{name} is not described")
        code, offsets = about.get("dtype"), about.get("data_offsets")
        dtype = DTYPES.get(code) if isinstance(code, str) else None
        if dtype is None:
            raise BadFileError(f"{name} is of dtype {str(code)[:20]!a}, which is not known")
        shape = check_shape(name, about.get("shape"))
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_count, offsets)):
            raise BadFileError(f"{name} has no place in it")
        begin, end = offsets
        entries[name] = Entry(shape, dtype, functools.partial(read_into, file, start + begin))
        if end - begin != entries[name].nbytes:
            raise BadFileError(f"{name} has not the size of its shape")
        spans.append((begin, end, name))
    reached = 0
    for begin, end, name in sorted(spans):
        if begin != reached:
            raise BadFileError(f"{name} does not begin where the tensor before it ends")
        reached = end
    if reached != available:
        raise BadFileError(f"it holds {available:,} bytes of tensors and names {reached:,}")
    return entries


def _open_shards(path: Path) -> Tensors:
    with open_plain(path) as file:
        if size_of(file) > MAX_HEADER:
            raise BadFileError("it is no index of shards")
        found = _json(file.read()).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise BadFileError("it has no weight_map")
    with contextlib.ExitStack() as stack:
        shards: dict[str, Tensors] = {}
        entries = {}
        for name, shard in found.items():
            if not isinstance(shard, str):
                raise BadFileError(f"{name[:80]!a} has no shard")
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
        raise BadFileError(f"its shard {name[:80]!a} is no file beside it")
    shard = index.parent / name
    if not shard.is_file():
        raise UserError(f"{shard} is missing, which {index.name} names: fetch it, too")
    if shard.resolve().parent not in (folder, folder.parent.parent / "blobs"):
        raise UserError(f"{shard} leads out of its folder: put the file itself there")
    return shard


def _open_torch(path: Path) -> Tensors:
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_plain(path))
        members = Archive(file)
        models: Sequence[str] = ()
        if torchscript.is_torchscript(members):
            entries = torchscript.state_dict(members)
        else:
            entries, models = torch_pickle.state_dict(members)
        # tensors may share what a file holds, within reason
        if sum(entry.nbytes for entry in entries.values()) > 4 * size_of(file):
            raise BadFileError("its tensors are many times as big as the file")
        return Tensors(path, entries, stack.pop_all().close, models)
