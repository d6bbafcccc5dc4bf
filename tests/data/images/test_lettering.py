"""Texts of any length and of any characters on drawings, in little time."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from clip_jax.cli import inspect
from clip_jax.data.images import lettering
from clip_jax.evaluation.contact_sheet import Guess, draw_guesses
from support import picture

PEN = ImageDraw.Draw(Image.new("RGB", (8, 8)))
FONT = ImageFont.load_default(12)
LONG = [
    "W" * 100_000,
    "i" * 100_000,
    "a b " * 30_000,
    "\u0301" * 100_000,
    " " * 100_000,
    "漢" * 9999,
]


@pytest.mark.parametrize("text", LONG)
def test_long_texts_are_soon_drawn(text: str) -> None:
    began = time.process_time()
    assert PEN.textlength(lettering.fit(PEN, text, FONT, 200), FONT) <= 200
    assert lettering.wrap(PEN, text, FONT, 200, 3).count("\n") <= 2
    draw_guesses([Guess(picture(), text, [text] * 5, [0.2] * 5)] * 4, text)
    inspect.draw([(picture(), text)] * 4)
    assert time.process_time() - began < 3


@given(st.text(st.characters(codec=None, exclude_categories=[]), max_size=40), st.integers(0, 300))
def test_a_fitted_line_has_room(text: str, width: int) -> None:
    line = lettering.fit(PEN, text, FONT, width)
    line.encode()
    assert PEN.textlength(line, FONT) <= width or line == "…"


def test_a_fitted_line_is_as_long_as_can_be() -> None:
    assert lettering.fit(PEN, "a cat\non a mat", FONT, 400) == "a cat on a mat"
    line = lettering.fit(PEN, "a cat on a mat " * 9, FONT, 100)
    assert line.endswith("…") and len(line) > 10
    longer = ("a cat on a mat " * 9)[: len(line)]
    assert PEN.textlength(longer + "…", FONT) > 100


def test_halves_of_surrogates_can_be_drawn() -> None:
    text = "a \ud800 cat\udcff"
    assert lettering.encodable(text) == "a \ufffd cat\ufffd"
    draw_guesses([Guess(picture(), text, [text], [1.0])], text)
    inspect.draw([(picture(), text)])
