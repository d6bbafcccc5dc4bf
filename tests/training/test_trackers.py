"""Trackers: what reaches Weights & Biases and trackio; one line where they are missing."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from clip_jax import config as config_lib
from clip_jax.config.schema import Log
from clip_jax.errors import UserError
from clip_jax.training import trackers
from clip_jax.training.metric_writers import Writer
from support import picture


class Run:
    """Records what a library's run is given."""

    def __init__(self):
        self.logged, self.finished, self.metrics = [], False, []

    def log(self, values, step=None):
        self.logged.append((step, values))

    def define_metric(self, name, step_metric):
        self.metrics.append((name, step_metric))

    def finish(self):
        self.finished = True


def library(record):
    def init(**options):
        record.append(options)
        return run

    run = Run()
    marked = dict(Image=lambda path: ("image", path), Html=lambda text: ("html", text))
    return SimpleNamespace(init=init, run=run, **marked)


def config_of(**log):
    return config_lib.typed({"model": {}, "log": log})


@pytest.mark.parametrize("name", trackers.LIBRARIES)
def test_a_missing_package_is_one_line(name, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf"config\.log\.{name}='mine' needs .* pip install {name}"):
        trackers.check_trackers(Log(**{name: "mine"}))
    trackers.check_trackers(Log())


@pytest.mark.parametrize("name", trackers.LIBRARIES)
def test_numbers_pictures_and_pages_arrive(name, tmp_path, monkeypatch):
    inits = []
    fake = library(inits)
    monkeypatch.setitem(sys.modules, name, fake)
    c = config_of(**{name: "mine"})
    picture(1, (8, 8)).save(tmp_path / "sheet.png")
    (tmp_path / "report.html").write_text("<p>page</p>")
    opened = trackers.open_trackers(c, tmp_path, {"seed": 3})
    with Writer(tmp_path, tensorboard=False, trackers=opened) as writer:
        writer.write(2, {"loss": 0.5})
        writer.picture(2, "pictures/sheet", tmp_path / "sheet.png")
        writer.report(2, "report", tmp_path / "report.html")
    step, more = (None, {"step": 2}) if name == "wandb" else (2, {})
    assert fake.run.logged == [
        (step, {**more, "loss": 0.5}),
        (step, {**more, "pictures/sheet": ("image", str(tmp_path / "sheet.png"))}),
        (step, {**more, "report": ("html", "<p>page</p>")}),
    ]
    assert fake.run.finished
    (options,) = inits
    assert options["project"] == "mine" and options["config"] == {"seed": 3}
    assert options["name"] == tmp_path.name and options["resume"] == "allow"
    trackers.open_trackers(c, tmp_path, {})
    assert inits[1].get("id") == options.get("id")  # a resumed run is the same run


def test_nothing_is_opened_without_a_project(tmp_path):
    assert trackers.open_trackers(config_of(), tmp_path, {}) == []
    assert not list(tmp_path.iterdir())


def test_wandb_offline_writes_its_files(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "report.html").write_text("<p>page</p>")
    opened = trackers.open_trackers(config_of(wandb="mine"), tmp_path, {"seed": 3})
    with Writer(tmp_path, tensorboard=False, trackers=opened) as writer:
        writer.write(1, {"loss": 0.5})
        writer.report(1, "report", tmp_path / "report.html")
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(run.glob("run-*.wandb")) and list(run.rglob("*.html"))


def test_a_run_starts_without_what_it_does_not_use(tmp_path):
    """torch and most of scipy take seconds to import."""
    code = (
        "import sys, pathlib, clip_jax.training.loop as _; from clip_jax.training import trackers; "
        f"trackers.TensorBoard(pathlib.Path({str(tmp_path)!r}), 0).scalars(1, {{'loss': 1.0}}); "
        "print([name for name in ('torch', 'scipy.stats', 'scipy.fft') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    assert list(tmp_path.glob("events*"))
