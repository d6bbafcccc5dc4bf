"""Configs of transformers and open_clip: theirs to ours and back, and every way to be wrong."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

import released
from clip_jax.errors import UserError
from clip_jax.io import files
from clip_jax.models.architectures import ARCHITECTURES, find_architecture
from clip_jax.models.model_config import CLIPConfig
from clip_jax.weights import configs, export, library
from support import says

NAMES = list(ARCHITECTURES)
PAPER = NAMES[:9]
TRANSFORMERS = [n for n in PAPER if n.startswith("ViT")]
ALIGN = [n for n in NAMES if n.startswith("align")]
SIGLIP = [n for n in NAMES if n.startswith("siglip")]
COCA = [n for n in NAMES if n.startswith("coca")]


def changed(config: CLIPConfig, **values: Any) -> CLIPConfig:
    """With `vision__eps=…` for a tower's key."""
    for key, value in values.items():
        tower, _, inner = key.partition("__")
        if inner:
            tower_config = dataclasses.replace(getattr(config, tower), **{inner: value})
            config = dataclasses.replace(config, **{tower: tower_config})
        else:
            config = dataclasses.replace(config, **{key: value})
    return config


def as_open_clip_has_it(name: str) -> CLIPConfig:
    """open_clip's SigLIP computes the exact GELU."""
    config = ARCHITECTURES[name]
    return changed(config, activation="gelu") if name in SIGLIP else config


@pytest.mark.parametrize("name", [*TRANSFORMERS, *ALIGN, *SIGLIP])
def test_hugging_face_there_and_back(name: str) -> None:
    config = ARCHITECTURES[name]
    values = json.loads(json.dumps(configs.to_hugging_face(config)))
    assert configs.from_hugging_face(values) == config


@pytest.mark.parametrize("name", [*PAPER, *(n for n in SIGLIP if "2-" not in n), *COCA])
def test_open_clip_there_and_back(name: str) -> None:
    config = as_open_clip_has_it(name)
    values = json.loads(json.dumps(configs.to_open_clip(config)))
    assert configs.from_open_clip(values) == config


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("ViT-B/32", "ViT-B-32-quickgelu"),
        ("RN50", "RN50-quickgelu"),
        ("RN50x4", "RN50x4-quickgelu"),
        ("RN50x64", "RN50x64-quickgelu"),
        ("ViT-L/14@336px", "ViT-L-14-336-quickgelu"),
        ("siglip-b16", "ViT-B-16-SigLIP"),
        ("siglip-b16-256-i18n", "ViT-B-16-SigLIP-i18n-256"),
        ("siglip-l16-384", "ViT-L-16-SigLIP-384"),
        ("siglip-so400m14-384", "ViT-SO400M-14-SigLIP-384"),
    ],
)
def test_what_open_clip_itself_writes(ours: str, theirs: str) -> None:
    open_clip = released.open_clip()
    path = Path(open_clip.__file__).parent / "model_configs" / f"{theirs}.json"
    published = json.loads(path.read_text())
    config = as_open_clip_has_it(ours)
    assert configs.to_open_clip(config) == published
    assert configs.from_open_clip(published) == config


@pytest.mark.parametrize("name", [*TRANSFORMERS, "align-base", "siglip-b16", "siglip-so400m14"])
def test_transformers_reads_what_is_written(name: str) -> None:
    transformers = released.transformers()
    values = configs.to_hugging_face(ARCHITECTURES[name])
    kind = {"clip": "CLIPConfig", "siglip": "SiglipConfig", "align": "AlignConfig"}
    config = getattr(transformers, kind[values["model_type"]]).from_dict(copy.deepcopy(values))
    for side in ("vision_config", "text_config"):
        for key, value in values[side].items():
            assert getattr(getattr(config, side), key) == value, key
    assert configs.from_hugging_face(config.to_dict()) == ARCHITECTURES[name]


