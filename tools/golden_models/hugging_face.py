"""Models of transformers."""

from __future__ import annotations

from typing import Any

import numpy as np

from clip_jax.models.patches import PatchBudget, unpack
from tools.golden_models.core import CONTEXT, VOCABULARY, Families, Model


def hugging_face_clip(transformers: Any) -> Model:
    """A `CLIPModel` with the QuickGELU activation."""
    shape = dict(num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, hidden_size=16)
    config = transformers.CLIPConfig(
        projection_dim=12,
        vision_config=dict(image_size=8, patch_size=4, **shape),
        text_config=dict(
            vocab_size=VOCABULARY,
            max_position_embeddings=CONTEXT,
            bos_token_id=VOCABULARY - 2,
            eos_token_id=VOCABULARY - 1,
            **shape,
        ),
    )
    return _hugging_face(transformers.CLIPModel(config), 8)


def hugging_face_metaclip2(transformers: Any) -> Model:
    """A `MetaClip2Model`, whose texts end at an id that is not the largest."""
    shape = dict(num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, hidden_size=16)
    config = transformers.MetaClip2Config(
        projection_dim=12,
        vision_config=dict(image_size=8, patch_size=4, **shape),
        text_config=dict(
            vocab_size=VOCABULARY + 10,
            max_position_embeddings=CONTEXT,
            bos_token_id=VOCABULARY - 2,
            eos_token_id=VOCABULARY - 1,
            **shape,
        ),
    )
    return _hugging_face(transformers.MetaClip2Model(config), 8)


def hugging_face_siglip(transformers: Any) -> Model:
    """A `SiglipModel` whose image size is not a multiple of its patch size."""
    shape = dict(num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, hidden_size=16)
    config = transformers.SiglipConfig(
        vision_config=dict(image_size=9, patch_size=4, **shape),
        text_config=dict(
            vocab_size=VOCABULARY,
            max_position_embeddings=CONTEXT,
            projection_size=16,
            bos_token_id=0,
            eos_token_id=1,
            **shape,
        ),
    )
    return _hugging_face(transformers.SiglipModel(config), 9)


def hugging_face_siglip2(transformers: Any) -> Model:
    """A `Siglip2Model`, of images with wider, higher and smaller grids than its positions."""
    import torch

    shape = dict(num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, hidden_size=16)
    config = transformers.Siglip2Config(
        vision_config=dict(patch_size=4, num_patches=9, **shape),
        text_config=dict(
            vocab_size=VOCABULARY,
            max_position_embeddings=CONTEXT,
            bos_token_id=0,
            eos_token_id=1,
            **shape,
        ),
    )
    module = transformers.Siglip2Model(config)

    def images(seed: int) -> np.ndarray:
        rng, budget = np.random.default_rng(seed), PatchBudget(4, 12)
        grids = ((2, 5), (6, 2), (1, 2))
        pixels = (rng.integers(0, 256, (4 * r, 4 * c, 3), np.uint8) for r, c in grids)
        return np.stack([budget.pack(image) for image in pixels])

    def encode(packed: Any, tokens: Any) -> tuple[Any, Any, Any]:
        pixels, places = unpack(packed.numpy())
        shapes = np.stack([places.rows.max(axis=1), places.columns.max(axis=1)], axis=1)
        out = module(
            input_ids=tokens,
            pixel_values=torch.tensor(pixels / 127.5 - 1, dtype=torch.float32),
            pixel_attention_mask=torch.tensor(places.rows > 0).long(),
            spatial_shapes=torch.tensor(shapes),
        )
        return out.image_embeds, out.text_embeds, out.logits_per_image

    return Model(module, {"config.json": module.config.to_dict()}, encode, 1, images=images)


def hugging_face_align(transformers: Any) -> Model:
    """An `AlignModel` of strided, repeated, expanded and plain blocks, one padded on all sides."""
    config = transformers.AlignConfig(
        projection_dim=8,
        vision_config=dict(
            image_size=33,
            width_coefficient=0.5,
            depth_coefficient=1.5,
            depth_divisor=4,
            kernel_sizes=[3, 5, 3],
            in_channels=[32, 16, 16],
            out_channels=[16, 16, 16],
            strides=[1, 2, 2],
            num_block_repeats=[1, 2, 1],
            expand_ratios=[1, 6, 2],
            depthwise_padding=[5],
            drop_connect_rate=0.0,
        ),
        text_config=dict(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=CONTEXT + 4,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
    )
    return _hugging_face(transformers.AlignModel(config), 33)


def _hugging_face(module: Any, image_size: int) -> Model:
    def encode(images: Any, tokens: Any) -> tuple[Any, Any, Any]:
        masks = {}
        if module.config.model_type == "align":
            masks["attention_mask"] = (tokens != 0).long()
        out = module(input_ids=tokens, pixel_values=images, **masks)
        return out.image_embeds, out.text_embeds, out.logits_per_image

    return Model(module, {"config.json": module.config.to_dict()}, encode, image_size)


FAMILIES: Families = {
    "hugging_face_clip": ("transformers", hugging_face_clip),
    "hugging_face_metaclip2": ("transformers", hugging_face_metaclip2),
    "hugging_face_siglip": ("transformers", hugging_face_siglip),
    "hugging_face_siglip2": ("transformers", hugging_face_siglip2),
    "hugging_face_align": ("transformers", hugging_face_align),
}
