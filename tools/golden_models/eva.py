"""Models of open_clip with an image tower of timm's `Eva`: EVA-CLIP and Perception Encoder."""

from __future__ import annotations

from functools import partial
from typing import Any

from tools.golden_models.core import Families, Model
from tools.golden_models.timm import with_trunk


def _model(open_clip: Any, theirs: dict[str, Any], ours: dict[str, Any]) -> Model:
    """Returns a model whose projection is timm's classifier, as in all of these families."""
    import timm

    common = dict(img_size=12, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=12)
    values = dict(kind="eva", patch_size=4, width=16, layers=2, heads=2, projection_bias=True)
    return with_trunk(
        open_clip,
        timm.models.eva.Eva(**{**common, **theirs}),
        12,
        {**values, **ours},
        projection="",
    )


def open_clip_eva01(open_clip: Any) -> Model:
    """EVA-01: biases of queries and values."""
    return _model(open_clip, dict(global_pool="token"), {})


def open_clip_eva02(open_clip: Any) -> Model:
    """EVA-02: gated MLPs, LayerNorms inside the branches, and rotary positions of another grid."""
    theirs = dict(mlp_ratio=4 * 2 / 3, qkv_fused=False, global_pool="token", ref_feat_shape=(5, 5))
    theirs |= dict(swiglu_mlp=True, scale_mlp=True, scale_attn_inner=True, use_rot_pos_emb=True)
    return _model(open_clip, theirs, dict(swiglu=True, rotary=5, mlp_ratio=42 / 16))


def open_clip_eva02_enormous(open_clip: Any) -> Model:
    """EVA-02-E: LayerNorms after the branches."""
    return _model(open_clip, dict(global_pool="token", use_post_norm=True), dict(post_norm=True))


def _perception(open_clip: Any, theirs: dict[str, Any], ours: dict[str, Any]) -> Model:
    import timm

    norm = partial(timm.layers.LayerNorm, eps=1e-5)
    common = dict(global_pool="map", attn_type="rope", use_pre_transformer_norm=True)
    common |= dict(use_rot_pos_emb=True, rope_grid_indexing="xy", ref_feat_shape=(3, 3))
    common |= dict(attn_pool_num_heads=4, attn_pool_mlp_ratio=2.0, norm_layer=norm)
    values = dict(pool="map", pool_heads=4, pool_mlp_ratio=2.0, ln_pre=True, key_bias=True)
    values |= dict(rotary=3, rotary_columns_first=True, eps=1e-5)
    return _model(open_clip, {**common, **theirs}, {**values, **ours})


def open_clip_perception(open_clip: Any) -> Model:
    """Perception Encoder with a class token, up to its large size."""
    return _perception(open_clip, dict(rope_grid_offset=1.0), dict(rotary_offset=1.0))


def open_clip_perception_gigantic(open_clip: Any) -> Model:
    """The gigantic Perception Encoder, without a class token."""
    return _perception(open_clip, dict(class_token=False), dict(class_token=False))


FAMILIES: Families = {
    "open_clip_eva01": ("open_clip", open_clip_eva01),
    "open_clip_eva02": ("open_clip", open_clip_eva02),
    "open_clip_eva02_enormous": ("open_clip", open_clip_eva02_enormous),
    "open_clip_perception": ("open_clip", open_clip_perception),
    "open_clip_perception_gigantic": ("open_clip", open_clip_perception_gigantic),
}