@pytest.mark.parametrize("name", ["ViT-B-32", "RN50", *COCA, "coca_roberta-ViT-B-32"])
def test_open_clips_other_configs_are_read_or_refused(name: str) -> None:
    open_clip = released.open_clip()
    path = Path(open_clip.__file__).parent / "model_configs" / f"{name}.json"
    values = json.loads(path.read_text())
    if name in COCA:
        assert configs.from_open_clip(values) == ARCHITECTURES[name]
    elif name in ("ViT-B-32", "RN50"):
        config = configs.from_open_clip(values)
        assert config == changed(ARCHITECTURES[name.replace("B-32", "B/32")], activation="gelu")
    else:
        with pytest.raises(UserError, match="not supported"):
            configs.from_open_clip(values)


@pytest.mark.parametrize("name", PAPER)
def test_openais_code_sees_the_papers_models_in_their_shapes(name: str) -> None:
    config = ARCHITECTURES[name]
    assert export.documents(config, "openai", library.preprocess_of(config)) == {}


@pytest.mark.parametrize(
    ("name", "to", "change", "words"),
    [
        ("ViT-B/32", "openai", dict(activation="gelu"), ["model.activation='gelu'", "quick_gelu"]),
        ("ViT-B/32", "openai", dict(vision__heads=24), ["model.vision.heads=24", "12"]),
        ("RN50", "openai", dict(vision__heads=16), ["model.vision.heads=16", "32"]),
        ("ViT-B/32", "openai", dict(text__mlp_ratio=2.0), ["model.text.mlp_ratio=2.0"]),
        ("ViT-B/32", "openai", dict(text__eps=1e-6), ["model.text.eps=1e-06"]),
        ("ViT-B/32", "openai", dict(vision__mean=(0.5,) * 3), ["model.vision.mean"]),
        ("siglip-b16", "openai", {}, ["openai has no model"]),
        ("align-base", "openai", {}, ["openai has no model"]),
        ("align-base", "open_clip", {}, ["open_clip has no model"]),
        ("RN50", "hugging_face", {}, ["hugging_face has no model of a resnet"]),
        ("ViT-B/32", "hugging_face", dict(vision__stem=8), ["hugging_face has no model", "stem"]),
        ("ViT-B/32", "open_clip", dict(vision__registers=4), ["open_clip has no model"]),
        ("ViT-B/32", "open_clip", dict(vision__pool="mean"), ["open_clip has no model"]),
        ("ViT-B/32", "open_clip", dict(text__layers=0), ["open_clip has no model", "bag of words"]),
        ("ViT-B/32", "hugging_face", dict(text__layers=0), ["hugging_face has no model"]),
        ("ViT-B/32", "openai", dict(text__causal=False), ["model.text.causal=False"]),
        ("ViT-B/32", "hugging_face", dict(text__causal=False), ["hugging_face has no model"]),
        (
            "ViT-B/32",
            "hugging_face",
            dict(text__projection_bias=True),
            ["model.text.projection_bias=True"],
        ),
        ("RN50", "open_clip", dict(vision__eps=1e-3), ["model.vision.eps=0.001"]),
        ("siglip-b16", "open_clip", {}, ["'gelu'", "gelu_tanh", "--activation gelu"]),
        (
            "siglip-b16",
            "hugging_face",
            dict(text__projection_bias=False),
            ["model.text.projection_bias=False"],
        ),
        ("siglip-b16", "hugging_face", dict(vision__patch_bias=False), ["vision.patch_bias=False"]),
        ("siglip-b16", "hugging_face", dict(text__causal=True), ["model.text.causal=True"]),
        ("siglip-b16", "hugging_face", dict(logit_bias=None), ["hugging_face has no model"]),
        (
            "siglip-b16",
            "open_clip",
            dict(activation="gelu", vision__image_size=208),
            ["model.vision.image_size=224 and not 208", "hugging_face"],
        ),
        (
            "siglip-b16",
            "open_clip",
            dict(activation="gelu", vision__mlp_ratio=2.0),
            ["vit_base_patch16_siglip_224", "model.vision.mlp_ratio=4.0 and not 2.0"],
        ),
        (
            "siglip-b16",
            "open_clip",
            dict(activation="gelu", vision__eps=1e-5),
            ["model.vision.eps=1e-06 and not 1e-05"],
        ),
        ("align-base", "hugging_face", dict(text__pooler=False), ["hugging_face has no model"]),
    ],
)
def test_what_a_library_cannot_say_is_refused_by_name(
    name: str, to: Any, change: dict[str, Any], words: list[str]
) -> None:
    config = changed(ARCHITECTURES[name], **change)
    with pytest.raises(UserError) as caught:
        export.documents(config, to, library.preprocess_of(config))
    assert says(caught.value, *words)


