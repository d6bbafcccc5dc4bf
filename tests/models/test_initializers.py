"""What fresh models are drawn from, beside the families' own code and beside their formulas.

Seeds are fixed: the same numbers are compared every time. A limit of a millionth then says that
they could hardly come from one distribution; some hundred parameters are compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from scipy import stats

import released
from clip_jax.models.architectures.siglip import siglip
from clip_jax.models.clip import CLIP, variables
from clip_jax.models.convnext_configs import ConvNeXtConfig
from clip_jax.models.model_config import (
    BertConfig,
    CLIPConfig,
    EfficientNetConfig,
    ResNetConfig,
    TextConfig,
    VisionConfig,
)
from clip_jax.models.swin_configs import SwinConfig
from clip_jax.models.vitamin_configs import ViTaminConfig
from clip_jax.weights import param_mapping
from clip_jax.weights.arrays import flat
from clip_jax.weights.configs.open_clip.timm import has_text_prefix
from clip_jax.weights.mappings.leaf import pieces
from tools.golden_models.timm import swin_trunk, vitamin_trunk, with_trunk

SEEDS = 4
LEAST_CHANCE = 1e-6

WIDTH, HIDDEN, LAYERS, EMBED = 64, 256, 2, 32
VISION: dict[str, Any] = dict(image_size=12, patch_size=4, width=WIDTH, layers=LAYERS, heads=1)
TEXT = dict(vocab_size=60, context_length=12, width=48, layers=3, heads=1)
ALIGN_TEXT = BertConfig(vocab_size=60, context_length=8, width=48, layers=2, heads=2, positions=8)
STAGES = ((3, 1, 1, 32, 16, 2), (5, 2, 4, 16, 32, 2))
MODELS = {
    "vit": CLIPConfig(EMBED, vision=VisionConfig(**VISION), text=TextConfig(**TEXT)),
    "resnet": CLIPConfig(
        EMBED,
        vision=ResNetConfig(32, width=4, layers=(2, 1, 1, 2), heads=2),
        text=TextConfig(**TEXT),
    ),
    "siglip": siglip("gelu_tanh", VISION, {**TEXT, "width": WIDTH}),
    "ours": CLIPConfig(
        EMBED,
        vision=VisionConfig(**VISION, pool="mean", stem=24, registers=5, patch_bias=True),
        text=TextConfig(**{**TEXT, "layers": 0}),
    ),
    "align": CLIPConfig(
        32,
        "gelu",
        temperature=1.0,
        log_scale=False,
        max_logit_scale=0.0,
        vision=EfficientNetConfig(24, width=1.0, depth=1.0, stages=STAGES),
        text=ALIGN_TEXT,
    ),
    "convnext": CLIPConfig(
        EMBED,
        "gelu",
        vision=ConvNeXtConfig(32, width=8, layers=(1, 2, 1, 1), projection="mlp"),
        text=TextConfig(**TEXT),
    ),
    "swin": CLIPConfig(
        EMBED,
        "gelu",
        vision=SwinConfig(16, 2, 24, (4, 2), 12, 4),
        text=TextConfig(**TEXT),
    ),
    "vitamin": CLIPConfig(
        EMBED,
        "gelu",
        vision=ViTaminConfig(32, WIDTH, LAYERS, 1, stem=8, stem_layers=(1, 2)),
        text=TextConfig(**TEXT),
    ),
}


@cache
def fresh(model: str) -> Mapping[str, np.ndarray]:
    """Our variables by their paths, of several seeds, on an axis before all others."""

    def draw(key: jax.Array) -> Any:
        return variables(CLIP(MODELS[model], rngs=nnx.Rngs(key)))

    trees = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), SEEDS))
    return {path: np.asarray(values) for path, values in flat(*trees)}


# Beside the code of others.


def spread_and_error(x: np.ndarray) -> tuple[float, float]:
    """The standard deviation of a sample, and that of this number over samples."""
    std = x.std()
    return std, std * np.sqrt((stats.kurtosis(x, fisher=False) - 1) / (4 * x.size))


def difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    """How two samples (float64) cannot be of one distribution; empty where they can."""
    if not (ours.std() and theirs.std()):
        alike = np.ptp(ours) == np.ptp(theirs) and np.isclose(ours.mean(), theirs.mean(), 1e-6)
        return (
            "" if alike else f"{ours.mean():.4g} ± {ours.std():.3g} is not constant {theirs[0]:.4g}"
        )
    (our_std, our_error), (their_std, their_error) = map(spread_and_error, (ours, theirs))
    chances = {
        "mean": stats.ttest_ind(ours, theirs, equal_var=False).pvalue,
        "spread": 2 * stats.norm.sf(abs(our_std - their_std) / np.hypot(our_error, their_error)),
        "shape": stats.ks_2samp(ours, theirs, method="asymp").pvalue,
    }
    ends = np.abs(ours).max() / our_std, np.abs(theirs).max() / their_std
    wrong = [f"{name} (p={p:.2g})" for name, p in chances.items() if p < LEAST_CHANCE]
    if min(ours.size, theirs.size) > 4000 and not 1 / 1.5 < ends[0] / ends[1] < 1.5:
        wrong.append(f"range ({ends[0]:.2f}, {ends[1]:.2f} deviations)")
    if not wrong:
        return ""
    return f"{', '.join(wrong)}: ±{our_std:.4g} here, ±{their_std:.4g} there"


def compared(
    model: str, library: param_mapping.Library, states: list[Mapping[str, np.ndarray]]
) -> Iterator[tuple[str, str]]:
    """Every tensor of theirs, layers together, and how ours is otherwise."""
    ours, theirs = {}, {}
    table = param_mapping.leaves(MODELS[model], library)
    for i, state in enumerate(states):
        for leaf in table:
            for piece in pieces(leaf, fresh(model)[leaf.path][i]):
                tensor = state[piece.name]
                if piece.rows is not None:
                    first, end, parts = piece.rows
                    share = len(tensor) // parts
                    tensor = tensor[first * share : end * share]
                assert tensor.squeeze().shape == piece.view.squeeze().shape, piece.name
                layers = re.sub(r"\.\d+\.", ".*.", piece.name) if leaf.layers else piece.name
                key = f"{leaf.path} = {layers}"
                ours.setdefault(key, []).append(piece.view.ravel())
                theirs.setdefault(key, []).append(tensor.ravel())
    assert {leaf.path for leaf in table} == fresh(model).keys()
    assert {name for leaf in table for name in leaf.tensors} == states[0].keys()
    for key in ours:
        pair = (np.concatenate(arrays[key]).astype(np.float64) for arrays in (ours, theirs))
        yield key, difference(*pair)


def states(build: Callable[[], Any]) -> list[Mapping[str, np.ndarray]]:
    """State dicts of their fresh models, a seed each."""
    import torch

    drawn = []
    with torch.random.fork_rng():
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            drawn.append({k: v.numpy() for k, v in build().state_dict().items()})
    return drawn


@pytest.mark.parametrize("model", ["vit", "resnet"])
def test_every_parameter_of_a_fresh_clip_is_drawn_as_open_clips(model):
    vision = MODELS[model].vision
    open_clip = released.open_clip()
    sizes: dict[str, Any] = dict(image_size=vision.image_size, width=vision.width)
    if isinstance(vision, VisionConfig):
        sizes.update(layers=vision.layers, patch_size=vision.patch_size, head_width=vision.width)
    else:
        sizes.update(layers=list(vision.layers))
    theirs = states(lambda: open_clip.CLIP(EMBED, sizes, TEXT, quick_gelu=True))
    differences = dict(compared(model, "open_clip", theirs))
    assert not {key: how for key, how in differences.items() if how}


def convnext_trunk(vision: Any) -> Any:
    """timm's module of a ConvNeXt."""
    import timm

    widths = [vision.width * 2**i for i in range(4)]
    return timm.models.convnext.ConvNeXt(depths=vision.layers, dims=widths, num_classes=0)


