"""Models of open_clip with timm's image towers of MobileCLIP and MobileCLIP 2."""

from __future__ import annotations

from functools import partial
from typing import Any

from tools.golden_models.core import Families, Model
from tools.golden_models.timm import with_trunk


def _model(open_clip: Any, theirs: dict[str, Any], ours: dict[str, Any]) -> Model:
    import timm

    fastvit = timm.models.fastvit
    layers = ours["layers"]
    attends = (False, False, True)
    trunk = fastvit.FastVit(
        layers=layers,
        embed_dims=tuple(8 * 2**i for i in range(len(layers))),
        mlp_ratios=(1.5,) * len(layers),
        downsamples=(False, *(True,) * (len(layers) - 1)),
        token_mixers=["attention" if a else "repmixer" for a in attends],
        pos_embs=[fastvit.RepConditionalPosEnc if a else None for a in attends],
        lkc_use_act=True,
        num_classes=12,
        **theirs,
    )
    values = dict(kind="fastvit", width=8, mlp_ratio=1.5, projection_bias=True)
    return with_trunk(open_clip, trunk, 40, {**values, **ours}, projection="")


def open_clip_mobileclip(open_clip: Any) -> Model:
    """A FastViT with batch normalization before attention, and squeeze-and-excite."""
    theirs = dict(se_downsamples=(False, True, True))
    ours = dict(layers=(2, 1, 1))
    return _model(open_clip, theirs, ours)


def open_clip_mobileclip2(open_clip: Any) -> Model:
    """A FastViT with a LayerNorm before attention, and one branch in the stem."""
    import timm

    norm = partial(timm.layers.LayerNorm2d, eps=1e-5)
    theirs = dict(se_downsamples=(False,) * 3, norm_layer=norm, stem_use_scale_branch=False)
    ours = dict(layers=(1, 1, 1), squeeze_stages=0)
    return _model(open_clip, theirs, {**ours, "layer_norm": True, "stem_scale": False})


def open_clip_mobileclip_b(open_clip: Any) -> Model:
    """A vision Transformer with a convolutional stem."""
    import timm
    import torch

    hybrid = timm.models.vision_transformer_hybrid
    stem = hybrid.ConvStem(
        channels=(4, 4, 16),
        stride=(4, 2, 2),
        kernel_size=(4, 2, 2),
        padding=0,
        act_layer=torch.nn.GELU,
    )
    trunk = timm.models.vision_transformer.VisionTransformer(
        img_size=48,
        patch_size=1,
        embed_dim=16,
        depth=2,
        num_heads=2,
        no_embed_class=True,
        embed_layer=partial(timm.layers.HybridEmbed, backbone=stem, proj=False),
        num_classes=12,
    )
    ours = dict(kind="mci_vit", width=16, layers=2, heads=2, projection_bias=True)
    return with_trunk(open_clip, trunk, 48, ours, projection="")


FAMILIES: Families = {
    "open_clip_mobileclip": ("open_clip", open_clip_mobileclip),
    "open_clip_mobileclip2": ("open_clip", open_clip_mobileclip2),
    "open_clip_mobileclip_b": ("open_clip", open_clip_mobileclip_b),
}
