"""An objective of the user's own, in a file outside the package, named by its dotted path."""

from __future__ import annotations

import json
import sys

import pytest
from ml_collections import ConfigDict

import runs
from clip_jax import config as config_lib
from clip_jax.errors import UserError
from clip_jax.training import setup
from steps import TINY
from support import refused, says

# Barlow Twins across the two towers: the matrix of correlations of the features is the identity.
MODULE = """
import dataclasses

import jax.numpy as jnp

from clip_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Decorrelation:
    off_diagonal: float = 0.005

    @classmethod
    def from_config(cls, config, model_config, options):
        if set(options) - {"off_diagonal"}:
            raise UserError(f"config.objective.options={dict(options)}: only off_diagonal is known")
        return cls(**options)

    def features(self, model, batch, keys):
        return {"image": model.encode_image(batch["image"], key=keys),
                "text": model.encode_text(batch["tokens"])}

    def loss(self, features, model, batch):
        image, text = (self.standardized(features[name]) for name in ("image", "text"))
        correlations = image.T @ text / len(image)
        diagonal = jnp.diagonal(correlations)
        others = jnp.sum(correlations**2) - jnp.sum(diagonal**2)
        loss = jnp.sum((1 - diagonal) ** 2) + self.off_diagonal * others
        return loss, {"correlation": jnp.mean(diagonal)}

    @staticmethod
    def standardized(x):
        x = x.astype(jnp.float32)
        return (x - x.mean(0)) / (x.std(0) + 1e-4)

    def flops(self, model_config, batch_size):
        return 2 * batch_size * model_config.embed_dim**2
"""
NAME = "--config.objective.name=losses_of_mine:Decorrelation"


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """A folder with the user's module and a small run's config; and how a command finds both."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "losses_of_mine.py").write_text(MODULE)
    assert len([line for line in MODULE.splitlines() if line.strip()]) <= 40
    return runs.small_run(folder, 24), {"PYTHONPATH": f"{runs.ROOT}:{folder}"}


def test_it_trains_resumes_and_accumulates(user, tmp_path):
    config, paths = user
    at_once, parts = tmp_path / "whole", tmp_path / "parts"
    flags = (NAME, "--config.steps=6", "--config.checkpoint.every=3")
    assert runs.run(config, at_once, *flags, "--config.objective.options.off_diagonal=0.01",
                    **paths).returncode == 0  # fmt: skip
    done = runs.run(config, parts, *flags, "--config.objective.options.off_diagonal=0.01",
                    "--config.accumulate=2", **paths)  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [[line for line in runs.lines(run) if "loss" in line] for run in (at_once, parts)]
    for one, other in zip(*lines, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["correlation"] == pytest.approx(other["correlation"], rel=1e-3, abs=1e-4)
    assert any("zero_shot/held/top1" in line for line in runs.lines(at_once)), "it evaluates too"
    other = "--config.objective.options.off_diagonal=0.5"
    refused = runs.run(config, at_once, *flags, other, **paths)
    assert refused.returncode == 2
    assert "objective.options.off_diagonal: 0.01 → 0.5" in refused.stderr


@pytest.mark.slow
def test_it_is_planned_and_its_flops_counted(user, tmp_path):
    config, paths = user
    flags = ("--mode=plan", "--topology=cpu:1", "--json")
    plans = [
        json.loads(runs.run(config, tmp_path / "x", *flags, *more, **paths).stdout.splitlines()[-1])
        for more in ([], [NAME])
    ]
    theirs, ours = (2 * 3 * flops for flops in (8 * 8 * 8, 8 * 8**2))
    assert plans[0]["fits"] and plans[1]["fits"]
    assert plans[0]["model_flops"] - theirs == plans[1]["model_flops"] - ours


@pytest.mark.slow
def test_it_mixes_with_ours(user, tmp_path):
    config, paths = user
    mix = "{'contrastive': 1.0, 'twins': {'name': 'losses_of_mine:Decorrelation', 'weight': 0.1}}"
    done = runs.run(config, tmp_path / "mix", f"--config.objective.mix={mix}", "--config.steps=3",
                    **paths)  # fmt: skip
    assert done.returncode == 0, done.stderr
    line = next(line for line in runs.lines(tmp_path / "mix") if "loss" in line)
    expected = line["contrastive/loss"] + 0.1 * line["twins/loss"]
    assert line["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        (f"{NAME}s", "losses_of_mine has no Decorrelations"),
        ("--config.objective.name=nowhere:X", "cannot import nowhere"),
        ("--config.objective.options.x=1", "config.objective.options={'x': 1}"),
    ],
)
def test_a_wrong_name_or_option_ends_in_one_line(user, tmp_path, flag, words):
    config, paths = user
    done = runs.run(config, tmp_path / "run", flag, **paths)
    assert done.returncode == 2
    assert words in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_an_objective_that_lacks_a_method_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "half_losses.py").write_text(
        "class Half:\n"
        "    @classmethod\n"
        "    def from_config(cls, config, model_config, options):\n"
        "        return cls()\n"
        "    def features(self, model, batch, keys):\n"
        "        return ()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    c, _ = config_lib.load("quickstart")
    c.objective.name = "half_losses:Half"
    with pytest.raises(UserError) as error:
        setup.checked(c)
    assert says(error.value, "config.objective", "Half", "loss, flops")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def from_config(self): raise RuntimeError('boom')", ["from_config fails", "TypeError"]),
        ("def from_config(*_): raise RuntimeError('boom')", ["from_config fails", "boom"]),
        ("def from_config(*_): return None", ["from_config returns a NoneType"]),
    ],
)
def test_an_objective_that_cannot_be_made_is_one_line(tmp_path, monkeypatch, body, words):
    methods = "def features(self): ...\n    def loss(self): ...\n    def flops(self): ..."
    (tmp_path / "odd_losses.py").write_text(
        f"class Odd:\n    @classmethod\n    {body}\n    {methods}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "odd_losses", raising=False)
    c, _ = config_lib.load("quickstart")
    c.objective.name = "odd_losses:Odd"
    with pytest.raises(UserError) as error:
        setup.checked(c)
    assert says(error.value, "config.objective", "Odd", *words)


OBJECTIVE = """
import jax.numpy as jnp

