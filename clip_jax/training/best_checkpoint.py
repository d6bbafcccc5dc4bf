"""The best checkpoint of a run by a metric of its evaluations, and stopping early.

What is best depends on `metrics.jsonl` up to the step at which a run resumes, and on nothing else.
A run that was killed therefore ends with the same best checkpoint as one that was not.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from clip_jax.errors import UserError
from clip_jax.io import files
from clip_jax.io.buckets import as_path
from clip_jax.training import checkpointing
from clip_jax.training.metric_writers import read_metrics

BEST = "best"  # as a step: RUN/checkpoints/best
FILE = "best.json"


@dataclasses.dataclass(frozen=True)
class Best:
    """The best checkpoint of a run.

    Attributes:
      metric: the metric that is compared, with a `-` before it if the smallest value is best.
      step: the step of the checkpoint.
      value: the value of the metric at that step.
    """

    metric: str
    step: int
    value: float


def read_best(workdir: str | Path) -> Best:
    """Reads the best checkpoint of a run from its `best.json`.

    Raises:
      UserError: the run keeps no best checkpoint, or the file is damaged.
    """
    path = as_path(workdir) / FILE
    if not path.exists():
        checkpointing.read_config(workdir)  # a folder that holds no run has another message
        raise UserError(
            f"{workdir} has no best checkpoint: config.checkpoint.best=METRIC keeps one, from the "
            "first evaluation on"
        )
    values = files.read_json(path)
    try:
        return Best(str(values["metric"]), int(values["step"]), float(values["value"]))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} is damaged: name the step as RUN/checkpoints/STEP") from None


def check_metric(best: str, prefixes: Sequence[str]) -> None:
    """Checks `config.checkpoint.best` before a run starts.

    Args:
      best: the value of the key.
      prefixes: the prefixes that the names of metrics can have.

    Raises:
      UserError: no evaluation computes such a metric.
    """
    if best and not best.removeprefix("-").startswith(tuple(prefixes)):
        known = ", ".join(f"{prefix}…" for prefix in prefixes) or "none: set config.evaluate.sets"
        raise UserError(
            f"config.checkpoint.best={best!r:.80}: no evaluation gives that metric; there are "
            f"{known:.400}"
        )


class BestCheckpoint:
    """Finds the best checkpoint of a run while it trains.

    Args:
      metric: the name of the metric, with a `-` before it if the smallest value is best. Empty: no
        checkpoint is the best.
      patience: the number of evaluations without a better value after which the run ends; 0: it
        never ends early.
      workdir: the run's folder.

    Attributes:
      history: the step and value of each evaluation.
    """

    def __init__(self, metric: str, patience: int, workdir: Path) -> None:
        self.metric, self.patience, self.workdir = metric, patience, workdir
        self.name, self._sign = metric.removeprefix("-"), -1 if metric.startswith("-") else 1
        self.history: list[tuple[int, float]] = []

    def read(self, until: int) -> list[tuple[int, float]]:
        """Returns the history up to a step, from `metrics.jsonl`.

        A value that would be the best at a step without a checkpoint is left out: it is from a time
        when `checkpoint.best` was another metric.
        """
        if not self.metric:
            return []
        lines = read_metrics(self.workdir / "metrics.jsonl")
        values = {line["step"]: line[self.name] for line in lines if self.name in line}
        history = sorted((step, float(value)) for step, value in values.items() if step <= until)
        steps = checkpointing.steps(self.workdir)
        limit = max((self._sign * value for step, value in history if step in steps), default=None)
        return [
            (step, value)
            for step, value in history
            if limit is not None and self._sign * value <= limit
        ]

    @property
    def _index(self) -> int | None:
        """The position of the best value in the history, the first of equal ones."""
        values = [self._sign * value for _, value in self.history]
        return values.index(max(values)) if values else None

    @property
    def step(self) -> int | None:
        """The step of the best value; None before the first evaluation."""
        return None if self._index is None else self.history[self._index][0]

    @property
    def is_over(self) -> bool:
        """Whether the last `patience` evaluations brought no better value, so that the run ends."""
        if self._index is None or not self.patience:
            return False
        return len(self.history) - 1 - self._index >= self.patience

    def add(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Adds an evaluation, and returns whether it is the best so far.

        Raises:
          UserError: the evaluation does not have the metric.
        """
        if not self.metric:
            return False
        if self.name not in metrics:
            near = difflib.get_close_matches(self.name, metrics, 3, 0) or list(metrics)[:3]
            raise UserError(
                f"config.checkpoint.best={self.metric!r:.80} is none of the metrics at step "
                f"{step}, such as {', '.join(near)}"
            )
        self.history.append((step, float(metrics[self.name])))
        return self.step == step

    def write(self) -> None:
        """Writes `best.json`."""
        step, value = self.history[self._index or 0]
        best = dataclasses.asdict(Best(self.metric, step, value))
        with files.atomic_write(self.workdir / FILE) as file:
            file.write((json.dumps(best) + "\n").encode())

    def end(self, step: int) -> str:
        """Returns a line for the user about a run that ends early at a step."""
        best, value = self.history[self._index or 0]
        return (
            f"stopped early at step {step}: {self.name} was best at step {best}, {value:.6g}, "
            f"and not better in {self.patience} evaluations; checkpoints/{BEST} is that step"
        )
