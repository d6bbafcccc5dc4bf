"""The mapping of timm's `FastVit`: the towers of MobileCLIP."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from clip_jax.models.fastvit_configs import LARGE, SMALL, FastViTConfig, Stage
from clip_jax.weights.mappings.leaf import Leaf, batch_norm, gains, linear, norm, single
from clip_jax.weights.mappings.timm.tower import TimmTower


class TimmFastViT(TimmTower):
    """The mapping of a FastViT in the form in which it is trained."""

    name = "timm_fastvit"
    description = "a FastViT of timm"
    kind = "fastvit"
    classifier = "head.fc"

    def fills(self, tower: Any) -> bool:
        """Returns whether this mapping has the names of such a tower: one with branches."""
        return isinstance(tower, FastViTConfig) and not tower.single

    def recognizes(self, names: Collection[str]) -> bool:
        """Returns whether tensors of these names are such a tower."""
        return {"stem.0.conv_kxk.0.conv.weight", "final_conv.se.fc1.weight"}.issubset(names)

    def leaves(self, tower: FastViTConfig) -> Iterator[Leaf]:
        """Yields the leaf of every parameter but the projection."""
        scale = (1,) if tower.stem_scale else ()
        yield from _mobile_one("vision/stem1", "stem.0", 3, *scale)
        yield from _mobile_one("vision/stem2", "stem.1", 3, *scale)
        yield from _mobile_one("vision/stem3", "stem.2", 1, form="pointwise", identity=True)
        for stage in tower.stages():
            yield from _stage(tower, stage)
        yield from _mobile_one("vision/last", "final_conv", 3, 1)
        yield from _squeeze_excite("vision", "final_conv.se")


def _stage(tower: FastViTConfig, stage: Stage) -> Iterator[Leaf]:
    theirs, number = f"stages.{stage.number - 1}", stage.number
    if number > 1:
        ours, down = f"vision/downsample{number}", f"{theirs}.downsample.proj"
        yield from _branch(f"{ours}/large", LARGE, f"{down}.0.large_conv")
        yield from _branch(f"{ours}/large", SMALL, f"{down}.0.small_conv")
        if stage.squeezes:
            yield from _squeeze_excite(ours, f"{down}.0.se")
        point: dict[str, Any] = dict(form="pointwise", identity=True)
        yield from _mobile_one(f"{ours}/point", f"{down}.1", 1, **point)
    if stage.attends:
        positions = f"{theirs}.pos_emb.pos_enc"
        yield from linear(f"vision/positions{number}/conv", positions, form="convolution")
    ours, block = f"vision/stage{number}", f"{theirs}.blocks.{{}}"
    stacked: dict[str, Any] = dict(layers=tuple(range(stage.layers)))
    yield from (_attention if stage.attends else _mixer)(tower, ours, block, **stacked)
    yield from _branch(f"{ours}/mlp/depthwise", 7, f"{block}.mlp.conv", **stacked)
    yield from linear(f"{ours}/mlp/fc", f"{block}.mlp.fc1", form="pointwise", **stacked)
    yield from linear(f"{ours}/mlp/proj", f"{block}.mlp.fc2", form="pointwise", **stacked)


def _mixer(tower: FastViTConfig, ours: str, block: str, **options: Any) -> Iterator[Leaf]:
    mixer = f"{block}.token_mixer"
    yield from _mobile_one(f"{ours}/mixer/mixer", f"{mixer}.mixer", 3, 1, identity=True, **options)
    yield from batch_norm(f"{ours}/mixer/bn", f"{mixer}.norm.identity", **options)
    for gain, layer in ((f"{ours}/mixer/scale", mixer), (f"{ours}/scale", block)):
        yield single(gain, f"{layer}.layer_scale.gamma", "trailing2", **options)


def _attention(tower: FastViTConfig, ours: str, block: str, **options: Any) -> Iterator[Leaf]:
    if tower.layer_norm:
        yield from norm(f"{ours}/ln", f"{block}.norm", **options)
    else:
        yield from batch_norm(f"{ours}/bn", f"{block}.norm", **options)
    mixer = f"{block}.token_mixer"
    yield from linear(f"{ours}/attention/qkv", f"{mixer}.qkv", bias=False, **options)
    yield from linear(f"{ours}/attention/out", f"{mixer}.proj", **options)
    yield from gains(ours, f"{block}.layer_scale_", "trailing2", **options)


def _mobile_one(
    ours: str,
    theirs: str,
    *sizes: int,
    form: str = "convolution",
    identity: bool = False,
    **options: Any,
) -> Iterator[Leaf]:
    """Yields the leaves of a MobileOne block: its first window, single pixels, the identity."""
    for size, branch in zip(sizes, ("conv_kxk.0", "conv_scale"), strict=False):
        yield from _branch(ours, size, f"{theirs}.{branch}", form, **options)
    if identity:
        yield from batch_norm(f"{ours}/bn_identity", f"{theirs}.identity", **options)


def _branch(
    ours: str, size: int, theirs: str, form: str = "convolution", **options: Any
) -> Iterator[Leaf]:
    yield single(f"{ours}/conv{size}/kernel", f"{theirs}.conv.weight", form, **options)
    yield from batch_norm(f"{ours}/bn{size}", f"{theirs}.bn", **options)


def _squeeze_excite(ours: str, theirs: str) -> Iterator[Leaf]:
    ours = f"{ours}/squeeze_excite"
    yield from linear(f"{ours}/reduce", f"{theirs}.fc1", form="pointwise")
    yield from linear(f"{ours}/expand", f"{theirs}.fc2", form="pointwise")
