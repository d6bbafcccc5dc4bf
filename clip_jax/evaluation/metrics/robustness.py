"""Accuracy under natural shifts of ImageNet, beside accuracy on ImageNet (section 3.3).

A dataset with only some of the classes is compared with ImageNet's images of the same classes,
which are classified among these classes alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from clip_jax.errors import UserError
from clip_jax.evaluation.metrics import scores
from clip_jax.io.files import JsonObject

Logits = Float[np.ndarray, "n classes"]
Labels = Int[np.ndarray, " n"]
Points = Sequence[tuple[float, float]]
Line = tuple[float, float]


class Standard(NamedTuple):
    """The accuracies of standard models on a shifted dataset.

    Attributes:
      points: their accuracies on the same classes of ImageNet and under the shift.
      knee: the accuracy on ImageNet at which their line bends; None if it does not.
    """

    points: Points = ()
    knee: float | None = None

    def beside(self, reference: float) -> Points:
        """Returns the points on the same side of the knee as an accuracy on ImageNet."""
        if self.knee is None:
            return self.points
        return [p for p in self.points if (p[0] > self.knee) == (reference > self.knee)]


NONE = Standard()


@cache
def _table() -> JsonObject:
    file = resources.files(__package__) / "standard_models.json"
    return dict(json.loads(file.read_text(encoding="utf-8")))


@cache
def standard(name: str) -> Standard:
    """Returns the standard models on a shifted dataset, as in figure 13; none for other datasets.

    ImageNet-A consists of images that a ResNet-50 gets wrong. So its line bends at that model, and
    models that are right nowhere are left out.

    Source: the testbed of Taori et al. 2020, whose plots do the same; the file names the models.
    """
    pairs = {
        model: accuracies[name]
        for model, accuracies in _table()["models"].items()
        if name in accuracies
    }
    knee = _table()["knees"].get(name)
    points = tuple((reference, shifted) for reference, shifted in pairs.values() if shifted)
    return Standard(points, pairs[knee][0] if knee else None)


def restricted(
    logits: Logits, target: Labels, classes: Sequence[int | Sequence[int]]
) -> tuple[Float[np.ndarray, "m subset"], Int[np.ndarray, " m"]]:
    """Returns the rows of some classes, and their logits over these classes alone.

    A class may be several columns of the logits, as ObjectNet's 113 classes are of ImageNet's; its
    logit is then the largest of theirs.

    Args:
      logits: the logits over all classes.
      target: the class of each row.
      classes: the column of each class, or its several columns.

    Returns:
      The logits of the rows, and their classes among `classes`.

    Raises:
      UserError: a column is in two classes, or there is no such column.
    """
    groups = [np.atleast_1d(np.asarray(group)) for group in classes]
    columns = np.concatenate([np.empty(0, np.int64), *groups])
    if len(np.unique(columns)) < len(columns) or not all(map(len, groups)):
        raise UserError("the classes of a shifted set must be distinct columns of the reference")
    if len(columns) and not 0 <= columns.min() <= columns.max() < logits.shape[1]:
        raise UserError(
            f"the classes of a shifted set are columns 0 to {logits.shape[1] - 1} of the "
            f"reference, not {columns.min()} to {columns.max()}"
        )
    class_of_column = np.full(logits.shape[1], -1)
    for i, group in enumerate(groups):
        class_of_column[group] = i
    selected = class_of_column[target] >= 0
    rows = logits[selected]
    if all(len(group) == 1 for group in groups):
        return rows[:, columns], class_of_column[target[selected]]
    largest = np.stack([rows[:, group].max(axis=1) for group in groups], axis=1)
    return largest, class_of_column[target[selected]]


@dataclasses.dataclass(frozen=True)
class LogitLine:
    """The line through the log-odds of the standard models' accuracies.

    Attributes:
      slope: the slope of the line.
      intercept: the intercept of the line.
      models: the number of standard models.
      knee: the accuracy on ImageNet at which the line ends; None where it does not.
    """

    slope: float
    intercept: float
    models: int
    knee: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shift:
    """The accuracy on a shifted dataset, compared with its reference.

    Attributes:
      score: the accuracy on the shifted dataset.
      reference: the accuracy on ImageNet's images of the same classes.
      line: the standard models' line; None without standard models.
      standard: [reference, shifted] accuracies of the standard models.
      effective: effective robustness, see `effective`.
    """

    score: scores.Score
    reference: scores.Score
    line: LogitLine | None = None
    standard: list[list[float]] | None = None
    effective: float | None


def shift(
    score: scores.Score,
    reference_logits: Logits,
    reference_target: Labels,
    classes: Sequence[int | Sequence[int]] | None = None,
    models: Standard = NONE,
) -> Shift:
    """Compares the accuracy on a shifted dataset with its reference and with standard models.

    Args:
      score: the model's accuracy on the shifted dataset.
      reference_logits: the model's logits on ImageNet's images, over all classes.
      reference_target: the classes of these images.
      classes: the classes of the shifted dataset, see `restricted`; None: all.
      models: standard models on the shifted dataset, for `effective`.
    """
    logits, target = reference_logits, reference_target
    if classes is not None:
        logits, target = restricted(logits, target, classes)
    reference = scores.score("accuracy", logits, target)
    points: Points = ()
    line, standard_points = None, None
    if models.points and reference.value is not None:
        points = models.beside(reference.value)
        line = LogitLine(*fit_logit_line(points), len(points), models.knee)
        standard_points = [list(point) for point in models.points]
    return Shift(
        score=score,
        reference=reference,
        line=line,
        standard=standard_points,
        effective=effective(score.value, reference.value, points),
    )


def fit_logit_line(points: Points) -> Line:
    """Fits shifted accuracy to reference accuracy, both as log-odds, by least squares.

    Source: Taori et al. 2020, "Measuring Robustness to Natural Distribution Shifts in Image
    Classification", section 3: the standard models lie on such a line.

    Args:
      points: (reference, shifted) accuracies.

    Returns:
      The slope and the intercept.

    Raises:
      UserError: an accuracy of 0 or 1 or beyond, or fewer than two different references.
    """
    table = np.array(points, np.float64).reshape(-1, 2)
    if not ((table > 0) & (table < 1)).all():
        raise UserError(
            "the accuracies of a robustness line must be between 0 and 1, neither itself"
        )
    if len(np.unique(table[:, 0])) < 2:
        raise UserError("a robustness line needs models with two different reference accuracies")
    x, y = np.log(table / (1 - table)).T
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    return float(slope), float(y.mean() - slope * x.mean())


def expected(reference: float, line: Line) -> float:
    """Returns the accuracy under shift that a line predicts from the reference accuracy."""
    if reference in (0, 1):
        return reference
    odds = np.exp(line[0] * np.log(reference / (1 - reference)) + line[1])
    return float(odds / (1 + odds))


def effective(
    shifted: float | int | None, reference: float | int | None, points: Points = ()
) -> float | None:
    """Returns effective robustness: accuracy under shift minus that of standard models.

    The accuracy of standard models is on the line through `points`. Without points it is the
    reference. The result is None if an accuracy is None.

    Source: Taori et al. 2020, section 2; section 3.3 of the CLIP paper.
    """
    if shifted is None or reference is None:
        return None
    line = fit_logit_line(points) if points else (1.0, 0.0)
    return float(shifted - expected(float(reference), line))


def pm_k(
    right: Bool[np.ndarray, " frames"],
    video: Int[np.ndarray, " frames"],
    k: int = 10,
    anchors: Int[np.ndarray, " n"] | None = None,
) -> scores.Score:
    """Returns the accuracy by the worst frame: an anchor is right if all frames within k of it are.

    Source: Shankar et al. 2019, "Do Image Classifiers Generalize Across Time?" (ImageNet-Vid and
    YouTube-BB robust): pm-k accuracy.

    Args:
      right: whether each frame's answer is right; the frames of a video are adjacent and in order.
      video: the video of each frame.
      k: the distance in frames; 0 is plain accuracy of the anchors.
      anchors: numbers of frames; None: all.
    """
    n = len(right)
    anchors = np.arange(n) if anchors is None else anchors
    starts = np.flatnonzero(np.diff(video, prepend=np.nan) != 0) if n else np.empty(0, np.int64)
    ends = np.append(starts[1:], n)
    which = np.searchsorted(starts, anchors, side="right") - 1
    wrong = np.append(0, np.cumsum(~right))
    first = np.maximum(anchors - k, starts[which])
    last = np.minimum(anchors + k + 1, ends[which])
    return scores.share(wrong[last] == wrong[first])
