"""Contact sheets: test images with their likeliest labels as bars (figure 21 of the paper)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from clip_jax.data.images.lettering import Font, fit

CELL, SIDE, LINE = (360, 152), 104, 19
RIGHT, WRONG, OTHER = "#2e7d32", "#c62828", "#b0bec5"


class Guess(NamedTuple):
    """An image, its true label, and the likeliest labels with probabilities, best first."""

    image: Image.Image
    truth: str
    labels: Sequence[str]
    probabilities: Sequence[float]


def _caption(draw: ImageDraw.ImageDraw, label: str, share: float, font: Font, width: int) -> str:
    """Returns a label, shortened to the width, and its probability, which is never cut."""
    number = f"  {share:.1%}"
    return fit(draw, label, font, width - draw.textlength(number, font)) + number


def _cell(draw: ImageDraw.ImageDraw, canvas: Image.Image, guess: Guess, x: int, y: int) -> None:
    bold, font = ImageFont.load_default(14), ImageFont.load_default(12)
    width = CELL[0] - SIDE - 36
    scale = SIDE / max(guess.image.size)
    wide, high = (max(1, round(side * scale)) for side in guess.image.size)
    canvas.paste(guess.image.resize((wide, high)), (x + 12, y + 32))
    right = guess.labels[0] == guess.truth
    title = fit(draw, guess.truth, bold, CELL[0] - 24)
    draw.text((x + 12, y + 8), title, RIGHT if right else "#37474f", bold)
    for row, (label, share) in enumerate(zip(guess.labels, guess.probabilities, strict=True)):
        top = y + 34 + row * (LINE + 2)
        left = x + SIDE + 24
        color = RIGHT if label == guess.truth else WRONG if row == 0 else OTHER
        draw.rectangle((left, top, left + max(1, share * width), top + LINE - 1), fill=color)
        text = _caption(draw, label, share, font, width)
        draw.text((left + 4, top + 2), text, "black", font)


def draw_guesses(guesses: Sequence[Guess], title: str, columns: int = 3) -> Image.Image:
    """Draws a sheet of images with their likeliest labels as bars.

    The bar of the true label is green, that of a wrong first label red.

    Args:
      guesses: the images, row by row.
      title: the text above them.
      columns: images per row.
    """
    rows = math.ceil(len(guesses) / columns)
    canvas = Image.new("RGB", (CELL[0] * columns, CELL[1] * rows + 34), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(15)
    draw.text((12, 9), fit(draw, title, font, canvas.width - 24), "black", font)
    for i, guess in enumerate(guesses):
        _cell(draw, canvas, guess, i % columns * CELL[0], i // columns * CELL[1] + 34)
    return canvas