def the_swin_trunk(vision: Any) -> Any:
    """timm's module of a Swin Transformer."""
    options = (vision.patch_size, vision.width, vision.layers, vision.head_width, vision.window)
    return swin_trunk(vision.image_size, *options)


def the_vitamin_trunk(vision: Any) -> Any:
    """timm's module of a ViTamin."""
    options = dict(embed_dim=vision.width, depth=vision.layers, num_heads=vision.heads)
    return vitamin_trunk(vision.image_size, vision.stem, vision.stem_layers, **options)


TRUNKS = {"convnext": convnext_trunk, "swin": the_swin_trunk, "vitamin": the_vitamin_trunk}


@pytest.mark.slow
@pytest.mark.parametrize("model", TRUNKS)
def test_every_parameter_of_a_fresh_trunk_is_drawn_as_timms(model):
    vision: Any = MODELS[model].vision
    open_clip = released.open_clip()

    def build() -> Any:
        trunk, prefix = TRUNKS[model](vision), has_text_prefix(MODELS[model])
        options = dict(projection=vision.projection, embed_dim=EMBED, words=TEXT, prefix=prefix)
        return with_trunk(open_clip, trunk, vision.image_size, {}, **options).module

    differences = dict(compared(model, "open_clip", states(build)))
    wrong = {key: how for key, how in differences.items() if how}
    assert wrong.keys() <= {"logit_scale = logit_scale"}  # which `with_trunk` sets


