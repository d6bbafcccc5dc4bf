"""Which of open_clip's architectures are read, and that each is exactly open_clip's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import released
from clip_jax.errors import UserError
from clip_jax.models import architectures
from clip_jax.models.architectures import released as published
from clip_jax.models.clip import abstract_model, parameter_count, variables
from clip_jax.weights import arrays, configs
from clip_jax.weights.param_mapping import leaves
from tools import build_open_clip_models

SHAPES: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "golden" / "open_clip_shapes.json").read_text()
)
# What is not read, with a word of the message that says why.
REFUSED = {"coca_roberta-ViT-B-32": "reads a caption both ways"}
READ = [name for name in SHAPES if name not in REFUSED]


def shapes_of(name: str) -> tuple[int, dict[str, tuple[int, ...]]]:
    """The number of parameters, and the shapes of the tensors of our file of a model."""
    entry = published.find(name)
    assert entry is not None
    config = entry.config
    model = abstract_model(config)
    shapes = dict(arrays.flat(*variables(model)))
    return parameter_count(model), arrays.tensor_shapes(leaves(config, "open_clip"), shapes)


def test_every_architecture_of_open_clip_is_read_or_refused_for_a_reason() -> None:
    assert len(SHAPES) == 144
    assert set(published.names()) == set(READ)
    assert len(READ) >= 140


@pytest.mark.parametrize("name", READ)
def test_parameters_and_tensors_are_open_clips(name: str) -> None:
    """At full size; nothing is allocated."""
    count, digest = SHAPES[name]
    ours, tensors = shapes_of(name)
    assert ours == count
    assert build_open_clip_models.digest(tensors) == digest


@pytest.mark.parametrize("name", READ)
def test_the_installed_open_clips_config_is_read_and_written(name: str) -> None:
    values = build_open_clip_models.read_configs(released.open_clip())[name]
    config = configs.from_open_clip(values)
    entry = published.find(name)
    assert entry is not None
    vision = entry.config.vision
    colors = dict(mean=config.vision.mean, std=config.vision.std)
    assert entry.config.with_vision(**colors) == config, vision
    written = json.loads(json.dumps(configs.to_open_clip(config)))
    assert configs.from_open_clip(written) == config


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(name: str) -> None:
    values = build_open_clip_models.read_configs(released.open_clip())[name]
    with pytest.raises(UserError, match=REFUSED[name]):
        configs.from_open_clip(values)


def test_the_shapes_are_those_of_the_installed_open_clip() -> None:
    """A sample; `tools/build_open_clip_models.py` writes them all."""
    open_clip = released.open_clip()
    values = build_open_clip_models.read_configs(open_clip)
    assert values.keys() == SHAPES.keys()
    for name in ("ViT-M-16-alt", "ViT-B-32-256"):
        model = build_open_clip_models.build(open_clip, values[name])
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        assert build_open_clip_models.digest(shapes) == SHAPES[name][1]


def test_names_that_people_type() -> None:
    """open_clip's names, repositories with and without hf-hub:, upper and lower case."""
    table = json.loads(
        (Path(published.__file__).parent / "open_clip.json").read_text(encoding="utf-8")
    )
    for name in table["models"]:
        assert architectures.find_architecture(name)
        assert architectures.find_architecture(name.lower())
    for name, (model, *_) in table["hub"].items():
        found = architectures.find_released(f"hf-hub:{name}")
        assert found is not None
        config = architectures.find_architecture(model)
        assert found.config.vision.image_size == config.vision.image_size
        assert found.config.activation == config.activation or "quickgelu" not in model
    for name, image_size, context in (
        ("openai/clip-vit-large-patch14-336", 336, 77),
        ("google/siglip2-so400m-patch16-512", 512, 64),
        ("google/siglip-so400m-patch14-384", 384, 64),
        ("facebook/metaclip-2-worldwide-giant-378", 378, 77),
        ("kakaobrain/align-base", 289, 64),
        ("ViT-L-14-336", 336, 77),
        ("laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", 224, 77),
    ):
        config = architectures.find_architecture(name)
        assert (config.vision.image_size, config.text.context_length) == (image_size, context)


def test_published_preprocessing_is_known() -> None:
    squashed = published.find("ViT-H-14-CLIPA-336")
    assert squashed is not None
    assert squashed.pixels == {"interpolation": "bilinear", "resize": "squash"}
    assert squashed.config.vision.mean == (0.485, 0.456, 0.406)
    halves = published.find("laion/CLIP-ViT-L-14-laion2B-s32B-b82K")
    assert halves is not None
    assert halves.config.vision.mean == (0.5, 0.5, 0.5)
    file = published.find_file("b16_400m.pt")
    assert file is not None
    assert file.config.activation == "quick_gelu"
    assert published.find_file("ViT-B-32.pt") is None


def test_timms_names_of_towers() -> None:
    plain = architectures.tower("vit_base_patch16_siglip_256")
    for name in (
        "timm/vit_base_patch16_siglip_256.v2_webli",
        "hf-hub:timm/vit_base_patch16_siglip_256",
    ):
        assert architectures.tower(name) == plain
    with pytest.raises(UserError, match="vit_base_patch16_siglip_256"):
        architectures.tower("vit_base_patch16_siglip_255")
