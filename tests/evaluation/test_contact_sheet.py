"""The sheet of guesses: its size, its colours, and labels of any kind."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageColor

from clip_jax.evaluation import contact_sheet as sheet
from clip_jax.evaluation.contact_sheet import Guess, draw_guesses
from support import picture


def guess(truth: str = "cat", first: str = "cat", size: tuple[int, int] = (40, 30)) -> Guess:
    return Guess(picture(1, size), truth, [first, "a dog", "the sun"], [0.7, 0.2, 0.1])


def count(image: Image.Image, color: str) -> int:
    return int((np.asarray(image) == ImageColor.getrgb(color)).all(axis=-1).sum())


@pytest.mark.parametrize(
    ("guesses", "columns", "rows"), [(1, 3, 1), (3, 3, 1), (7, 3, 3), (4, 2, 2)]
)
def test_the_size_of_a_sheet(guesses: int, columns: int, rows: int) -> None:
    image = draw_guesses([guess()] * guesses, "a title", columns)
    assert image.mode == "RGB"
    assert image.size == (sheet.CELL[0] * columns, sheet.CELL[1] * rows + 34)


def test_each_guess_is_drawn_in_its_cell() -> None:
    image = draw_guesses([guess()] * 5, "title")
    blank = Image.new("RGB", image.size, "white")
    for i in range(6):
        x, y = i % 3 * sheet.CELL[0], i // 3 * sheet.CELL[1] + 34
        box = (x, y, x + sheet.CELL[0], y + sheet.CELL[1])
        same = np.array_equal(np.asarray(image.crop(box)), np.asarray(blank.crop(box)))
        assert same == (i == 5)
    shown = np.asarray(image.crop((12, 34 + 32, 12 + 104, 34 + 32 + 78)))
    assert np.array_equal(shown, np.asarray(picture(1, (40, 30)).resize((104, 78))))


def test_green_is_right_and_red_is_wrong() -> None:
    right = draw_guesses([guess("cat", "cat")], "t")
    wrong = draw_guesses([guess("a dog", "cat")], "t")
    assert count(right, sheet.RIGHT) > 500
    assert count(right, sheet.WRONG) == 0
    assert count(wrong, sheet.WRONG) > 500
    assert count(wrong, sheet.RIGHT) > 100  # the true label is second
    longer = Guess(picture(), "cat", ["cat"], [0.9])
    shorter = Guess(picture(), "cat", ["cat"], [0.3])
    assert count(draw_guesses([longer], "t"), sheet.RIGHT) > 2 * count(
        draw_guesses([shorter], "t"), sheet.RIGHT
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 1000), (1000, 1), (3, 200), (500, 400)])
def test_pictures_of_any_shape(size: tuple[int, int]) -> None:
    drawn = draw_guesses([guess(size=size)], "t")
    assert np.ptp(np.asarray(drawn.crop((12, 66, 12 + 104, 66 + 104)))) > 0


@pytest.mark.parametrize("label", ["", "x" * 500, "two\nlines", "猫 😀 é", "tab\there"])
def test_labels_of_any_kind(label: str) -> None:
    image = draw_guesses([guess(label, label), guess("cat", label)], label)
    right = np.asarray(image)[34:, sheet.CELL[0] - 8 : sheet.CELL[0]]
    assert (right == 255).all(), "nothing leaves its cell"


def test_no_guess_is_a_title() -> None:
    assert draw_guesses([], "a title").size == (sheet.CELL[0] * 3, 34)
