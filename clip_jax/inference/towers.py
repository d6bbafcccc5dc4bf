"""A model whose towers come from files of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from clip_jax.errors import UserError
from clip_jax.inference.model_source import ModelSource, is_run, open_model_source
from clip_jax.io.buckets import as_path, is_bucket
from clip_jax.models.clip import Variables, abstract_model, variables
from clip_jax.models.model_config import CLIPConfig
from clip_jax.training.train_step import init_variables
from clip_jax.weights import arrays, positions
from clip_jax.weights.library import preprocess_of, snapshot
from clip_jax.weights.tower_files import SavedTower, find_tower, read_tower


def open_towers(
    paths: Mapping[str, str],
    model: CLIPConfig,
    seed: int,
    *,
    resize: bool = False,
    keep_positions: int = 0,
) -> ModelSource:
    """Opens a model whose towers come from files; what no file gives starts at random.

    Args:
      paths: for `vision`, `text` or both: a file of that tower, or anything that
        `open_model_source` opens, whose tower is taken.
      model: the architecture.
      seed: of the random values, which are those of a run with this seed.
      resize: whether the positions of a whole model's tower may be resized.
      keep_positions: as in `positions.resize_model`.

    Raises:
      UserError: a file cannot be read, or holds another tower than that of `model`.
    """
    towers = {side: _open(path, side, model, resize) for side, path in paths.items()}

    def read(dtype: str) -> Variables:
        given: dict[str, Any] = {}
        for side, tower in towers.items():
            given |= _read(tower, side, model, keep_positions)

        def initial() -> dict[str, jax.Array]:  # only what no file gives is computed
            random = arrays.flat(*init_variables(model, seed))
            return {path: array for path, array in random if path not in given}

        values = given | jax.device_get(jax.jit(initial)())
        trees = variables(abstract_model(model))
        params, stats = ({path: values[path] for path, _ in arrays.flat(tree)} for tree in trees)
        return arrays.cast((arrays.nested(params), arrays.nested(stats)), dtype)

    def read_sharded(like: Any) -> Variables:
        shardings = jax.tree.map(lambda x: x.sharding, like)
        placed: Variables = jax.device_put(read("float32"), shardings)
        return placed

    return ModelSource(
        path=as_path(next(iter(paths.values()))),
        library="files of single towers",
        config=model,
        preprocess=preprocess_of(model),
        tokenizer=None,
        read=read,
        read_sharded=read_sharded,
        remarks=tuple(remark for tower in towers.values() for remark in tower.remarks),
        untrained=tuple(
            side
            for side, tower in towers.items()
            if isinstance(tower, ModelSource) and side in tower.untrained
        ),
    )


def _open(name: str, side: str, model: CLIPConfig, resize: bool) -> ModelSource | SavedTower:
    """Opens the file of one tower, or a whole model whose tower is taken."""
    path = as_path(name)
    if not path.exists():
        raise UserError(f"config.weights.{side}={name:.200} does not exist: give a file or folder")
    if not is_run(path) and not is_bucket(path):
        tower = find_tower(snapshot(path), side, model)
        if tower is not None:
            return tower
    source = open_model_source(path, None, positions.activation_of(model, side) or None)
    positions.check_tower_fits(
        source.config, model, side, path, resize, "--config.weights.resize=True"
    )
    return source


def _read(
    tower: ModelSource | SavedTower, side: str, model: CLIPConfig, keep_positions: int
) -> dict[str, Any]:
    """Reads the parameters and batch statistics of a tower, by their paths."""
    if isinstance(tower, SavedTower):
        return read_tower(tower)
    params, stats = jax.device_get(tower.read("float32"))
    length = model.text.context_length if side == "text" else None
    sizes = model.vision.sizes() if side == "vision" else {}
    params, _ = positions.resize_model(
        params, tower.config, context_length=length, keep_positions=keep_positions, **sizes
    )
    parts = ({side: tree[side]} for tree in (params, stats) if side in tree)
    return dict(arrays.flat(*parts))
