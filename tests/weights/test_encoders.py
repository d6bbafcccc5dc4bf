"""Text encoders by their names in open_clip's configs, and alone in folders of transformers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

import clip_jax
from clip_jax.errors import UserError
from clip_jax.inference.towers import open_towers
from clip_jax.models.clip import CLIP, abstract_model, variables
from clip_jax.models.model_config import CLIPConfig, RobertaConfig, VisionConfig
from clip_jax.tokenizers.hugging_face import HuggingFace
from clip_jax.weights import arrays, configs, export
from clip_jax.weights.configs.encoders import from_encoder
from clip_jax.weights.configs.open_clip import encoders
from clip_jax.weights.tensor_writing import write_safetensors
from clip_jax.weights.tensors import open_tensors
from support import refused, says

GOLDEN = Path(__file__).parent.parent / "golden" / "models"
IMAGES = dict(image_size=224, patch_size=32)
TOWER = "text.transformer."
# By family: the config.json of transformers, and how the encoder is called in a whole model there.
FOLDERS: dict[str, tuple[dict[str, Any], str]] = {
    "open_clip_roberta": (
        dict(
            model_type="xlm-roberta",
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=11,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
            pad_token_id=0,
            output_past=True,
        ),
        "roberta.",
    ),
    "open_clip_mt5": (
        dict(
            model_type="mt5",
            vocab_size=40,
            d_model=16,
            d_kv=8,
            d_ff=24,
            num_layers=2,
            num_decoder_layers=1,
            num_heads=2,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=6,
            feed_forward_proj="gated-gelu",
        ),
        "encoder.",
    ),
    "open_clip_nllb": (
        dict(
            model_type="m2m_100",
            vocab_size=40,
            d_model=16,
            encoder_layers=2,
            encoder_ffn_dim=24,
            encoder_attention_heads=2,
            decoder_layers=1,
            max_position_embeddings=8,
            pad_token_id=0,
        ),
        "model.encoder.",
    ),
}


def model_cfg(**text: Any) -> dict[str, Any]:
    return {"embed_dim": 512, "vision_cfg": IMAGES, "text_cfg": text}


def read(**text: Any) -> Any:
    return configs.from_open_clip(model_cfg(**text)).text


@pytest.mark.parametrize(
    ("text", "pool", "projection"),
    [
        (dict(hf_model_name="google/mt5-base", hf_pooler_type=None), "mean", "mlp"),
        (dict(hf_model_name="google/mt5-base", hf_pooler_type="cls_pooler"), "first", "mlp"),
        (dict(hf_model_name="facebook/nllb-200-distilled-600M"), "mean", "mlp"),
        (
            dict(
                hf_model_name="facebook/nllb-200-distilled-1.3B",
                hf_pooler_type=None,
                hf_proj_type="linear",
            ),
            *("first", "linear"),
        ),
        (dict(hf_model_name="roberta-base"), "mean", "mlp"),
        (dict(hf_model_name="roberta-base", hf_pooler_type=None), "mean", "mlp"),
        (dict(hf_model_name="roberta-base", hf_pooler_type="cls_pooler"), "tanh", "mlp"),
        (
            dict(
                hf_model_name="xlm-roberta-base",
                hf_pooler_type="cls_last_hidden_state_pooler",
                hf_proj_type="linear",
                context_length=64,
                width=512,
                vocab_size=7,
            ),
            *("first", "linear"),
        ),
    ],
)
def test_poolings_and_projections_and_back(
    text: dict[str, Any], pool: str, projection: str
) -> None:
    tower = read(**text)
    assert (tower.pool, tower.projection) == (pool, projection)
    assert tower.context_length == text.get("context_length", 77)
    config = configs.from_open_clip(model_cfg(**text))
    written = json.loads(json.dumps(configs.to_open_clip(config)))
    assert configs.from_open_clip(written) == config
    assert written["text_cfg"]["hf_model_name"] == text["hf_model_name"]


def test_quick_gelu_is_that_of_the_image_tower() -> None:
    config = configs.from_open_clip({**model_cfg(hf_model_name="roberta-base"), "quick_gelu": True})
    assert (config.activation, config.vision.activation) == ("quick_gelu", "")  # type: ignore[attr-defined]
    assert config.text.activation == "gelu"  # type: ignore[attr-defined]
    assert configs.to_open_clip(config)["quick_gelu"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (dict(hf_model_name="roberta-bas"), ["'roberta-bas'", "did you mean roberta-base"]),
        (dict(hf_model_name="gpt2"), ["'gpt2'", "only roberta-base"]),
        (dict(hf_model_name=3), ["hf_model_name=3", "a text"]),
        (dict(hf_model_name="roberta-base", hf_pooler_type="max_pooler"), ["'max_pooler'"]),
        (dict(hf_model_name="roberta-base", hf_proj_type="none"), ["hf_proj_type='none'"]),
        (dict(hf_model_name="roberta-base", hf_proj_type=None), ["hf_proj_type is null"]),
        (dict(hf_model_name="roberta-base", context_length=513), ["context_length=513"]),
        (dict(hf_model_name="roberta-base", strange=1), ["unknown key 'strange'"]),
    ],
)
def test_what_open_clip_cannot_mean_is_named(text: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        read(**text)
    assert says(caught.value, *words)


def test_an_encoder_without_a_name_cannot_be_written() -> None:
    config = configs.from_open_clip(model_cfg(hf_model_name="roberta-base"))
    refused(
        lambda: configs.to_open_clip(config.with_text(layers=11)),
        *("by their names in transformers", "xlm-roberta-base", "11×768"),
    )


@pytest.fixture(params=FOLDERS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def folder_of(family: str, path: Path, **changes: Any) -> str:
    """An encoder inside the language model that it comes from, as transformers saves it."""
    values, prefix = FOLDERS[family]
    with open_tensors(GOLDEN / family / "open_clip_model.safetensors") as tensors:
        names = [name for name in tensors if name.startswith(TOWER)]
        encoder = {prefix + name.removeprefix(TOWER): tensors.read(name) for name in names}
    if (table := encoder.pop(f"{prefix}embed_tokens.weight", None)) is not None:
        encoder[f"{prefix.removesuffix('encoder.')}shared.weight"] = table
        decoder = {name.replace("encoder", "decoder"): encoder[name] for name in encoder}
        encoder |= {name: value for name, value in decoder.items() if "decoder.block.0" in name}
    head = {"lm_head.bias": np.zeros(40, np.float32)}
    write_safetensors(path / "model.safetensors", {**encoder, **head})
    (path / "config.json").write_text(json.dumps({**values, **changes}))
    return str(path)


def whole(family: str) -> tuple[CLIPConfig, Any]:
    config = CLIPConfig.from_dict(json.loads((GOLDEN / family / "model.json").read_text()))
    with open_tensors(GOLDEN / family / "open_clip_model.safetensors") as tensors:
        return config, arrays.to_variables(tensors, config, "open_clip")


def test_an_encoder_of_a_language_model_fills_the_tower(family: str, tmp_path: Path) -> None:
    config, (expected, _) = whole(family)
    source = open_towers({"text": folder_of(family, tmp_path)}, config, seed=0)
    params, stats = source.read("float32")
    for path, value in arrays.flat({"text": params["text"]}):
        if not path.startswith("text/projection/"):
            np.testing.assert_array_equal(value, dict(arrays.flat(expected))[path], path)
    remarks = "; ".join(source.remarks)
    if config.text.projection != "none":  # type: ignore[attr-defined]
        assert "projection from 16 to 12 features starts at random" in remarks
    assert "do not belong to the encoder" in remarks
    model: CLIP = nnx.merge(nnx.graphdef(abstract_model(config)), params, stats)
    assert np.isfinite(model.encode_text(np.full((1, 8), 5, np.int32))).all()


def test_another_encoder_than_its_config_says(family: str, tmp_path: Path) -> None:
    config, _ = whole(family)
    folder = folder_of(family, tmp_path)

    def opened(**text: Any) -> Any:
        return lambda: open_towers({"text": folder}, config.with_text(**text), 0)

    refused(opened(eps=1e-3), "eps=", "set config.model.text.eps to it")
    other = {"roberta": "m2m", "t5": "roberta", "m2m": "t5"}[config.to_dict()["text"]["kind"]]
    wrong = CLIPConfig.from_dict(config.to_dict() | {"text": {"kind": other, "context_length": 8}})
    refused(lambda: open_towers({"text": folder}, wrong, 0), f"fills no {other}")
    refused(opened(heads=4), "heads=2", "set config.model.text.heads to it")
    folder_of(family, tmp_path, model_type="gpt2")
    refused(opened(), "model_type='gpt2' is not supported here")
    folder_of(family, tmp_path, strange=1)
    refused(opened(), "unknown key 'strange'")


def test_a_config_states_all_sizes(family: str) -> None:
    config, _ = whole(family)
    facts = from_encoder(FOLDERS[family][0], config.to_dict()["text"]["kind"])
    assert dataclasses.replace(config.text, **facts) == config.text  # type: ignore[type-var]
    refused(lambda: from_encoder(FOLDERS[family][0], "transformer"), "set model.text.kind=")


def test_a_whole_model_with_its_tokenizer_there_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tokenizers")
    tokenizer = HuggingFace(GOLDEN.parent / "tokenizers" / "xlm_roberta", 16)
    small: dict[str, Any] = dict(width=16, layers=1, heads=2)
    text = RobertaConfig(tokenizer.vocab_size, 16, **small, positions=20, projection="mlp")
    monkeypatch.setitem(encoders._ENCODERS, "tiny-roberta", text)
    vision = VisionConfig(image_size=8, patch_size=4, **small)
    config = CLIPConfig(12, "quick_gelu", vision=vision, text=text)
    model = CLIP(config, rngs=nnx.Rngs(0))
    export.write(tmp_path, variables(model), config, "open_clip", tokenizer=tokenizer)
    loaded, _, tokenize = clip_jax.load(tmp_path)
    assert loaded.config == config
    rows = tokenizer(["a photo of a cat", "a red owl"])
    np.testing.assert_array_equal(tokenize(["a photo of a cat", "a red owl"]), rows)
    np.testing.assert_allclose(
        loaded.encode_text(rows), model.encode_text(rows), rtol=1e-5, atol=1e-6
    )
