"""What an evaluation came to: `report.json` in numbers, `report.html` to look at."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_jax.data.images.lettering import encodable
from clip_jax.evaluation import report
from clip_jax.io import files

VERSION = 1
JSON, PAGE = "report.json", "report.html"
_POINTS = 400  # of a curve
_CURVES = ("loss", "learning_rate", "images_per_second", "mfu", "zero_shot/", "retrieval/")


def curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """The curves of a run's metrics: name → [[step, value], …], thinned to some hundred points.

    The first and the last point of each stay.
    """
    found: dict[str, list[list[float]]] = {}
    for line in lines:
        for name, value in line.items():
            known = name.startswith(_CURVES) and not name.endswith(("/r5", "/r10"))
            if known and isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, []).append([int(line["step"]), float(value)])
    return {name: _thinned(sorted(points)) for name, points in found.items()}


def _thinned(points: list[list[float]]) -> list[list[float]]:
    if len(points) <= _POINTS:
        return points
    step = (len(points) - 1) / (_POINTS - 1)
    return [points[round(i * step)] for i in range(_POINTS)]


def model_facts(
    name: str,
    checkpoint: str,
    step: int | None,
    parameters: int,
    image_size: int,
    dtype: str,
) -> dict[str, Any]:
    """What the report says of the model; `created` is now, in UTC."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        **dict(name=name, checkpoint=checkpoint, step=step, parameters=parameters),
        **dict(image_size=image_size, dtype=dtype, created=now),
    }


def plain(value: Any) -> Any:
    """A value as JSON in UTF-8 has it.

    numpy's numbers as Python's, what is not finite as None, texts without halves of surrogates.
    """
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, Mapping):
        return {encodable(str(key)): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write(folder: Path, results: Mapping[str, Any], pictures: Mapping[str, bytes]) -> Path:
    """Writes both files; returns the page."""
    said = plain({"version": VERSION, **results})
    with files.whole(folder / JSON) as file:
        file.write((json.dumps(said, indent=1, ensure_ascii=False) + "\n").encode())
    page = folder / PAGE
    with files.whole(page) as file:
        file.write(report.render(said, pictures).encode())
    return page


def flat(results: Mapping[str, Any]) -> dict[str, float]:
    """The numbers that metrics.jsonl holds: `zero_shot/NAME/top1`, `retrieval/NAME/…/r1`, ….

    Those that are not defined are left out.
    """
    found: dict[str, float | None] = {}
    for name, test in results.get("sets", {}).items():
        found |= {f"{key}/{name}/{what}": value for key, what, value in _numbers(test)}
    for name, shift in results.get("robustness", {}).get("shifts", {}).items():
        found[f"robustness/{name}/accuracy"] = shift["score"]["value"]
        found[f"robustness/{name}/effective"] = shift["effective"]
    return {name: float(value) for name, value in found.items() if value is not None}


def _numbers(test: Mapping[str, Any]) -> Iterator[tuple[str, str, float | None]]:
    if shot := test.get("zero_shot"):
        numbers = dict(shot["metrics"])
        if shot["metric"] != "mean_per_class":
            numbers.pop("mean_per_class", None)
        yield from (("zero_shot", what, value) for what, value in numbers.items())
    if found := test.get("retrieval"):
        for way in ("image_to_text", "text_to_image"):
            for k, score in found[way].items():
                yield "retrieval", f"{way}/{k}", score["value"]
    if probe := test.get("linear_probe"):
        yield "linear_probe", probe["metric"], probe["score"]["value"]
    if few := test.get("few_shot"):
        for shots, mean in zip(few["shots"], few["mean"], strict=True):
            yield "few_shot", f"{shots}", mean
    if overlap := test.get("overlap"):
        yield "overlap", "share", overlap["share"]
        yield "overlap", "difference", overlap["difference"]
