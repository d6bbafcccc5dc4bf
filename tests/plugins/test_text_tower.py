"""A text tower in a user's own file: it trains, accumulates, plans and evaluates by dotted path."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import clip_jax
import runs
from clip_jax import config as config_lib
from clip_jax import main
from clip_jax.errors import UserError
from clip_jax.models.model_config import CLIPConfig
from clip_jax.training import flops, setup
from steps import DENSE, TINY, assert_same_gradients, run
from support import says

MODULE = '''"""A text tower of my own: a bag of words with a gate."""
import dataclasses

import jax
from flax import nnx

from clip_jax.models.flop_counts import product
from clip_jax.models.initializers import TORCH, normal
from clip_jax.models.layers import embedding, linear
from clip_jax.models.tower import TextTower


@dataclasses.dataclass(frozen=True)
class GatedWords(TextTower):
    vocab_size: int = 56
    context_length: int = 8
    width: int = 24

    def build(self, embed_dim, activation, *, dtype, rngs, **options):
        return Module(self, embed_dim, dtype, rngs)

    def flops(self, embed_dim, tokens):
        return product(tokens, self.width, self.width) + product(1, self.width, embed_dim)


class Module(nnx.Module):
    def __init__(self, config, embed_dim, dtype, rngs):
        size, width, common = config.vocab_size, config.width, dict(dtype=dtype, rngs=rngs)
        self.words = embedding(size, width, init=normal(0.02), **common)
        self.gate = linear(width, width, init=TORCH, **common)
        self.projection = linear(width, embed_dim, init=TORCH, use_bias=False, **common)

    def __call__(self, tokens):
        x = self.words(tokens)
        gated = jax.nn.sigmoid(self.gate(x)) * x * (tokens > 0)[..., None]
        return self.projection(gated.sum(axis=1))
'''
KIND = "my_towers:GatedWords"


def test_the_plugin_is_short():
    assert len(MODULE.splitlines()) <= 40


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on Python's path that holds the module, and a config that names its tower."""
    (tmp_path / "my_towers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_towers", raising=False)
    config = runs.small_run(tmp_path, 24)
    text = config.read_text()
    ours = "c.model.text.update(vocab_size=2100, context_length=8, width=16, layers=1, heads=2)"
    assert ours in text
    theirs = f"c.model.text = ConfigDict(dict(kind={KIND!r}, vocab_size=2100))"
    config.write_text(text.replace(ours, theirs))
    return tmp_path


@pytest.fixture
def model(folder: Path) -> CLIPConfig:
    """The model of the steps' tests with the user's tower."""
    values = TINY.to_dict() | {"text": {"kind": KIND}}
    return CLIPConfig.from_dict(values, trusted=True)


@pytest.mark.slow
def test_it_trains_in_parts_evaluates_and_is_loaded(folder: Path) -> None:
    workdir = folder / "run"
    flags = ("--config.accumulate=2", "--config.steps=4", "--config.evaluate.every=4")
    done = runs.run(folder / "config.py", workdir, *flags)
    assert done.returncode == 0, done.stderr
    values = runs.values(workdir)
    assert np.isfinite([values[step, "loss"] for step in range(1, 5)]).all()
    assert 0 <= values[4, "zero_shot/held/top1"] <= 1
    assert 0 < values[4, "retrieval/held/text_to_image/r10"] <= 1
    assert "held" in (workdir / "report.json").read_text()
    assert json.loads((workdir / "config.json").read_text())["model"]["text"]["kind"] == KIND

    with pytest.raises(UserError, match=r"my_towers:GatedWords names code .* import my_towers"):
        clip_jax.load(workdir)
    importlib.import_module("my_towers")
    loaded, _, tokenize = clip_jax.load(workdir)
    assert loaded.encode_text(tokenize(["apple", "a red apple"])).shape == (2, 8)
    assert "text my_towers:GatedWords 8 of 2,100 tokens" in repr(loaded)


