"""Writes named arrays into files of tensors, whole or not at all."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clip_jax.errors import UserError
from clip_jax.io import files
from clip_jax.weights.formats import torch_archive
from clip_jax.weights.formats.safetensors import CODES, DTYPES


class Lazy(NamedTuple):
    """An array that is made only when it is written.

    Attributes:
      shape: the shape of the array.
      dtype: the dtype of the array.
      make: makes the array.
    """

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
      path: the file, which may exist.
      tensors: arrays by name; only one `Lazy` array is in memory at a time.
      metadata: the file's metadata; None: {"format": "pt"}, which transformers requires.

    Raises:
      ValueError: a dtype that the format does not have, or a `Lazy` that makes another array.
    """
    # the widest first, so that each is aligned to its width
    order = sorted(tensors, key=lambda name: (-np.dtype(tensors[name].dtype).itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    reached = 0
    for name in order:
        shape, dtype = tuple(tensors[name].shape), np.dtype(tensors[name].dtype)
        if name in header or dtype not in CODES:
            raise ValueError(f"no {name!r} of {dtype} can be written as safetensors")
        begin, reached = reached, reached + math.prod(shape) * dtype.itemsize
        header[name] = dict(dtype=CODES[dtype], shape=shape, data_offsets=(begin, reached))
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    with files.atomic_write(Path(path)) as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name in order:
            file.write(_materialize(name, tensors[name]).reshape(-1).view(np.uint8).data)


def _materialize(name: str, tensor: np.ndarray | Lazy) -> np.ndarray:
    """Returns the array, contiguous in row-major order."""
    array = np.asarray(tensor.make() if isinstance(tensor, Lazy) else tensor, order="C")
    if array.shape != tuple(tensor.shape) or array.dtype != tensor.dtype:
        raise ValueError(f"{name} became {array.dtype} {array.shape}, not what it declares")
    return array


def write_torch(path: str | Path, tensors: Mapping[str, np.ndarray | Lazy]) -> None:
    """Writes a state dict that `torch.load` reads, whole or not at all.

    All tensors are in memory at once.

    Raises:
      UserError: torch is not installed.
      ValueError: a dtype that torch does not have, or a `Lazy` that makes another array.
    """
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path} needs torch to be written: pip install torch, or name it .safetensors"
        ) from None
    state = {}
    for name, tensor in tensors.items():
        array = _materialize(name, tensor)
        if array.dtype not in torch_archive.DTYPES.values():
            raise ValueError(f"no {name!r} of {array.dtype} can be written for torch")
        is_bfloat16 = array.dtype == DTYPES["BF16"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it shares read-only memory
            shared = torch.from_numpy(array.view(np.int16) if is_bfloat16 else array)
        state[name] = shared.view(torch.bfloat16) if is_bfloat16 else shared
    with files.atomic_write(Path(path)) as file:
        torch.save(state, file)
