"""The second layer of the projection: by hand, in evaluation, FLOPs, old files, other libraries."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from recipes import flat, recipe_of

from clip_jax.errors import UserError
from clip_jax.evaluation import programs
from clip_jax.models.clip import CLIP, normalize, parameter_count
from clip_jax.models.lora import Lora
from clip_jax.models.model_config import CLIPConfig
from clip_jax.weights.param_mapping import leaves
from steps import TINY, batch

WIDE = dataclasses.replace(TINY, projection_width=24)


def test_features_pass_a_relu_and_a_second_layer() -> None:
    model, data = CLIP(WIDE, rngs=nnx.Rngs(0)), batch(3)
    for side, rows, encode in (
        ("vision", data["image"], model.encode_image),
        ("text", data["tokens"], model.encode_text),
    ):
        tower = getattr(model, side)
        hidden = np.maximum(tower(jnp.asarray(rows)), 0)
        layer = tower.second_projection
        expected = hidden @ np.asarray(layer.kernel[...]) + layer.bias[...]
        assert hidden.shape == (3, 24) and expected.shape == (3, 16)
        np.testing.assert_allclose(encode(rows), expected, atol=1e-5)
        keys = jax.random.split(jax.random.key(0), 3)
        np.testing.assert_allclose(encode(rows, key=keys), expected, atol=1e-5)
    unit, _ = programs._pooled(model, jnp.asarray(data["image"]))
    np.testing.assert_allclose(unit, normalize(model.encode_image(data["image"])), atol=1e-6)
    np.testing.assert_allclose(
        model.encode_grid(data["image"])[0], model.encode_image(data["image"]), atol=1e-5
    )


def test_models_without_it_are_as_they_were() -> None:
    old = TINY.to_dict()
    del old["projection_width"]
    assert CLIPConfig.from_dict(old) == TINY
    assert CLIPConfig.from_dict(WIDE.to_dict()) == WIDE
    more = 2 * (24 * 16 + 16) + parameter_count(
        CLIP(dataclasses.replace(TINY, embed_dim=24), rngs=nnx.Rngs(0))
    )
    assert parameter_count(CLIP(WIDE, rngs=nnx.Rngs(0))) == more


def test_it_is_part_of_its_tower_for_freezing_and_adapters() -> None:
    recipe = recipe_of(WIDE, freeze="vision")
    names = flat(recipe.state_like.opt_state)
    assert any("text/second_projection" in n for n in names)
    assert not any("vision/" in n for n in names)
    lora = Lora(rank=2, targets=r"text/second_projection/kernel")
    adapted = CLIP(WIDE, lora=lora, rngs=nnx.Rngs(0))
    assert adapted.text.second_projection.lora_a.shape == (24, 2)


@pytest.mark.parametrize("library", ["openai", "open_clip", "hugging_face"])
def test_other_libraries_have_no_place_for_it(library: str) -> None:
    with pytest.raises(UserError, match=r"with projection_width=24.*no place") as caught:
        leaves(WIDE, library)
    assert "\n" not in str(caught.value)
