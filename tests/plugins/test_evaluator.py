"""A user's evaluator joins by its dotted path: no file of the package is touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import pytest

import runs
from clip_jax import main
from support import refused

NAME = "my_evaluators:Brightness"
CODE = '''"""How bright the images of a dataset are."""
import dataclasses

import numpy as np

from clip_jax.evaluation.evaluators import Evaluator, Result
from clip_jax.evaluation.report.markup import tag
from clip_jax.evaluation.serialization import Thumbnail


@dataclasses.dataclass(frozen=True)
class BrightnessResult(Result):
    mean: float
    brightest: Thumbnail

    def flat_metrics(self):
        return {"mean": self.mean}

    def section(self):
        return tag("p", f"mean brightness {self.mean:.3f}")


class Brightness(Evaluator[BrightnessResult]):
    name = "brightness"
    result = BrightnessResult

    def needs(self, dataset):
        return "" if len(dataset) > 1 else "two images"

    def depends_on(self, context, dataset):
        return ()

    def run(self, context, dataset):
        images = (context.image(dataset.source, i) for i in range(len(dataset)))
        values = [float(np.asarray(image.convert("L")).mean()) for image in images]
        brightest = context.thumbnail(dataset.source, int(np.argmax(values)))
        return BrightnessResult(sum(values) / len(values), brightest)
'''


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's config, and a user's file beside it that Python can import."""
    assert len(CODE.splitlines()) <= 40
    (tmp_path / "my_evaluators.py").write_text(CODE)
    (tmp_path / "broken_evaluators.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "other_evaluators.py").write_text(
        "from clip_jax.evaluation.evaluators import Evaluator\n"
        "class Nothing: name = 'nothing'\n"
        "class Nameless(Evaluator): pass\n"
        "class Again(Evaluator):\n"
        "    name = 'zero_shot'\n"
        "    def needs(self, dataset): return ''\n"
        "    def run(self, context, dataset): return None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return runs.small_run(tmp_path, 8)


def report(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return document


def test_it_runs_while_training_and_in_an_evaluation(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "run"
    suite = f"--config.evaluate.suite=('zero_shot', '{NAME}')"
    flags = ["--config.steps=4", "--config.evaluate.every=2", suite]
    main.run(["--config", str(config), "--workdir", str(workdir), *flags])
    capsys.readouterr()

    key = "brightness/held/mean"
    logged = {step: value for (step, name), value in runs.values(workdir).items() if name == key}
    assert logged.keys() == {2, 4}
    document = report(workdir)
    result = document["sets"]["held"]["brightness"]
    assert result["mean"] == logged[2] == logged[4]
    assert 0 < result["mean"] < 255
    assert list(document["sets"]["held"])[-2:] == ["zero_shot", "brightness"], "ours come first"
    assert [step for step, _ in document["curves"][key]] == [2, 4]
    page = (workdir / "report.html").read_text()
    assert '<section id="brightness"' in page
    assert f"mean brightness {result['mean']:.3f}" in page

    argv = ["--config", str(config), "--mode=evaluate", "--checkpoint", str(workdir)]
    argv += ["--workdir", str(tmp_path / "out"), f"--suite={NAME}"]
    main.run(argv)
    printed = capsys.readouterr()
    assert json.loads(printed.out.splitlines()[-1]) == {"step": 4, key: result["mean"]}
    assert f"{key}  " in printed.err
    assert report(tmp_path / "out")["sets"]["held"]["brightness"] == result
    assert '<section id="brightness"' in (tmp_path / "out" / "report.html").read_text()
    main.run(argv)
    assert "held: brightness was done before" in capsys.readouterr().err
    assert report(tmp_path / "out")["sets"]["held"]["brightness"] == result


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my_evaluators:Darkness", ["my_evaluators", "no Darkness"]),
        ("no_such_module:Brightness", ["no_such_module", "cannot import", "PYTHONPATH"]),
        ("broken_evaluators:Mine", ["nothing_of_this_name"]),
        ("brightness", ["no evaluator has this name", "zero_shot"]),
        ("other_evaluators:Nothing", ["other_evaluators:Nothing", "Evaluator"]),
        ("other_evaluators:Nameless", ["has no name"]),
        ("other_evaluators:Again", ["zero_shot"]),
    ],
)
def test_a_wrong_path_is_one_line_before_any_device_is_touched(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: list[str]
) -> None:
    for function in ("devices", "device_count", "local_devices"):
        monkeypatch.setattr(jax, function, lambda *_: pytest.fail("a device was touched"))
    train = ["--config", str(config), "--workdir", str(tmp_path / "run")]
    suite = f"--config.evaluate.suite=('zero_shot', '{name}')"
    refused(lambda: main.run([*train, suite]), f"config.evaluate.suite={name}", *words)
    assert not (tmp_path / "run").exists()
    judge = [*train, "--mode=evaluate", f"--suite=zero_shot,{name}"]
    refused(lambda: main.run(judge), f"--suite={name}", *words)
