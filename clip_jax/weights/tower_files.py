"""Recognizes and reads files that hold one tower: an image model, or a text model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.errors import UserError
from clip_jax.models import second_projection
from clip_jax.models.clip import abstract_model, variables
from clip_jax.models.model_config import CLIPConfig
from clip_jax.weights import arrays
from clip_jax.weights.mappings.leaf import Leaf
from clip_jax.weights.mappings.timm.tower import TimmTower
from clip_jax.weights.mappings.tower import TowerMapping
from clip_jax.weights.param_mapping import MAPPINGS, TOWER_MAPPINGS, mapping_of
from clip_jax.weights.tensors import ModelTensors, open_model

# To the embedding space: the only parts that may start at random.
PROJECTIONS = ("projection", second_projection.NAME)


@dataclasses.dataclass(frozen=True)
class SavedTower:
    """A file of one tower, before its tensors are read.

    Attributes:
      path: the file or folder.
      mapping: the names of its tensors.
      model: the architecture whose tower it fills.
      remarks: what is left out, and what starts at random, in words.
    """

    path: Path
    mapping: TowerMapping
    model: CLIPConfig
    remarks: tuple[str, ...] = ()


def find_tower(path: Path, side: str, model: CLIPConfig) -> SavedTower | None:
    """Finds one tower in a file or folder, and checks that it fills that of a model.

    Args:
      path: the file or folder.
      side: the tower that is to be filled, `vision` or `text`.
      model: the architecture.

    Returns:
      The tower; None if the tensors are of a whole CLIP.

    Raises:
      UserError: the file cannot be read, or holds neither, or the other tower, or a tower of
        another architecture.
    """
    with open_model(path) as tensors:
        mapping = _recognize(tensors)
        if mapping is None:
            return None
        if mapping.side != side:
            raise UserError(
                f"config.weights.{side}: {path} holds {mapping.description}, which is a tower for "
                f"config.weights.{mapping.side}"
            )
        tower = getattr(model, side)
        try:
            table = list(mapping.leaves(tower))
        except UserError as error:
            raise UserError(f"config.weights.{side}: {path} is another tower: {error}") from None
        _check_facts(mapping, model, tensors.path)
        shapes = _shapes(model, side)
        arrays.check(tensors, table, shapes, mapping.unused(tower))
        remarks = _remarks(mapping, tensors, tower, shapes, table)
    return SavedTower(path, mapping, model, remarks)


def _recognize(tensors: ModelTensors) -> TowerMapping | None:
    """Returns the mapping of the tensors of one tower; None for those of a whole CLIP."""
    if any(mapping_of(name).recognizes(tensors) for name in MAPPINGS.names):
        return None
    mappings = [TOWER_MAPPINGS.get(name)() for name in TOWER_MAPPINGS.names]
    for mapping in mappings:
        if mapping.recognizes(tensors):
            return mapping
    kinds = ", ".join(mapping.kind for mapping in mappings if isinstance(mapping, TimmTower))
    others = (m.description for m in mappings if not isinstance(m, TimmTower))
    raise UserError(
        f"{tensors.path} holds no tower that is known here: it is no whole CLIP, "
        f"{', '.join(others)}, or image tower of timm ({kinds})"
    )


def _shapes(model: CLIPConfig, side: str) -> dict[str, Any]:
    """Returns the shapes of a tower's parameters and batch statistics by their paths."""
    both = arrays.flat(*variables(abstract_model(model)))
    return {path: shape for path, shape in both if path.startswith(f"{side}/")}


def _check_facts(mapping: TowerMapping, model: CLIPConfig, file: Path) -> None:
    """Raises UserError if a tower differs from its file in what no tensor's shape tells."""
    tower = getattr(model, mapping.side)
    for key, theirs in mapping.facts(tower, file).items():
        ours = getattr(tower, key)
        if key == "activation":
            ours = ours or model.activation
        if ours != theirs:
            raise UserError(
                f"{file} holds {mapping.description} with {key}={theirs!r:.80}: set "
                f"config.model.{mapping.side}.{key} to it, not to {ours!r:.80}"
            )


def _remarks(
    mapping: TowerMapping,
    tensors: ModelTensors,
    tower: Any,
    shapes: dict[str, Any],
    table: list[Leaf],
) -> tuple[str, ...]:
    """Returns what is left out of a file and what it lacks, in words.

    Raises:
      UserError: it lacks more than the layers of the projection.
    """
    remarks = []
    if unused := [name for name in mapping.unused(tower) if name in tensors]:
        remarks.append(f"{', '.join(unused)} of {tensors.path} are left out")
    if names := tensors.left_out:
        remarks.append(
            f"{len(names):,} tensors of {tensors.path} do not belong to the encoder and are left "
            f"out, such as {names[0]}"
        )
    missing = sorted(shapes.keys() - {leaf.path for leaf in table})
    side = mapping.side
    layers = {f"{side}/{name}/": name.replace("_", " ") for name in PROJECTIONS}
    for path in missing:
        if not path.startswith(tuple(layers)):
            raise UserError(f"{mapping.description} has no place for {path} of this model")
    for prefix, name in layers.items():
        if kernels := [p for p in missing if p.startswith(prefix) and p.endswith("/kernel")]:
            inputs, outputs = shapes[kernels[0]].shape[0], shapes[kernels[-1]].shape[1]
            remarks.append(f"its {name} from {inputs} to {outputs} features starts at random")
    return tuple(remarks)


def read_tower(saved: SavedTower) -> dict[str, np.ndarray]:
    """Reads the parameters and batch statistics of a tower in float32, by their paths.

    Raises:
      UserError: the file cannot be read, or changed since it was found.
    """
    side = saved.mapping.side
    with open_model(saved.path) as tensors:
        table = list(saved.mapping.leaves(getattr(saved.model, side)))
        return arrays.read(tensors, table, _shapes(saved.model, side), np.dtype(np.float32))