# transformers draws these otherwise than big_vision, which is the source: Flax's default without
# its cut; of the pool the in-projection as one matrix, the output by Flax's default and the query
# as a square matrix; the two numbers on the logits it leaves at 0.
_NOT_BIG_VISIONS = re.compile(
    r"vision/(patch_embedding|pool/(probe|q|kv|out))\b|text/projection|logit_"
)


def test_every_parameter_of_a_fresh_siglip_is_drawn_as_transformers_and_big_visions():
    transformers = released.transformers()
    common = dict(hidden_size=WIDTH, intermediate_size=HIDDEN, num_attention_heads=1)
    config = transformers.SiglipConfig(
        text_config=dict(vocab_size=60, max_position_embeddings=12, num_hidden_layers=3, **common),
        vision_config=dict(image_size=12, patch_size=4, num_hidden_layers=LAYERS, **common),
    )
    theirs = states(lambda: transformers.SiglipModel(config))
    differences = dict(compared("siglip", "hugging_face", theirs))
    wrong = {key for key, how in differences.items() if how}
    assert {key for key in wrong if not _NOT_BIG_VISIONS.match(key)} == set()
    assert {key.split(" ")[0] for key in wrong} >= {"vision/pool/probe", "text/projection/kernel"}


def test_the_comparison_finds_every_difference_that_it_should():
    rng = np.random.default_rng(0)
    normal, other = rng.normal(0, 1, (2, 3000))
    bound = 3**0.5
    assert not difference(normal, other)
    assert not difference(np.zeros(9), np.zeros(9))
    assert "spread" in difference(normal, 0.85 * other)
    assert "mean" in difference(normal, other + 0.2)
    assert "shape" in difference(normal, rng.uniform(-bound, bound, 3000))
    cut = stats.truncnorm.rvs(-2, 2, size=40_000, random_state=0)
    assert "shape" in difference(rng.uniform(-1, 1, 40_000), cut / cut.std() / bound)
    assert "range" in difference(rng.normal(0, cut.std(), 5000), cut)
    assert "constant" in difference(rng.normal(0, 1e-6, 100), np.zeros(100))
    assert "constant" in difference(np.ones(9), np.zeros(9))


# Beside formulas, where no library is installed.


def normal(std: float) -> Any:
    return stats.norm(0, std)


def uniform(bound: float) -> Any:
    return stats.uniform(-bound, 2 * bound)


def xavier(inputs: int, outputs: int) -> Any:
    return uniform((6 / (inputs + outputs)) ** 0.5)


def lecun(fan_in: int) -> Any:
    """Cut off at two deviations of the normal, with a variance of 1 / fan-in after that."""
    cut = stats.truncnorm(-2, 2)
    return stats.truncnorm(-2, 2, scale=fan_in**-0.5 / cut.std())


