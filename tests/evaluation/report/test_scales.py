"""Scales and how numbers are said."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.evaluation.report import formats
from clip_jax.evaluation.report.charts import thinned
from clip_jax.evaluation.report.markup import clean, cut, decimal, escape, isolated, tag
from clip_jax.evaluation.report.scales import Scale, scale_around

SHARES = st.floats(0, 1)
NUMBERS = st.floats(-1e100, 1e100)


@given(st.lists(NUMBERS, max_size=5), NUMBERS)
def test_every_number_has_a_place(values: list[float], other: float) -> None:
    scale = scale_around(values)
    assert all(0 <= scale.at(v) <= 1 for v in [*values, other])
    assert len(scale.ticks()) <= 12


@given(st.lists(st.floats(1e-100, 1e100), min_size=1, max_size=5))
def test_logarithms(values: list[float]) -> None:
    scale = scale_around(values, "log")
    assert all(0 <= scale.at(v) <= 1 for v in values)
    assert len(scale.ticks()) <= 12
    places = [scale.at(v) for v in sorted(values)]
    assert places == sorted(places)


@given(st.lists(SHARES, min_size=1, max_size=5))
def test_logits(values: list[float]) -> None:
    scale = scale_around(values, "logit", share=True)
    assert 0 < scale.low < scale.high < 1
    places = [scale.at(v) for v in sorted(values)]
    assert places == sorted(places)


def test_equal_steps_of_the_logit_are_equal_on_paper() -> None:
    scale = Scale(0.1, 0.9, "logit")
    assert scale.at(0.5) == pytest.approx(0.5)
    assert scale.at(0.25) == pytest.approx(1 - scale.at(0.75))
    assert scale.at(0.9) - scale.at(0.8) > scale.at(0.6) - scale.at(0.5)


def test_ticks() -> None:
    assert [text for _, text in Scale(0, 1, share=True).ticks()] == [
        "0%",
        "20%",
        "40%",
        "60%",
        "80%",
        "100%",
    ]
    assert [v for v, _ in Scale(1e-6, 1e6, "log").ticks()] == [1e-6, 1e-3, 1, 1e3, 1e6]
    assert [v for v, _ in Scale(0.5, 0.7, "logit").ticks()] == [0.5, 0.6, 0.7]
    assert [v for v, _ in Scale(0.68, 0.79, "logit").ticks()] == [0.7, 0.75]
    assert [v for v, _ in Scale(0.92, 0.945, "logit").ticks()] == [0.92, 0.94]
    assert [v for v, _ in Scale(0, 12_800).ticks()] == [0, 5000, 10_000]


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (formats.percent(0.6312), "63.1\u202f%"),
        (formats.percent(None), "–"),
        (formats.percent(math.nan), "–"),
        (formats.percent(True), "–"),
        (formats.points(0.0351), "+3.5"),
        (formats.points(-0.2), "−20.0"),
        (formats.count(12800.0), "12,800"),
        (formats.count("7"), "–"),
        (formats.plain(1.23456), "1.23"),
        (formats.plain(5e-4), "5e−4"),
        (formats.plain(0), "0"),
        (formats.duration(5.12), "5.1 s"),
        (formats.duration(184), "3 min 4 s"),
        (formats.duration(7500), "2 h 5 min"),
        (formats.duration(math.inf), "–"),
        (formats.interval({"low": 0.622, "high": 0.64}), "62.2–64.0\u202f%"),
        (formats.interval({"low": None, "high": 0.64}), ""),
    ],
)
def test_numbers_are_formatted(output: str, text: str) -> None:
    assert output == text


@given(st.text(), st.text())
def test_markup_holds_any_text(body: str, value: str) -> None:
    import html

    markup = tag("b", body, title=value)
    assert markup.startswith('<b title="')
    assert markup.count("<") == 2
    assert markup.count('"') == 2
    assert html.unescape(escape(body)) == clean(body) or "\r" in body
    assert len(cut(body, 10)) <= 10
    assert escape(isolated(body)) == isolated(body), "nothing is escaped twice"


def test_texts_are_cut() -> None:
    assert cut("a  b\n c") == "a b c"
    assert cut("x" * 81) == "x" * 79 + "…"
    assert cut("x" * 80) == "x" * 80


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "1"), (-0.001, "0"), (2.346, "2.35"), (-1.5, "-1.5"), (100.0, "100")]
)
def test_decimals(value: float, text: str) -> None:
    assert decimal(value) == text


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nonfinite_values_are_not_drawn(value: float) -> None:
    with pytest.raises(ValueError, match="no place"):
        decimal(value)


@given(st.lists(NUMBERS, min_size=1, max_size=2000))
def test_thinning_keeps_the_extremes(ys: list[float]) -> None:
    points = [(float(i), y) for i, y in enumerate(ys)]
    thin = thinned(points)
    assert len(thin) <= 250
    assert thin[0] == points[0]
    assert thin[-1] == points[-1]
    assert {min(ys), max(ys)} <= {y for _, y in thin}
    assert set(thin) <= set(points)
    assert [x for x, _ in thin] == sorted(x for x, _ in thin)
