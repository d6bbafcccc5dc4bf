"""What training programs put before names is removed, whatever it is, and only that."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.errors import UserError
from clip_jax.weights.prefixes import remove_prefix
from clip_jax.weights.tensor_writing import write_safetensors
from clip_jax.weights.tensors import open_model
from support import says

OPEN_CLIP = ("visual.conv1.weight", "visual.proj", "token_embedding.weight", "logit_scale")
HUGGING_FACE = ("vision_model.x.weight", "text_model.x.weight", "visual_projection.weight")
SIGLIP = ("visual.trunk.blocks.0.visual.weight", "text.transformer.x", "logit_bias")
PART = st.text("abcdefghij_0123456789", min_size=1, max_size=8)


@given(
    st.lists(PART, max_size=3),
    st.sampled_from([OPEN_CLIP, HUGGING_FACE, SIGLIP]),
    st.lists(PART.map("head.{}".format), max_size=2, unique=True),
)
def test_any_common_prefix_is_removed(parts, names, others):
    prefix = "".join(f"{part}." for part in parts)
    if prefix == "" or prefix.startswith("head."):
        others = []
    entries = {f"{prefix}{name}": i for i, name in enumerate(names)}
    model, cut, left_out = remove_prefix(entries | dict.fromkeys(others, -1))
    assert model == {name: i for i, name in enumerate(names)}
    assert (cut, left_out) == (prefix, others)


@pytest.mark.parametrize("wrapped", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_what_compilers_and_shards_put_anywhere_is_removed(wrapped):
    entries = {f"{wrapped}{name}": i for i, name in enumerate(OPEN_CLIP)}
    assert remove_prefix(entries)[0] == {name: i for i, name in enumerate(OPEN_CLIP)}
    inner = {"visual._orig_mod.conv1._checkpoint_wrapped_module.weight": 1, "logit_scale": 2}
    assert remove_prefix(inner)[0] == {"visual.conv1.weight": 1, "logit_scale": 2}


def test_averages_beside_a_model_are_left_out():
    entries = {name: i for i, name in enumerate(OPEN_CLIP)}
    averages = {f"ema.{name}": -1 for name in OPEN_CLIP}
    assert remove_prefix(entries | averages) == (entries, "", list(averages))


def test_safetensors_too(tmp_path):
    path = tmp_path / "x.safetensors"
    arrays = {f"clip_model.{name}": np.full(2, i, np.float32) for i, name in enumerate(OPEN_CLIP)}
    write_safetensors(path, arrays | {"head.weight": np.zeros(3, np.float32)})
    for name in ("x.safetensors", "blob"):
        path = path.rename(tmp_path / name)  # a file is told by its bytes, too
        with open_model(path) as tensors:
            assert set(tensors) == set(OPEN_CLIP) and tensors.left_out == ["head.weight"]
            assert tensors["logit_scale"].tolist() == [3, 3]


def test_several_models_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    arrays = {f"{who}.{n}": np.zeros(1) for who in ("student", "teacher") for n in OPEN_CLIP}
    write_safetensors(path, arrays)
    with pytest.raises(UserError) as error:
        open_model(path)
    assert says(error.value, path, "2 models", "'student.', 'teacher.'")
    assert says(error.value, "save one of them alone")
    write_safetensors(path, {"visual.a": np.zeros(1), "visual._orig_mod.a": np.zeros(1)})
    with pytest.raises(UserError) as error:
        open_model(path)
    assert says(error.value, path, "_orig_mod")
