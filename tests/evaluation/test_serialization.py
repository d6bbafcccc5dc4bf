"""Results become JSON and come back from it as they were."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from clip_jax.evaluation.evaluators.overlap import OverlapResult, Twins
from clip_jax.evaluation.evaluators.retrieval import Query, RetrievalResult, Similarity
from clip_jax.evaluation.evaluators.robustness import RobustnessResult
from clip_jax.evaluation.evaluators.zero_shot import Example, ZeroShotResult
from clip_jax.evaluation.metrics.bias import Table
from clip_jax.evaluation.metrics.linear_probe import Probe, SweepPoint
from clip_jax.evaluation.metrics.robustness import LogitLine
from clip_jax.evaluation.metrics.scores import ClassAccuracy, ClassPrecision, Score
from clip_jax.evaluation.serialization import Thumbnail, from_json, thumbnails_in, to_json

SCORE = Score(0.5, 0.25, 0.75, 8)
UNDEFINED = Score(None, None, None, 0)
IMAGE, OTHER = Thumbnail(b"an image"), Thumbnail(b"another")
RECALL = {"r1": SCORE, "r5": UNDEFINED}

RESULTS: list[Any] = [
    ZeroShotResult("accuracy", SCORE, {"top1": 0.5, "top5": None}, 2, [], []),
    ZeroShotResult(
        "map_11_point",
        SCORE,
        {},
        1,
        [ClassPrecision("a", 0, None, None)],
        [Example(IMAGE, "1.png", "a, b", ["a", "b"], ["a"], [1.0])],
        prompts={"name alone": UNDEFINED},
    ),
    ZeroShotResult("accuracy", SCORE, {}, 1, [ClassAccuracy("a", 1, 1.0)], []),
    Probe(1e-6, 2.0, 3, 4, [SweepPoint(1.0, 0.5)]),
    RetrievalResult(2, 3, RECALL, RECALL, [Query("a", [IMAGE, OTHER], [0.5, -0.5], [True, False])]),
    RetrievalResult(2, 3, {}, {}, similarity=Similarity("mine", [IMAGE], ["a"], [[1.0]])),
    RobustnessResult(score=SCORE, reference=UNDEFINED, effective=None),
    RobustnessResult(
        score=SCORE,
        reference=SCORE,
        line=LogitLine(1.0, 0.5, 44),
        standard=[[0.5, 0.25]],
        effective=0.125,
    ),
    Table("by age", ["Category", "0-2"], [["crime", SCORE]], "a note"),
    OverlapResult(
        0.9, SCORE, SCORE, None, 0, None, 0.0, None, None, None, 0.95, [Twins(IMAGE, OTHER, 0.9)]
    ),
]


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_a_result_comes_back_as_it_was(result: Any) -> None:
    value = json.loads(json.dumps(to_json(result)))
    back = from_json(type(result), value, thumbnails_in(result))
    assert back == result
    assert json.dumps(to_json(back)) == json.dumps(value)


def test_keys_are_those_of_the_fields_in_their_order() -> None:
    probe = to_json(Probe(0.5, 2.0, 3, 4, []))
    assert list(probe) == ["lambda", "best_lambda", "train", "validation", "sweep"]
    shift = RobustnessResult(score=SCORE, reference=SCORE, effective=None).to_json()
    assert list(shift) == ["score", "reference", "effective"], "a default of None is left out"
    assert shift["effective"] is None, "a field without a default is not"


def test_the_similarity_is_not_below_its_dataset() -> None:
    result = RESULTS[5]
    assert "similarity" not in result.to_json()
    assert thumbnails_in(result) == {IMAGE.name: b"an image"}


def test_a_thumbnail_is_named_by_its_content() -> None:
    assert IMAGE.name == Thumbnail(b"an image").name != OTHER.name
    assert IMAGE.name.isalnum()
    assert Thumbnail(b"").name == ""
    assert thumbnails_in([Thumbnail(b"")]) == {}


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"value": "0.5", "low": None, "high": None, "n": 1},
        {"value": 0.5, "low": None, "high": None, "n": 1.5},
        {"value": 0.5, "low": None, "high": None},
        {"value": 0.5, "low": None, "high": None, "n": 1, "more": 2},
        {"value": True, "low": None, "high": None, "n": 1},
    ],
)
def test_a_value_of_another_type_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        from_json(Score, value, {})


def test_types_that_cannot_be_read_are_refused() -> None:
    @dataclasses.dataclass(frozen=True)
    class Odd:
        """A field of a type that JSON does not have."""

        values: Any

    with pytest.raises((TypeError, NameError)):
        from_json(Odd, {"values": 1}, {})