class Odd:
    @classmethod
    def from_config(cls, config, model_config, options): return cls()
    def features(self, model, batch, keys): return model.encode_text(batch["tokens"])
    def loss(self, features, model, batch): return features.mean(), {}
    def flops(self, model_config, batch_size): return 0
"""


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("features(self, model, batch, keys): return batch['x']", ["features fails", "line 10"]),
        ("features(self, model, batch, keys): return jnp.ones(3)", ["features returns float32[3]"]),
        ("loss(self, features, model, batch): return features @ features", ["loss fails"]),
        ("loss(self, features, model, batch): return features.mean()", ["returns float32[], not"]),
        ("loss(self, features, model, batch): return features, {}", ["the loss float32[4, 16]"]),
        ("loss(self, features, model, batch): return 1, {}", ["the loss int32[], not one float"]),
        (
            "loss(self, features, model, batch): return features.mean(), {'x': features[0]}",
            ["the metric 'x' as float32[16]"],
        ),
        ("flops(self, model_config, batch_size): return 'many'", ["flops returns 'many'"]),
    ],
)
@pytest.mark.parametrize("mix", [False, True])
def test_an_objective_that_fails_is_one_line_before_a_run(
    tmp_path, monkeypatch, method, words, mix
):
    (tmp_path / "failing_losses.py").write_text(f"{OBJECTIVE}    def {method}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "failing_losses", raising=False)
    c, _ = config_lib.load("quickstart")
    with c.unlocked():
        c.model = ConfigDict(TINY.to_dict())
    c.batch_size, c.accumulate = 4, 2
    where = "config.objective.mix.mine.name" if mix else "config.objective.name"
    if mix:
        c.objective.mix = {"contrastive": 1.0, "mine": {"name": "failing_losses:Odd"}}
    else:
        c.objective.name = "failing_losses:Odd"
    refused(lambda: setup.checked(c), f"{where}=failing_losses:Odd", *words)
