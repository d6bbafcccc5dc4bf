"""ONNX files of models, run by ONNX Runtime."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from flax import nnx
from PIL import Image
from weightfiles import found_in

import clip_jax.inference.onnx
from clip_jax.cli import export
from clip_jax.errors import UserError
from clip_jax.inference import exported, pretrained
from clip_jax.inference.onnx import writing
from clip_jax.inference.programs import Labels
from clip_jax.models.clip import CLIP, abstract_model
from clip_jax.models.model_config import CLIPConfig, TextConfig, VisionConfig
from clip_jax.weights.library import read_variables
from tools.golden_models import FAMILIES

GOLDEN = Path(__file__).parents[2] / "golden" / "models"
CONFIG = CLIPConfig(
    12,
    logit_bias=-3.0,
    vision=VisionConfig(image_size=8, patch_size=4, width=16, layers=2, heads=2),
    text=TextConfig(vocab_size=40, context_length=8, width=16, layers=2, heads=2),
)


@pytest.fixture(scope="module")
def model() -> CLIP:
    return CLIP(CONFIG, rngs=nnx.Rngs(0))


def inputs(config: CLIPConfig, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng, budget = np.random.default_rng(count), config.vision.patch_budget
    images = rng.integers(0, 256, (count, *config.vision.input_shape), dtype=np.uint8)
    for i in range(count if budget else 0):
        assert budget is not None
        size = budget.size_for(10 + i, 20 - i)
        images[i] = budget.pack(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    shape = (count, config.text.context_length)
    tokens = rng.integers(1, config.text.vocab_size, shape, dtype=np.int32)
    tokens[: count // 2, -3:] = 0  # padding, of many tokenizers
    return images, tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_its_features(family: str, tmp_path: Path) -> None:
    weights = found_in(GOLDEN / family, family)
    params, stats = read_variables(weights)
    model = nnx.merge(nnx.graphdef(abstract_model(weights.config)), params, stats)
    exported.export_model(model, tmp_path, form="onnx", normalized=True)
    for path in tmp_path.glob("*.onnx"):
        onnx.checker.check_model(path, full_check=True)
    programs = exported.load_exported(tmp_path)
    for count in (1, 3):
        images, tokens = inputs(model.config, count)
        ours = programs.encode_image(images), programs.encode_text(tokens)
        theirs = (
            model.encode_image(images, normalized=True),
            model.encode_text(tokens, normalized=True),
        )
        for x, y in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)


def test_a_batch_may_be_empty(model: CLIP, tmp_path: Path) -> None:
    import onnxruntime

    exported.export_model(model, tmp_path, form="onnx")
    for name, rows in (("images", inputs(CONFIG, 0)[0]), ("tokens", inputs(CONFIG, 0)[1])):
        path = tmp_path / ("image.onnx" if name == "images" else "text.onnx")
        (features,) = onnxruntime.InferenceSession(path).run(["features"], {name: rows})
        assert features.shape == (0, 12)


def test_a_large_model_has_its_constants_in_a_second_file(
    model: CLIP, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(writing, "_LARGE", 1)
    sizes = exported.export_model(model, tmp_path, form="onnx")
    assert sizes["image.onnx.data"] > 5000 and not list(tmp_path.glob(".*"))
    images, tokens = inputs(CONFIG, 2)
    programs = exported.load_exported(tmp_path)
    np.testing.assert_allclose(programs.encode_image(images), model.encode_image(images), atol=1e-5)
    np.testing.assert_allclose(programs.encode_text(tokens), model.encode_text(tokens), atol=1e-5)
    (tmp_path / "mine.txt").touch()
    exported.export_model(model, tmp_path, sides=("image",))  # another replaces all of it
    names = {"export.json", "image.stablehlo", "mine.txt", "parameters.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize("large", [1, 1 << 30])
def test_eight_bits_are_smaller_and_close(large: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(writing, "_LARGE", large)
    config = CLIPConfig(
        32,
        vision=VisionConfig(image_size=16, patch_size=4, width=64, layers=2, heads=2),
        text=TextConfig(vocab_size=400, context_length=8, width=64, layers=2, heads=2),
    )
    model = CLIP(config, rngs=nnx.Rngs(0))
    full = exported.export_model(model, tmp_path / "full", form="onnx", normalized=True)
    small = exported.export_model(
        model, tmp_path / "small", form="onnx", normalized=True, quantize="int8"
    )
    assert small.keys() == full.keys() and len(full) == (5 if large == 1 else 3)
    for side in ("image", "text"):
        sizes = [
            sum(size for name, size in own.items() if name.startswith(side))
            for own in (small, full)
        ]
        assert sizes[0] < sizes[1] / 2
    programs = exported.load_exported(tmp_path / "small")
    assert programs.manifest["quantized"] == "int8"
    images, tokens = inputs(config, 3)
    for ours, theirs in (
        (programs.encode_image(images), model.encode_image(images, normalized=True)),
        (programs.encode_text(tokens), model.encode_text(tokens, normalized=True)),
    ):
        cosines = np.sum(np.asarray(ours) * np.asarray(theirs), axis=1)
        assert cosines.min() > 0.98 and not np.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("form", exported.FORMATS)
def test_probabilities_of_labels(form: str, model: CLIP, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3, 12)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    labels = Labels(("a cat", "a dog", "a cow"), features)
    exported.export_model(model, tmp_path, form=form, sides=(), labels=labels)
    programs = exported.load_exported(tmp_path)
    images, _ = inputs(CONFIG, 2)
    cosines = np.asarray(model.encode_image(images, normalized=True)) @ features.T
    logits = float(model.scale) * cosines - 3.0
    np.testing.assert_allclose(programs.classify(images), 1 / (1 + np.exp(-logits)), atol=1e-5)
    assert programs.labels == ["a cat", "a dog", "a cow"]
    with pytest.raises(UserError, match="--sides image"):
        programs.encode_image(images)


@pytest.mark.parametrize("form", exported.FORMATS)
def test_programs_take_images_of_any_size(form: str, tmp_path: Path, capsys: Any) -> None:
    source, folder = GOLDEN / "open_clip_vit", tmp_path / "out"
    argv = [str(source), str(folder), "--format", form, "--images", "any-size"]
    assert export.run(argv) == 0
    assert f"image.{form}" in capsys.readouterr().out
    manifest = json.loads((folder / "export.json").read_text())
    shape = manifest["programs"]["image"]["input"]["shape"]
    assert shape == ["batch", "height", "width", "3"]
    model, preprocess, _ = pretrained.load(source)
    programs = exported.load_exported(folder)
    noise = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    for size in ((31, 22), (9, 40)):
        image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
        features = programs.encode_image(np.asarray(image)[None])
        expected = model.encode_image(preprocess(image)[None])
        np.testing.assert_allclose(features, expected, atol=0.02)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--quantize", "int8"], "--format onnx"),
        (["--format", "onnx", "--dtype", "bfloat16"], "float32"),
        (["--format", "onnx", "--params", "float16"], "float32"),
        (["--labels", "a,b", "--templates", "a photo"], "has no {}"),
        (["--labels", ""], "--labels is empty"),
        (["--templates", "a {}"], "--templates are prompts for --labels"),
        (["--sides", "none"], "--sides none needs --labels"),
        (["--image-size", "0"], "--image-size 0 must be"),
        (["--images", "jpeg"], "--images"),
    ],
)
def test_wrong_flags_are_refused_before_the_model_is_read(
    flags: list[str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        export.run([str(tmp_path / "absent"), str(tmp_path / "out"), *flags])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named(
    package: str, model: CLIP, tmp_path: Path, monkeypatch: Any
) -> None:
    exported.export_model(model, tmp_path, form="onnx")
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "clip_jax.inference.onnx.writing")
    monkeypatch.delattr(clip_jax.inference.onnx, "writing")
    with pytest.raises(UserError, match=r"pip install 'clip_jax\[onnx\]'"):
        exported.export_model(model, tmp_path, form="onnx", quantize="int8")
    assert (tmp_path / "text.onnx").is_file()  # the earlier export is still there
    if package == "onnxruntime":
        with pytest.raises(UserError, match=rf"package {package}"):
            exported.load_exported(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"programs": {"../image": {"input": {"dtype": "uint8"}}}},
        {"programs": {"/tmp/image": {"input": {"dtype": "uint8"}}}},
        {"programs": {"image": {"input": {"dtype": "a,b"}}}},
        {"programs": ["image"]},
        {"embed_dim": None},
        {"labels": 5},
        {"logit_scale": "x"},
    ],
)
def test_a_hostile_manifest_is_refused(change: Any, model: CLIP, tmp_path: Path) -> None:
    exported.export_model(model, tmp_path, form="onnx")
    path = tmp_path / "export.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match="damaged"):
        exported.load_exported(tmp_path)


def test_wrong_inputs_are_refused(model: CLIP, tmp_path: Path) -> None:
    exported.export_model(model, tmp_path, form="onnx", sides=("image", "image"))
    programs = exported.load_exported(tmp_path)
    images, _ = inputs(CONFIG, 2)
    for wrong in (
        images.astype(np.float32) / 255,
        images[0],
        images[:, :4],
        2 * images.astype(int),
        ["a.png"],
        [[1], [1, 2]],
    ):
        with pytest.raises(UserError, match=r"takes uint8 \[batch, 8, 8, 3\]"):
            programs.encode_image(wrong)
    np.testing.assert_allclose(
        programs.encode_image(images.astype(np.int64)), programs.encode_image(images)
    )
    exported.export_model(model, tmp_path)  # where a program gives no error, but numbers
    programs = exported.load_exported(tmp_path)
    for tokens in (np.full((1, 8), 40), np.full((1, 8), -1), np.ones((1, 7), int), ["a cat"]):
        with pytest.raises(UserError, match=r"takes int32 \[batch, 8\]"):
            programs.encode_text(tokens)
    with pytest.raises(UserError, match="unknown side 'audio'"):
        exported.export_model(model, tmp_path, sides=("audio",))


def test_other_files_are_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "image.onnx").write_bytes(b"mine")
    argv = [str(GOLDEN / "open_clip_vit"), str(tmp_path), "--format", "onnx"]
    with pytest.raises(UserError, match=r"image\.onnx already: --overwrite"):
        export.run(argv)
    assert (tmp_path / "image.onnx").read_bytes() == b"mine"


def test_a_damaged_file_is_named(model: CLIP, tmp_path: Path) -> None:
    exported.export_model(model, tmp_path, form="onnx")
    path = tmp_path / "text.onnx"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"text\.onnx cannot be run"):
        exported.load_exported(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"text\.onnx is missing"):
        exported.load_exported(tmp_path)
