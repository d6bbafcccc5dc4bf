"""Architectures: their sizes to the digit, their names, and what cannot be."""

import json

import jax
import pytest

from clip_jax.errors import UserError
from clip_jax.models import architectures
from clip_jax.models.architectures import ARCHITECTURES, efficientnet
from clip_jax.models.clip import abstract_model, parameter_count, variables
from clip_jax.models.model_config import (
    BertConfig,
    CLIPConfig,
    EfficientNetConfig,
    ResNetConfig,
    TextConfig,
    VisionConfig,
)

# Of the papers' models those that released definitions give, of ALIGN and SigLIP transformers'.
COUNTS = {
    "RN50": (102_007_137, 38_316_896),
    "RN101": (119_688_033, 56_259_936),
    "RN50x4": (178_300_601, 87_137_080),
    "RN50x16": (290_979_217, 167_328_912),
    "RN50x64": (623_258_305, 420_380_352),
    "ViT-B/32": (151_277_313, 87_849_216),
    "ViT-B/16": (149_620_737, 86_192_640),
    "ViT-L/14": (427_616_513, 303_966_208),
    "ViT-L/14@336px": (427_944_193, 304_293_888),
    "coca_ViT-B-32": (253_560_065, 89_164_032),
    "coca_ViT-L-14": (638_450_177, 306_724_864),
    "coca_base": (440_337_409, 86_395_392),
    "align-base": (172_117_841, 62_143_440),
    "siglip-b16": (203_155_970, 92_884_224),
    "siglip-so400m14-384": (877_960_498, 428_225_600),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_released_ones(name):
    model = abstract_model(ARCHITECTURES[name])
    leaves = jax.tree.leaves(variables(model))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert (parameter_count(model), parameter_count(model.vision)) == COUNTS[name]
    assert name in repr(model) and f"{COUNTS[name][0]:,}" in repr(model)


# Keras Applications' EfficientNets without their tops: parameters less those of the head
# convolution and its norm (320 · width × 1280 · width, and two of 1280 · width).
@pytest.mark.parametrize(
    ("name", "without_top"),
    [("b0", 4_049_571 - 42_016 - 7), ("b7", None)],
)
def test_efficientnets_scale_by_width_and_depth(name, without_top):
    width, depth, _ = efficientnet.EFFICIENTNETS[name]
    config = EfficientNetConfig(width=width, depth=depth)
    model = abstract_model(efficientnet.align(name, BertConfig(width=16, layers=1, heads=2)))
    assert config.channels(320) == model.config.embed_dim
    if without_top is not None:  # Keras counts running statistics (42,016) and a normalisation (7)
        head = config.channels(320) * 1280 + 2 * 1280
        assert parameter_count(model.vision) == without_top - head


# Millions of parameters of EfficientNet-Lite with its classifier of 1,000 classes, as published.
@pytest.mark.parametrize(
    ("name", "millions"),
    [("lite0", 4.652), ("lite1", 5.417), ("lite2", 6.092), ("lite3", 8.197), ("lite4", 13.007)],
)
def test_efficientnet_lites_have_the_published_sizes(name, millions):
    vision = CLIPConfig(1280, vision=efficientnet.efficientnet_lite(name))
    count = parameter_count(abstract_model(vision).vision) + 1281 * 1000
    assert round(count / 1e6, 3) == millions


def test_towers_have_names():
    values = architectures.ARCHITECTURES["ViT-B/32"].to_dict()
    values["vision"] = architectures.tower("efficientnet-lite2")
    values["text"] = architectures.tower("all-MiniLM-L6-v2")
    config = CLIPConfig.from_dict({**values, "embed_dim": 1280})
    assert config.vision == efficientnet.efficientnet_lite("lite2")
    assert parameter_count(abstract_model(config).text) == 22_565_376 + 385 * 1280
    with pytest.raises(UserError, match=r"lite9.*efficientnet-lite0.*all-MiniLM-L6-v2"):
        architectures.tower("efficientnet-lite9")


def test_the_features_of_align_are_the_papers():
    assert ARCHITECTURES["align-base"].embed_dim == 640
    assert ARCHITECTURES["align-l2"].embed_dim == 1376


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_config_survives_its_dictionary_and_json(name):
    config = ARCHITECTURES[name]
    assert CLIPConfig.from_dict(config.to_dict()) == config
    assert CLIPConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert architectures.name_of(config) == name
    assert architectures.find_architecture(name) is config


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("ViT-B-32", "ViT-B/32"),
        ("vit-l/14@336px", "ViT-L/14@336px"),
        ("ViT-L/14@336", "ViT-L/14@336px"),
        ("ViT-L-14-336px", "ViT-L/14@336px"),
        ("rn50X4", "RN50x4"),
        ("ViT-L-14-336", "ViT-L/14@336px"),
        ("ViT-B-16-SigLIP", "siglip-b16"),
        ("ViT-B-16-SigLIP-i18n-256", "siglip-b16-256-i18n"),
        ("ViT-SO400M-14-SigLIP-384", "siglip-so400m14-384"),
        ("CoCa-ViT-B/32", "coca_ViT-B-32"),
        ("coca_vit-l-14", "coca_ViT-L-14"),
    ],
)
def test_names_are_found_as_people_write_them(written, name):
    assert architectures.find_architecture(written) is ARCHITECTURES[name]


