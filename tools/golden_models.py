"""Golden numbers of released definitions: features, logits and gradients of small random models.

    pip install -e '.[parity]'
    python tools/golden_models.py tests/golden/models

Writes one folder per family: its files as the library saves them, and `expected.safetensors`. The
tests of weights build the same models again if torch is installed, and read these files if not.
open_clip's CoCa writes captions with transformers 4 only (`pip install 'transformers<5'`).
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 3
VOCABULARY, CONTEXT = 40, 8


@dataclasses.dataclass
class Model:
    """A model of another library.

    module: a torch module.
    documents: the JSON files that describe it, by name.
    encode: from (images NCHW, tokens) to image features, text features and logits per image.
    image_size: in pixels.
    file: the file name of its weights.
    more: from (images NCHW, tokens) to further outputs by name.
    """

    module: Any
    documents: dict[str, Any]
    encode: Callable[[Any, Any], tuple[Any, Any, Any]]
    image_size: int
    file: str = "model.safetensors"
    more: Callable[[Any, Any], dict[str, Any]] = lambda images, tokens: {}


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


def open_clip_vit(open_clip: Any) -> Model:
    """The CLIP of open_clip (and OpenAI) with a vision Transformer and QuickGELU."""
    return _open_clip(
        open_clip,
        {
            "embed_dim": 12,
            "quick_gelu": True,
            "vision_cfg": dict(image_size=8, patch_size=4, width=16, layers=2, head_width=8),
            "text_cfg": _WORDS,
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
            "text_cfg": {**_WORDS, "layers": 1},
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
            "text_cfg": {**_WORDS, "layers": 1},
        },
    )


_WORDS = dict(context_length=CONTEXT, vocab_size=VOCABULARY, width=16, heads=2, layers=2)


def _open_clip(open_clip: Any, config: dict[str, Any]) -> Model:
    module = open_clip.model.CLIP(**config)

    def encode(images: Any, tokens: Any) -> tuple[Any, Any, Any]:
        image = module.encode_image(images, normalize=True)
        text = module.encode_text(tokens, normalize=True)
        return image, text, module.logit_scale.exp() * image @ text.T

    documents = {"open_clip_config.json": {"model_cfg": config, "preprocess_cfg": {}}}
    size = config["vision_cfg"]["image_size"]
    return Model(module, documents, encode, size, "open_clip_model.safetensors")


def open_clip_siglip(open_clip: Any) -> Model:
    """The SigLIP of open_clip, with a small vision tower of timm."""
    import timm

    words = {**_WORDS, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    config = {
        "embed_dim": 16,
        "init_logit_bias": -10,
        "vision_cfg": dict(
            image_size=256,
            timm_model_name="vit_base_patch32_siglip_256",
            timm_pool="map",
            timm_proj="none",
        ),
        "text_cfg": {**words, "norm_kwargs": {"eps": 1e-6}},
    }
    import torch

    with torch.device("meta"):
        module = open_clip.model.CustomTextCLIP(**config)
    del module.visual
    module.text = open_clip.model._build_text_tower(config["embed_dim"], config["text_cfg"])
    module.visual = torch.nn.Module()
    module.visual.trunk = timm.models.vision_transformer.VisionTransformer(
        img_size=8,
        patch_size=4,
        embed_dim=16,
        depth=2,
        num_heads=2,
        class_token=False,
        global_pool="map",
        num_classes=0,
    )
    module.logit_scale = torch.nn.Parameter(torch.tensor(2.3))
    module.logit_bias = torch.nn.Parameter(torch.tensor(-10.0))

    def encode(images: Any, tokens: Any) -> tuple[Any, Any, Any]:
        image = torch.nn.functional.normalize(module.visual.trunk(images), dim=-1)
        text = torch.nn.functional.normalize(module.text(tokens), dim=-1)
        return image, text, module.logit_scale.exp() * image @ text.T + module.logit_bias

    return Model(module, {}, encode, 8, "open_clip_model.safetensors")


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
        "text_cfg": {**_WORDS, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": _WORDS,
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


FAMILIES: dict[str, tuple[str, Callable[[Any], Model]]] = {
    "hugging_face_clip": ("transformers", hugging_face_clip),
    "hugging_face_siglip": ("transformers", hugging_face_siglip),
    "hugging_face_align": ("transformers", hugging_face_align),
    "open_clip_vit": ("open_clip", open_clip_vit),
    "open_clip_gelu": ("open_clip", open_clip_gelu),
    "open_clip_resnet": ("open_clip", open_clip_resnet),
    "open_clip_siglip": ("open_clip", open_clip_siglip),
    "open_clip_coca": ("open_clip", open_clip_coca),
}


def randomize(module: Any, seed: int) -> None:
    """Draws every parameter and statistic at random, so that none is a trivial zero or one."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if not value.is_floating_point():
                value.fill_(7)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=generator)
            elif name == "temperature":
                value.fill_(0.6)
            elif value.ndim < 2:
                value.add_(0.1 * torch.randn(value.shape, generator=generator))
            else:
                std = (value[0].numel()) ** -0.5
                value.copy_(std * torch.randn(value.shape, generator=generator))
            if name == "text_decoder.text_projection":
                value[:, -1] *= 6  # captions of some images end soon


