"""Models of open_clip with an image tower of timm."""

from __future__ import annotations

from typing import Any

from tools.golden_models.core import WORDS, Families, Model


def with_trunk(
    open_clip: Any,
    trunk: Any,
    image_size: int,
    vision: dict[str, Any],
    *,
    projection: str = "linear",
    embed_dim: int = 12,
    words: dict[str, Any] | None = None,
    prefix: bool = True,
    model: dict[str, Any] | None = None,
) -> Model:
    """Returns a model of open_clip with a small trunk, which has no name in timm.

    Args:
      open_clip: the library.
      trunk: the module of timm, whose classifier is what open_clip's `timm_proj` makes of it: with
        `embed_dim` outputs where `projection` is empty, else without.
      image_size: in pixels.
      vision: our image tower, with its `kind`.
      projection: open_clip's `timm_proj`.
      embed_dim: the features of an image or a text.
      words: open_clip's `text_cfg`; None: `WORDS`.
      prefix: whether the names of text parameters start with `text.`.
      model: further values of our architecture.
    """
    import torch

    module: Any = torch.nn.Module()
    module.visual = torch.nn.Module()
    module.visual.trunk = trunk
    module.visual.head = torch.nn.Sequential()
    if projection == "linear":
        module.visual.head.add_module(
            "proj", torch.nn.Linear(trunk.num_features, embed_dim, bias=False)
        )
    elif projection == "mlp":
        module.visual.head.add_module(
            "mlp",
            open_clip.timm_model.Mlp(
                trunk.num_features, 2 * embed_dim, embed_dim, bias=(True, False)
            ),
        )
    words = WORDS if words is None else words
    text = open_clip.model._build_text_tower(embed_dim, words)
    if prefix:
        module.text = text
    else:
        for name, part in text.named_children():
            module.add_module(name, part)
        module.positional_embedding = text.positional_embedding
        module.text_projection = text.text_projection
    values = {
        "embed_dim": embed_dim,
        "activation": "gelu",
        "vision": {"image_size": image_size, **vision},
        "text": {"kind": "transformer", **WORDS},
        **(model or {}),
    }
    module.logit_scale = torch.nn.Parameter(torch.tensor(2.3))
    if values.get("logit_bias") is not None:
        module.logit_bias = torch.nn.Parameter(torch.tensor(-10.0))

    def encode(images: Any, tokens: Any) -> tuple[Any, Any, Any]:
        image = module.visual.head(module.visual.trunk(images))
        image = torch.nn.functional.normalize(image, dim=-1)
        words = torch.nn.functional.normalize(text(tokens), dim=-1)
        logits = module.logit_scale.exp() * image @ words.T
        return image, words, logits + getattr(module, "logit_bias", 0)

    return Model(module, {}, encode, image_size, "open_clip_model.safetensors", ours=values)


def _vit(**options: Any) -> Any:
    import timm

    common = dict(img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2)
    return timm.models.vision_transformer.VisionTransformer(**common, **options)


_OURS = dict(kind="vit", patch_size=4, width=16, layers=2, heads=2, eps=1e-6)


def open_clip_siglip(open_clip: Any) -> Model:
    """The SigLIP of open_clip."""
    return _siglip(open_clip, "gelu", {})


def open_clip_siglip2(open_clip: Any) -> Model:
    """The SigLIP 2 of open_clip: the approximate GELU in the text tower only."""
    return _siglip(open_clip, "gelu_tanh", {"act_kwargs": {"approximate": "tanh"}})


def _siglip(open_clip: Any, activation: str, options: dict[str, Any]) -> Model:
    ending = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    words = {**WORDS, **ending, "norm_kwargs": {"eps": 1e-6}, **options}
    ours = dict(WORDS, kind="transformer", causal=False, pool="last", projection_bias=True)
    own = "gelu" if activation != "gelu" else ""
    plain = dict(ln_pre=False, patch_bias=True, projection=False, activation=own)
    return with_trunk(
        open_clip,
        _vit(class_token=False, global_pool="map", num_classes=0),
        8,
        {**_OURS, **plain, "pool": "map"},
        projection="none",
        embed_dim=16,
        words=words,
        model={
            "activation": activation,
            "temperature": 0.1,
            "max_logit_scale": 0.0,
            "logit_bias": -10.0,
            "text": {**ours, "eps": 1e-6},
        },
    )


def open_clip_timm_class(open_clip: Any) -> Model:
    """A vision Transformer like MobileCLIP2-L: timm's classifier is the projection."""
    from functools import partial

    import torch

    norm = partial(torch.nn.LayerNorm, eps=1e-5)
    trunk = _vit(pre_norm=True, norm_layer=norm, num_classes=12)
    ours = {**_OURS, "eps": 1e-5, "projection_bias": True}
    return with_trunk(open_clip, trunk, 8, ours, projection="")


def open_clip_timm_mean(open_clip: Any) -> Model:
    """A vision Transformer with a mean, gains of its branches and no bias of queries and keys."""
    trunk = _vit(
        class_token=False,
        global_pool="avg",
        qkv_bias=False,
        init_values=1e-6,
        fc_norm=False,
        num_classes=0,
    )
    ours = dict(ln_before_pool=True, ln_pre=False, layer_scale=1e-6, attention_bias=False)
    ours |= dict(pool="mean", patch_bias=True)
    return with_trunk(open_clip, trunk, 8, {**_OURS, **ours}, prefix=False)


