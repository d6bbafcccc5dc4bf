"""Fresh image towers of timm's families: their values are spread as timm's are."""

import jax
import numpy as np
import pytest
from flax import nnx

import released
from clip_jax.models.clip import CLIP, variables
from clip_jax.models.model_config import CLIPConfig
from clip_jax.weights.arrays import flat
from clip_jax.weights.mappings.leaf import pieces
from clip_jax.weights.param_mapping import leaves
from tools import golden_models

SEEDS = 4
FAMILIES = {
    **golden_models.eva.FAMILIES,
    **golden_models.fastvit.FAMILIES,
    "open_clip_relpos": golden_models.FAMILIES["open_clip_relpos"],
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_values_are_spread_as_timms(family):
    """Mean and deviation of every tensor are as close as those of two samples are."""
    _, build = FAMILIES[family]
    open_clip = released.open_clip()
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        models = [build(open_clip) for _ in range(SEEDS)]
    config = CLIPConfig.from_dict(models[0].ours)
    theirs = [golden_models.state(model) for model in models]
    draw = jax.jit(lambda key: variables(CLIP(config, rngs=nnx.Rngs(key))))
    ours = [dict(flat(*draw(jax.random.key(seed)))) for seed in range(SEEDS)]
    for leaf in leaves(config, "open_clip"):
        if not leaf.path.startswith("vision/"):
            continue
        parts = [pieces(leaf, np.asarray(values[leaf.path])) for values in ours]
        for drawn in zip(*parts, strict=True):
            name = drawn[0].name
            a = np.stack([piece.view.ravel() for piece in drawn]).astype(np.float64)
            b = np.stack([state[name].ravel() for state in theirs]).astype(np.float64)
            error = 5 * (a.std() + b.std()) / a.size**0.5 + 1e-6 * np.abs(b).mean()
            assert abs(a.mean() - b.mean()) <= error, name
            assert abs(a.std() - b.std()) <= error, name
