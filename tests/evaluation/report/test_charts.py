"""Charts: labels that can be read, points where they belong, bins that are counted."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.evaluation.report import charts
from clip_jax.evaluation.report.charts import Frame, Point, Series
from clip_jax.evaluation.report.scales import Scale, scale_around

SHARE = st.floats(0, 1)


def scatter(points: list[Point]) -> str:
    x, y = (scale_around([p[i] for p in ((p.x, p.y) for p in points)], "logit") for i in (0, 1))
    return charts.scatter("shifts", Frame(x, y, "reference", "shift", height=300), points)


@given(st.lists(st.tuples(SHARE, SHARE), min_size=1, max_size=14))
def test_no_label_of_a_scatter_lies_on_another(values: list[tuple[float, float]]) -> None:
    drawn = scatter([Point(f"set {i}", *value) for i, value in enumerate(values)])
    labels = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="(halo[ a-z]*)">set', drawn)
    assert len(labels) == len(values)
    for side in ("halo", "halo end"):
        lines = sorted(float(y) for _, y, kind in labels if kind == side)
        assert all(12 <= line <= 300 for line in lines)
        assert all(b - a > 12.98 for a, b in itertools.pairwise(lines))


def test_the_better_stands_higher_and_further_right() -> None:
    drawn = scatter([Point("a", 0.5, 0.2), Point("b", 0.7, 0.6)])
    (ax, ay), (bx, by) = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)
    assert float(ax) < float(bx)
    assert float(ay) > float(by)
    assert "a: 20.0\u202f%, reference 50.0\u202f%" in drawn


def test_standard_models_stand_where_a_point_of_theirs_would() -> None:
    frame = Frame(Scale(0.5, 0.9, "logit"), Scale(0.1, 0.5, "logit"), "reference", "shift")
    others = [(0.6, 0.2), (0.8, 0.4)]
    drawn = charts.scatter("shifts", frame, [Point("mine", 0.8, 0.4)], others, others)
    dots = re.findall(r"M([\d.]+) ([\d.]+)h0", drawn)
    line = re.search(r'd="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)" class="line c1"', drawn)
    assert line and [line.groups()[:2], line.groups()[2:]] == dots
    assert re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn) == dots[1:]
    assert drawn.count("2 standard models") == 3, "told to who points, who reads, who listens"
    plain = charts.scatter("shifts", frame, [Point("mine", 0.8, 0.4)])
    assert "standard" not in plain
    assert "dots" not in plain
    assert "Dashed" not in plain, "no place in the frame has equal axes"


def test_a_line_goes_through_its_points() -> None:
    frame = Frame(Scale(0, 10), Scale(0, 1, share=True), "x", "y")
    series = [Series("one", [(0, 0), (10, 1)], band=[(0, 0, 0.1), (10, 0.9, 1)], marks=True)]
    drawn = charts.lines("a line", frame, series)
    left, bottom = charts.LEFT, charts.HEIGHT - charts.BOTTOM
    right, top = charts.WIDTH - charts.RIGHT, charts.TOP
    assert f'd="M{left:g} {bottom:g}L{right:g} {top:g}" class="line c1"' in drawn
    assert drawn.count("<circle") == 2
    assert drawn.count("band c1") == 1
    assert 'role="img"' in drawn
    assert "one ends at 100.0 %" in drawn
    assert "legend" not in drawn
    assert "legend" in charts.lines("two", frame, series * 2)


@pytest.mark.parametrize("n", [0, None])
def test_empty_bins_have_no_bar(n: int | None) -> None:
    full = {"low": 0.5, "high": 1.0, "n": 8, "confidence": 0.8, "accuracy": 0.75}
    empty = {"low": 0.0, "high": 0.5, "n": n, "confidence": None, "accuracy": None}
    drawn = charts.reliability("calibration", [empty, full])
    assert drawn.count("<rect") == 2  # one of the accuracy, one of the count
    assert "8 images, confidence 80.0\u202f%, right 75.0\u202f%" in drawn
    assert charts.reliability("calibration", []).count("<rect") == 0
