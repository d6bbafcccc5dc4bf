"""Pictures of how similar each patch of an image is to texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from clip_jax.data.images.lettering import fit
from clip_jax.errors import UserError
from clip_jax.models.clip import CLIP
from clip_jax.models.patches import grid, picture

SIDE, MARGIN, LINE = 224, 12, 20  # pixels of a tile, between tiles, and of a line of text
_OPACITY = 0.55
# From low to high: dark blue, violet, red, orange, light yellow.
_COLORS = np.array(
    [(13, 8, 100), (110, 10, 140), (205, 50, 85), (245, 140, 40), (250, 245, 165)], np.float32
)


def similarity_maps(
    model: CLIP,
    pixels: UInt8[np.ndarray, ...],
    text: Float[np.ndarray, "texts embed_dim"],
) -> Float[np.ndarray, "texts rows columns"]:
    """Returns the cosine of each patch of an image with each text.

    Args:
      model: the model.
      pixels: the image as the model's preprocessing returns it.
      text: unit-norm features of texts.

    Raises:
      UserError: the image tower gives no patches.
    """
    patches = np.asarray(model.encode_image(pixels[None], output="patches", normalized=True))[0]
    if model.config.vision.patch_budget is not None:
        return grid(pixels, text @ patches.T)
    side = round(len(patches) ** 0.5)
    if side * side != len(patches):
        raise UserError(f"the {len(patches)} places of this model's images form no square")
    return (text @ patches.T).reshape(len(text), side, side)


def draw_heatmap(
    pixels: UInt8[np.ndarray, ...],
    maps: Float[np.ndarray, "texts rows columns"],
    labels: Sequence[str],
) -> Image.Image:
    """Draws an image, and beside it one tile for each text, colored by the cosines of its patches.

    The colors of all tiles have one scale, from the lowest cosine to the highest, which the picture
    states.

    Args:
      pixels: the image as the model's preprocessing returns it.
      maps: as `similarity_maps` returns them.
      labels: the text under each tile.
    """
    low, high = float(maps.min()), float(maps.max())
    shown = Image.fromarray(pixels if pixels.ndim == 3 else picture(pixels))
    ratio = SIDE / max(shown.size)
    size = max(1, round(shown.width * ratio)), max(1, round(shown.height * ratio))
    plain = shown.resize(size, Image.Resampling.BICUBIC)
    tiles = [plain, *(_tile(plain, (one - low) / max(high - low, 1e-9)) for one in maps)]
    texts = [f"cosine {low:.2f} (blue) to {high:.2f} (yellow)", *labels]
    width = MARGIN + len(tiles) * (SIDE + MARGIN)
    canvas = Image.new("RGB", (width, SIDE + 2 * MARGIN + LINE), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for number, (tile, text) in enumerate(zip(tiles, texts, strict=True)):
        left = MARGIN + number * (SIDE + MARGIN)
        canvas.paste(tile, (left, MARGIN))
        draw.text((left, SIDE + MARGIN + 4), fit(draw, text, font, SIDE), "black", font)
    return canvas


def _tile(plain: Image.Image, values: Float[np.ndarray, "rows columns"]) -> Image.Image:
    """Returns the image under the colors of values from 0 to 1."""
    smooth = Image.fromarray((values * 255).astype(np.uint8)).resize(
        plain.size, Image.Resampling.BICUBIC
    )
    place = np.asarray(smooth, np.float32) / 255 * (len(_COLORS) - 1)
    stops = np.arange(len(_COLORS))
    colors = np.stack([np.interp(place, stops, channel) for channel in _COLORS.T], axis=-1)
    return Image.blend(plain, Image.fromarray(colors.astype(np.uint8)), _OPACITY)
