"""A SigLIP 2 NaFlex in use: loaded, prepared, classified, drawn, converted and exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import clip_jax
import released
from clip_jax.cli import convert
from clip_jax.errors import GuessedWarning, UserError
from clip_jax.inference import exported
from clip_jax.inference.heatmap import draw_heatmap, similarity_maps
from clip_jax.models import patches
from support import says

GOLDEN = Path(__file__).parents[1] / "golden" / "models" / "hugging_face_siglip2"
PROCESSOR = {
    "image_processor_type": "Siglip2ImageProcessor",
    "do_resize": True,
    "resample": 2,
    "patch_size": 4,
    "max_num_patches": 20,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
PICTURES = [
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    for size in ((12, 40), (50, 20), (7, 7))
]


def folder(path: Path, **changes: Any) -> Path:
    """The golden model with the settings of its pictures."""
    shutil.copytree(GOLDEN, path / "model")
    (path / "model" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | changes))
    return path / "model"


def prepared(prepare: Any) -> np.ndarray:
    return np.stack([prepare(picture) for picture in PICTURES])


def test_features_are_those_of_transformers(tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), released.transformers()
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    model, prepare, _ = clip_jax.load(folder(tmp_path))
    theirs = transformers.Siglip2Model.from_pretrained(tmp_path / "model").eval()
    process = Siglip2ImageProcessorPil.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        features = theirs.get_image_features(**process(PICTURES, return_tensors="pt"))
    images = prepared(prepare)
    assert images.shape == (3, 20, 56)
    np.testing.assert_allclose(
        model.encode_image(images), features.pooler_output.numpy(), rtol=0, atol=1e-5
    )


def test_the_number_of_patches_is_chosen_when_it_is_loaded(tmp_path: Path) -> None:
    path = folder(tmp_path)
    model, prepare, _ = clip_jax.load(path, max_num_patches=35)
    assert prepared(prepare).shape == (3, 35, 56)
    assert model.config.vision.max_num_patches == 35
    assert "35 patches of 4px" in str(model)
    for options, words in (
        ({"image_size": 32}, ["image_size=32", "naflex", "max_num_patches"]),
        ({"max_num_patches": 0}, ["max_num_patches=0", "1 to 65535"]),
    ):
        with pytest.raises(UserError) as error:
            clip_jax.load(path, **options)
        assert says(error.value, *words)
    assert prepare.with_patches(12).shape == (12, 56)
    assert prepare.with_patches(0) == prepare
    squares = GOLDEN.parent / "hugging_face_siglip"
    with pytest.warns(GuessedWarning), pytest.raises(UserError) as error:
        clip_jax.load(squares, max_num_patches=64)
    assert says(error.value, "max_num_patches=64", "vit", "image_size")


def test_a_processor_for_other_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        clip_jax.load(folder(tmp_path, patch_size=8))
    assert says(error.value, "preprocessor_config.json", "200 bytes", "56 bytes")


def test_a_converted_model_says_how_many_patches_it_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder(tmp_path)
    argv = [str(path), str(tmp_path / "out"), "--to", "hugging_face", "--max-num-patches", "30"]
    assert convert.run(argv) == 0
    written = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert written["image_processor_type"] == "Siglip2ImageProcessor"
    assert (written["max_num_patches"], written["patch_size"]) == (30, 4)
    model, prepare, _ = clip_jax.load(tmp_path / "out")
    theirs, _, _ = clip_jax.load(path)
    images = prepared(prepare)
    assert images.shape[1] == 30
    np.testing.assert_array_equal(model.encode_image(images), theirs.encode_image(images))
    with pytest.raises(UserError) as error:
        convert.run([str(path), str(tmp_path / "other"), "--to", "open_clip"])
    assert "naflex" in str(error.value)


def test_places_of_a_heatmap_are_those_of_the_picture(tmp_path: Path) -> None:
    model, prepare, _ = clip_jax.load(folder(tmp_path))
    pixels = prepare(PICTURES[0])
    text = np.eye(16, dtype=np.float32)[:2]
    maps = similarity_maps(model, pixels, text)
    _, places = patches.unpack(pixels)
    assert maps.shape == (2, places.rows.max(), places.columns.max())
    picture = draw_heatmap(pixels, maps, ["a", "b"])
    assert picture.width > picture.height


def test_an_exported_model_takes_packed_patches(tmp_path: Path) -> None:
    model, prepare, _ = clip_jax.load(folder(tmp_path))
    exported.export_model(
        model, tmp_path / "out", sides=("image",), platforms=("cpu",), preprocess=prepare
    )
    manifest = json.loads((tmp_path / "out" / exported.MANIFEST).read_text())
    assert manifest["preprocess"]["resize_mode"] == "patches"
    assert (manifest["preprocess"]["patch_size"], manifest["preprocess"]["patches"]) == (4, 20)
    images = prepared(prepare)
    program = exported.load_exported(tmp_path / "out")
    np.testing.assert_allclose(
        program.encode_image(images), model.encode_image(images), rtol=0, atol=1e-5
    )