@pytest.mark.parametrize(
    ("name", "to", "change"),
    [
        ("ViT-B/32", "hugging_face", dict(vision__mlp_ratio=3.7, text__eps=1e-6)),
        ("ViT-B/32", "hugging_face", dict(vision__ragged=True, vision__image_size=230)),
        ("ViT-B/32", "hugging_face", dict(temperature=0.01, max_logit_scale=0.0)),
        ("ViT-B/32", "open_clip", dict(vision__ragged=True, vision__image_size=230)),
        ("ViT-B/32", "open_clip", dict(vision__mlp_ratio=3.7, text__mlp_ratio=1.3)),
        ("ViT-B/32", "open_clip", dict(activation="gelu_tanh", vision__eps=1e-6, text__eps=1e-6)),
        ("ViT-B/32", "open_clip", dict(vision__heads=6, vision__mean=(0.5,) * 3)),
        ("ViT-B/32", "openai", dict(vision__patch_dropout=0.5, temperature=0.01)),
        ("RN50", "open_clip", dict(vision__heads=16, vision__momentum=0.5)),
        ("align-base", "hugging_face", dict(text__context_length=32, vision__symmetric=(3, 5))),
        ("siglip-b16", "hugging_face", dict(logit_bias=-3.0, activation="quick_gelu")),
    ],
)
def test_what_makes_no_difference_or_can_be_said_is_not(
    name: str, to: Any, change: dict[str, Any]
) -> None:
    config = changed(ARCHITECTURES[name], **change)
    export.documents(config, to, library.preprocess_of(config))


def test_texts_are_read_out_at_their_largest_id_or_at_the_id_that_is_stated() -> None:
    config = ARCHITECTURES["ViT-B/32"]
    values = configs.to_hugging_face(config)
    assert values["text_config"]["eos_token_id"] == 2
    for other in (2, 49407, None):
        values["text_config"]["eos_token_id"] = other
        assert configs.from_hugging_face(values) == config
    values["text_config"]["eos_token_id"] = 7
    assert configs.from_hugging_face(values) == changed(config, text__pool="eos", text__eos_id=7)
    values["text_config"]["eos_token_id"] = 50_000
    with pytest.raises(UserError) as caught:
        configs.from_hugging_face(values)
    assert says(caught.value, "text_config", "eos_token_id=50000")


def test_metaclip_2_reads_texts_out_at_their_end() -> None:
    """There 2 is an id like any other."""
    config = changed(ARCHITECTURES["ViT-B/32"], text__pool="eos", text__eos_id=2)
    values = json.loads(json.dumps(configs.to_hugging_face(config)))
    assert (values["model_type"], values["text_config"]["eos_token_id"]) == ("metaclip_2", 2)
    assert configs.from_hugging_face(values) == config