def open_clip_convnext(open_clip: Any) -> Model:
    """A ConvNeXt with a matrix as projection; its last stage has four places."""
    return _convnext(open_clip, 64, (1, 2, 1, 1), 1e-6, "linear")


def open_clip_convnext_mlp(open_clip: Any) -> Model:
    """A ConvNeXt with an MLP as projection; its stages drop rows and columns."""
    return _convnext(open_clip, 36, (2, 1, 1, 1), 1e-5, "mlp")


def _convnext(
    open_clip: Any, image_size: int, layers: tuple[int, ...], eps: float, projection: str
) -> Model:
    import timm

    trunk = timm.models.convnext.ConvNeXt(
        depths=layers, dims=(3, 6, 12, 24), norm_eps=eps, num_classes=0
    )
    ours = dict(kind="convnext", width=3, layers=layers, eps=eps, projection=projection)
    return with_trunk(open_clip, trunk, image_size, ours, projection=projection, prefix=False)


def open_clip_vitamin(open_clip: Any) -> Model:
    """A ViTamin with positions; its stages have a first block only, and more than that."""
    return _vitamin(open_clip, {}, {})


def open_clip_vitamin_xlarge(open_clip: Any) -> Model:
    """A ViTamin without positions, as the largest are."""
    return _vitamin(open_clip, dict(pos_embed="none"), dict(positions=False))


def _vitamin(open_clip: Any, theirs: dict[str, Any], ours: dict[str, Any]) -> Model:
    trunk = vitamin_trunk(32, 4, (1, 2), embed_dim=16, depth=2, num_heads=2, **theirs)
    values = dict(kind="vitamin", width=16, layers=2, heads=2, stem=4, stem_layers=(1, 2))
    return with_trunk(open_clip, trunk, 32, {**values, **ours})


def vitamin_trunk(image_size: int, stem: int, depths: tuple[int, ...], **options: Any) -> Any:
    """Returns timm's module of a small ViTamin, built as its named models are."""
    from functools import partial

    import timm

    vitamin = timm.models.vitamin
    widths = (stem, 2 * stem, options["embed_dim"])
    sizes = vitamin.VitCfg(embed_dim=widths, depths=(*depths, 1), stem_width=stem)
    backbone = vitamin.MbConvStages(sizes)
    return timm.models.vision_transformer.VisionTransformer(
        img_size=image_size,
        patch_size=1,
        mlp_layer=vitamin.GeGluMlp,
        mlp_ratio=2.0,
        class_token=False,
        global_pool="avg",
        embed_layer=partial(timm.layers.HybridEmbed, backbone=backbone, proj=False),
        num_classes=0,
        **options,
    )


def open_clip_swin(open_clip: Any) -> Model:
    """A Swin Transformer; one window holds all places of its last stage."""
    trunk = swin_trunk(16, 2, 8, (4, 2), 4, 4)
    ours = dict(kind="swin", patch_size=2, width=8, layers=(4, 2), head_width=4, window=4)
    return with_trunk(open_clip, trunk, 16, ours, prefix=False)


def swin_trunk(
    image_size: int,
    patch_size: int,
    width: int,
    layers: tuple[int, ...],
    head_width: int,
    window: int,
) -> Any:
    """Returns timm's module of a small Swin Transformer."""
    import timm

    return timm.models.swin_transformer.SwinTransformer(
        img_size=image_size,
        patch_size=patch_size,
        embed_dim=width,
        depths=layers,
        num_heads=[width * 2**i // head_width for i in range(len(layers))],
        window_size=window,
        num_classes=0,
    )


def open_clip_relpos(open_clip: Any) -> Model:
    """A vision Transformer with relative positions and a class token."""
    import timm

    trunk = timm.models.vision_transformer_relpos.VisionTransformerRelPos(
        img_size=12,
        patch_size=4,
        embed_dim=16,
        depth=2,
        num_heads=2,
        qkv_bias=False,
        rel_pos_dim=6,
        class_token=True,
        global_pool="token",
        num_classes=0,
    )
    ours = dict(kind="relpos_vit", patch_size=4, width=16, layers=2, heads=2, position_width=6)
    return with_trunk(open_clip, trunk, 12, ours, prefix=False)


FAMILIES: Families = {
    "open_clip_relpos": ("open_clip", open_clip_relpos),
    "open_clip_convnext": ("open_clip", open_clip_convnext),
    "open_clip_convnext_mlp": ("open_clip", open_clip_convnext_mlp),
    "open_clip_siglip": ("open_clip", open_clip_siglip),
    "open_clip_siglip2": ("open_clip", open_clip_siglip2),
    "open_clip_swin": ("open_clip", open_clip_swin),
    "open_clip_timm_class": ("open_clip", open_clip_timm_class),
    "open_clip_timm_mean": ("open_clip", open_clip_timm_mean),
    "open_clip_vitamin": ("open_clip", open_clip_vitamin),
    "open_clip_vitamin_xlarge": ("open_clip", open_clip_vitamin_xlarge),
}
