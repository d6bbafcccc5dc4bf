"""The programs of `features.Encoder`: what it computes of a batch of rows on its mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from clip_jax.distributed import sharding
from clip_jax.losses.caption_losses import caption_losses
from clip_jax.models.clip import CLIP, assembled, normalize
from clip_jax.models.generation import generate
from clip_jax.models.head import DECODER
from clip_jax.models.scoring import label_scores
from clip_jax.models.second_projection import project


def _image(model: CLIP, rows: jax.Array) -> jax.Array:
    return model.encode_image(rows, normalized=True)


def _pooled(model: CLIP, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    tower = model.vision
    if not hasattr(tower, "pooled"):
        features = tower(rows)
        return normalize(project(tower, features)), features.astype(jnp.float32)
    pooled = tower.pooled(rows)
    features = project(tower, tower.project(pooled))
    return normalize(features), pooled.astype(jnp.float32)


def _places(model: CLIP, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    features, grid = model.encode_grid(rows)
    return normalize(features), jnp.mean(grid.astype(jnp.float32), axis=1)


def _text(model: CLIP, rows: jax.Array) -> jax.Array:
    return model.encode_text(rows, normalized=True)


def _classes(model: CLIP, rows: jax.Array) -> jax.Array:
    return model.class_logits(rows)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Static:
    """A value of which a tower's program is compiled anew for each other one."""

    value: Any


def _captions(model: CLIP, rows: jax.Array, options: Static) -> jax.Array:
    writer = model.heads[DECODER].writer(model.text)
    return generate(writer, model.encode_grid(rows)[1], options.value, jax.random.key(0))


PROGRAMS: dict[str, Callable[..., Any]] = {
    "image": _image,
    "pooled": _pooled,
    "places": _places,
    "text": _text,
    "classes": _classes,
    "label_scores": label_scores,
    "captions": _captions,
    "caption_losses": caption_losses,
}


@functools.lru_cache(maxsize=16)
def compiled(graph: nnx.GraphDef, name: str, mesh: Mesh) -> Callable[..., Any]:
    """Compiles a tower once for all encoders, so that new parameters need no compilation."""

    def encode(variables: Any, rows: jax.Array, *more: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return PROGRAMS[name](assembled(graph, variables), rows, *more)

    return jax.jit(encode, out_shardings=sharding.replicated(mesh))
