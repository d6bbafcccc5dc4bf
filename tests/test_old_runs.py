"""Runs that an older version began: this one resumes them, and computes what that one did."""

from __future__ import annotations

import json
import tarfile

import pytest

import runs
from clip_jax.config import changes
from clip_jax.models import architectures
from clip_jax.models.model_config import BertConfig
from clip_jax.training import run_identity

# A run of commit d4f89c8, stopped at step 6 of 12; `expected.json` is what that commit logged next.
OLD_RUN = runs.ROOT / "tests" / "golden" / "old_runs" / "d4f89c8.tar.gz"


@pytest.fixture
def folder(tmp_path):
    with tarfile.open(OLD_RUN) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_an_old_run_resumes_with_the_same_numbers(folder):
    workdir = folder / "run"
    done = runs.run(folder / "config.py", workdir)
    assert done.returncode == 0, done.stderr
    assert "resuming after step 6 of 12" in done.stderr
    assert "checkpoints/6 is of an older version, without digests" in done.stderr
    logged = {line["step"]: line for line in runs.lines(workdir) if "loss" in line}
    expected = json.loads((folder / "expected.json").read_text())
    for step, metrics in expected.items():
        for name, value in metrics.items():
            assert logged[int(step)][name] == pytest.approx(value, rel=1e-5), (step, name)


def test_an_old_run_does_not_resume_with_another_config(folder):
    done = runs.run(folder / "config.py", folder / "run", "--config.optimizer.learning_rate=1e-4")
    assert done.returncode == 2
    assert "optimizer.learning_rate: 0.003 → 0.0001" in done.stderr


def test_keys_of_an_architecture_that_a_run_did_not_have_are_no_change():
    model = architectures.efficientnet.align("b0", BertConfig()).to_dict()
    config = {"model": model, "steps": 5}
    old = json.loads(json.dumps(config))
    for tower, key in (("vision", "head"), ("vision", "activation"), ("text", "pool")):
        del old["model"][tower][key]
    assert changes(old, config)
    assert not changes(run_identity._with_model_defaults(old), config)
    old["model"]["vision"]["squeeze"] = 0.5
    changed = changes(run_identity._with_model_defaults(old), config)
    assert list(changed) == ["model.vision.squeeze"]
    assert run_identity._with_model_defaults({"model": 3}) == {"model": 3}
