"""Training on small images and short texts, then on larger ones from the first run (CLIPA)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from recipes import flat

import clip_jax
import runs
from clip_jax import main
from clip_jax.config import load
from clip_jax.models.clip import variables
from clip_jax.training.run import prepare
from clip_jax.training.trainer import Trainer
from clip_jax.weights.positions import resize_model


@pytest.mark.slow
def test_the_second_stage_starts_from_the_first_with_resized_positions(tmp_path: Path) -> None:
    config = str(runs.small_run(tmp_path, 16))
    one, two = tmp_path / "one", tmp_path / "two"
    common = ["--config", config, "--config.steps=3", "--config.evaluate.sets={}"]
    small = ["--config.model.text.context_length=4", "--config.data.long_captions=random"]
    main.run([*common, *small, "--workdir", str(one)])

    start = [f"weights.path={one}", "weights.resize=True"]
    sizes = ["model.vision.image_size=32", "model.text.context_length=8"]
    c, _ = load(config, [f"workdir={two}", "steps=3", "evaluate.sets={}", *start, *sizes])
    begins = flat(Trainer(prepare(c)).fresh().params)
    model, *_ = clip_jax.load(str(one))
    params, was = variables(model)[0], model.config
    resized = flat(resize_model(params, was, image_size=32, context_length=8)[0])
    assert begins.keys() == resized.keys()
    for name, value in begins.items():
        np.testing.assert_allclose(value, resized[name], rtol=1e-6, atol=1e-7, err_msg=name)
    changed = {name for name, value in flat(params).items() if value.shape != begins[name].shape}
    assert changed == {name for name in begins if name.endswith("positional_embedding")}

    flags = [f"--config.{item}" for item in (*start, *sizes)]
    main.run([*common, *flags, "--workdir", str(two)])
    losses = [line["loss"] for line in runs.lines(two) if "loss" in line]
    assert len(losses) == 3 and all(map(math.isfinite, losses))
