"""Figure 2: the steps of a curve, the images for an accuracy, and a drawing that is XML."""

from __future__ import annotations

import math
import sys
from xml.etree import ElementTree

import pytest

import runs

sys.path.append(str(runs.ROOT / "benchmarks"))

import figure2
import figure2_runs


def curve(name: str, *values: float) -> figure2.Curve:
    images = (1000, 2000, 4000)
    return figure2.Curve(name, {n: [v, v] for n, v in zip(images, values, strict=True)}, 1e6)


def test_points_double() -> None:
    assert figure2_runs.steps_of(102_400) == [25, 50, 100, 200, 400, 800]
    assert figure2_runs.steps_of(256) == [1, 2]


def test_images_for_an_accuracy_are_interpolated_in_their_logarithm() -> None:
    rising = curve("captioning", 0.1, 0.2, 0.4)
    assert rising.images_for(0.3) == pytest.approx(2000 * math.sqrt(2))
    assert rising.images_for(0.05) == 1000
    assert rising.images_for(0.5) is None
    noisy = curve("captioning", 0.3, 0.1, 0.3)
    assert noisy.images_for(0.2) == pytest.approx(2000 * math.sqrt(2)), "it must stay there"


def test_tables_and_drawing() -> None:
    curves = [curve("captioning", 0.1, 0.2, 0.4), curve("contrastive", 0.4, 0.5, 0.6)]
    assert "| 40.0 % | 4,000 (1.0×) | 1,000 (4.0×) |" in figure2.ratio_table(curves)
    drawn = ElementTree.fromstring(figure2.chart(curves, "title", "images", lambda _: 1.0))
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
