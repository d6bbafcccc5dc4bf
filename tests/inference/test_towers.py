"""Towers from files of their own: released functions, what starts at random, what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from towerfiles import LITE, MINI, bert_tensors, lite_tensors, write_bert, write_lite

from clip_jax.inference.model_source import open_model_source
from clip_jax.inference.towers import open_towers
from clip_jax.models.clip import CLIP, abstract_model
from clip_jax.models.model_config import CLIPConfig, VisionConfig
from clip_jax.training.train_step import init_variables
from clip_jax.weights import arrays
from clip_jax.weights.tensor_writing import write_safetensors
from support import refused

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
MODEL = CLIPConfig(24, vision=LITE, text=MINI)
IMAGES = np.random.default_rng(1).integers(0, 256, (2, 20, 20, 3), np.uint8)
TOKENS = np.array([[2, 7, 9, 3, 0, 0, 0, 0], [2, 40, 8, 11, 30, 12, 5, 3]], np.int32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("towers")
    (folder / "bert").mkdir()
    lite = write_lite(folder / "lite.safetensors")
    return {"vision": str(lite), "text": str(write_bert(folder / "bert"))}


@pytest.fixture(scope="module")
def model(files: dict[str, str]) -> CLIP:
    source = open_towers(files, MODEL, seed=3)
    return nnx.merge(nnx.graphdef(abstract_model(MODEL)), *source.read("float32"))


def without_projection(model: CLIP, features: jax.Array) -> np.ndarray:
    """Features of the text tower before its projection, by the pseudo-inverse."""
    kernel, bias = (
        np.asarray(p[...], np.float64)
        for p in (model.text.projection.kernel, model.text.projection.bias)
    )
    return (np.asarray(features) - bias) @ np.linalg.pinv(kernel)


def test_golden_numbers(model: CLIP) -> None:
    """Of independent definitions in torch, see below."""
    image = np.asarray(model.encode_image(IMAGES))[:, :4]
    text = without_projection(model, model.encode_text(TOKENS))[:, :4]
    np.testing.assert_allclose(image, GOLDEN_IMAGE, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(text, GOLDEN_TEXT, rtol=1e-4, atol=1e-4)


GOLDEN_IMAGE = [[1.81509, 0.0, 1.96448, 0.0], [2.13962, 0.0, 2.28096, 0.08411]]
GOLDEN_TEXT = [[-0.17689, -1.42663, 0.74667, -1.00256], [-0.16581, -1.46718, 0.79921, -1.08585]]


def torch_lite() -> np.ndarray:
    """The features of `IMAGES` by torch."""
    torch = pytest.importorskip("torch")
    f, tensors = torch.nn.functional, {k: torch.tensor(v) for k, v in lite_tensors().items()}

    def convolve(x, name, stride=1):
        kernel = tensors[f"{name}.weight"]
        size, side = kernel.shape[-1], x.shape[-1]
        total = max((-(-side // stride) - 1) * stride + size - side, 0)
        padding = [total // 2, total - total // 2] * 2
        groups = x.shape[1] if kernel.shape[1] == 1 and x.shape[1] > 1 else 1
        return f.conv2d(f.pad(x, padding), kernel, stride=stride, groups=groups)

    def norm(x, name):
        parts = (
            tensors[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return f.batch_norm(x, *parts, eps=1e-3)

    mean, std = (np.array(value, np.float32) for value in (LITE.mean, LITE.std))
    pixels = (IMAGES / np.float32(255) - mean) / std
    x = torch.tensor(pixels.transpose(0, 3, 1, 2))
    x = f.relu6(norm(convolve(x, "_conv_stem", 2), "_bn0"))
    block = 0
    for _, stride, expansion, _, _, repeats in LITE.stages:
        for i in range(repeats):
            name, y = f"_blocks.{block}", x
            if expansion > 1:
                y = f.relu6(norm(convolve(y, f"{name}._expand_conv"), f"{name}._bn0"))
            y = convolve(y, f"{name}._depthwise_conv", 1 if i else stride)
            y = f.relu6(norm(y, f"{name}._bn1"))
            y = norm(convolve(y, f"{name}._project_conv"), f"{name}._bn2")
            x, block = x + y if i else y, block + 1
    return f.relu6(norm(convolve(x, "_conv_head"), "_bn1")).mean((2, 3)).numpy()


def torch_bert() -> np.ndarray:
    """The mean over the tokens of `TOKENS` by torch."""
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(tensor) for name, tensor in bert_tensors().items()}
    tokens = torch.tensor(TOKENS.astype(np.int64))
    mask = tokens != 0

    def linear(x, name):
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def norm(x, name):
        parts = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        return torch.nn.functional.layer_norm(x, (MINI.width,), *parts, 1e-12)

    def table(name):
        return tensors[f"embeddings.{name}_embeddings.weight"]

    x = table("word")[tokens] + table("position")[: tokens.shape[1]] + table("token_type")[0]
    x = norm(x, "embeddings.LayerNorm")
    for layer in range(MINI.layers):
        name = f"encoder.layer.{layer}"
        q, k, v = (
            linear(x, f"{name}.attention.self.{part}")
            .unflatten(-1, (MINI.heads, -1))
            .transpose(1, 2)
            for part in ("query", "key", "value")
        )
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask[:, None, None])
        y = linear(y.transpose(1, 2).flatten(2), f"{name}.attention.output.dense")
        x = norm(x + y, f"{name}.attention.output.LayerNorm")
        y = torch.nn.functional.gelu(linear(x, f"{name}.intermediate.dense"))
        x = norm(x + linear(y, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    return ((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).numpy()


def test_both_towers_equal_torch(model: CLIP) -> None:
    image, text = torch_lite(), torch_bert()
    np.testing.assert_allclose(model.encode_image(IMAGES), image, rtol=1e-5, atol=1e-5)
    ours = without_projection(model, model.encode_text(TOKENS))
    np.testing.assert_allclose(ours, text, rtol=1e-4, atol=1e-4)


def test_what_no_file_gives_is_that_of_a_run_without_files(files: dict[str, str]) -> None:
    source = open_towers({"text": files["text"]}, MODEL, seed=3)
    values = dict(arrays.flat(*source.read("float32")))
    random = dict(arrays.flat(*init_variables(MODEL, 3)))
    given = {name for name, value in random.items() if not np.allclose(value, values[name])}
    assert {name.partition("/")[0] for name in given} == {"text"}
    assert "text/projection/kernel" not in given and len(given) > 15
    assert "projection from 16 to 24 features starts at random" in "; ".join(source.remarks)
    assert "pooler.dense.weight" in source.remarks[0]


@pytest.mark.parametrize("side", ["vision", "text"])
def test_the_tower_of_a_whole_model_is_taken(files: dict[str, str], side: str) -> None:
    path = GOLDEN / "open_clip_vit"
    whole = open_model_source(path)
    parts = {"vision": LITE, "text": MINI} | {side: getattr(whole.config, side)}
    parts["vision"] = dataclasses.replace(parts["vision"], projection=True)
    model = CLIPConfig(whole.config.embed_dim, **parts)
    source = open_towers({**files, side: str(path)}, model, seed=0)
    values = dict(arrays.flat(source.read("float32")[0]))
    for name, value in arrays.flat({side: whole.read("float32")[0][side]}):
        np.testing.assert_array_equal(values[name], value, err_msg=name)
    refused(
        lambda: open_towers({side: str(path)}, dataclasses.replace(model, embed_dim=16), 0),
        "embed_dim=12, not 16",
    )
    refused(lambda: open_towers({side: str(path)}, MODEL, 0), path, f"model.{side}.kind=")


def test_positions_of_a_whole_models_tower_are_resized_by_choice_only() -> None:
    path = GOLDEN / "open_clip_vit"
    config = open_model_source(path).config.with_vision(image_size=16)
    refused(lambda: open_towers({"vision": str(path)}, config, 0), "weights.resize=True")
    params, _ = open_towers({"vision": str(path)}, config, 0, resize=True).read("float32")
    assert params["vision"]["positional_embedding"].shape == (17, 16)


VIT = VisionConfig(image_size=16, patch_size=8, width=16, layers=1, heads=2)
WRONG = {
    "the other tower": ("text", "vision", MODEL, "is a tower for config.weights.vision"),
    "another kind": (
        *("vision", "vision", dataclasses.replace(MODEL, vision=VIT)),
        "fills no such vit: set model.vision to architectures.tower('efficientnet-lite0')",
    ),
    "other channels": (
        *("vision", "vision", MODEL.with_vision(stages=((3, 1, 1, 32, 16, 1),), symmetric=())),
        "_blocks.0._project_conv.weight is (8, 32, 1, 1), not (16, 32, 1, 1)",
    ),
    "another padding": (
        *("vision", "vision", MODEL.with_vision(symmetric=())),
        "symmetric=(3,): set config.model.vision.symmetric",
    ),
    "another size": ("vision", "vision", MODEL.with_vision(image_size=16), "symmetric=()"),
    "heads": ("text", "text", MODEL.with_text(heads=2), "heads=4: set config.model.text.heads"),
    "pooling": ("text", "text", MODEL.with_text(pool="first"), "pool='mean': set"),
    "activation": ("text", "text", MODEL.with_text(activation=""), "activation='gelu': set"),
    "positions": ("text", "text", MODEL.with_text(positions=16), "positions=12: set"),
}


@pytest.mark.parametrize("name", WRONG)
def test_another_tower_is_refused(files: dict[str, str], name: str) -> None:
    side, file, model, words = WRONG[name]
    refused(lambda: open_towers({side: files[file]}, model, 0), files[file], words)


def test_a_wrong_file_is_refused(tmp_path: Path) -> None:
    def check(side: str, path: Path, *words: str) -> None:
        refused(lambda: open_towers({side: str(path)}, MODEL, 0), path, *words)

    check("vision", tmp_path / "none.pth", "config.weights.vision=", "does not exist")
    kernel = "_blocks.1._depthwise_conv.weight"
    check("vision", write_lite(tmp_path / "a.safetensors", **{kernel: None}), f"has no {kernel}")
    more = write_lite(tmp_path / "b.safetensors", more=np.zeros(3, np.float32))
    check("vision", more, "has a more that this model has no place for")
    write_safetensors(tmp_path / "c.safetensors", {"w": np.zeros(3, np.float32)})
    check("text", tmp_path / "c.safetensors", "no tower", "EfficientNet-Lite", "BERT")
    folders = {name: tmp_path / name for name in ("max", "relative", "roberta", "alone")}
    for folder in folders.values():
        folder.mkdir()
    check("text", write_bert(folders["max"], "weightedmean_tokens"), "pooling_mode_weightedmean")
    relative = write_bert(folders["relative"], position_embedding_type="relative_key")
    check("text", relative, "position_embedding_type")
    check("text", write_bert(folders["roberta"], model_type="roberta"), "model_type='roberta'")
    (write_bert(folders["alone"]) / "config.json").unlink()
    check("text", folders["alone"] / "model.safetensors", "no config.json beside it")