PATCH, W = 48, WIDTH
CLIP_BLOCK = {
    "attention/qkv/kernel": xavier(W, 3 * W),
    "attention/qkv/bias": 0,
    "attention/out/kernel": uniform(W**-0.5),
    "attention/out/bias": 0,
    "mlp/fc/kernel": uniform(W**-0.5),
    "mlp/fc/bias": uniform(W**-0.5),
    "mlp/proj/kernel": uniform(HIDDEN**-0.5),
    "mlp/proj/bias": uniform(HIDDEN**-0.5),
}
SIGLIP_BLOCK = {
    "attention/qkv/kernel": xavier(W, W),
    "attention/qkv/bias": 0,
    "attention/out/kernel": xavier(W, W),
    "attention/out/bias": 0,
    "mlp/fc/kernel": xavier(W, HIDDEN),
    "mlp/fc/bias": normal(1e-6),
    "mlp/proj/kernel": xavier(W, HIDDEN),
    "mlp/proj/bias": normal(1e-6),
}
TEXT_OUT = (48 * 2 * 3) ** -0.5
TEXT_BLOCK = {
    "attention/qkv/kernel": normal(48**-0.5),
    "attention/qkv/bias": 0,
    "attention/out/kernel": normal(TEXT_OUT),
    "attention/out/bias": 0,
    "mlp/fc/kernel": normal(96**-0.5),
    "mlp/fc/bias": uniform(48**-0.5),
    "mlp/proj/kernel": normal(TEXT_OUT),
    "mlp/proj/bias": uniform(192**-0.5),
}


