"""A head of the user's own, trained by an objective of the user's that reads labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import runs
from clip_jax import config as config_lib
from clip_jax.distributed.global_batch import global_batch
from clip_jax.errors import UserError
from clip_jax.training import setup
from clip_jax.training.run import prepare
from clip_jax.training.trainer import Trainer
from support import refused, says

MODULE = """
import dataclasses

import jax
import jax.numpy as jnp

from clip_jax.models.head import Head
from clip_jax.models.initializers import TORCH
from clip_jax.models.layers import linear


@dataclasses.dataclass(frozen=True)
class Projection(Head):
    width: int = 64

    def build(self, model_config, *, dtype, remat, rngs):
        return linear(model_config.embed_dim, self.width, init=TORCH, dtype=dtype, rngs=rngs)


class Prototypes:
    extra_arrays = ("label",)
    unused_parts = ("text", "logit_scale")

    @classmethod
    def from_config(cls, config, model_config, options):
        return cls()

    def features(self, model, batch, keys):
        return model.heads.small(model.encode_image(batch["image"], key=keys))

    def loss(self, features, model, batch):
        shares = jax.nn.log_softmax(features[:, : len(model.config.labels)].astype(jnp.float32))
        return -jnp.mean(jnp.take_along_axis(shares, batch["label"][:, None], axis=1)), {}

    def flops(self, model_config, batch_size):
        return 0
"""
FLAGS = [
    "objective.name=heads_of_mine:Prototypes",
    "model.heads={'small': {'kind': 'heads_of_mine:Projection', 'width': 5}}",
]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "heads_of_mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    for i, name in enumerate(["cat", "dog", "cow"]):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16), (80 * i, 0, 0)).save(tmp_path / "pictures" / name / "0.png")
    path = tmp_path / "config.py"
    text = runs.CONFIG.format(train=str(tmp_path / "pictures"), labels="")
    path.write_text("\n".join(line for line in text.splitlines() if "sets.held" not in line))
    c, _ = config_lib.load(str(path), [*FLAGS, f"workdir={tmp_path / 'run'}"])
    return c


def test_it_learns_with_the_numbers_of_the_classes(config) -> None:
    trainer = Trainer(prepare(config))
    state = trainer.fresh()
    assert state.params["heads"]["small"]["kernel"].shape == (8, 5)
    step = trainer.compile(8)
    batch = next(trainer.data())
    assert set(batch["label"]) == {0, 1, 2}
    losses = []
    for _ in range(4):
        state, metrics = step(state, global_batch(batch, trainer.mesh))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    assert trainer.run.model.labels == ("cat", "cow", "dog")


def test_a_head_that_cannot_be_built_is_one_line(config, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "failing_heads.py").write_text(MODULE.replace("init=TORCH", "init=1 / 0"))
    config.model.heads.small.kind = "failing_heads:Projection"
    where = "config.model.heads.small.kind=failing_heads:Projection: build fails"
    refused(lambda: setup.checked(config), where, "ZeroDivision", "(failing_heads.py, line 17)")


def test_a_stranger_cannot_name_a_module(config, tmp_path: Path, monkeypatch) -> None:
    trainer = Trainer(prepare(config))
    values = json.loads(json.dumps(trainer.run.model.to_dict()))
    values["heads"]["small"]["kind"] = "not_imported:Projection"
    with pytest.raises(UserError) as caught:
        type(trainer.run.model).from_dict(values)
    assert says(caught.value, "model.heads.small.kind=not_imported:Projection", "import")
