"""Reads and writes the preprocessing of transformers as transformers does."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from preprocessors import (
    ALIGN,
    CLIP,
    HALF,
    JSON_VALUES,
    OLD_CLIP,
    SIGLIP,
    SIZES,
    drawing,
    installed,
)

from clip_jax.data.images.preprocess import Preprocess
from clip_jax.errors import UserError
from clip_jax.weights.preprocessing.hugging_face import from_hugging_face, to_hugging_face
from support import picture, says

NAN = float("nan")


def test_transformers_on_torch_is_near() -> None:
    installed("torch")
    for name, config in (("CLIP", CLIP), ("Siglip", SIGLIP), ("EfficientNet", ALIGN)):
        module = installed(f"transformers.models.{name.lower()}.image_processing_{name.lower()}")
        preprocess = from_hugging_face(config)
        processor = getattr(module, f"{name}ImageProcessor")(
            **{k: v for k, v in config.items() if not k.endswith("_type")}
        )
        for size in SIZES:
            theirs = np.asarray(processor(drawing(size))["pixel_values"][0]).transpose(1, 2, 0)
            ours = (preprocess(drawing(size)) / 255 - preprocess.mean) / preprocess.std
            apart = 255 * np.abs(theirs - ours) * np.asarray(preprocess.std)
            assert apart.max() < 6  # noise is the hardest of all
            assert apart.mean() < 0.5


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (OLD_CLIP, Preprocess(24, half="down")),
        (CLIP, Preprocess(24, half="down")),
        ({**CLIP, "image_processor_type": "CLIPImageProcessorFast"}, Preprocess(24, half="down")),
        ({"image_processor": CLIP}, Preprocess(24, half="down")),
        ({"image_processor_type": "CLIPImageProcessor"}, Preprocess(224, half="down")),
        ({**CLIP, "size": 30}, Preprocess(24, "shortest", 30, half="down")),
        ({**CLIP, "size": [30, 30]}, Preprocess(24, "squash", 30, half="down")),
        ({**CLIP, "size": {"height": 9, "width": 9}, "do_center_crop": False, "resample": 1},
         Preprocess(9, "squash", interpolation="lanczos", half="down")),
        ({**CLIP, "size": {"shortest_edge": 24, "longest_edge": None}},
         Preprocess(24, half="down")),
        (SIGLIP, Preprocess(24, "squash", mean=HALF, std=HALF, half="down")),
        ({**SIGLIP, "image_mean": 0.25, "image_std": 2},
         Preprocess(24, "squash", mean=(0.25,) * 3, std=(2.0,) * 3, half="down")),
        (ALIGN, Preprocess(24, "squash", 29, "bilinear", HALF, HALF, half="down")),
        ({**ALIGN, "do_rescale": False},
         Preprocess(24, "squash", 29, "bilinear", (0.0,) * 3, (1 / 255,) * 3, half="down")),
        ({"image_processor_type": "EfficientNetImageProcessor"},
         Preprocess(346, "squash", mean=HALF, std=(0.25,) * 3, half="down")),
    ],
)  # fmt: skip
def test_files_of_hugging_face(config: dict[str, Any], expected: Preprocess) -> None:
    preprocess = from_hugging_face(config)
    assert preprocess == expected
    assert np.allclose(preprocess.std, expected.std, rtol=1e-12)


@pytest.mark.parametrize("kind", ["CLIP", "Siglip", "EfficientNet"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"do_normalize": False},
        {"do_rescale": False},
        {"rescale_factor": 0.01, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.2, 0.4, 0.8]},
        {"rescale_offset": True, "include_top": True},
        {"rescale_offset": True, "include_top": True, "do_normalize": False},
    ],
    ids=json.dumps,
)
def test_mean_and_std_are_all_that_is_done_to_colours(kind: str, changes: dict[str, Any]) -> None:
    installed("torch")
    config = {"CLIP": CLIP, "Siglip": SIGLIP, "EfficientNet": ALIGN}[kind] | changes
    module = installed(f"transformers.models.{kind.lower()}.image_processing_pil_{kind.lower()}")
    processor = getattr(module, f"{kind}ImageProcessorPil")(
        **{k: v for k, v in config.items() if not k.endswith("_type")}
    )
    image = drawing((64, 48))
    theirs = np.asarray(processor(image)["pixel_values"][0]).transpose(1, 2, 0)
    preprocess = from_hugging_face(config)
    ours = (preprocess(image) / 255 - preprocess.mean) / preprocess.std
    assert np.allclose(theirs, ours, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


PLAIN = Preprocess(24, half="down")


SQUASHED = Preprocess(24, "squash", mean=HALF, std=HALF, half="down")


CUT = Preprocess(24, "squash", 29, "bilinear", HALF, HALF, half="down")


WRITABLE = [
    ("clip", PLAIN),
    ("clip", Preprocess(24, "shortest", 30, "lanczos", half="down")),
    ("clip", CUT),
    ("siglip", SQUASHED),
    ("align", CUT),
    ("align", SQUASHED),
]


@pytest.mark.parametrize(("kind", "preprocess"), WRITABLE)
def test_files_for_hugging_face_say_the_same(kind: str, preprocess: Preprocess) -> None:
    config = json.loads(json.dumps(to_hugging_face(preprocess, kind)))
    assert from_hugging_face(config) == preprocess
    rounded = dataclasses.replace(preprocess, half="even")
    assert to_hugging_face(rounded, kind) == to_hugging_face(preprocess, kind)


@pytest.mark.parametrize("backend", ["pil", "torchvision"])
@pytest.mark.parametrize(("kind", "preprocess"), WRITABLE)
def test_transformers_reads_what_is_written(
    kind: str, preprocess: Preprocess, backend: str, tmp_path: Path
) -> None:
    installed("torch")
    auto = installed("transformers.models.auto.image_processing_auto").AutoImageProcessor
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(to_hugging_face(preprocess, kind)))
    if backend == "torchvision" and preprocess.interpolation == "lanczos":
        pytest.skip("rings more there")
    processor = auto.from_pretrained(tmp_path, backend=backend)
    for image in (drawing((64, 48)), drawing((37, 91), "L")):
        theirs = np.asarray(processor(image)["pixel_values"][0]).transpose(1, 2, 0)
        ours = (preprocess(image) / 255 - preprocess.mean) / preprocess.std
        apart = 255 * np.abs(theirs - ours) * np.asarray(preprocess.std)
        assert apart.max() < (1e-3 if backend == "pil" else 6)


@pytest.mark.parametrize(
    ("kind", "preprocess"),
    [
        ("clip", Preprocess(24, "longest")),
        ("siglip", Preprocess(24)),
        ("siglip", CUT),
        ("align", Preprocess(24)),
        ("align", Preprocess(24, "longest")),
    ],
)
def test_what_transformers_cannot_do_is_not_written(kind: str, preprocess: Preprocess) -> None:
    with pytest.raises(UserError) as error:
        to_hugging_face(preprocess, kind)
    assert says(error.value, kind, preprocess.resize, "open_clip")


def test_a_kind_that_is_none() -> None:
    with pytest.raises(UserError) as error:
        to_hugging_face(PLAIN, "vit")
    assert says(error.value, "kind='vit'", "'siglip'")


@pytest.mark.parametrize(
    ("base", "key", "value"),
    [
        (CLIP, "do_resize", False),
        (CLIP, "do_resize", "yes"),
        (CLIP, "do_resize", 1),
        (CLIP, "do_pad", True),
        (CLIP, "do_center_crop", False),
        (CLIP, "do_center_crop", 0),
        (CLIP, "crop_size", {"height": 24, "width": 23}),
        (CLIP, "crop_size", {"shortest_edge": 24}),
        (CLIP, "crop_size", 25),
        (CLIP, "crop_size", 0),
        (CLIP, "crop_size", "24"),
        (SIGLIP, "do_center_crop", True),
        (CLIP, "size", {"shortest_edge": 24.0}),
        (CLIP, "size", {"shortest_edge": 24, "longest_edge": 99}),
        (CLIP, "size", {"shortest_edge": True}),
        (CLIP, "size", {"shortest_edge": 8193}),
        (CLIP, "size", {"max_height": 24, "max_width": 24}),
        (CLIP, "size", {"height": 24}),
        (CLIP, "size", {}),
        (CLIP, "size", [24]),
        (CLIP, "size", [24, 24, 24]),
        (CLIP, "size", [[], []]),
        (CLIP, "size", -24),
        (CLIP, "size", NAN),
        (CLIP, "size", "24" * 1000),
        (SIGLIP, "size", 24),
        (SIGLIP, "size", {"height": 24, "width": 32}),
        (SIGLIP, "size", {"height": 24, "width": 24.0}),
        (CLIP, "resample", 6),
        (CLIP, "resample", 3.0),
        (CLIP, "resample", True),
        (CLIP, "resample", "bicubic"),
        (CLIP, "image_mean", [0.5, 0.5]),
        (CLIP, "image_mean", [0.5, 0.5, NAN]),
        (CLIP, "image_mean", [0.5, 0.5, "0.5"]),
        (CLIP, "image_mean", {"r": 0.5}),
        (CLIP, "image_mean", 10**400),
        (CLIP, "image_std", [0.5, 0.5, 0.0]),
        (CLIP, "image_std", -1),
        (CLIP, "image_std", float("inf")),
        (CLIP, "rescale_factor", 0),
        (CLIP, "rescale_factor", "1/255"),
        (CLIP, "do_rescale", "no"),
        (CLIP, "do_normalize", 2),
        (ALIGN, "rescale_offset", 1),
        (ALIGN, "include_top", "false"),
        (CLIP, "image_processor_type", "ViTImageProcessor"),
        (CLIP, "image_processor_type", 3),
    ],
)
def test_strange_files_of_hugging_face(base: dict[str, Any], key: str, value: Any) -> None:
    with pytest.raises(UserError) as error:
        from_hugging_face({**base, key: value}, "a/preprocessor_config.json")
    named = "do_center_crop" if base is SIGLIP and key == "size" and value == 24 else key
    named = "crop_size" if base is SIGLIP and key == "do_center_crop" else named
    assert says(error.value, "a/preprocessor_config.json", named)


def test_a_file_without_a_type() -> None:
    for config in ({}, {"size": 24}, [], None, "x"):
        with pytest.raises(UserError) as error:
            from_hugging_face(config, "file.json")  # type: ignore[arg-type]
        assert says(error.value, "file.json")


@given(
    st.sampled_from([OLD_CLIP, CLIP, SIGLIP, ALIGN]),
    st.dictionaries(st.sampled_from(sorted(ALIGN)), JSON_VALUES | st.integers(0, 50), max_size=3),
)
def test_no_file_of_hugging_face_gives_another_error(
    base: dict[str, Any], changes: dict[str, Any]
) -> None:
    try:
        preprocess = from_hugging_face(base | changes)
    except UserError as error:
        assert says(error, "preprocessor_config.json")
    else:
        assert preprocess(picture(0, (9, 7))).shape == (preprocess.size, preprocess.size, 3)
