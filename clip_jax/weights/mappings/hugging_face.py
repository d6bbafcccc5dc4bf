"""The mapping of transformers' folders: CLIP, SigLIP (2) and ALIGN."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from clip_jax.data.images.preprocess import Preprocess
from clip_jax.io import files
from clip_jax.models.model_config import (
    BertConfig,
    CLIPConfig,
    EfficientNetConfig,
    TextConfig,
    VisionConfig,
)
from clip_jax.models.naflex_configs import NaFlexConfig
from clip_jax.weights import configs, preprocessing
from clip_jax.weights.mappings.bert import bert_leaves
from clip_jax.weights.mappings.leaf import (
    Leaf,
    batch_norm,
    blocks,
    in_projection,
    is_plain,
    linear,
    norm,
    single,
    unsupported,
)
from clip_jax.weights.mappings.protocol import Document, ModelDescription, WeightsMapping

PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"  # the only one that transformers 5 writes


class HuggingFace(WeightsMapping):
    """The mapping of transformers' CLIP, SigLIP and ALIGN."""

    name = "hugging_face"
    description = "transformers: a folder of model.safetensors and config.json"
    weights_file = "model.safetensors"
    config_file = "config.json"

    def leaves(self, config: CLIPConfig) -> Iterator[Leaf]:
        """Yields the leaf of every parameter of a model."""
        match config:
            case CLIPConfig(
                vision=EfficientNetConfig(activation="silu", head=0, projection=False) as vision,
                text=BertConfig(pool="first", pooler=True, projection_bias=True) as text,
                log_scale=False,
                projection_width=0,
            ) if vision.squeeze:
                return _align(vision, text)
            case CLIPConfig(
                vision=VisionConfig(pool="class") as vision,
                text=TextConfig(pool="end" | "eos", causal=True, projection=True) as text,
                log_scale=True,
                logit_bias=None,
                projection_width=0,
            ) if text.layers and is_plain(vision) and type(text) is TextConfig:
                return _clip(vision, text)
            case CLIPConfig(
                vision=VisionConfig(pool="map", stem=0, registers=0) | NaFlexConfig() as vision,
                text=TextConfig(pool="last") as text,
                log_scale=True,
                projection_width=0,
            ) if text.layers and config.logit_bias is not None:
                return _siglip(vision, text)
        raise unsupported(config, self.name)

    def recognizes(self, names: Collection[str]) -> bool:
        """Returns whether tensors of these names are a model of transformers."""
        return any(name.startswith("vision_model.") for name in names)

    def documents(self, config: CLIPConfig, preprocess: Preprocess) -> dict[str, Document]:
        """Returns config.json and preprocessor_config.json."""
        values = configs.to_hugging_face(config)
        pixels = preprocessing.to_hugging_face(preprocess, values["model_type"])
        return {self.config_file: values, PREPROCESSOR: pixels}

    def interpret(
        self, config: CLIPConfig, preprocess: Preprocess, documents: Mapping[str, Document]
    ) -> Document:
        """Returns the essence of the model that transformers builds."""
        theirs = configs.from_hugging_face(documents[self.config_file])
        return configs.essence(configs.with_normalization(theirs, preprocess.mean, preprocess.std))

    def describe(self, config_file: Path) -> ModelDescription:
        """Reads config.json and the preprocessor's file."""
        config = configs.from_hugging_face(files.read_json(config_file), str(config_file))
        folder = config_file.parent
        where = f"{PREPROCESSOR} or {PROCESSOR} in {folder}"
        return ModelDescription(config, _preprocess(folder), where)


def _preprocess(folder: Path) -> Preprocess | None:
    """Reads the preprocessing from a folder, or returns None if no file states it.

    As in transformers, an `image_processor` inside processor_config.json counts more than the other
    file; older ones name only the class of the processor there.
    """
    nested = folder / PROCESSOR
    if nested.is_file():
        values = files.read_json(nested)
        if values.get("image_processor") is not None:
            return preprocessing.from_hugging_face(values, str(nested))
    alone = folder / PREPROCESSOR
    if not alone.is_file():
        return None
    return preprocessing.from_hugging_face(files.read_json(alone), str(alone))


def _text(text: TextConfig) -> Iterator[Leaf]:
    tower = "text_model"
    yield single("text/token_embedding/embedding", f"{tower}.embeddings.token_embedding.weight")
    yield single("text/positional_embedding", f"{tower}.embeddings.position_embedding.weight")
    yield from blocks("text", f"{tower}.encoder.layers", "hugging_face", text.layers)
    yield from norm("text/ln_final", f"{tower}.final_layer_norm")


