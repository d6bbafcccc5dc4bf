"""Models of open_clip with a text encoder of transformers."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from tools.golden_models.core import CONTEXT, VOCABULARY, Families, Model

_VISION = dict(image_size=8, patch_size=4, width=16, layers=1, head_width=8)
_OUR_VISION = dict(kind="vit", image_size=8, patch_size=4, width=16, layers=1, heads=2)


def _with_encoder(
    open_clip: Any,
    config: Any,
    text: dict[str, Any],
    *,
    pooler: str = "mean_pooler",
    projection: str | None = "mlp",
    embed_dim: int = 12,
) -> Model:
    """Returns a CLIP of open_clip with a small text encoder, which has no name.

    Args:
      open_clip: the library.
      config: transformers' config of the encoder, whose padding has the id 0 of our tokens.
      text: our text tower, with its `kind`.
      pooler: open_clip's `hf_pooler_type`.
      projection: open_clip's `hf_proj_type`.
      embed_dim: the features of an image or a text.
    """
    words = dict(
        hf_model_name="by the config",
        hf_model_pretrained=False,
        hf_pooler_type=pooler,
        hf_proj_type=projection,
    )
    with patch.object(open_clip.hf_model.AutoConfig, "from_pretrained", lambda _: config):
        module = open_clip.model.CustomTextCLIP(embed_dim, dict(_VISION), words)

    def encode(images: Any, tokens: Any) -> tuple[Any, Any, Any]:
        image = module.encode_image(images, normalize=True)
        text = module.encode_text(tokens, normalize=True)
        return image, text, module.logit_scale.exp() * image @ text.T

    ours = {
        "embed_dim": embed_dim,
        "activation": "gelu",
        "vision": _OUR_VISION,
        "text": {
            "vocab_size": VOCABULARY,
            "context_length": CONTEXT,
            "width": 16,
            "layers": 2,
            "heads": 2,
            "pad_id": 0,
            "projection": projection or "none",
            **text,
        },
    }
    return Model(module, {}, encode, 8, "open_clip_model.safetensors", ours=ours)


def _roberta(**options: Any) -> Any:
    import transformers

    return transformers.XLMRobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=CONTEXT + 3,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=0,
        **options,
    )


_OUR_ROBERTA = dict(kind="roberta", mlp_ratio=1.5, positions=CONTEXT + 3)


def open_clip_roberta(open_clip: Any) -> Model:
    """An XLM-RoBERTa: the mean over the words, and a projection of two layers."""
    return _with_encoder(open_clip, _roberta(), _OUR_ROBERTA)


def open_clip_roberta_pooler(open_clip: Any) -> Model:
    """An XLM-RoBERTa that reads the first token by its own pooler, and one matrix."""
    ours = dict(_OUR_ROBERTA, pool="tanh")
    return _with_encoder(open_clip, _roberta(), ours, pooler="cls_pooler", projection="linear")


def open_clip_mt5(open_clip: Any) -> Model:
    """The encoder of an mT5, with distances in ranges of several places."""
    import transformers

    config = transformers.MT5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_decoder_layers=1,
        num_heads=2,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=6,
    )
    ours = dict(kind="t5", mlp_ratio=1.5, buckets=8, max_distance=6)
    return _with_encoder(open_clip, config, ours)


def open_clip_nllb(open_clip: Any) -> Model:
    """The encoder of an NLLB, read out at its first token and as wide as the embedding."""
    import transformers

    config = transformers.M2M100Config(
        vocab_size=VOCABULARY,
        d_model=16,
        encoder_layers=2,
        encoder_ffn_dim=24,
        encoder_attention_heads=2,
        decoder_layers=1,
        decoder_ffn_dim=8,
        decoder_attention_heads=2,
        max_position_embeddings=CONTEXT,
        pad_token_id=0,
    )
    ours = dict(kind="m2m", mlp_ratio=1.5, pool="first")
    return _with_encoder(
        open_clip, config, ours, pooler="cls_pooler", projection=None, embed_dim=16
    )


FAMILIES: Families = {
    "open_clip_roberta": ("open_clip", open_clip_roberta),
    "open_clip_roberta_pooler": ("open_clip", open_clip_roberta_pooler),
    "open_clip_mt5": ("open_clip", open_clip_mt5),
    "open_clip_nllb": ("open_clip", open_clip_nllb),
}
