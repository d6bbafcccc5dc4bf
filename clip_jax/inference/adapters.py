"""Adapters (LoRA) in a file of their own: written from a run, read onto base weights.

The file is safetensors. A tensor has the path of its parameter, such as
`vision/transformer/blocks/mlp/fc/lora_a`; the metadata say the format, rank and alpha.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.errors import UserError
from clip_jax.inference.model_source import ModelSource
from clip_jax.io.buckets import on_disk
from clip_jax.models import lora
from clip_jax.models.clip import Variables, abstract_model, variables
from clip_jax.models.model_config import CLIPConfig
from clip_jax.models.tower import Params
from clip_jax.weights import arrays
from clip_jax.weights.formats import safetensors
from clip_jax.weights.formats.raw import BadFileError, Entry, open_plain
from clip_jax.weights.tensor_writing import write_safetensors

FORMAT = "clip_jax.lora"
NAME = "adapters.safetensors"


@dataclasses.dataclass(frozen=True)
class Adapters:
    """Low-rank adapters of a model.

    Attributes:
      params: the factors A and B, at their paths in the tree of parameters.
      scale: the factor on A·B.
    """

    params: Params
    scale: float


def file_of(dest: str | Path) -> Path:
    """Returns the path of an adapter file: `dest` itself, or `NAME` in the folder `dest`."""
    path = on_disk(dest)
    return path if path.suffix == ".safetensors" else path / NAME


def save(
    source: ModelSource,
    dest: str | Path,
    *,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda line: None,
) -> dict[str, int]:
    """Writes the adapters of a run to a file.

    Args:
      source: the run.
      dest: the file, or the folder for a file `NAME`.
      overwrite: whether an existing file is replaced.
      note: called with each line that the user should know.

    Returns:
      The size of the file in bytes, by its path.

    Raises:
      UserError: the source has no adapters, or the file exists.
    """
    file = file_of(dest)
    if source.read_adapters is None or source.lora is None:
        raise UserError(
            f"{source.path} has no adapters: a run has them with config.lora.rank above 0"
        )
    if file.exists() and not overwrite:
        raise UserError(f"{file} exists: give --overwrite, or another DEST")
    if source.config.heads:
        names = ", ".join(name for name, _ in source.config.heads)
        note(f"the file holds the adapters alone, without the {names} that was trained with them")
    metadata = {
        "format": FORMAT,
        "rank": str(source.lora.rank),
        "alpha": repr(source.lora.alpha),
    }
    tensors = {path: np.asarray(leaf) for path, leaf in arrays.flat(source.read_adapters())}
    write_safetensors(file, tensors, metadata)
    return {str(file): file.stat().st_size}


def read_adapters(path: str | Path, config: CLIPConfig) -> Adapters:
    """Reads the adapters in a file for a model.

    Args:
      path: the file, or the folder with the file `NAME`.
      config: the architecture of the model.

    Raises:
      UserError: the file is broken, or its adapters do not fit the model.
    """
    path = file_of(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist: name the file that convert --to lora wrote")
    with open_plain(path) as file:
        try:
            entries = safetensors.read_entries(file)
            metadata = safetensors.read_metadata(file)
        except BadFileError as error:
            raise UserError(f"{path}: {error}") from None
        alpha = _alpha(path, metadata)
        rank = _check_shapes(path, entries, config)
        params: Params = {}
        for name, entry in entries.items():
            *folders, last = name.split("/")
            place = params
            for folder in folders:
                place = place.setdefault(folder, {})
            place[last] = np.empty(entry.shape, entry.dtype)
            entry.fill(place[last])
    return Adapters(params, alpha / rank)


def _alpha(path: Path, metadata: Mapping[str, str]) -> float:
    try:
        alpha = float(metadata.get("alpha", "")) if metadata.get("format") == FORMAT else math.nan
    except ValueError:
        alpha = math.nan
    if not math.isfinite(alpha):
        raise UserError(f"{path} holds no adapters that convert --to lora wrote")
    return alpha


def _check_shapes(path: Path, entries: Mapping[str, Entry], config: CLIPConfig) -> int:
    """Checks that all adapters fit the kernels of the model; returns their rank."""
    shapes = {name: leaf.shape for name, leaf in arrays.flat(variables(abstract_model(config))[0])}
    ranks = set()
    for name, entry in entries.items():
        folder, _, last = name.rpartition("/")
        other = entries.get(f"{folder}/{lora.NAMES[last == lora.NAMES[0]]}")
        kernel = shapes.get(f"{folder}/kernel")
        if last not in lora.NAMES or other is None or kernel is None:
            raise UserError(f"{path}: this model has no place for {name}")
        *layers, inputs, outputs = kernel
        rank = entry.shape[-1] if last == lora.NAMES[0] and entry.shape else other.shape[-1]
        needed = (*layers, inputs, rank) if last == lora.NAMES[0] else (*layers, rank, outputs)
        if entry.shape != needed:
            raise UserError(f"{path}: {name} has the shape {entry.shape}, the model {needed}")
        ranks.add(rank)
    if len(ranks) != 1:
        raise UserError(f"{path} holds adapters of {len(ranks)} ranks, not of one")
    return int(ranks.pop())


def adapted(source: ModelSource, path: str | Path) -> ModelSource:
    """Returns a model with adapters merged into its kernels, W + scale·A·B.

    Args:
      source: the model with the kernels W.
      path: the file of the adapters.

    Raises:
      UserError: the file is broken, or its adapters do not fit the model.
    """
    adapters = read_adapters(path, source.config)

    def merged(read_variables: Any, argument: Any) -> Variables:
        params, stats = read_variables(argument)
        return lora.merge(lora.with_adapters(params, adapters.params), adapters.scale), stats

    return dataclasses.replace(
        source,
        read=lambda dtype: merged(source.read, dtype),
        read_sharded=lambda like: merged(source.read_sharded, like),
    )