def in_blocks(tower: str, block: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{tower}/transformer/blocks/{path}": drawn for path, drawn in block.items()}


CLIP_TEXT = {
    "text/token_embedding/embedding": normal(0.02),
    "text/positional_embedding": normal(0.01),
    "text/projection/kernel": normal(48**-0.5),
    **in_blocks("text", TEXT_BLOCK),
}
POOL = 32 * 4  # channels of the ResNet's last stage
FORMULAS: dict[str, dict[str, Any]] = {
    "vit": {
        "logit_scale": np.log(1 / 0.07),
        "vision/class_embedding": normal(W**-0.5),
        "vision/positional_embedding": normal(W**-0.5),
        "vision/patch_embedding/kernel": uniform(PATCH**-0.5),
        "vision/projection/kernel": normal(W**-0.5),
        **in_blocks("vision", CLIP_BLOCK),
        **CLIP_TEXT,
    },
    "resnet": {
        "logit_scale": np.log(1 / 0.07),
        "vision/stem/conv1/kernel": uniform(27**-0.5),
        "vision/stem/conv2/kernel": uniform(18**-0.5),
        "vision/stem/conv3/kernel": uniform(18**-0.5),
        "vision/stage1/rest/conv1/kernel": uniform(16**-0.5),
        "vision/stage4/first/conv2/kernel": uniform((9 * 32) ** -0.5),
        "vision/stage4/first/conv_shortcut/kernel": uniform(64**-0.5),
        "vision/stage4/first/bn3/scale": 0,
        "vision/stage4/rest/bn3/scale": 0,
        "vision/stage4/first/bn_shortcut/scale": 1,
        "vision/pool/positional_embedding": normal(POOL**-0.5),
        "vision/pool/q/kernel": normal(POOL**-0.5),
        "vision/pool/q/bias": uniform(POOL**-0.5),
        "vision/pool/kv/kernel": normal(POOL**-0.5),
        "vision/pool/kv/bias": uniform(POOL**-0.5),
        "vision/pool/projection/kernel": normal(POOL**-0.5),
        "vision/pool/projection/bias": uniform(POOL**-0.5),
        **CLIP_TEXT,
    },
    "siglip": {
        "logit_scale": np.log(10),
        "logit_bias": -10,
        "vision/positional_embedding": normal(W**-0.5),
        "vision/patch_embedding/kernel": lecun(PATCH),
        "vision/patch_embedding/bias": 0,
        "vision/pool/probe": xavier(1, W),
        "vision/pool/q/kernel": xavier(W, W),
        "vision/pool/q/bias": 0,
        "vision/pool/kv/kernel": xavier(W, W),
        "vision/pool/kv/bias": 0,
        "vision/pool/out/kernel": xavier(W, W),
        "vision/pool/mlp/fc/kernel": xavier(W, HIDDEN),
        "vision/pool/mlp/fc/bias": normal(1e-6),
        "vision/pool/mlp/proj/kernel": xavier(W, HIDDEN),
        "vision/pool/mlp/proj/bias": normal(1e-6),
        **in_blocks("vision", SIGLIP_BLOCK),
        "text/token_embedding/embedding": normal(W**-0.5),
        "text/positional_embedding": normal(W**-0.5),
        "text/projection/kernel": lecun(W),
        "text/projection/bias": 0,
        **in_blocks("text", SIGLIP_BLOCK),
    },
    "ours": {
        "vision/stem/first/kernel": uniform(PATCH**-0.5),
        "vision/stem/first/bias": uniform(PATCH**-0.5),
        "vision/stem/second/kernel": uniform((9 * 24) ** -0.5),
        "vision/stem/second/bias": uniform((9 * 24) ** -0.5),
        "vision/patch_embedding/kernel": uniform((4 * 24) ** -0.5),
        "vision/patch_embedding/bias": uniform((4 * 24) ** -0.5),
        "vision/positional_embedding": normal(W**-0.5),
        "vision/registers": normal(W**-0.5),
        "vision/projection/kernel": normal(W**-0.5),
        **in_blocks("vision", CLIP_BLOCK),
        "text/token_embedding/embedding": normal(0.02),
        "text/projection/kernel": normal(48**-0.5),
    },
    "align": {
        "temperature": 1,
        "vision/stem/kernel": normal((2 / (9 * 32)) ** 0.5),
        "vision/stage1/first/depthwise/kernel": normal((2 / 9) ** 0.5),
        "vision/stage2/rest/depthwise/kernel": normal((2 / 25) ** 0.5),
        "vision/stage2/rest/expand/kernel": normal((2 / 128) ** 0.5),
        "vision/stage2/rest/project/kernel": normal((2 / 32) ** 0.5),
        "vision/stage2/rest/squeeze_excite/reduce/kernel": normal((2 / 8) ** 0.5),
        "vision/stage2/rest/squeeze_excite/expand/kernel": normal((2 / 128) ** 0.5),
        "vision/stage2/rest/squeeze_excite/expand/bias": 0,
        "vision/stage2/rest/bn_project/scale": 1,
        "text/token_embedding/embedding": normal(0.02),
        "text/positional_embedding": normal(0.02),
        "text/segment_embedding": normal(0.02),
        "text/pooler/kernel": normal(0.02),
        "text/projection/kernel": xavier(48, 32),
        "text/projection/bias": 0,
        **in_blocks(
            "text",
            {path: normal(0.02) if "kernel" in path else 0 for path in TEXT_BLOCK},
        ),
    },
}
_NORMS = re.compile(r"/(ln|bn)_?\w*/(scale|bias|mean|var|batches)$")


@pytest.mark.parametrize("model", FORMULAS)
def test_parameters_are_drawn_by_the_formulas_of_the_docs(model):
    for path, drawn in FORMULAS[model].items():
        values = fresh(model)[path].ravel().astype(np.float64)
        if isinstance(drawn, (int, float)):
            np.testing.assert_allclose(values, drawn, rtol=1e-6, err_msg=path)
            continue
        assert stats.kstest(values, drawn.cdf).pvalue > LEAST_CHANCE, path
        assert values.std() == pytest.approx(drawn.std(), abs=6 * spread_and_error(values)[1]), path
        low, high = (1 + 1e-5) * np.asarray(drawn.support())
        assert low <= values.min() and values.max() <= high, path


@pytest.mark.parametrize("model", ["vit", "siglip", "ours"])
def test_the_formulas_name_every_parameter_but_those_of_norms(model):
    missing = fresh(model).keys() - FORMULAS[model].keys()
    known = ("logit_scale", "vision/pool/out/bias")
    assert not [path for path in missing if not _NORMS.search(path) and path not in known]


@pytest.mark.parametrize("model", MODELS)
def test_scales_and_biases_of_norms_start_at_one_and_zero(model):
    norms = 0
    for path, values in fresh(model).items():
        if _NORMS.search(path):
            zero = path.endswith(("bias", "mean", "batches", "bn3/scale"))
            assert (values == (0 if "stem/bn3/scale" not in path and zero else 1)).all(), path
            norms += 1
    assert norms >= 8


@pytest.mark.parametrize("model", MODELS)
def test_every_layer_part_and_seed_has_values_of_its_own(model):
    for path, values in fresh(model).items():
        if np.ptp(values) == 0 or values[0].size < 8:
            continue
        assert len(np.unique(values)) > 0.9 * values.size, path
