"""Reads named tensors from files, one at a time: safetensors, shards, and files of torch.

No pickle is executed: see `formats.pickle_reader`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from clip_jax.errors import UserError
from clip_jax.weights import prefixes
from clip_jax.weights.formats import safetensors, torch_state, torchscript
from clip_jax.weights.formats.raw import BadFileError, Entry, UnreadableError, open_plain, size_of
from clip_jax.weights.formats.torch_archive import Archive
from clip_jax.weights.formats.torch_legacy import MAGIC, LegacyFile

_TORCH = (".bin", ".pt", ".pth", ".ckpt")
_FOLDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of a file by name; each is read from the file on access.

    Attributes:
      path: the file or folder, for messages.
      shapes, dtypes: the shape and dtype of every tensor, by name.
      nbytes: the size of all tensors together in bytes.
      models: keys of a checkpoint that lead to models, such as `state_dict` and `state_dict_ema`.
        The first is read.
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
        """Reads one tensor into new memory, or into `out`.

        Args:
          name: one of `shapes`.
          out: the destination; contiguous, with the tensor's shape and dtype.

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
    """Opens the tensors of a file, or of a folder of shards, without reading them yet.

    A state dict inside a training program's checkpoint is found, see `torch_state.state_dict`.

    Args:
      path: .safetensors; .bin, .pt, .pth or .ckpt of torch, including TorchScript archives; the
        .index.json of shards; or a folder with one of these. Files of other names are recognised
        by their first bytes.

    Raises:
      UserError: it is missing, of another kind, truncated or otherwise broken.
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
    """The tensors of a model, without the prefix that a training program put before their names.

    Args:
      file: the tensors of a file.
      exact: whether names are taken as they are in the file.

    Attributes:
      prefix: the prefix of the names in the file, such as `module.` or `clip_model.`.
      left_out: names in the file without the prefix, which do not belong to the model.
    """

    def __init__(self, file: Tensors, exact: bool = False) -> None:
        entries = file._entries
        self.prefix, self.left_out = "", list[str]()
        if not exact:
            entries, self.prefix, self.left_out = prefixes.remove_prefix(entries)
        super().__init__(file.path, entries, file.close, file.models)


def open_model(path: str | Path, *, exact: bool = False) -> ModelTensors:
    """Opens the tensors of a model, by their names in the model.

    Args:
      path: as for `open_tensors`.
      exact: whether names are taken as they are in the file.

    Raises:
      UserError: as `open_tensors`, or there are several models.
    """
    tensors = open_tensors(path)
    try:
        return ModelTensors(tensors, exact)
    except UnreadableError as error:
        tensors.close()
        raise UserError(f"{tensors.path} cannot be read: {error}") from None


def _open_unnamed(path: Path) -> Tensors:
    """Opens a file by its content, such as a blob in Hugging Face's cache."""
    with open_plain(path) as file:
        head = os.pread(file.fileno(), 9, 0)
    if head.startswith((b"PK", MAGIC[:9])):
        return _open_torch(path)
    if head[8:] == b"{":
        return _open_safetensors(path)
    raise UserError(f"{path} is no file of weights: expected .safetensors, {', '.join(_TORCH)}")


def _in_folder(folder: Path) -> Path:
    for name in _FOLDER:
        if (folder / name).exists():
            return folder / name
    # names with terminal escapes must not get into messages
    candidates = [p for p in folder.glob("*.safetensors") if p.name.isprintable()]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        count = len(candidates)
        raise UserError(f"{folder} holds {count} .safetensors files and no index: name one")
    raise UserError(f"{folder} holds no weights: expected {_FOLDER[0]} or {_FOLDER[1]} in it")


def _open_safetensors(path: Path) -> Tensors:
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_plain(path))
        return Tensors(path, safetensors.read_entries(file), stack.pop_all().close)


def _open_shards(path: Path) -> Tensors:
    with open_plain(path) as file:
        if size_of(file) > safetensors.MAX_HEADER:
            raise BadFileError("it is no index of shards")
        weight_map = safetensors.parse_json(file.read()).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadFileError("it has no weight_map")
    with contextlib.ExitStack() as stack:
        shards: dict[str, Tensors] = {}
        entries = {}
        for name, shard in weight_map.items():
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
    """Returns a shard in the folder of its index.

    A link may lead out of the folder only in a Hugging Face cache, where snapshots link to blobs.
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
        models: Sequence[str] = ()
        if os.pread(file.fileno(), len(MAGIC), 0) == MAGIC:
            entries, models = torch_state.state_dict(LegacyFile(file))
        elif torchscript.is_torchscript(members := Archive(file)):
            entries = torchscript.state_dict(members)
        else:
            entries, models = torch_state.state_dict(members)
        # tensors may share storages, but only a few times
        if sum(entry.nbytes for entry in entries.values()) > 4 * size_of(file):
            raise BadFileError("its tensors are many times as big as the file")
        return Tensors(path, entries, stack.pop_all().close, models)