def inputs(image_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Normalised images, channels last, and rows of tokens that end in the largest id."""
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((BATCH, image_size, image_size, 3), np.float32)
    tokens = np.zeros((BATCH, CONTEXT), np.int32)
    for row, length in zip(tokens, (4, CONTEXT, 6), strict=True):
        row[:length] = [
            VOCABULARY - 2,
            *rng.integers(1, VOCABULARY - 2, length - 2),
            VOCABULARY - 1,
        ]
    return images, tokens


def outputs(model: Model, seed: int, train: bool = False) -> dict[str, np.ndarray]:
    """The outputs of a model for its inputs, and the gradients of a weighted sum of its logits.

    Args:
      train: use the batch's statistics; the updated ones are in the result, as `statistic.NAME`.
    """
    import torch

    images, tokens = inputs(model.image_size, seed)
    weights = np.random.default_rng(seed + 1).standard_normal((BATCH, BATCH)).astype(np.float32)
    model.module.train(train)
    model.module.zero_grad()
    given = torch.tensor(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(tokens).long()
    features = model.encode(*given)
    (features[2] * torch.tensor(weights)).sum().backward()
    names = ("image_features", "text_features", "logits_per_image")
    result = {
        name: value.detach().contiguous().numpy()
        for name, value in zip(names, features, strict=True)
    }
    result |= {"images": images, "tokens": tokens, "weights": weights}
    with torch.no_grad():
        more = model.more(*given)
    result |= {name: value.contiguous().numpy() for name, value in more.items()}
    for name, parameter in model.module.named_parameters():
        gradient = parameter.grad
        array = torch.zeros_like(parameter) if gradient is None else gradient
        result[f"gradient.{name}"] = array.numpy().copy()
    if train:
        for name, buffer in model.module.named_buffers():
            if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
                result[f"statistic.{name}"] = buffer.numpy().copy()
    return result


def state(model: Model) -> dict[str, np.ndarray]:
    """A copy of a model's state dict."""
    return {name: value.numpy().copy() for name, value in model.module.state_dict().items()}


def write(folder: Path) -> None:
    """Writes all families, one folder each."""
    import importlib

    from safetensors.numpy import save_file

    for family, (library, build) in FAMILIES.items():
        model = build(importlib.import_module(library))
        randomize(model.module, 1)
        place = folder / family
        place.mkdir(parents=True, exist_ok=True)
        for name, values in model.documents.items():
            (place / name).write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
        save_file(state(model), place / model.file, {"format": "pt"})
        save_file(outputs(model, 2), place / "expected.safetensors")
        if family == "open_clip_resnet":
            trained = outputs(model, 2, train=True)
            arrays = {k: v for k, v in trained.items() if not k.startswith("gradient")}
            save_file(arrays, place / "training.safetensors")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
