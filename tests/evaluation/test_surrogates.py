"""Halves of surrogate pairs in names and captions end nothing: JSON, page, curves, output."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import runs
from clip_jax.evaluation import results
from clip_jax.training import metric_writers

BAD = "cat\ud800 \udcff"


def test_both_reports_are_written(tmp_path: Path) -> None:
    document = {
        "model": {"name": BAD},
        "sets": {BAD: {"title": BAD, "zero_shot": {"labels": [BAD], "metrics": {}}}},
    }
    page = results.write_document(tmp_path, {"model": document["model"], "missing": []}, {}, ())
    assert page.read_text("utf-8")
    written = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert written["model"]["name"] == "cat\ufffd \ufffd"
    assert json.dumps(results.sanitize(document), ensure_ascii=False).encode()


def test_metrics_of_such_a_set_are_written(tmp_path: Path) -> None:
    with metric_writers.Writer(tmp_path) as writer:
        writer.write(1, {f"zero_shot/{BAD}/top1": 0.5})
    assert (
        metric_writers.read_metrics(tmp_path / "metrics.jsonl")[0][f"zero_shot/{BAD}/top1"] == 0.5
    )


def test_a_command_prints_text_that_its_output_cannot_encode() -> None:
    code = (
        "import sys; from clip_jax.cli.common import run_and_exit\n"
        "run_and_exit(lambda argv: print('a 猫 \\ud800') or 0, [])"
    )
    environment = {**runs.environment(), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == b"a \\u732b \\ud800"
