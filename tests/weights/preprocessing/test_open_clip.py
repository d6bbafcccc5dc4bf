"""Reads and writes the preprocessing of open_clip as open_clip does."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from preprocessors import (
    HALF,
    JSON_VALUES,
    drawing,
    installed,
)

from clip_jax.data.images.preprocess import Preprocess
from clip_jax.errors import UserError
from clip_jax.weights.preprocessing.open_clip import from_open_clip, to_open_clip
from support import picture, says

NAN = float("nan")


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
    theirs = installed("open_clip.transform")
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


@given(
    st.dictionaries(
        st.sampled_from(["mean", "std", "interpolation", "resize_mode", "fill_color", "mode"]),
        JSON_VALUES,
    ),
    JSON_VALUES | st.just(8),
)
def test_no_file_of_open_clip_gives_another_error(config: dict[str, Any], size: Any) -> None:
    try:
        preprocess = from_open_clip(config, size)
    except UserError as error:
        assert says(error, "open_clip_config.json")
    else:
        assert preprocess(picture(0, (9, 7))).shape == (preprocess.size, preprocess.size, 3)
