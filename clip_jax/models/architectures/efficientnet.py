"""EfficientNets, EfficientNet-Lites, and ALIGN, whose image tower is one."""

from __future__ import annotations

from clip_jax.models.architectures.sizes import LARGE
from clip_jax.models.model_config import BertConfig, CLIPConfig, EfficientNetConfig

# Width, depth and resolution of the published EfficientNets (Tan and Le 2019; L2: Xie et al. 2019).
EFFICIENTNETS: dict[str, tuple[float, float, int]] = {
    "b0": (1.0, 1.0, 224),
    "b1": (1.0, 1.1, 240),
    "b2": (1.1, 1.2, 260),
    "b3": (1.2, 1.4, 300),
    "b4": (1.4, 1.8, 380),
    "b5": (1.6, 2.2, 456),
    "b6": (1.8, 2.6, 528),
    "b7": (2.0, 3.1, 600),
    "l2": (4.3, 5.3, 800),
}


# Width, depth and resolution of EfficientNet-Lite (Google 2020; tensorflow/tpu, efficientnet/lite).
_EFFICIENTNET_LITES: dict[str, tuple[float, float, int]] = {
    "lite0": (1.0, 1.0, 224),
    "lite1": (1.0, 1.1, 240),
    "lite2": (1.1, 1.2, 260),
    "lite3": (1.2, 1.4, 280),
    "lite4": (1.4, 1.8, 300),
}


def same_padding(stages: tuple[tuple[int, ...], ...], image_size: int) -> tuple[int, ...]:
    """Returns the blocks of stride 2 that TensorFlow pads alike on all sides.

    These are the blocks whose input has an odd number of rows.

    Args:
      stages: as in an `EfficientNetConfig` of depth 1.
      image_size: pixels a side.
    """
    symmetric, block, side = [], 0, -(-image_size // 2)  # after the stem
    for _, stride, _, _, _, repeats in stages:
        if stride > 1 and side % 2:
            symmetric.append(block)
        side, block = -(-side // stride), block + repeats
    return tuple(symmetric)


def efficientnet_lite(name: str) -> EfficientNetConfig:
    """Returns an EfficientNet-Lite: its stem, its head, and the depths of both ends are not scaled.

    Args:
      name: `lite0` to `lite4`.
    """
    width, depth, image_size = _EFFICIENTNET_LITES[name]
    scaled = EfficientNetConfig(width=width, depth=depth)
    channels, stages = scaled.stem, []
    for i, (size, stride, expansion, _, outputs, repeats) in enumerate(scaled.stages):
        depth_here = repeats if i in (0, len(scaled.stages) - 1) else scaled.repeats(repeats)
        outputs = scaled.channels(outputs)
        stages.append((size, stride, expansion, channels, outputs, depth_here))
        channels = outputs
    return EfficientNetConfig(
        image_size,
        width=1.0,
        depth=1.0,
        stages=tuple(stages),
        symmetric=same_padding(tuple(stages), image_size),
        squeeze=0.0,
        activation="relu6",
        head=1280,
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
    )


def align(name: str, bert: BertConfig, image_size: int = 289) -> CLIPConfig:
    """Returns ALIGN: an EfficientNet at ALIGN's resolution, and a BERT.

    Args:
      name: the name of the EfficientNet.
      bert: the text tower.
      image_size: pixels a side.
    """
    width, depth, _ = EFFICIENTNETS[name]
    vision = EfficientNetConfig(image_size=image_size, width=width, depth=depth)
    return CLIPConfig(
        vision.channels(vision.stages[-1][4]),
        "gelu",
        temperature=1.0,
        log_scale=False,
        max_logit_scale=0.0,
        vision=vision,
        text=bert,
    )


# Scaling Up Visual and Vision-Language Representation Learning With Noisy Text Supervision.
ARCHITECTURES: dict[str, CLIPConfig] = {
    "align-base": align("b7", BertConfig()),
    "align-l2": align("l2", BertConfig(**LARGE)),
}
TOWERS = {f"efficientnet-{name}": efficientnet_lite(name) for name in _EFFICIENTNET_LITES}
