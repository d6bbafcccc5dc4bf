"""A user's evaluator that fails ends an evaluation with one line that names it and the place."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from clip_jax.config.schema import Evaluate
from clip_jax.data.images.preprocess import Preprocess
from clip_jax.errors import only_user_errors
from clip_jax.evaluation.evaluators import load_evaluators
from clip_jax.evaluation.results import ModelFacts, write_report, write_sheets
from clip_jax.evaluation.suite import Suite
from support import Letters, refused, write_pairs

RESULT = """
import dataclasses
from clip_jax.evaluation.evaluators import Document, Evaluator, Result
from clip_jax.evaluation.report.section import Section

@dataclasses.dataclass(frozen=True)
class Number(Result):
    value: object = 1.0
    def flat_metrics(self): return {"value": self.value}

class Mine(Evaluator[Number]):
    name = "mine"
    result = Number
    def needs(self, dataset): return ""
    def run(self, context, dataset): return Number()
"""
BROKEN = {
    "def needs(self, dataset): 1 / 0": ["needs of held", "ZeroDivisionError", "line 16"],
    "def needs(self, dataset): pass": ["needs of held", "None"],
    "def run(self, context, dataset): return [][0]": ["run on held", "IndexError", "line 16"],
    "def run(self, context, dataset): pass": ["run on held", "NoneType", "Result"],
    "def run(self, context, dataset): return Number('x')": ["metrics of held", "ValueError"],
    "def depends_on(self, context, dataset): return 3": ["depends_on of held", "TypeError"],
    "def document(self, results): return {}['x']": ["document", "KeyError"],
    "def document(self, results): return Document({'held': {'x': {1}}})": ["document", "set"],
    "def document(self, results): return Document({'x': {}})": ["document", "no results of x"],
    "def sections(self, results): yield 1 / 0": ["sections", "ZeroDivisionError"],
    "def sections(self, results): yield Section('s', 'S', lambda *_: 1 / 0)": ["section s"],
}


@pytest.mark.parametrize("method", BROKEN)
def test_every_method_that_fails_is_one_line(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_evaluators.py").write_text(f"{RESULT}    {method}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "failing_evaluators", raising=False)
    data = write_pairs(tmp_path / "held.tar", 2)
    sets = {"held": {"data": str(data), "caption": "{caption}"}}

    def evaluate() -> None:
        evaluators = load_evaluators("failing_evaluators:Mine")
        suite = Suite(Evaluate(sets=sets), Letters(), Preprocess(8), evaluators)
        model: Any = None
        results = suite.evaluate(model, 1.0)
        results.metrics()
        write_sheets(results, tmp_path / "sheets")
        facts = ModelFacts("model", "", None, 1, 8, "float32")
        write_report(tmp_path / "report", results, facts, {}, 1.0)

    refused(evaluate, "the evaluator failing_evaluators:Mine", *BROKEN[method])


def test_a_full_disk_is_not_the_fault_of_the_users_code() -> None:
    with pytest.raises(OSError, match="No space"), only_user_errors("my code"):
        raise OSError(28, "No space left on device")
