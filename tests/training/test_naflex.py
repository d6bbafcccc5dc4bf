"""Training on images of any shape: rows of a batch, a run to its end, its plan."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import clip_jax
import runs
from clip_jax import tokenizers
from clip_jax.config.schema import defaults
from clip_jax.data.images.augmentation import Augment, random_view
from clip_jax.data.rows import Prepare
from clip_jax.errors import UserError
from clip_jax.models import architectures, patches
from clip_jax.models.patches import PatchBudget
from clip_jax.training import setup
from support import says

TOWER = """
    c.model.embed_dim = 16
    c.model.vision = ConfigDict(dict(
        kind="naflex", max_num_patches=18, patch_size=4, positions=4, width=16, layers=2, heads=2))
"""
WHOLE = Augment(crop_scale=(1.0, 1.0))


def write_pictures(folder: Path) -> Path:
    """Pictures of three colours and of shapes of their own, in a folder for each colour."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir(parents=True)
        for i in range(6):
            height, width = rng.integers(8, 60, 2)
            pixels = rng.integers(0, 100, (height, width, 3), np.uint8)
            pixels[..., number] += 150
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def config_of(folder: Path) -> Path:
    train = write_pictures(folder / "train")
    text = runs.CONFIG.format(train=str(train), labels="")
    lines = [
        line
        for line in text.splitlines()
        if not any(
            word in line for word in ("evaluate.sets", "model.vision", "embed_dim", "return c")
        )
    ]
    held = f"    c.evaluate.sets.held = dict(data={str(train)!r})"
    file = folder / "config.py"
    file.write_text("\n".join([*lines, TOWER, held, "    return c\n"]))
    return file


def test_a_view_without_a_crop_is_the_whole_picture() -> None:
    rng, budget = np.random.default_rng(0), PatchBudget(4, 18)
    pixels = rng.integers(0, 256, (8, 36, 3), np.uint8)
    view = random_view(pixels, budget, WHOLE, rng)
    assert view.shape == budget.shape
    np.testing.assert_array_equal(patches.picture(view), pixels)
    mirrored = random_view(pixels, budget, Augment(crop_scale=(1.0, 1.0), flip=1.0), rng)
    np.testing.assert_array_equal(patches.picture(mirrored), pixels[:, ::-1])


@pytest.mark.parametrize("crop", ["fit", "open_clip"])
def test_a_crop_has_the_shape_of_its_picture(crop: str) -> None:
    augment = Augment(crop=crop, crop_scale=(0.3, 0.5))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 400, 3), np.uint8)
    grids = set()
    for seed in range(20):
        view = random_view(pixels, PatchBudget(4, 64), augment, np.random.default_rng(seed))
        _, places = patches.unpack(view)
        grids.add((int(places.rows.max()), int(places.columns.max())))
    assert all(4 <= columns / rows <= 16 for rows, columns in grids), grids


@pytest.mark.slow
def test_a_run_trains_resumes_evaluates_and_is_loaded(tmp_path: Path) -> None:
    config, workdir = config_of(tmp_path), tmp_path / "run"
    _, stderr = runs.run_until(config, workdir, 5, signal.SIGTERM)
    assert "the same command goes on from there" in stderr
    resumed = runs.run(config, workdir)
    assert resumed.returncode == 0, resumed.stderr
    lines = runs.lines(workdir)
    assert lines[-1]["step"] == 12
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
    flags = ("--mode=evaluate", f"--checkpoint={workdir}", "--config.evaluate.max_num_patches=30")
    evaluated = runs.run(config, tmp_path / "evaluated", *flags)
    assert evaluated.returncode == 0, evaluated.stderr
    model, prepare, _ = clip_jax.load(workdir, max_num_patches=30)
    picture = Image.open(tmp_path / "train" / "red" / "0.png")
    assert np.isfinite(model.encode_image(prepare(picture)[None])).all()


def test_every_batch_draws_its_number_of_patches() -> None:
    prepare = Prepare(
        tokenizers.load("clip", 8),
        16,
        ("{caption}",),
        Augment(num_patches=(2, 6, 18)),
        budget=PatchBudget(4, 18),
    )
    counts = [[prepare.for_step(seed, step).budget for step in range(60)] for seed in (0, 1)]
    drawn = [[budget.patches for budget in steps if budget] for steps in counts]
    assert drawn[0] == [prepare.for_step(0, s).budget.patches for s in range(60)]  # type: ignore[union-attr]
    assert drawn[0] != drawn[1]
    assert min(map(drawn[0].count, (2, 6, 18))) > 8


def test_numbers_of_patches_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError):
        Augment(num_patches=(0,))
    for model, words in (
        ("siglip2-b16-naflex", ["num_patches=(576,)", "max_num_patches=256"]),
        ("ViT-B/32", ["num_patches=(576,)", "shapes"]),
    ):
        c = ConfigDict(defaults(architectures.architecture(model)))
        c.data.augment.num_patches = (576,)
        with pytest.raises(UserError) as error:
            setup.checked(c)
        assert says(error.value, *words)


@pytest.mark.slow
def test_a_run_with_several_numbers_of_patches_resumes_exactly(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    flag = "--config.data.augment.num_patches=(6,18)"
    whole = runs.run(config, tmp_path / "whole", flag)
    assert whole.returncode == 0, whole.stderr
    for patches_of_image in (6, 18):
        assert f"and {patches_of_image} patches an image" in whole.stderr
    runs.run_until(config, tmp_path / "parts", 5, signal.SIGKILL, flag)
    resumed = runs.run(config, tmp_path / "parts", flag)
    assert resumed.returncode == 0, resumed.stderr
    losses = [
        {line["step"]: line["loss"] for line in runs.lines(tmp_path / name) if "loss" in line}
        for name in ("whole", "parts")
    ]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_accumulation_and_remat_give_the_same_losses(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    losses = []
    for number, flags in enumerate(((), ("--config.accumulate=2", "--config.remat=full"))):
        workdir = tmp_path / str(number)
        outcome = runs.run(config, workdir, "--config.steps=4", *flags)
        assert outcome.returncode == 0, outcome.stderr
        losses.append([line["loss"] for line in runs.lines(workdir) if "loss" in line])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@pytest.mark.slow
def test_the_plan_of_a_run(tmp_path: Path) -> None:
    outcome = runs.run(config_of(tmp_path), tmp_path / "run", "--mode=plan", "--topology=cpu:8")
    assert outcome.returncode == 0, outcome.stderr
