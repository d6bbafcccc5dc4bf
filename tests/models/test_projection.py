"""Projections of pooled features: their sizes and FLOPs, and what cannot be."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clip_jax.distributed.param_spec import param_specs
from clip_jax.errors import UserError
from clip_jax.models.built_in import ProjectedTower
from clip_jax.models.initializers import TORCH
from clip_jax.models.projection import projection


@dataclasses.dataclass(frozen=True)
class Tower(ProjectedTower):
    projection: str = "linear"
    projection_bias: bool = False


def made(tower: Tower, features: int, embed_dim: int) -> Any:
    return projection(
        tower, features, embed_dim, classifier=TORCH, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )


@pytest.mark.parametrize(
    ("tower", "leaves", "flops"),
    [
        (Tower("none"), {}, 0),
        (Tower(), {"kernel": (8, 6)}, 96),
        (Tower(projection_bias=True), {"kernel": (8, 6), "bias": (6,)}, 96),
        (
            Tower("mlp"),
            {"fc/kernel": (8, 12), "fc/bias": (12,), "proj/kernel": (12, 6)},
            2 * 12 * (8 + 6),
        ),
    ],
)
def test_a_projection_has_the_layers_of_open_clip(tower, leaves, flops):
    embed_dim = 8 if tower.projection == "none" else 6
    module = made(tower, 8, embed_dim)
    state = nnx.to_flat_state(nnx.state(module, nnx.Param))
    assert {"/".join(path): leaf.shape for path, leaf in state} == leaves
    assert param_specs(module).keys() == leaves.keys()
    assert module(jnp.ones((2, 8))).shape == (2, embed_dim)
    assert tower.projection_flops(8, embed_dim) == flops
    tower.check_projection(8, embed_dim)


def test_a_hidden_layer_is_twice_as_wide_and_has_a_gelu():
    module = made(Tower("mlp"), 3, 2)
    x = jax.random.normal(jax.random.key(0), (4, 3))
    hidden = x @ module.fc.kernel[...] + module.fc.bias[...]
    phi = jax.scipy.stats.norm.cdf(hidden)
    np.testing.assert_allclose(module(x), hidden * phi @ module.proj.kernel[...], atol=1e-6)


@pytest.mark.parametrize(
    ("tower", "words"),
    [
        (Tower("cubic"), "none, linear, mlp"),
        (Tower("mlp", True), "projection_bias"),
        (Tower("none"), "embed_dim=6 must be the 8 features"),
    ],
)
def test_impossible_projections_are_named(tower, words):
    with pytest.raises(UserError, match=words):
        tower.check_projection(8, 6)
