"""Named architectures: models, towers and their sizes."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from clip_jax.errors import UserError
from clip_jax.io.files import JsonObject
from clip_jax.models.coca_configs import CoCaTextConfig, CoCaVisionConfig, MultimodalConfig
from clip_jax.models.model_config import (
    HALF,
    BertConfig,
    CLIPConfig,
    EfficientNetConfig,
    ResNetConfig,
    TextConfig,
    TextTower,
    VisionConfig,
    VisionTower,
)
from clip_jax.models.registry import kind_of


def _clip(embed_dim: int, vision: VisionTower, text_width: int = 512, **text: Any) -> CLIPConfig:
    return CLIPConfig(
        embed_dim,
        vision=vision,
        text=TextConfig(width=text_width, heads=text_width // 64, **text),
    )


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


def siglip(
    activation: str,
    vision: JsonObject,
    text: JsonObject,
    *,
    embed_dim: int | None = None,
    logit_bias: float = -10.0,
) -> CLIPConfig:
    """Returns a SigLIP (Zhai et al. 2023).

    Its image tower has attention pooling, and its text tower attends to padding.

    Args:
      activation: the activation of the MLPs.
      vision, text: fields of `VisionConfig` and `TextConfig`.
      embed_dim: features of an image or a text. None: the vision tower's width, without a
        projection between the two.
      logit_bias: the initial value of the learned bias.
    """
    ragged = vision["image_size"] % vision["patch_size"] > 0
    return CLIPConfig(
        vision["width"] if embed_dim is None else embed_dim,
        activation,
        temperature=0.1,
        max_logit_scale=0.0,
        logit_bias=logit_bias,
        vision=VisionConfig(
            pool="map",
            ln_pre=False,
            patch_bias=True,
            projection=False,
            ragged=ragged,
            mean=HALF,
            std=HALF,
            **vision,
        ),
        text=TextConfig(**{"causal": False, "pool": "last", "projection_bias": True, **text}),
    )


def _siglip(
    image_size: int, patch_size: int, *, vocab_size: int = 32_000, **shape: Any
) -> CLIPConfig:
    return siglip(
        "gelu_tanh",
        dict(image_size=image_size, patch_size=patch_size, eps=1e-6, **shape),
        dict(vocab_size=vocab_size, context_length=64, eps=1e-6, **shape),
    )


def coca(
    embed_dim: int,
    vision: VisionTower,
    text: CoCaTextConfig,
    decoder: MultimodalConfig,
    **options: Any,
) -> CLIPConfig:
    """Returns a CoCa (Yu et al. 2022) as open_clip builds it.

    Args:
      embed_dim: features of an image or a text.
      vision, text, decoder: its parts.
      options: other fields of `CLIPConfig`.
    """
    options = {"activation": "gelu", **options}
    heads = (("decoder", decoder),)
    return CLIPConfig(embed_dim, vision=vision, text=text, heads=heads, **options)


def _coca(embed_dim: int, **vision: Any) -> CLIPConfig:
    shape: JsonObject = dict(width=embed_dim, layers=12, heads=embed_dim // 64)
    tower = CoCaVisionConfig(pool_width=embed_dim, **vision)
    return coca(embed_dim, tower, CoCaTextConfig(**shape), MultimodalConfig(**shape))


_BASE: JsonObject = dict(width=768, layers=12, heads=12)
_LARGE: JsonObject = dict(width=1024, layers=24, heads=16)
_HUGE: JsonObject = dict(width=1280, layers=32, heads=16)
_SO400M: JsonObject = dict(width=1152, layers=27, heads=16, mlp_ratio=4304 / 1152)

ARCHITECTURES: dict[str, CLIPConfig] = {
    # Learning Transferable Visual Models From Natural Language Supervision, tables 19 and 20.
    "RN50": _clip(1024, ResNetConfig()),
    "RN101": _clip(512, ResNetConfig(layers=(3, 4, 23, 3))),
    "RN50x4": _clip(640, ResNetConfig(288, 80, (4, 6, 10, 6), 40), 640),
    "RN50x16": _clip(768, ResNetConfig(384, 96, (6, 8, 18, 8), 48), 768),
    "RN50x64": _clip(1024, ResNetConfig(448, 128, (3, 15, 36, 10), 64), 1024),
    "ViT-B/32": _clip(512, VisionConfig(patch_size=32)),
    "ViT-B/16": _clip(512, VisionConfig(patch_size=16)),
    "ViT-L/14": _clip(768, VisionConfig(patch_size=14, **_LARGE), 768),
    "ViT-L/14@336px": _clip(768, VisionConfig(336, 14, **_LARGE), 768),
    # LAION's, of open_clip.
    "ViT-H/14": dataclasses.replace(
        _clip(1024, VisionConfig(patch_size=14, **_HUGE), 1024, layers=24), activation="gelu"
    ),
    # CoCa: Contrastive Captioners are Image-Text Foundation Models; the sizes are open_clip's.
    "coca_ViT-B-32": _coca(512, patch_size=32),
    "coca_ViT-L-14": _coca(768, patch_size=14, **_LARGE),
    "coca_base": coca(
        512,
        VisionConfig(288, 18),
        CoCaTextConfig(vocab_size=64_000, **_BASE),
        MultimodalConfig(**_BASE),
    ),
    # Scaling Up Visual and Vision-Language Representation Learning With Noisy Text Supervision.
    "align-base": align("b7", BertConfig()),
    "align-l2": align("l2", BertConfig(**_LARGE)),
    # Sigmoid Loss for Language Image Pre-Training; the names are those of the released files.
    "siglip-b16": _siglip(224, 16, **_BASE),
    "siglip-b16-256": _siglip(256, 16, **_BASE),
    "siglip-b16-384": _siglip(384, 16, **_BASE),
    "siglip-b16-512": _siglip(512, 16, **_BASE),
    "siglip-b16-256-i18n": _siglip(256, 16, vocab_size=250_000, **_BASE),
    "siglip-l16-256": _siglip(256, 16, **_LARGE),
    "siglip-l16-384": _siglip(384, 16, **_LARGE),
    "siglip-so400m14": _siglip(224, 14, **_SO400M),
    "siglip-so400m14-384": _siglip(384, 14, **_SO400M),
}
# Towers of models that are no CLIP, by the names of their releases.
TOWERS: dict[str, VisionTower | TextTower] = {
    **{f"efficientnet-{name}": efficientnet_lite(name) for name in _EFFICIENTNET_LITES},
    "all-MiniLM-L6-v2": BertConfig(
        width=384, layers=6, heads=12, pool="mean", activation="gelu", pooler=False
    ),
}
_ALIASES = {  # open_clip's names that differ from ours, and others that people write
    **{f"coca-{name}": f"coca_{name}" for name in ("vit-b-32", "vit-l-14", "base")},
    "vit-l-14-336": "vit-l-14-336px",
    "vit-b-16-siglip": "siglip-b16",
    "vit-b-16-siglip-256": "siglip-b16-256",
    "vit-b-16-siglip-384": "siglip-b16-384",
    "vit-b-16-siglip-512": "siglip-b16-512",
    "vit-b-16-siglip-i18n-256": "siglip-b16-256-i18n",
    "vit-l-16-siglip-256": "siglip-l16-256",
    "vit-l-16-siglip-384": "siglip-l16-384",
    "vit-so400m-14-siglip": "siglip-so400m14",
    "vit-so400m-14-siglip-384": "siglip-so400m14-384",
}
_QUICK = "-quickgelu"  # the suffix of open_clip's models with this activation


def find_architecture(name: str) -> CLIPConfig:
    """Returns the architecture with the given name; `ViT-B-32` means ViT-B/32, as in file names.

    With the suffix `-quickgelu`, as in open_clip, it is the same model with QuickGELU.

    Raises:
      UserError: no architecture has this name.
    """
    plain = {_plain(key): key for key in ARCHITECTURES}
    key = _plain(name).removesuffix(_QUICK)
    key = plain.get(_ALIASES.get(key, key), "")
    if not key:
        near = difflib.get_close_matches(_plain(name), plain, 1)
        hint = f", such as {plain[near[0]]}" if near else ""
        raise UserError(f"unknown model {name!r:.80}{hint}; known: {', '.join(ARCHITECTURES)}")
    config = ARCHITECTURES[key]
    activation = named_activation(name)
    return dataclasses.replace(config, activation=activation) if activation else config


def _plain(name: str) -> str:
    return name.replace("/", "-").replace("@", "-").lower()


def named_activation(name: str) -> str | None:
    """Returns the activation that the name of an architecture states, or None if it states none."""
    return "quick_gelu" if _plain(name).endswith(_QUICK) else None


def architecture(name: str) -> JsonObject:
    """Returns the architecture with the given name as dictionaries, for a config's `model`."""
    return find_architecture(name).to_dict()


def tower(name: str) -> JsonObject:
    """Returns the tower with the given name of `TOWERS`, for a config's `model.vision` or `.text`.

    Raises:
      UserError: no tower has this name.
    """
    if name not in TOWERS:
        raise UserError(f"unknown tower {name!r:.80}; known: {', '.join(TOWERS)}")
    config: Any = TOWERS[name]
    return {"kind": kind_of(config), **dataclasses.asdict(config)}


def name_of(config: CLIPConfig, any_activation: bool = False) -> str | None:
    """Returns the name of an architecture, or None if it has none.

    Args:
      config: the architecture; its heads do not matter.
      any_activation: whether to ignore the activation: open_clip's own models have OpenAI's names,
        but GELU.
    """
    vision = config.vision.without_dropout()
    config = dataclasses.replace(config.without_heads(), vision=vision)
    for name, known in ARCHITECTURES.items():
        activation = config.activation if any_activation else known.activation
        if dataclasses.replace(known.without_heads(), activation=activation) == config:
            return name
    return None
