"""Named architectures: models, towers and their sizes."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from clip_jax.errors import UserError
from clip_jax.io.files import JsonObject
from clip_jax.models.architectures import (
    coca,
    convnext,
    efficientnet,
    encoders,
    eva,
    fastvit,
    released,
    siglip,
    swin,
    timm_vit,
    vitamin,
)
from clip_jax.models.architectures.released import plain
from clip_jax.models.architectures.sizes import HUGE, LARGE
from clip_jax.models.model_config import (
    BertConfig,
    CLIPConfig,
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


ARCHITECTURES: dict[str, CLIPConfig] = {
    # Learning Transferable Visual Models From Natural Language Supervision, tables 19 and 20.
    "RN50": _clip(1024, ResNetConfig()),
    "RN101": _clip(512, ResNetConfig(layers=(3, 4, 23, 3))),
    "RN50x4": _clip(640, ResNetConfig(288, 80, (4, 6, 10, 6), 40), 640),
    "RN50x16": _clip(768, ResNetConfig(384, 96, (6, 8, 18, 8), 48), 768),
    "RN50x64": _clip(1024, ResNetConfig(448, 128, (3, 15, 36, 10), 64), 1024),
    "ViT-B/32": _clip(512, VisionConfig(patch_size=32)),
    "ViT-B/16": _clip(512, VisionConfig(patch_size=16)),
    "ViT-L/14": _clip(768, VisionConfig(patch_size=14, **LARGE), 768),
    "ViT-L/14@336px": _clip(768, VisionConfig(336, 14, **LARGE), 768),
    # LAION's, of open_clip.
    "ViT-H/14": dataclasses.replace(
        _clip(1024, VisionConfig(patch_size=14, **HUGE), 1024, layers=24), activation="gelu"
    ),
    **coca.ARCHITECTURES,
    **efficientnet.ARCHITECTURES,
    **siglip.ARCHITECTURES,
}
# Towers of models that are no CLIP, by the names of their releases.
TOWERS: dict[str, VisionTower | TextTower] = {
    **efficientnet.TOWERS,
    **convnext.TOWERS,
    **timm_vit.TOWERS,
    **eva.TOWERS,
    **encoders.TOWERS,
    **swin.TOWERS,
    **vitamin.TOWERS,
    **fastvit.TOWERS,
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
# transformers' names of repositories at Hugging Face, in lower case, with `-` for `/`.
_HUB = {
    "openai-clip-vit-base-patch32": "vit-b-32",
    "openai-clip-vit-base-patch16": "vit-b-16",
    "openai-clip-vit-large-patch14": "vit-l-14",
    "openai-clip-vit-large-patch14-336": "vit-l-14-336px",
    "kakaobrain-align-base": "align-base",
    "google-siglip-base-patch16-224": "siglip-b16",
    "google-siglip-base-patch16-256": "siglip-b16-256",
    "google-siglip-base-patch16-384": "siglip-b16-384",
    "google-siglip-base-patch16-512": "siglip-b16-512",
    "google-siglip-base-patch16-256-multilingual": "siglip-b16-256-i18n",
    "google-siglip-large-patch16-256": "siglip-l16-256",
    "google-siglip-large-patch16-384": "siglip-l16-384",
    "google-siglip-so400m-patch14-224": "siglip-so400m14",
    "google-siglip-so400m-patch14-384": "siglip-so400m14-384",
    **{
        f"google-siglip2-{size}-{size_of_patch}-{side}": f"siglip2-{short}-{side}"
        for size, size_of_patch, short, sides in siglip.SIGLIP2
        for side in sides
    },
    **{
        f"google-siglip2-{size}-{patch}-naflex": f"siglip2-{short}-naflex"
        for size, patch, short in siglip.NAFLEX
    },
    "facebook-metaclip-b32-400m": "vit-b-32-quickgelu",
    "facebook-metaclip-b16-400m": "vit-b-16-quickgelu",
    "facebook-metaclip-l14-400m": "vit-l-14-quickgelu",
    "facebook-metaclip-b32-fullcc2.5b": "vit-b-32-quickgelu",
    "facebook-metaclip-b16-fullcc2.5b": "vit-b-16-quickgelu",
    "facebook-metaclip-l14-fullcc2.5b": "vit-l-14-quickgelu",
    "facebook-metaclip-h14-fullcc2.5b": "vit-h-14-quickgelu",
    "facebook-metaclip-2-worldwide-huge-quickgelu": "vit-h-14-worldwide-quickgelu",
    "facebook-metaclip-2-worldwide-huge-378": "vit-h-14-worldwide-378",
    "facebook-metaclip-2-worldwide-giant": "vit-bigg-14-worldwide",
    "facebook-metaclip-2-worldwide-giant-378": "vit-bigg-14-worldwide-378",
}
_QUICK = "-quickgelu"  # the suffix of open_clip's models with this activation


def find_architecture(name: str) -> CLIPConfig:
    """Returns the architecture with the given name; `ViT-B-32` means ViT-B/32, as in file names.

    Known are the names of `available`, those of open_clip's published weights at Hugging Face, such
    as `laion/CLIP-ViT-H-14-laion2B-s32B-b79K`, and transformers' `openai/clip-vit-base-patch32`.
    With the suffix `-quickgelu`, as in open_clip, it is the same model with QuickGELU.

    Raises:
      UserError: no architecture has this name.
    """
    found = find_released(name)
    if found is None:
        near = near_names(name)
        hint = f", such as {', '.join(near)}" if near else ""
        raise UserError(f"unknown model {name!r:.80}{hint}; clip_jax.available_models() lists all")
    return found.config


def near_names(name: str) -> list[str]:
    """Returns up to three names of architectures that are like a text."""
    keys = {plain(known): known for known in (*available(), *released.hub_names(), *_HUB)}
    return [keys[key] for key in difflib.get_close_matches(plain(name), keys, 3)]


def find_released(name: str) -> released.Released | None:
    """Returns the architecture of a name and how its images are prepared; None if it is unknown."""
    key = plain(released.without_hub(name))
    key = _HUB.get(key, key)
    base = key.removesuffix(_QUICK)
    own = _own().get(_ALIASES.get(base, base))
    if own is None:
        return released.find(key)
    config = ARCHITECTURES[own]
    activation = named_activation(key)
    config = dataclasses.replace(config, activation=activation) if activation else config
    return released.Released(own, config, config.vision.preprocess())


def available() -> list[str]:
    """Returns the names of all architectures; those of the paper come first."""
    own = {plain(name) for name in (*ARCHITECTURES, *_ALIASES)}
    return [*ARCHITECTURES, *(name for name in released.names() if plain(name) not in own)]


def _own() -> dict[str, str]:
    return {plain(key): key for key in ARCHITECTURES}


def named_activation(name: str) -> str | None:
    """Returns the activation that the name of an architecture states, or None if it states none."""
    return "quick_gelu" if plain(name).endswith(_QUICK) else None


def architecture(name: str) -> JsonObject:
    """Returns the architecture with the given name as dictionaries, for a config's `model`."""
    return find_architecture(name).to_dict()


def tower(name: str) -> JsonObject:
    """Returns the tower with the given name of `TOWERS`, for a config's `model.vision` or `.text`.

    Args:
      name: such as `convnext_base`; timm's name of its weights, `timm/convnext_base.fb_in1k`, will
        do, too.

    Raises:
      UserError: no tower has this name.
    """
    key = name if name in TOWERS else released.without_hub(name).removeprefix("timm/")
    key = key if key in TOWERS else key.partition(".")[0]
    if key not in TOWERS:
        near = difflib.get_close_matches(key, TOWERS, 3)
        hint = f", such as {', '.join(near)}" if near else ""
        raise UserError(f"unknown tower {name!r:.80}{hint}; known: {', '.join(TOWERS)}")
    config: Any = TOWERS[key]
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
    for name in available():
        known = find_architecture(name)
        activation = config.activation if any_activation else known.activation
        if dataclasses.replace(known.without_heads(), activation=activation) == config:
            return name
    return None