BASES: dict[str, tuple[Any, dict[str, Any]]] = {
    **{
        f"hugging_face {name}": (
            configs.from_hugging_face,
            configs.to_hugging_face(ARCHITECTURES[name]),
        )
        for name in ("ViT-B/32", "siglip-b16", "align-base")
    },
    **{
        f"open_clip {name}": (
            configs.from_open_clip,
            configs.to_open_clip(as_open_clip_has_it(name)),
        )
        for name in ("ViT-B/32", "RN50x4", "siglip-so400m14", "coca_ViT-B-32")
    },
    **{
        f"open_clip {name}": (
            configs.from_open_clip,
            configs.to_open_clip(find_architecture(name)),
        )
        for name in ("ViT-L-14-CLIPA", "convnext_large_d", "roberta-ViT-B-32")
    },
}
MORE_KEYS = [
    *("act_kwargs", "norm_kwargs", "mlp_ratio", "head_width", "pool_type", "proj_bias", "heads"),
    *("approximate", "eps", "hidden_act", "num_channels", "depth_divisor", "vision_use_head"),
    *("no_causal_mask", "quick_gelu", "init_logit_bias", "layer_norm_eps", "pooling_type"),
    *("logit_scale_init_value", "timm_model_name", "patch_dropout", "hf_model_name"),
    *("timm_pool", "timm_proj", "hf_proj_type", "hf_pooler_type", "eos_id", "proj_type"),
    *("ls_init_value", "no_ln_pre", "final_ln_after_pool", "eos_token_id"),
]
NUMBERS = (
    st.integers()
    | st.sampled_from([0, -1, 10**400, -(10**400), 2**63, 2**31, 1, 2, 3])
    | st.floats()
    | st.sampled_from([0.0, 1e-300, 1e308, -1.0, math.nan, math.inf])
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=200),
    lambda inner: (
        st.lists(inner, max_size=8)
        | st.dictionaries(st.sampled_from(MORE_KEYS) | st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


def _groups(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [values, *(v for v in values.values() if isinstance(v, dict))]


@pytest.mark.parametrize("base", BASES)
@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=150)
def test_any_value_anywhere_is_a_model_or_one_line(base: str, data: st.DataObject) -> None:
    read, values = BASES[base]
    values = copy.deepcopy(values)
    for _ in range(data.draw(st.integers(1, 3))):
        groups = _groups(values)
        group = groups[data.draw(st.integers(0, len(groups) - 1))]
        group[data.draw(st.sampled_from([*group, *MORE_KEYS]))] = data.draw(JSON)
    try:
        config = read(values, "somewhere.json")
    except UserError as error:
        assert says(error)
    else:
        assert isinstance(config, CLIPConfig)
        assert all(0 <= tower.eps <= 1 for tower in (config.vision, config.text))


@hypothesis.given(values=st.dictionaries(st.sampled_from(MORE_KEYS) | st.text(), JSON))
def test_any_object_is_a_model_or_one_line(values: dict[str, Any]) -> None:
    for read in (configs.from_hugging_face, configs.from_open_clip):
        try:
            assert isinstance(read(values, "somewhere.json"), CLIPConfig)
        except UserError as error:
            assert says(error)


@pytest.mark.parametrize(
    ("base", "group", "key", "value", "words"),
    [
        (
            "hugging_face ViT-B/32",
            "",
            "model_type",
            "blip",
            ["model_type='blip'", "clip, metaclip_2, siglip"],
        ),
        ("hugging_face ViT-B/32", "", "vision_config", [1], ["vision_config=[1]", "an object"]),
        ("hugging_face ViT-B/32", "vision_config", "hidden_size", "768", ["hidden_size='768'"]),
        ("hugging_face ViT-B/32", "vision_config", "hidden_size", 10**30, ["hidden_size=1000"]),
        ("hugging_face ViT-B/32", "vision_config", "num_channels", 4, ["num_channels=4"]),
        ("hugging_face ViT-B/32", "vision_config", "hidden_act", "relu", ["hidden_act='relu'"]),
        ("hugging_face ViT-B/32", "vision_config", "image_size", [9, 8], ["image_size=[9, 8]"]),
        ("hugging_face siglip-b16", "text_config", "projection_size", 512, ["projection_size=512"]),
        ("hugging_face siglip-b16", "vision_config", "vision_use_head", False, ["use_head=False"]),
        ("hugging_face align-base", "vision_config", "strides", [1, 2], ["one length"]),
        ("hugging_face align-base", "vision_config", "strides", "abc", ["strides='abc'"]),
        ("hugging_face align-base", "vision_config", "batch_norm_eps", math.nan, ["eps=nan"]),
        ("hugging_face align-base", "", "temperature_init_value", 0, ["temperature_init_value=0"]),
        ("open_clip ViT-B/32", "", "quick_gelu", "yes", ["quick_gelu='yes'", "true or false"]),
        ("open_clip ViT-B/32", "", "init_logit_bias", "low", ["init_logit_bias='low'"]),
        ("open_clip ViT-B/32", "vision_cfg", "attentional_pool", True, ["attentional_pool=True"]),
        ("open_clip ViT-B/32", "vision_cfg", "timm_model_name", "resnet50", ["'resnet50'"]),
        ("open_clip ViT-B/32", "vision_cfg", "mlp_ratio", 1e308, ["mlp_ratio=1e+308"]),
        ("open_clip ViT-B/32", "text_cfg", "hf_model_name", "roberta", ["hf_model_name='roberta'"]),
        ("open_clip ViT-B/32", "text_cfg", "heads", 7, ["heads=7", "width=512"]),
        ("open_clip coca_ViT-B-32", "vision_cfg", "attentional_pool", "cascade", ["'cascade'"]),
        ("open_clip coca_ViT-B-32", "vision_cfg", "attn_pooler_heads", 7, ["pool_heads=7"]),
        ("open_clip coca_ViT-B-32", "text_cfg", "embed_cls", False, ["embed_cls"]),
        ("open_clip coca_ViT-B-32", "text_cfg", "context_length", 80, ["context_length"]),
        ("open_clip coca_ViT-B-32", "multimodal_cfg", "layers", 0, ["layers=0"]),
        ("open_clip coca_ViT-B-32", "multimodal_cfg", "mlp_ratio", 2, ["mlp_ratio=2"]),
        ("open_clip RN50x4", "vision_cfg", "layers", [1, 2, 3], ["four stages"]),
        ("open_clip RN50x4", "vision_cfg", "layers", [], ["four stages"]),
    ],
)
def test_a_wrong_value_is_named(
    base: str, group: str, key: str, value: Any, words: list[str]
) -> None:
    read, values = BASES[base]
    values = copy.deepcopy(values)
    (values[group] if group else values)[key] = value
    with pytest.raises(UserError) as caught:
        read(values, "somewhere.json")
    assert says(caught.value, *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", ["is not JSON"]),
        (b"[1]", ["must hold an object", "list"]),
        (b"[" * 100_000, ["is not JSON"]),
        (b"\xff\xfe\x00", ["is not JSON"]),
        (b" " * ((4 << 20) + 1), ["over 4 MiB"]),
        (b'{"a": ' + b"9" * 5000 + b"}", ["is not JSON"]),
        (None, ["cannot be read", "No such file"]),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, content: bytes | None, words: list[str]) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        files.read_json(path)
    assert says(caught.value, path, *words)


@pytest.mark.parametrize("base", BASES)
def test_an_unknown_key_is_named_in_every_group(base: str) -> None:
    read, values = BASES[base]
    assert isinstance(read(values, "x.json"), CLIPConfig)
    for group in ("", *(key for key, value in values.items() if isinstance(value, dict))):
        for strange in ("rotary_embedding", "patch_sise", "model_cfg"):
            changed_values = copy.deepcopy(values)
            (changed_values[group] if group else changed_values)[strange] = 1
            with pytest.raises(UserError) as caught:
                read(changed_values, "x.json")
            assert says(caught.value, "x.json", group, strange)


def test_a_whole_open_clip_config_is_no_model_cfg() -> None:
    whole = {"model_cfg": configs.to_open_clip(ARCHITECTURES["ViT-L/14"]), "preprocess_cfg": {}}
    for given in (whole, {}, {"embed_dim": 512}):
        with pytest.raises(UserError) as caught:
            configs.from_open_clip(given)
        assert says(caught.value, "model_cfg" if given is whole else "missing")


def test_towers_that_older_files_say_twice() -> None:
    values = configs.to_hugging_face(ARCHITECTURES["ViT-L/14"])
    values["text_config_dict"] = {"hidden_size": 768, "max_length": 20}
    assert configs.from_hugging_face(values) == ARCHITECTURES["ViT-L/14"]
    values["text_config_dict"] = {"hidden_size": 512}
    with pytest.raises(UserError) as caught:
        configs.from_hugging_face(values)
    assert says(caught.value, "text_config_dict", "hidden_size", "768", "512")


@pytest.mark.parametrize("key", ["embed_dim", "vision", "text", "heads"])
def test_a_model_of_ours_with_a_key_too_many_or_too_few(key: str) -> None:
    values = ARCHITECTURES["ViT-B/32"].to_dict()
    if key in ("vision", "text"):
        del values[key]
    else:
        values[f"{key}s"] = 1
    with pytest.raises(UserError) as caught:
        CLIPConfig.from_dict(values)
    assert says(caught.value, f"model.{key}")
