"""Preprocess makes the released pixels, and reads and writes the files that describe it."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import released as installed
from clip_jax.data.images.decoding import resize_and_crop, to_rgb
from clip_jax.data.images.preprocess import (
    RESAMPLES,
    Preprocess,
    from_hugging_face,
    from_open_clip,
    to_hugging_face,
    to_open_clip,
)
from clip_jax.errors import UserError
from support import encoded, picture, says

HALF = (0.5, 0.5, 0.5)
# wide, tall, square, odd, smaller than what comes out, a pixel wide; some margins end in a half
SIZES = [(40, 40), (64, 48), (37, 91), (300, 20), (9, 7), (1, 33), (33, 1), (224, 301), (1, 1)]

OLD_CLIP = {  # the form of 2021
    "crop_size": 24,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 24,
}
CLIP = {
    **OLD_CLIP,
    "image_processor_type": "CLIPImageProcessor",
    "do_convert_rgb": True,
    "do_rescale": True,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 24},
    "crop_size": {"height": 24, "width": 24},
}
SIGLIP = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 24, "width": 24},
}
ALIGN = {  # its pixels are x / 127.5 - 1, and its mean and std mean nothing
    "crop_size": {"height": 24, "width": 24},
    "do_center_crop": True,
    "do_normalize": False,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "EfficientNetImageProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "include_top": False,
    "resample": 2,
    "rescale_factor": 0.00784313725490196,
    "rescale_offset": True,
    "size": {"height": 29, "width": 29},
}

# The sha256 of what the released code makes of `drawing` in SIZES, RGB and grey; see `released`.
GOLDEN = {
    "open_clip shortest bicubic": (Preprocess(24), "bca0b04fc039e930"),
    "open_clip shortest bilinear": (Preprocess(24, interpolation="bilinear"), "329de20f05f4511b"),
    "open_clip squash bicubic": (Preprocess(24, "squash"), "3504084dc89f16bf"),
    "open_clip squash bilinear": (
        Preprocess(24, "squash", interpolation="bilinear"),
        "0b67515dab2d1a70",
    ),
    "open_clip longest bicubic": (Preprocess(24, "longest", fill=7), "8ee4b64ebb7fdb4b"),
    "transformers CLIP": (from_hugging_face(CLIP), "f7980205361a47fe"),
    "transformers Siglip": (from_hugging_face(SIGLIP), "3504084dc89f16bf"),
    "transformers EfficientNet": (from_hugging_face(ALIGN), "0563963f8266a728"),
}


def drawing(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """A picture full of detail that any machine draws the same."""
    y, x, color = np.indices((size[1], size[0], 3))
    pixels = (x * 37 + y * 91 + x * y * (color + 3) + color * 50) % 256
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def library(name: str) -> Any:
    """A module of an installed library; the test is skipped without it."""
    installed.torchvision()
    pytest.importorskip(name.partition(".")[0])
    return importlib.import_module(name)


def released(which: str, preprocess: Preprocess) -> Callable[[Image.Image], np.ndarray]:
    """The released code as a function from a picture to uint8 [size, size, 3]."""
    package, kind, *rest = which.split()
    if package == "open_clip":
        transform = library("open_clip").image_transform(
            preprocess.size,
            is_train=False,
            resize_mode=kind,
            interpolation=rest[0],
            fill_color=preprocess.fill,
        )
    else:
        library("torch")
        module = library(f"transformers.models.{kind.lower()}.image_processing_pil_{kind.lower()}")
        config = {"CLIP": CLIP, "Siglip": SIGLIP, "EfficientNet": ALIGN}[kind]
        processor = getattr(module, f"{kind}ImageProcessorPil")(
            **{k: v for k, v in config.items() if not k.endswith("_type")}
        )

        def transform(image: Image.Image) -> Any:
            return processor(image)["pixel_values"][0]

    def pixels(image: Image.Image) -> np.ndarray:
        normalized = np.asarray(transform(image), np.float64).transpose(1, 2, 0)
        values = 255 * (normalized * preprocess.std + preprocess.mean)
        assert np.abs(values - values.round()).max() < 1e-3
        return values.round().astype(np.uint8)

    return pixels


def digest(make: Callable[[Image.Image], np.ndarray]) -> str:
    pixels = [make(drawing(size, mode).convert("RGB")) for size in SIZES for mode in ("RGB", "L")]
    return hashlib.sha256(np.stack(pixels).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("which", GOLDEN)
def test_pixels_are_the_released_ones(which: str) -> None:
    preprocess, expected = GOLDEN[which]
    assert digest(preprocess) == expected


@pytest.mark.parametrize("which", GOLDEN)
def test_the_released_code_still_makes_them(which: str) -> None:
    preprocess, expected = GOLDEN[which]
    assert digest(released(which, preprocess)) == expected


def test_the_default_is_the_released_preprocessing_of_clip() -> None:
    for size in SIZES:
        image = drawing(size)
        found = Preprocess(24)(image)
        assert found.shape == (24, 24, 3)
        assert found.dtype == np.uint8
        assert np.array_equal(found, resize_and_crop(to_rgb(image), 24))


def test_squashing_and_fitting_show_the_whole_picture() -> None:
    image = Image.new("RGB", (60, 20), "white")
    image.paste("red", (0, 0, 6, 20))
    assert (Preprocess(20)(image) == 255).all()  # the left end is cut off
    assert Preprocess(20, "squash")(image)[10, 0].tolist() == [255, 0, 0]
    fitted = Preprocess(20, "longest", fill=7)(image)
    assert fitted[10, 0].tolist() == [255, 0, 0]
    assert (fitted[:6] == 7).all()
    assert (fitted[14:] == 7).all()
    assert (fitted[7:13, 5:] == 255).all()
    thread = Image.new("RGB", (1, 4000), "red")
    assert (Preprocess(20, "longest")(thread)[:, 9:11].max(axis=1) == [255, 0, 0]).all()


def test_margins_of_half_a_pixel() -> None:
    ramp = Image.fromarray(np.arange(27, dtype=np.uint8)[None].repeat(24, axis=0))
    columns = {half: Preprocess(24, half=half)(ramp)[0, 0, 0] for half in ("even", "down")}
    assert columns == {"even": 2, "down": 1}


def test_every_filter_of_pillow() -> None:
    image = drawing((64, 48))
    made = {name: Preprocess(24, interpolation=name)(image).tobytes() for name in RESAMPLES}
    assert len(set(made.values())) == len(RESAMPLES) == 6


def opened(image: Image.Image, kind: str = "png", **options: Any) -> Image.Image:
    return Image.open(io.BytesIO(encoded(image, kind, **options)))


def see_through(mode: str) -> Image.Image:
    """A picture whose left half can be seen through, in one of the ways there are."""
    image = drawing((64, 48), mode.rstrip("+"))
    if mode == "P+":
        unused = min(set(range(256)) - set(image.tobytes()))
        image.paste(unused, (0, 0, 32, 48))
        return opened(image, transparency=unused)
    if mode == "PA":
        image = drawing((64, 48), "P").convert("PA")
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, 32, 48))
    image.putalpha(alpha)
    return image


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P+"])
def test_what_is_transparent_is_white(mode: str) -> None:
    image = see_through(mode)
    assert image.mode == mode.rstrip("+")
    found = Preprocess(24)(image)
    assert (found[:, :10] == 255).all()
    assert not (found[:, 14:] == 255).all()
    opaque = Image.fromarray(np.asarray(image.convert("RGBA"))[..., :3].copy())
    assert np.array_equal(found[:, 14:], Preprocess(24)(opaque)[:, 14:])


def test_transparency_in_the_released_code() -> None:
    """transformers lays it on white as well; open_clip shows what hides below it."""
    image = see_through("RGBA")
    preprocess, _ = GOLDEN["transformers CLIP"]
    assert np.array_equal(released("transformers CLIP", preprocess)(image), preprocess(image))
    assert not np.array_equal(
        released("open_clip shortest bicubic", Preprocess(24))(image), Preprocess(24)(image)
    )


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "YCbCr", "HSV"])
def test_every_mode_is_made_rgb_first(mode: str) -> None:
    image = drawing((64, 48), mode)
    for how in ("shortest", "squash", "longest"):
        preprocess = Preprocess(24, how)
        assert np.array_equal(preprocess(image), preprocess(image.convert("RGB")))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK"])
def test_modes_in_the_released_code(mode: str, size: tuple[int, int]) -> None:
    """transformers makes them RGB first as we do; open_clip does so once they are resized."""
    image = drawing(size, mode)
    for which in ("transformers CLIP", "transformers Siglip"):
        preprocess, _ = GOLDEN[which]
        assert np.array_equal(released(which, preprocess)(image), preprocess(image))
    ours = Preprocess(24)(image)
    theirs = released("open_clip shortest bicubic", Preprocess(24))
    assert np.array_equal(theirs(image.convert("RGB")), ours)
    if mode == "L":
        assert np.array_equal(theirs(image), ours)
    elif mode == "CMYK":
        assert np.abs(theirs(image).astype(int) - ours).max() <= 60
    if size == (64, 48) and mode != "L":
        assert not np.array_equal(theirs(image), ours)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = drawing((64, 48))
    image = opened(stored, exif=exif)
    turns = {  # what a reader does to rows and columns
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: p[::-1].transpose(1, 0, 2),
        7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        8: lambda p: p[:, ::-1].transpose(1, 0, 2),
    }
    upright = Image.fromarray(np.ascontiguousarray(turns[orientation](np.asarray(stored))))
    assert np.array_equal(Preprocess(24)(image), Preprocess(24)(upright))
    lying = np.array_equal(Preprocess(24)(image), Preprocess(24)(stored))
    assert lying == (orientation == 1)


def test_orientation_in_the_released_code() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    stored = drawing((64, 48))
    theirs = released("open_clip shortest bicubic", Preprocess(24))
    assert np.array_equal(theirs(opened(stored, exif=exif)), theirs(stored))


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_sixteen_bits_are_their_upper_eight(mode: str) -> None:
    grey = drawing((64, 48), "L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    if mode == "I":
        deep = Image.fromarray(np.asarray(deep).astype(np.int32))
    assert deep.mode == mode
    assert np.array_equal(Preprocess(24)(deep), Preprocess(24)(grey))


def test_sixteen_bits_in_the_released_code() -> None:
    """There 256 and above are white."""
    deep = Image.fromarray(np.asarray(drawing((64, 48), "L")).astype(np.uint16) * 257 + 256)
    assert (released("open_clip shortest bicubic", Preprocess(24))(deep) == 255).all()


def test_transformers_on_torch_is_near() -> None:
    library("torch")
    for name, config in (("CLIP", CLIP), ("Siglip", SIGLIP), ("EfficientNet", ALIGN)):
        module = library(f"transformers.models.{name.lower()}.image_processing_{name.lower()}")
        preprocess = from_hugging_face(config)
        processor = getattr(module, f"{name}ImageProcessor")(
            **{k: v for k, v in config.items() if not k.endswith("_type")}
        )
        for size in SIZES:
            found = np.asarray(processor(drawing(size))["pixel_values"][0]).transpose(1, 2, 0)
            ours = (preprocess(drawing(size)) / 255 - preprocess.mean) / preprocess.std
            apart = 255 * np.abs(found - ours) * np.asarray(preprocess.std)
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
    found = from_hugging_face(config)
    assert found == expected
    assert np.allclose(found.std, expected.std, rtol=1e-12)


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
    library("torch")
    config = {"CLIP": CLIP, "Siglip": SIGLIP, "EfficientNet": ALIGN}[kind] | changes
    module = library(f"transformers.models.{kind.lower()}.image_processing_pil_{kind.lower()}")
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
    library("torch")
    auto = library("transformers.models.auto.image_processing_auto").AutoImageProcessor
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


def test_files_of_open_clip() -> None:
    assert from_open_clip({}, 24) == Preprocess(24)
    assert from_open_clip({"mean": None, "fill_color": None, "timm": 1}, [24, 24]) == Preprocess(24)
    config = {
        "size": 99,
        "mode": "RGB",
        "mean": [0.5, 0.5, 0.5],
        "std": 0.25,
        "interpolation": "random",
        "resize_mode": "longest",
        "fill_color": 9,
    }
    expected = Preprocess(24, "longest", mean=HALF, std=(0.25,) * 3, fill=9)
    assert from_open_clip(config, 24) == expected


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(24),
        Preprocess(24, "squash", interpolation="bilinear", mean=HALF, std=HALF),
        Preprocess(24, "longest", fill=7),
    ],
)
def test_files_for_open_clip(preprocess: Preprocess) -> None:
    config = json.loads(json.dumps(to_open_clip(preprocess)))
    assert from_open_clip(config, preprocess.size) == preprocess
    theirs = library("open_clip.transform")
    settings = theirs.PreprocessCfg(size=preprocess.size, **config)
    transform = theirs.image_transform_v2(settings, is_train=False)
    image = drawing((64, 48))
    ours = (preprocess(image) / 255 - preprocess.mean) / preprocess.std
    assert np.allclose(transform(image).numpy().transpose(1, 2, 0), ours, atol=1e-5)


@pytest.mark.parametrize(
    ("preprocess", "word"),
    [(Preprocess(24, resize_size=30), 30), (Preprocess(24, interpolation="box"), "box")],
)
def test_what_open_clip_cannot_do_is_not_written(preprocess: Preprocess, word: object) -> None:
    with pytest.raises(UserError) as error:
        to_open_clip(preprocess)
    assert says(error.value, "open_clip", word)


NAN = float("nan")


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


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mean", [0.5]),
        ("mean", "0.5"),
        ("std", [1.0, 1.0, 0.0]),
        ("std", NAN),
        ("interpolation", "nearest"),
        ("interpolation", ["bicubic"]),
        ("resize_mode", "crop"),
        ("mode", "L"),
        ("fill_color", 256),
        ("fill_color", [0, 0, 0]),
        ("fill_color", 1.0),
    ],
)
def test_strange_files_of_open_clip(key: str, value: Any) -> None:
    with pytest.raises(UserError) as error:
        from_open_clip({key: value}, 24, "a/open_clip_config.json")
    assert says(error.value, "a/open_clip_config.json", f"preprocess_cfg.{key}")


@pytest.mark.parametrize(
    "size", [None, 0, 8193, 24.0, True, "24", [24, 32], [24] * 3, [], {}, [[24]], NAN]
)
def test_strange_sizes_of_open_clip(size: Any) -> None:
    with pytest.raises(UserError) as error:
        from_open_clip({}, size)
    assert says(error.value, "open_clip_config.json", "image_size")
    with pytest.raises(UserError):
        from_open_clip([], 24)  # type: ignore[arg-type]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(
    st.sampled_from([OLD_CLIP, CLIP, SIGLIP, ALIGN]),
    st.dictionaries(st.sampled_from(sorted(ALIGN)), JSON | st.integers(0, 50), max_size=3),
)
def test_no_file_of_hugging_face_gives_another_error(
    base: dict[str, Any], changes: dict[str, Any]
) -> None:
    try:
        found = from_hugging_face(base | changes)
    except UserError as error:
        assert says(error, "preprocessor_config.json")
    else:
        assert found(picture(0, (9, 7))).shape == (found.size, found.size, 3)


@given(
    st.dictionaries(
        st.sampled_from(["mean", "std", "interpolation", "resize_mode", "fill_color", "mode"]), JSON
    ),
    JSON | st.just(8),
)
def test_no_file_of_open_clip_gives_another_error(config: dict[str, Any], size: Any) -> None:
    try:
        found = from_open_clip(config, size)
    except UserError as error:
        assert says(error, "open_clip_config.json")
    else:
        assert found(picture(0, (9, 7))).shape == (found.size, found.size, 3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", 0),
        ("size", 24.0),
        ("size", 8193),
        ("resize", "stretch"),
        ("resize_size", 23),
        ("resize_size", 8193),
        ("interpolation", "cubic"),
        ("mean", (0.5, 0.5)),
        ("mean", (0.5, 0.5, NAN)),
        ("std", (0.5, 0.5, 0.0)),
        ("fill", 256),
        ("half", "up"),
    ],
)
def test_impossible_fields_are_said(key: str, value: Any) -> None:
    with pytest.raises(UserError) as error:
        Preprocess(**{"size": 24, key: value})
    assert says(error.value, "Preprocess", key, value)


def test_what_is_fitted_is_not_cut() -> None:
    with pytest.raises(UserError) as error:
        Preprocess(24, "longest", 30)
    assert says(error.value, "resize_size=30", "longest")
