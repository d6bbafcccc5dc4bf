"""FLOPs by formula are those of the released models, and of the programs that are traced."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import recipe_of

import jaxprs
import steps
from clip_jax.losses.contrastive.objective import Contrastive
from clip_jax.models.architectures import ARCHITECTURES
from clip_jax.models.clip import abstract_model, variables
from clip_jax.models.coca_configs import CoCaTextConfig, CoCaVisionConfig
from clip_jax.models.convnext_configs import ConvNeXtConfig
from clip_jax.models.model_config import (
    BertConfig,
    CLIPConfig,
    EfficientNetConfig,
    ResNetConfig,
    TextConfig,
    VisionConfig,
)
from clip_jax.models.naflex_configs import NaFlexConfig
from clip_jax.models.second_projection import project
from clip_jax.models.swin_configs import SwinConfig
from clip_jax.models.vitamin_configs import ViTaminConfig
from clip_jax.training import flops, grad_cache
from clip_jax.training.flops import Forward
from clip_jax.training.setup import Recipe
from jaxprs import Count

# GFLOPs of an image and of a text, of released definitions by open_clip's docs/model_profile.csv.
RELEASED = {
    "RN50": (12.22, 5.96),
    "RN101": (19.54, 5.96),
    "RN50x4": (42.56, 9.27),
    "RN50x16": (149.39, 13.3),
    "RN50x64": (529.11, 23.55),
    "ViT-B/32": (8.82, 5.96),
    "ViT-B/16": (35.13, 5.96),
    "ViT-L/14": (162.03, 13.3),
    "ViT-L/14@336px": (381.92, 13.3),
    "siglip-b16": (35.42, 11.02),
    "siglip-b16-256": (46.82, 11.02),
    "siglip-b16-384": (112.13, 11.02),
    "siglip-b16-512": (216.24, 11.02),
    "siglip-l16-256": (162.56, 39.06),
    "siglip-l16-384": (383.85, 39.06),
    "siglip-so400m14-384": (670.35, 53.13),
}


def pooled_everywhere(config: CLIPConfig) -> int:
    """What those definitions compute beyond ours: a ResNet's pool for each place, not the mean."""
    if not isinstance(config.vision, ResNetConfig):
        return 0
    others, width = (config.vision.image_size // 32) ** 2, 32 * config.vision.width
    attention = 2 * (others + 1) * width
    return 2 * others * (width**2 + attention + width * config.embed_dim)


@pytest.mark.parametrize("name", RELEASED)
def test_forward_is_that_of_the_released_models(name: str) -> None:
    config, (image, text) = ARCHITECTURES[name], RELEASED[name]
    counts = flops.forward(config)
    assert (counts.image + pooled_everywhere(config)) / 1e9 == pytest.approx(image, abs=0.0051)
    assert counts.text / 1e9 == pytest.approx(text, abs=0.0051)


@pytest.mark.parametrize(
    ("name", "chips", "each"),
    [
        ("ViT-B/16", 256, 1.58e13),
        ("ViT-L/14", 256, 6.73e13),
        ("ViT-B/16", 64, 6.32e13),
        ("ViT-L/14", 64, 2.69e14),
    ],
)
def test_a_step_of_the_papers_batch(name: str, chips: int, each: float) -> None:
    step = flops.step(ARCHITECTURES[name], Contrastive(), 32_768)
    assert step / chips == pytest.approx(each, rel=2e-3)


def traced_forward(config: CLIPConfig, rows: int = 1, tokens: int | None = None) -> Forward:
    """What tracing both towers in training finds."""
    graph, params, stats = nnx.split(abstract_model(config), nnx.Param, nnx.BatchStat)
    image = jax.ShapeDtypeStruct((rows, *config.vision.input_shape), jnp.uint8)
    text = jax.ShapeDtypeStruct((rows, tokens or config.text.context_length), jnp.int32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))

    def traced(side: str, rows: Any, **options: Any) -> int:
        def encode(params: Any, stats: Any, rows: Any, options: Any) -> Any:
            tower = getattr(nnx.merge(graph, params, stats), side)
            return project(tower, tower(rows, **options))

        return jaxprs.count(jax.make_jaxpr(encode)(params, stats, rows, options)).flops

    return Forward(traced("vision", image, key=keys), traced("text", text))


