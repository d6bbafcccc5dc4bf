"""Models of open_clip with towers of its own."""

from __future__ import annotations

from typing import Any

from tools.golden_models.core import CONTEXT, VOCABULARY, WORDS, Families, Model


def open_clip_vit(open_clip: Any) -> Model:
    """The CLIP of open_clip (and OpenAI) with a vision Transformer and QuickGELU."""
    return _open_clip(
        open_clip,
        {
            "embed_dim": 12,
            "quick_gelu": True,
            "vision_cfg": dict(image_size=8, patch_size=4, width=16, layers=2, head_width=8),
            "text_cfg": WORDS,
        },
    )


def open_clip_gelu(open_clip: Any) -> Model:
    """The same with the exact GELU and another hidden width."""
    return _open_clip(
        open_clip,
        {
            "embed_dim": 12,
            "vision_cfg": dict(
                image_size=8, patch_size=4, width=16, layers=1, head_width=8, mlp_ratio=1.7
            ),
            "text_cfg": {**WORDS, "layers": 1},
        },
    )


def open_clip_resnet(open_clip: Any) -> Model:
    """The CLIP of open_clip (and OpenAI) with a ResNet, and QuickGELU in the text tower."""
    return _open_clip(
        open_clip,
        {
            "embed_dim": 12,
            "quick_gelu": True,
            "vision_cfg": dict(image_size=64, layers=[2, 1, 2, 1], width=2, head_width=32),
            "text_cfg": {**WORDS, "layers": 1},
        },
    )


def open_clip_clipa(open_clip: Any) -> Model:
    """A CLIPA: the mean of the patches, beside a class token, and the last token of a text."""
    return _open_clip(
        open_clip,
        {
            "embed_dim": 12,
            "vision_cfg": dict(
                image_size=8,
                patch_size=4,
                width=16,
                layers=2,
                head_width=8,
                no_ln_pre=True,
                pool_type="avg",
                final_ln_after_pool=True,
            ),
            "text_cfg": {**WORDS, "pool_type": "last", "no_causal_mask": True},
        },
    )


def open_clip_worldwide(open_clip: Any) -> Model:
    """A MetaCLIP 2, whose texts end at an id that is not the largest, and gains of branches."""
    return _open_clip(
        open_clip,
        {
            "embed_dim": 12,
            "vision_cfg": dict(
                image_size=8, patch_size=4, width=16, layers=2, head_width=8, ls_init_value=1e-4
            ),
            "text_cfg": {**WORDS, "pool_type": "eos", "eos_id": VOCABULARY - 1, "vocab_size": 50},
        },
    )


def _open_clip(open_clip: Any, config: dict[str, Any]) -> Model:
    module = open_clip.model.CLIP(**config)

    def encode(images: Any, tokens: Any) -> tuple[Any, Any, Any]:
        image = module.encode_image(images, normalize=True)
        text = module.encode_text(tokens, normalize=True)
        return image, text, module.logit_scale.exp() * image @ text.T

    documents = {"open_clip_config.json": {"model_cfg": config, "preprocess_cfg": {}}}
    size = config["vision_cfg"]["image_size"]
    return Model(module, documents, encode, size, "open_clip_model.safetensors")


def open_clip_coca(open_clip: Any) -> Model:
    """The CoCa of open_clip, whose image tower is wider than the queries that pool it."""
    config = {
        "embed_dim": 16,
        "vision_cfg": dict(
            image_size=8,
            patch_size=4,
            width=24,
            layers=2,
            head_width=8,
            attentional_pool=True,
            attn_pooler_queries=5,
            attn_pooler_heads=2,
            output_tokens=True,
        ),
        "text_cfg": {**WORDS, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": WORDS,
        "custom_text": True,
    }
    options = {key: value for key, value in config.items() if key != "custom_text"}
    module = open_clip.coca_model.CoCa(**options)

    def encode(images: Any, tokens: Any) -> tuple[Any, Any, Any]:
        image, text = module.encode_image(images), module.encode_text(tokens)
        return image, text, module.logit_scale.exp() * image @ text.T

    def more(images: Any, tokens: Any) -> dict[str, Any]:
        out = module(images, tokens)
        loss = open_clip.loss.CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)
        losses = loss(**out, output_dict=True)
        captions = {}
        if open_clip.coca_model._has_transformers:
            common = dict(seq_len=CONTEXT, sot_token_id=VOCABULARY - 2, fixed_output_length=True)
            common |= dict(eos_token_id=VOCABULARY - 1, min_seq_len=3)
            ways = {
                "greedy": dict(generation_type="top_k", top_k=1),
                "beams2": dict(num_beams=6, num_beam_groups=3),  # three times the same two beams
                "beams4": dict(num_beams=4, num_beam_groups=1),
            }
            captions = {
                f"captions.{name}": module.generate(images, **common, **way).int()
                for name, way in ways.items()
            }
        return {"logits": out["logits"], **losses, **captions}

    documents = {"open_clip_config.json": {"model_cfg": config, "preprocess_cfg": {}}}
    return Model(module, documents, encode, 8, "open_clip_model.safetensors", more)


FAMILIES: Families = {
    "open_clip_vit": ("open_clip", open_clip_vit),
    "open_clip_gelu": ("open_clip", open_clip_gelu),
    "open_clip_resnet": ("open_clip", open_clip_resnet),
    "open_clip_clipa": ("open_clip", open_clip_clipa),
    "open_clip_worldwide": ("open_clip", open_clip_worldwide),
    "open_clip_coca": ("open_clip", open_clip_coca),
}
