"""The tables count what they say, by group, and the label sets are the paper's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.evaluation.metrics.bias import (
    Table,
    accuracies,
    harm_labels,
    harms,
    label_rates,
    label_sets,
)
from clip_jax.evaluation.metrics.scores import Score
from support import refused

SEEDS = st.integers(0, 2**32)


def test_the_papers_labels() -> None:
    labels, categories = harm_labels(child=False)
    assert len(labels) == len(set(labels)) == 14 + 4 + 3
    assert categories == ["person"] * 14 + ["non-human"] * 4 + ["crime-related"] * 3
    assert {"Black woman", "White man", "Latino man", "gorilla", "suspicious person"} < set(labels)
    longer, more = harm_labels(child=True)
    assert set(longer) - set(labels) == {"child"}
    assert more[longer.index("child")] == "person"
    assert label_sets().thresholds == [0.005, 0.04]
    assert len(label_sets().people) == len(set(label_sets().people))


def well_formed(table: Table) -> None:
    assert table.title and table.note
    assert {len(row) for row in table.rows} <= {len(table.columns)}
    for row in table.rows:
        for score in row[1:]:
            assert isinstance(score, Score)
            if score.n:
                assert 0 <= score.low <= score.value <= score.high <= 1


@given(st.integers(1, 60), SEEDS)
def test_harms_by_counting(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, categories = harm_labels(child=True)
    logits = rng.normal(size=(n, len(labels))).astype(np.float32)
    age = rng.choice(["0-2", "3-9", "10-19", "more than 70"], n).tolist()
    tables = harms(logits, {"age": age, "race": rng.choice(["A", "B"], n).tolist()})
    assert [table.title for table in tables] == [
        "Harmful labels by race",
        "Harmful labels by age",
    ]
    for table in tables:
        well_formed(table)
    by_age = tables[1]
    order = [name for name in ("0-2", "3-9", "10-19", "more than 70") if name in age]
    assert by_age.columns == ["Category", *order]
    assert [row[0] for row in by_age.rows] == [
        "non-human, without “child”",
        "non-human, with “child”",
        "crime-related, without “child”",
        "crime-related, with “child”",
    ]
    without = np.delete(np.arange(len(labels)), labels.index("child"))
    for row in by_age.rows:
        category = row[0].split(",")[0]
        columns = np.arange(len(labels)) if row[0].endswith("with “child”") else without
        for group, score in zip(order, row[1:], strict=True):
            own = [i for i in range(n) if age[i] == group]
            hits = [categories[columns[logits[i, columns].argmax()]] == category for i in own]
            assert score.n == len(own)
            assert score.value == pytest.approx(np.mean(hits))


def test_nan_predicts_no_label() -> None:
    labels, _ = harm_labels(child=True)
    nothing = np.full((4, len(labels)), np.nan, np.float32)
    (table,) = harms(nothing, {"gender": ["Male", "Female"] * 2})
    assert {score.value for row in table.rows for score in row[1:]} == {0.0}


def test_accuracies_by_group_and_pair() -> None:
    logits = np.array([[1, 0], [1, 0], [0, 1], [1, 0]], np.float32)
    groups = {
        "race": ["Black", "Black", "White", "White"],
        "gender": ["Female", "Male", "Female", "Male"],
        "service": ["x", "y", "z", "z"],
    }
    target = np.array([0, 1, 1, 1])
    tables = accuracies({"gender": (logits, target)}, groups)
    for table in tables:
        well_formed(table)
    columns = {table.title: table.columns[2:] for table in tables}
    assert columns == {
        "Accuracy by race": ["Black", "White"],
        "Accuracy by gender": ["Female", "Male"],
        "Accuracy by race and gender": [
            "Black, Female",
            "Black, Male",
            "White, Female",
            "White, Male",
        ],
    }
    values = [[score.value for score in table.rows[0][1:]] for table in tables]
    assert values == [[0.5, 0.5, 0.5], [0.5, 1, 0], [0.5, 1, 0, 1, 0]]
    assert [score.n for score in tables[0].rows[0][1:]] == [4, 2, 2]


def test_labels_at_thresholds() -> None:
    labels = ["doctor", "nanny", "lawmaker", "mobster"]
    shares = np.array([[0.5, 0.01, 0.489, 0.001]] * 30 + [[0.01, 0.5, 0.489, 0.001]] * 30)
    gender = ["Male"] * 30 + ["Female"] * 30
    low, high = label_rates(shares, labels, gender)
    for table in (low, high):
        well_formed(table)
        assert table.columns == ["Label", "Female", "Male"]
    assert {row[0] for row in low.rows} == {"doctor", "nanny", "lawmaker"}
    # what differs most comes first
    assert {row[0] for row in high.rows[:2]} == {"doctor", "nanny"}
    assert high.rows[2][0] == "lawmaker"
    rates = {row[0]: [score.value for score in row[1:]] for row in high.rows}
    assert rates == {"doctor": [0, 1], "nanny": [1, 0], "lawmaker": [1, 1]}
    assert "0.5%" in low.title
    assert "4.0%" in high.title
    (few,) = label_rates(shares, labels, gender, [0.3], most=1)
    assert len(few.rows) == 1


def test_mistakes_are_named() -> None:
    shares = np.ones((2, 1))
    refused(lambda: label_rates(shares, ["a"], ["x", "y"], [1.5]), "threshold", 1.5)
    refused(lambda: label_rates(shares, ["a"], ["x"]), "2 images", "1 values")
