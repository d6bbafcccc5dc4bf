"""Outputs of an image tower beside its features: pooled, of patches, of a layer."""

from __future__ import annotations

import re
from typing import Any

from jaxtyping import Array, Float, Num

from clip_jax.errors import UserError
from clip_jax.models.registry import kind_of
from clip_jax.models.second_projection import project
from clip_jax.models.transformer import AttentionPool

FEATURES = "features"
KNOWN = (FEATURES, "pooled", "patches", "layer:N")


def check_output(output: str, tower: Any) -> None:
    """Checks the argument `output` of `CLIP.encode_image`.

    Args:
      output: the argument.
      tower: the config of the image tower.

    Raises:
      UserError: there is no such output, or the tower has none.
    """
    layer = re.fullmatch(r"layer:(\d{1,4})", output) if isinstance(output, str) else None
    if layer is None and output not in KNOWN[:-1]:
        raise UserError(f"output={output!r:.60} must be one of {', '.join(KNOWN)}")
    if layer and not 1 <= int(layer[1]) <= tower.blocks:
        have = f"has the layers 1 to {tower.blocks}" if tower.blocks else "has no layers of tokens"
        raise UserError(f"output={output!r}: the tower {kind_of(tower)} {have}")


def image_output(
    module: Any, image: Num[Array, "batch ..."], output: str
) -> Float[Array, "batch ..."]:
    """Returns an output of an image tower other than its features.

    `pooled` is [batch, width], before the projection to the embedding space, for probes. `patches`
    is [batch, places, embed_dim], what the pooling and the projection make of each place alone, row
    by row, to compare with texts; those of padding are zeros. `layer:7` is [batch, tokens, width],
    the output of the seventh block of a Transformer, with the class token first.

    Args:
      module: the module of the tower.
      image: images, or texts, as for a call of the tower.
      output: see `CLIP.encode_image`; already checked.

    Raises:
      UserError: the tower has no such output.
    """
    if output == "pooled":
        return _method(module, "pooled", output)(image)
    if output == "patches":
        own = getattr(module, "patches", None)
        alone = _patches(module, image) if own is None else own(image)
        batch, places, width = alone.shape
        return project(module, alone.reshape(batch * places, width)).reshape(batch, places, -1)
    layer = int(output.removeprefix("layer:"))
    return _method(module, "after_layer", output)(image, layer)


def _method(module: Any, name: str, output: str) -> Any:
    method = getattr(module, name, None)
    if method is None:
        raise UserError(f"output={output!r}: the tower {kind_of(module.config)} has no such output")
    return method


def _patches(
    module: Any, image: Num[Array, "batch height width 3"]
) -> Float[Array, "batch places embed_dim"]:
    """Returns what the tower makes of each place alone, by its pooling and its projection."""
    if not module.config.grid_shape()[0] or not hasattr(module, "project"):
        _method(module, "patches", "patches")
    _, grid = module.features_and_grid(image)
    batch, places, width = grid.shape
    alone = grid.reshape(batch * places, width)
    pool = getattr(module, "pool", None)
    if pool is not None:
        if not isinstance(pool, AttentionPool):
            _method(module, "patches", "patches")
        alone = pool(alone[:, None])  # attention to one place alone
    return module.project(alone).reshape(batch, places, -1)