def _clip(vision: VisionConfig, text: TextConfig) -> Iterator[Leaf]:
    tower = "vision_model"
    yield single("logit_scale", "logit_scale")
    yield from _text(text)
    yield from linear("text/projection", "text_projection", bias=text.projection_bias)
    yield single("vision/class_embedding", f"{tower}.embeddings.class_embedding")
    yield single("vision/positional_embedding", f"{tower}.embeddings.position_embedding.weight")
    yield from linear(
        "vision/patch_embedding", f"{tower}.embeddings.patch_embedding", form="patches", bias=False
    )
    yield from norm("vision/ln_pre", f"{tower}.pre_layrnorm")
    yield from blocks("vision", f"{tower}.encoder.layers", "hugging_face", vision.layers)
    yield from norm("vision/ln_post", f"{tower}.post_layernorm")
    yield from linear("vision/projection", "visual_projection", bias=False)


def _siglip(vision: VisionConfig | NaFlexConfig, text: TextConfig) -> Iterator[Leaf]:
    tower, head = "vision_model", "vision_model.head"
    yield single("logit_scale", "logit_scale", "leading1")
    yield single("logit_bias", "logit_bias", "leading1")
    yield from _text(text)
    yield from linear("text/projection", "text_model.head", bias=text.projection_bias)
    yield from linear(
        "vision/patch_embedding",
        f"{tower}.embeddings.patch_embedding",
        form="linear" if isinstance(vision, NaFlexConfig) else "patches",
        bias=isinstance(vision, NaFlexConfig) or vision.patch_bias,
    )
    yield single("vision/positional_embedding", f"{tower}.embeddings.position_embedding.weight")
    yield from blocks("vision", f"{tower}.encoder.layers", "hugging_face", vision.layers)
    yield from norm("vision/ln_post", f"{tower}.post_layernorm")
    yield single("vision/pool/probe", f"{head}.probe", "leading2")
    yield from in_projection("vision/pool/q", f"{head}.attention", span=(0, 1, 3))
    yield from in_projection("vision/pool/kv", f"{head}.attention", span=(1, 3, 3))
    yield from linear("vision/pool/out", f"{head}.attention.out_proj")
    yield from norm("vision/pool/ln", f"{head}.layernorm")
    yield from linear("vision/pool/mlp/fc", f"{head}.mlp.fc1")
    yield from linear("vision/pool/mlp/proj", f"{head}.mlp.fc2")


def _align(vision: EfficientNetConfig, text: BertConfig) -> Iterator[Leaf]:
    yield single("temperature", "temperature")
    yield from bert_leaves(text, "text_model.")
    yield from linear("text/projection", "text_projection")
    tower = "vision_model"
    yield single("vision/stem/kernel", f"{tower}.embeddings.convolution.weight", "convolution")
    yield from batch_norm("vision/bn_stem", f"{tower}.embeddings.batchnorm")
    block = 0
    for stage, (_, _, expansion, _, _, repeats) in enumerate(vision.stages, 1):
        depth, name = vision.repeats(repeats), f"{tower}.encoder.blocks"
        yield from _mbconv(f"vision/stage{stage}/first", f"{name}.{block}", expansion > 1)
        if depth > 1:
            numbers = tuple(range(block + 1, block + depth))
            yield from _mbconv(
                f"vision/stage{stage}/rest", f"{name}.{{}}", expansion > 1, layers=numbers
            )
        block += depth


def _mbconv(ours: str, name: str, expands: bool, **options: Any) -> Iterator[Leaf]:
    point = dict(form="pointwise", **options)
    if expands:
        yield from linear(f"{ours}/expand", f"{name}.expansion.expand_conv", bias=False, **point)
        yield from batch_norm(f"{ours}/bn_expand", f"{name}.expansion.expand_bn", **options)
    depthwise = f"{name}.depthwise_conv"
    kernel = f"{depthwise}.depthwise_conv.weight"
    yield single(f"{ours}/depthwise/kernel", kernel, "convolution", **options)
    yield from batch_norm(f"{ours}/bn_depthwise", f"{depthwise}.depthwise_norm", **options)
    squeeze = f"{name}.squeeze_excite"
    yield from linear(f"{ours}/squeeze_excite/reduce", f"{squeeze}.reduce", **point)
    yield from linear(f"{ours}/squeeze_excite/expand", f"{squeeze}.expand", **point)
    project = f"{name}.projection"
    yield from linear(f"{ours}/project", f"{project}.project_conv", bias=False, **point)
    yield from batch_norm(f"{ours}/bn_project", f"{project}.project_bn", **options)