def test_a_plan_counts_its_flops(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--config", str(folder / "config.py"), "--mode=plan", "--topology=cpu:1", "--json"]
    assert main.run(argv) == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert plan["fits"] and plan["hbm"]["parameters"] > 4 * 2100 * 24
    model = CLIPConfig.from_dict(
        {"embed_dim": 8, "vision": {}, "text": {"kind": KIND, "vocab_size": 2100}}
    )
    assert flops.forward(model, tokens=5).text == 2 * (5 * 24 * 24 + 24 * 8)
    other = dataclasses.replace(model, text=TINY.text)
    image, text = flops.forward(model)
    step = flops.step(model, DENSE, 8) - flops.step(other, DENSE, 8)
    assert (
        step == 3 * 8 * (text - flops.forward(other).text) and image == flops.forward(other).image
    )


@pytest.mark.slow
def test_parts_and_meshes_have_the_same_gradients(model: CLIPConfig) -> None:
    before, alone, metrics = run(dict(data=1), config=model)
    assert {"words", "gate", "projection"} == before["text"].keys()
    for shape, options in (
        (dict(data=2), dict(accumulate=2)),
        (dict(data=2, fsdp=2, tensor=2), {}),
    ):
        _, gradients, again = run(shape, config=model, **options)
        assert_same_gradients(gradients, alone)
        assert again[0]["loss"] == pytest.approx(metrics[0]["loss"], rel=1e-6)


def with_text(text: dict[str, Any]) -> CLIPConfig:
    return CLIPConfig.from_dict(TINY.to_dict() | {"text": text}, trusted=True)


def test_its_config_is_read_and_written(model: CLIPConfig) -> None:
    assert model.to_dict()["text"] == dict(kind=KIND, vocab_size=56, context_length=8, width=24)
    assert CLIPConfig.from_dict(json.loads(json.dumps(model.to_dict()))) == model
    assert with_text({"kind": KIND, "width": 32}).text == dataclasses.replace(model.text, width=32)
    with pytest.raises(UserError, match=r"model\.text\.heads is nothing that"):
        with_text({"kind": KIND, "heads": 2})
    with pytest.raises(UserError, match=r"model\.text\.width='wide' must be a whole number"):
        with_text({"kind": KIND, "width": "wide"})
    with pytest.raises(UserError, match=r"context_length=9: a my_towers:GatedWords of 8 tokens"):
        model.text.resize_positions({}, 9)


BROKEN = """
import dataclasses
from flax import nnx
from clip_jax.models.tower import TextTower

@dataclasses.dataclass(frozen=True)
class NoFlops(TextTower):
    def build(self, *sizes, **options): ...

@dataclasses.dataclass
class NotFrozen(NoFlops.__base__):
    def build(self, *sizes, **options): ...
    def flops(self, *sizes): return 0

@dataclasses.dataclass(frozen=True)
class NoTower:
    pass

@dataclasses.dataclass(frozen=True)
class Bare(TextTower):
    vocab_size: int = 56
    context_length: int = 8
    def build(self, embed_dim, activation, *, rngs, **options):
        return nnx.Linear(8, embed_dim, rngs=rngs)
    def flops(self, *sizes): return 0
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NoFlops", "abstract method '?flops"),
        ("NotFrozen", "unhashable type: 'NotFrozen'"),
        ("NoTower", r"must be a dataclass that subclasses clip_jax\.models\.tower\.TextTower"),
        ("Missing", "broken_towers has no Missing"),
    ],
)
def test_a_class_that_is_not_a_tower_is_refused(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_towers.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_towers", raising=False)
    with pytest.raises(UserError, match=rf"model\.text\.kind=broken_towers:{name}.*{message}"):
        with_text({"kind": f"broken_towers:{name}"})


def test_a_parameter_without_metadata_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a parameter would silently decay, and lie whole on every device."""
    from clip_jax.models.clip import abstract_model

    (tmp_path / "broken_towers.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_towers", raising=False)
    with pytest.raises(UserError, match=r"the parameter text/(bias|kernel) has no metadata"):
        abstract_model(with_text({"kind": "broken_towers:Bare"}))


def test_a_tower_of_somebody_else_is_not_imported(model: CLIPConfig, folder: Path) -> None:
    sys.modules.pop("my_towers")
    with pytest.raises(UserError, match="import my_towers first"):
        CLIPConfig.from_dict(model.to_dict())
    assert "my_towers" not in sys.modules and jax.device_count() == 8


@pytest.mark.parametrize(
    ("build", "flops", "message"),
    [
        ("1 / 0", "1", r"build fails: ZeroDivisionError.* \(failing_towers.py, line 6\)"),
        ("lambda tokens: 1", "1", "build fails"),
        ("Module(lambda tokens: tokens['x'])", "1", r"its module fails.*failing_towers.py"),
        ("Module(lambda tokens: tokens)", "1", r"its module returns int32\[2, 8\] for 2 rows, not"),
        ("Module(lambda tokens: jnp.ones((2, self.width)))", "1 / 0", "flops fails"),
        ("Module(lambda tokens: jnp.ones((2, self.width)))", "None", "flops returns None"),
    ],
)
def test_a_tower_that_fails_is_one_line_before_a_run(
    build: str, flops: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_towers.py").write_text(
        "import dataclasses\nimport jax.numpy as jnp\nfrom flax import nnx\n"
        "from clip_jax.models.tower import TextTower\n\n"
        f"def build(self): return {build}\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Odd(TextTower):\n"
        "    vocab_size: int = 50\n    context_length: int = 8\n    width: int = 16\n"
        "    def build(self, *_, **__): return build(self)\n"
        f"    def flops(self, embed_dim, tokens): return {flops}\n"
        "class Module(nnx.Module):\n"
        "    def __init__(self, call): self.call = call\n"
        "    def __call__(self, tokens): return self.call(tokens)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "failing_towers", raising=False)
    c, _ = config_lib.load("quickstart")
    with c.unlocked():
        c.model = ConfigDict(TINY.to_dict())
        c.model.text = ConfigDict({"kind": "failing_towers:Odd"})
    with pytest.raises(
        UserError, match=rf"model\.text\.kind=failing_towers:Odd: {message}"
    ) as error:
        setup.checked(c)
    assert says(error.value)
