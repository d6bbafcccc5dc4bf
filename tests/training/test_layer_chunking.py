"""The rows that a layer takes at a time: asked for, or what suits a chip."""

import dataclasses

import pytest

from clip_jax import config as config_lib
from clip_jax.config import ROOT, checks
from clip_jax.distributed.hardware import chip_named
from clip_jax.errors import UserError
from clip_jax.models.architectures import find_architecture
from clip_jax.training.layer_chunking import choose_chunks

AUTO = dict(image=-1, text=-1)


@pytest.mark.parametrize(
    ("model", "chip", "rows", "expected"),
    [
        ("ViT-B/16", "v5e", 128, (16, 64)),
        ("ViT-L/14", "v5e", 128, (8, 32)),
        ("ViT-B/16", "v5p", 512, (64, 128)),
        ("ViT-L/14", "v5p", 512, (32, 128)),
        ("ViT-B/32", "v5e", 128, (0, 64)),  # sequences too short to gain
        ("ViT-B/16", "v5e", 8, (0, 0)),  # all rows are no more than a chunk
        ("ViT-B/16", "h100-sxm", 1024, (128, 256)),
        ("ViT-B/32", "rtx-4090", 1024, (512, 256)),
        ("ViT-B/16", "v5e", 34, (2, 0)),  # a chunk divides the rows
        ("ViT-B/16", "v4", 128, (0, 0)),  # never tried
        ("RN50", "v5e", 128, (0, 64)),  # convolutions go whole
        ("align-base", "v5e", 64, (0, 32)),
    ],
)
def test_chunks_that_suit_a_chip(model, chip, rows, expected):
    assert choose_chunks(AUTO, find_architecture(model), chip_named(chip), rows, "full") == expected


@pytest.mark.parametrize(("model", "expected"), [("ViT-B/16", (16, 64)), ("ViT-L/14", (8, 32))])
def test_a_core_of_its_own_takes_smaller_chunks(model, expected):
    core = chip_named("v5p").of_cores(1)
    assert choose_chunks(AUTO, find_architecture(model), core, 256, "full") == expected


def test_fewer_tokens_make_larger_chunks():
    model = find_architecture("ViT-B/16")
    half = dataclasses.replace(model.vision, patch_dropout=0.5)
    model = dataclasses.replace(model, vision=half)
    assert choose_chunks(AUTO, model, chip_named("v5e"), 128, "full") == (32, 64)


def test_configured_chunks_are_used():
    model, chip = find_architecture("ViT-B/16"), chip_named("v5e")
    assert choose_chunks(dict(image=7, text=0), model, chip, 128, "full") == (7, 0)
    assert choose_chunks(AUTO, model, chip, 128, "none") == (0, 0)
    assert choose_chunks(AUTO, model, chip, 128, "full:2") == (16, 64)
    assert choose_chunks(AUTO, model, None, 128, "full") == (0, 0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("chunk.image=-2", "config.chunk.image=-2 must be at least -1"),
        ("chunk.text=4", "config.chunk.text=4 needs config.remat=full, not 'none'"),
    ],
)
def test_chunks_that_cannot_be(override, message):
    file = str(ROOT / "configs" / "vit_b16.py")
    config, _ = config_lib.load(file, ["remat=none", override])
    with pytest.raises(UserError, match=message):
        checks.check(config, 8)