def test_an_unknown_name_is_answered_with_near_ones():
    with pytest.raises(UserError, match=r"RN51.*RN50.*available_models"):
        architectures.find_architecture("RN51")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(vision=ResNetConfig(image_size=230)), "image_size=230"),
        (dict(vision=ResNetConfig(heads=7)), "heads=7"),
        (dict(vision=ResNetConfig(layers=(1, 2, 3))), "four stages"),
        (dict(vision=EfficientNetConfig()), "embed_dim=640"),
        (dict(vision=EfficientNetConfig(stages=((3, 1),))), "stages"),
        (
            dict(vision=efficientnet.efficientnet_lite("lite0")),
            "embed_dim=1280, not 512, or",
        ),
        (dict(vision=EfficientNetConfig(activation="relu")), "'relu6'"),
        (dict(vision=VisionConfig(projection=False)), "projection"),
        (dict(vision=VisionConfig(pool="max")), "'map'"),
        (dict(vision=VisionConfig(patch_size=300)), "patch_size=300"),
        (dict(text=TextConfig(pool="first")), "'last'"),
        (dict(text=BertConfig(context_length=600)), "positions=512"),
        (dict(text=BertConfig(layers=0)), "layers=0"),
        (dict(text=BertConfig(pool="last")), "'mean'"),
        (dict(text=BertConfig(activation="relu")), "text.activation"),
        (dict(log_scale=False), "log_scale"),
        (dict(temperature=0.0), "temperature"),
    ],
)
def test_impossible_architectures_are_named(change, words):
    with pytest.raises(UserError, match=words):
        CLIPConfig(**change)


def test_keys_of_another_tower_are_refused():
    values = ARCHITECTURES["RN50"].to_dict()
    values["vision"]["patch_size"] = 32
    with pytest.raises(UserError, match=r"patch_size.*resnet.*momentum"):
        CLIPConfig.from_dict(values)
    values = ARCHITECTURES["RN50"].to_dict()
    values["vision"]["kind"] = "inception"
    with pytest.raises(UserError, match=r"inception.*efficientnet"):
        CLIPConfig.from_dict(values)


def test_a_run_of_before_there_were_kinds_is_of_the_first():
    values = ARCHITECTURES["ViT-B/32"].to_dict()
    del values["vision"]["kind"], values["text"]["kind"]
    assert CLIPConfig.from_dict(values) == ARCHITECTURES["ViT-B/32"]