def left_out(config: CLIPConfig, tokens: int | None = None) -> Forward:
    """What programs skip where one place is read: in the last block, the others' way out of it."""

    def tower_flops(tower: Any, length: int) -> int:
        hidden = round(tower.width * tower.mlp_ratio)
        each = 2 * tower.width * (tower.width + hidden + length)  # query, output; MLP; attention
        return 2 * (length - 1) * each if tower.layers and tower.pool != "mean" else 0

    vision, image = config.vision, 0
    if isinstance(vision, CoCaVisionConfig):  # all places are read, and queries projected once
        image = -2 * vision.pool_queries * vision.pool_width**2
    elif isinstance(vision, VisionConfig) and vision.pool == "class":
        patches = (vision.image_size // vision.patch_size) ** 2
        patches_left = max(1, round(patches * (1 - vision.patch_dropout)))
        image = tower_flops(vision, 1 + patches_left + vision.registers)
    length = (tokens or config.text.context_length) + isinstance(config.text, CoCaTextConfig)
    return Forward(image, tower_flops(config.text, length))


def with_left_out(counts: Forward, config: CLIPConfig, tokens: int | None = None) -> Forward:
    """What tracing found, and what was left out."""
    return Forward(*(a + b for a, b in zip(counts, left_out(config, tokens), strict=True)))


VIT = VisionConfig(image_size=24, patch_size=6, width=24, layers=2, heads=3)
TEXT = TextConfig(vocab_size=56, context_length=9, width=20, layers=3, heads=4)
BERT = BertConfig(vocab_size=56, context_length=9, width=20, layers=2, heads=4, positions=12)
STAGES = ((3, 1, 1, 32, 16, 1), (5, 2, 6, 16, 24, 2), (3, 2, 4, 24, 40, 2))


def efficientnet(**options: Any) -> CLIPConfig:
    vision = EfficientNetConfig(**{"image_size": 37, "width": 0.5, "depth": 1.2, **options})
    return CLIPConfig(vision.channels(vision.stages[-1][4]), vision=vision, text=TEXT)


def vit(**options: Any) -> CLIPConfig:
    return CLIPConfig(24, vision=dataclasses.replace(VIT, **options), text=TEXT)


TINY = {
    "class": vit(mlp_ratio=2.3),
    "mean": vit(pool="mean", ln_pre=False, patch_bias=True, registers=2),
    "map": vit(pool="map", projection=False, registers=3),
    "dropout": vit(patch_dropout=0.4),
    "all dropped but one": vit(patch_dropout=0.99, pool="mean"),
    "ragged": vit(patch_size=7, ragged=True),
    "ragged stem": vit(image_size=23, stem=10, ragged=True),
    "resnet": CLIPConfig(24, vision=ResNetConfig(64, 6, (1, 2, 1, 3), 4), text=TEXT),
    "efficientnet": efficientnet(stages=STAGES),
    "symmetric efficientnet": efficientnet(stages=STAGES, symmetric=(5,), squeeze=0.001),
    "efficientnet-lite": CLIPConfig(
        24,
        vision=dataclasses.replace(
            efficientnet(stages=STAGES).vision,
            squeeze=0.0,
            activation="relu6",
            head=48,
            projection=True,
        ),
        text=TEXT,
    ),
    "convnext": CLIPConfig(24, vision=ConvNeXtConfig(76, 4, (1, 2, 1, 3)), text=TEXT),
    "convnext, mlp": CLIPConfig(
        24, vision=ConvNeXtConfig(32, 4, (1, 1, 1, 1), projection="mlp"), text=TEXT
    ),
    "swin": CLIPConfig(24, vision=SwinConfig(48, 2, 8, (2, 4), 4, 3, 1.7), text=TEXT),
    "vitamin": CLIPConfig(
        24, vision=ViTaminConfig(48, 20, 3, 2, 1.7, stem=4, stem_layers=(1, 3)), text=TEXT
    ),
    "naflex": CLIPConfig(24, vision=NaFlexConfig(20, 6, 5, 24, 2, 3), text=TEXT),
    "bert": CLIPConfig(24, vision=VIT, text=BERT),
    "bert, mean": CLIPConfig(24, vision=VIT, text=dataclasses.replace(BERT, pool="mean")),
    "coca": steps.COCA,
    "second projection": CLIPConfig(16, projection_width=24, vision=VIT, text=TEXT),
    "bag of words": CLIPConfig(24, vision=VIT, text=dataclasses.replace(TEXT, layers=0)),
    "both ways": CLIPConfig(
        24, vision=VIT, text=dataclasses.replace(TEXT, causal=False, pool="last", mlp_ratio=1.7)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TINY, *ARCHITECTURES])
def test_forward_is_that_of_the_program(name: str) -> None:
    config = TINY.get(name) or ARCHITECTURES[name]
    assert flops.forward(config) == with_left_out(traced_forward(config), config)


@pytest.mark.parametrize("name", ["class", "both ways", "bert", "bag of words"])
def test_forward_of_short_texts_and_many_rows(name: str) -> None:
    config = TINY[name]
    traced = traced_forward(config, rows=3, tokens=5)
    per_row = Forward(traced.image // 3, traced.text // 3)
    assert (3 * per_row.image, 3 * per_row.text) == traced
    assert flops.forward(config, tokens=5) == with_left_out(per_row, config, 5)
    assert flops.forward(config, tokens=9) == flops.forward(config)


VITS = st.fixed_dictionaries(
    dict(
        image_size=st.integers(8, 40),
        patch_size=st.sampled_from([4, 6, 8]),
        width=st.sampled_from([8, 24]),
        layers=st.integers(1, 3),
        heads=st.sampled_from([1, 4]),
        mlp_ratio=st.floats(0.2, 5),
        stem=st.sampled_from([0, 5]),
        pool=st.sampled_from(["class", "mean", "map"]),
        registers=st.integers(0, 3),
        patch_dropout=st.floats(0, 0.99),
    )
)


@settings(max_examples=6)
@given(VITS)
def test_forward_of_any_vision_transformer(options: dict[str, Any]) -> None:
    vision = VisionConfig(ragged=True, **options)
    config = CLIPConfig(10, vision=vision, text=dataclasses.replace(TEXT, layers=0))
    assert flops.forward(config) == with_left_out(traced_forward(config), config)


BLOCKS = st.tuples(
    st.sampled_from([3, 5, 7]), st.integers(1, 3), st.integers(1, 6), st.integers(1, 2)
)


@settings(max_examples=4)
@given(st.lists(BLOCKS, min_size=1, max_size=3), st.integers(20, 70), st.sets(st.integers(0, 5)))
def test_forward_of_any_efficientnet(
    blocks: list[tuple[int, ...]], size: int, symmetric: set[int]
) -> None:
    stages = tuple((k, s, e, 32, 32, repeats) for k, s, e, repeats in blocks)
    config = efficientnet(stages=stages, image_size=size, symmetric=tuple(symmetric))
    assert flops.forward(config) == with_left_out(traced_forward(config), config)


def of_pixels(config: CLIPConfig) -> int:
    """FLOPs of the layer that sees the pixels, which are asked for no gradient."""
    vision = config.vision
    if not isinstance(vision, VisionConfig):
        resnet = isinstance(vision, ResNetConfig)
        outputs = vision.width // 2 if resnet else vision.channels(vision.stem)
        return 2 * (vision.image_size // 2) ** 2 * 3 * 9 * outputs
    stride, outputs = vision.patch_size, vision.width
    if vision.stem:
        stride, outputs = stride // 2, vision.stem
    return 2 * (vision.image_size // stride) ** 2 * 3 * vision.patch_size**2 * outputs


def traced_step(config: CLIPConfig, rows: int, remat: str = "none") -> Count:
    """What tracing the gradients of a batch finds, less what nothing depends on."""
    model = abstract_model(config, remat=remat)
    batch = jax.eval_shape(lambda: steps.batch(rows, config=config))
    key = jax.eval_shape(lambda: jax.random.key(0))

    def train_step(*args: Any) -> Any:
        return grad_cache.compute_gradients(nnx.graphdef(model), Contrastive("dense"), *args)

    traced = jax.make_jaxpr(train_step)(variables(model), batch, key)
    return jaxprs.count(jaxprs.without_dead_code(traced))


STEPS = {
    **{name: TINY[name] for name in ("map", "ragged stem", "dropout", "bert", "bag of words")},
    "second projection": TINY["second projection"],
    "efficientnet": efficientnet(stages=STAGES, image_size=48),
    "ViT-B/16": ARCHITECTURES["ViT-B/16"],
    "RN50": ARCHITECTURES["RN50"],
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_that_of_the_program(name: str) -> None:
    """But for gradients by pixels and what is left out of the last layers."""
    config, rows = STEPS[name], 6
    traced = traced_step(config, rows)
    none = of_pixels(config) + 3 * sum(left_out(config))
    assert traced.flops + rows * none == flops.step(config, Contrastive(), rows)
    assert (traced.depthwise > 0) == (name == "efficientnet")


LORA_OF_VISION = {"lora.rank": 2, "lora.targets": "vision/.*/(attention|mlp)/.*"}
KERNELS = 32 * (3 + 1 + 4 + 4) * 32  # of a block of either tower of `steps.TINY`


def recipe_step(recipe: Recipe) -> int:
    """What tracing the gradients of a recipe's step finds, less what nothing depends on."""
    batch = recipe.batch_like(steps.TINY.text.context_length)
    key = jax.eval_shape(lambda: jax.random.key(0))
    groups = recipe.groups
    assert groups
    params, stats = recipe.state_like.variables
    trained = jax.eval_shape(groups.trainable, params)

    def gradients(trained: Any, params: Any, stats: Any, batch: Any, key: Any) -> Any:
        return grad_cache.compute_gradients(
            recipe.graph,
            recipe.objective,
            (trained, stats),
            batch,
            key,
            complete=lambda trained: groups.merge(trained, params),
        )

    traced = jax.make_jaxpr(gradients)(trained, params, stats, batch, key)
    return jaxprs.count(jaxprs.without_dead_code(traced)).flops


@pytest.mark.parametrize(
    "keys",
    [{}, LORA_OF_VISION, {**LORA_OF_VISION, "optimizer.freeze": "text,vision.blocks.attention"}],
    ids=["frozen", "adapters", "some adapters"],
)
def test_a_step_with_frozen_parts_is_that_of_the_program(keys: dict[str, Any]) -> None:
    """But for gradients by pixels and by texts' features, and what is left out of last layers."""
    vision = dataclasses.replace(steps.TINY.vision, pool="mean")
    config = dataclasses.replace(steps.TINY, vision=vision)
    recipe = recipe_of(config, keys={"optimizer.freeze": "text", **keys})
    rows = recipe.config.batch_size
    none = of_pixels(config) + left_out(config).text + 2 * rows * config.embed_dim
    assert recipe_step(recipe) + rows * none == recipe.step_flops()


def test_gradients_of_frozen_blocks_do_not_count() -> None:
    whole, some, no_text = (
        recipe_of(keys={"optimizer.freeze": freeze}).step_flops()
        for freeze in ("logit_scale", "vision.blocks[:1]", "text,vision.blocks[:1]")
    )
    one_block = 16 * 2 * steps.TINY.vision.tokens * KERNELS
    assert whole == flops.step(steps.TINY, Contrastive(), 16)
    assert whole - some == one_block
    assert some - no_text == 16 * 2 * flops.forward(steps.TINY).text


def test_recomputation_is_not_credited() -> None:
    plain, again = (traced_step(TINY["class"], 6, remat).flops for remat in ("none", "full"))
    assert plain < again <= 4 / 3 * flops.step(TINY["class"], Contrastive(), 6)


@given(st.sampled_from(sorted(TINY)), st.integers(1, 2**17), st.integers(1, 9))
def test_a_step_is_thrice_towers_and_loss(name: str, rows: int, tokens: int) -> None:
    config = TINY[name]
    towers = rows * sum(flops.forward(config, tokens=tokens))
    count = flops.step(config, Contrastive(), rows, tokens=tokens)
    assert count == 3 * (towers + 2 * rows * rows * config.embed_dim)


def counted(function: Any, *shapes: tuple[int, ...]) -> Count:
    return jaxprs.count(jax.make_jaxpr(function)(*(jnp.zeros(shape) for shape in shapes)))


def test_products_are_counted_by_their_dimensions() -> None:
    assert counted(jnp.matmul, (3, 5), (5, 7)) == Count(2 * 3 * 5 * 7)
    assert counted(lambda x, y: jnp.einsum("bij,bjk->ikb", x, y), (4, 3, 5), (4, 5, 7)) == Count(
        4 * 2 * 3 * 5 * 7
    )
    assert counted(lambda x: jnp.sin(x) + x * x, (9,)) == Count(0)


def test_convolutions_are_counted_by_their_dimensions() -> None:
    def convolve(x: Any, kernel: Any, **options: Any) -> Any:
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (2, 2),
            ((1, 1), (0, 0)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            **options,
        )

    def depthwise(x: Any, kernel: Any) -> Any:
        return convolve(x, kernel, feature_group_count=6)

    image, kernel = (2, 8, 9, 6), (3, 3, 6, 10)
    all_products = 2 * (2 * 4 * 4) * 10 * (9 * 6)  # 4 × 4 places
    assert counted(convolve, image, kernel) == Count(all_products)
    assert counted(depthwise, image, (3, 3, 1, 12)) == Count(*[2 * (2 * 4 * 4) * 12 * 9] * 2)
    by_kernel = jax.grad(lambda kernel, x: convolve(x, kernel).sum())
    dead = jaxprs.without_dead_code(
        jax.make_jaxpr(by_kernel)(jnp.zeros(kernel), jnp.zeros(image)),
    )
    assert jaxprs.count(dead) == Count(all_products)


def test_loops_are_counted_as_often_as_they_run() -> None:
    def looped(x: Any) -> Any:
        return jax.lax.scan(lambda x, _: (jax.jit(jnp.matmul)(x, x), None), x, length=6)[0]

    def endless(x: Any) -> Any:
        return jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ x, x)

    def either(x: Any) -> Any:
        return jax.lax.cond(x.sum() < 1, lambda x: x @ x, lambda x: x, x)

    def both(x: Any) -> Any:
        return jax.lax.cond(x.sum() < 1, lambda x: x @ x, lambda x: x @ x.T, x)

    assert counted(looped, (4, 4)) == Count(6 * 2 * 4**3)
    assert counted(jax.checkpoint(looped), (4, 4)) == Count(6 * 2 * 4**3)
    assert counted(both, (4, 4)) == Count(2 * 4**3)
    for function in (endless, either):
        with pytest.raises(AssertionError):
            counted(function, (4, 4))
