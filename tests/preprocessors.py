"""The released preprocessing of images, and files and images to compare with it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

import released
from clip_jax.data.images.preprocess import Preprocess

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


def drawing(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """A picture full of detail that any machine draws the same."""
    y, x, color = np.indices((size[1], size[0], 3))
    pixels = (x * 37 + y * 91 + x * y * (color + 3) + color * 50) % 256
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def installed(name: str) -> Any:
    """A module of an installed library; the test is skipped without it."""
    released.torchvision()
    pytest.importorskip(name.partition(".")[0])
    return importlib.import_module(name)


def released_pixels(which: str, preprocess: Preprocess) -> Callable[[Image.Image], np.ndarray]:
    """The released code as a function from a picture to uint8 [size, size, 3]."""
    package, kind, *rest = which.split()
    if package == "open_clip":
        transform = installed("open_clip").image_transform(
            preprocess.size,
            is_train=False,
            resize_mode=kind,
            interpolation=rest[0],
            fill_color=preprocess.fill,
        )
    else:
        installed("torch")
        module = installed(
            f"transformers.models.{kind.lower()}.image_processing_pil_{kind.lower()}"
        )
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


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
