"""Files of single towers for tests, in the names of the libraries that released such towers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.models.model_config import BertConfig, EfficientNetConfig
from clip_jax.weights.tensor_writing import write_safetensors

# Sides of 20, 10, 5 and 3 pixels: TensorFlow pads the last stride alike on both sides.
LITE = EfficientNetConfig(
    image_size=20,
    width=1.0,
    depth=1.0,
    stages=((3, 1, 1, 32, 8, 1), (3, 2, 6, 8, 16, 2), (5, 2, 6, 16, 24, 1)),
    symmetric=(3,),
    squeeze=0.0,
    activation="relu6",
    head=24,
)
MINI = BertConfig(
    vocab_size=50,
    context_length=8,
    width=16,
    layers=2,
    heads=4,
    positions=12,
    pool="mean",
    activation="gelu",
    pooler=False,
)


def lite_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """The tensors of `LITE` in the names of efficientnet_lite_pytorch, with a classifier."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}

    def add(name: str, *shape: int) -> None:
        fan_in = int(np.prod(shape[1:])) or 1
        tensors[f"{name}.weight"] = rng.normal(size=shape).astype(np.float32) * fan_in**-0.5

    def norm(name: str, channels: int) -> None:
        for part, low, high in (
            ("weight", 1.0, 2.0),
            ("bias", -0.5, 0.5),
            ("running_mean", -0.5, 0.5),
            ("running_var", 0.5, 1.5),
        ):
            tensors[f"{name}.{part}"] = rng.uniform(low, high, channels).astype(np.float32)
        tensors[f"{name}.num_batches_tracked"] = np.array(7, np.int64)

    add("_conv_stem", 32, 3, 3, 3)
    norm("_bn0", 32)
    block = 0
    for size, _, expansion, inputs, outputs, repeats in LITE.stages:
        for _ in range(repeats):
            name, hidden = f"_blocks.{block}", inputs * expansion
            if expansion > 1:
                add(f"{name}._expand_conv", hidden, inputs, 1, 1)
                norm(f"{name}._bn0", hidden)
            add(f"{name}._depthwise_conv", hidden, 1, size, size)
            norm(f"{name}._bn1", hidden)
            add(f"{name}._project_conv", outputs, hidden, 1, 1)
            norm(f"{name}._bn2", outputs)
            inputs, block = outputs, block + 1
    add("_conv_head", LITE.head, inputs, 1, 1)
    norm("_bn1", LITE.head)
    add("_fc", 10, LITE.head)
    tensors["_fc.bias"] = np.zeros(10, np.float32)
    return tensors


def bert_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """The tensors of `MINI` as transformers names those of a `BertModel`."""
    rng, width = np.random.default_rng(seed), MINI.width
    tensors = {"embeddings.position_ids": np.arange(MINI.positions)[None]}

    def add(name: str, *shape: int) -> None:
        tensors[name] = rng.normal(size=shape).astype(np.float32) * 0.3

    def linear(name: str, outputs: int, inputs: int) -> None:
        add(f"{name}.weight", outputs, inputs)
        add(f"{name}.bias", outputs)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = rng.uniform(0.5, 1.5, width).astype(np.float32)
        add(f"{name}.bias", width)

    for table, rows in (("word", MINI.vocab_size), ("position", MINI.positions), ("token_type", 2)):
        add(f"embeddings.{table}_embeddings.weight", rows, width)
    norm("embeddings.LayerNorm")
    for layer in range(MINI.layers):
        name = f"encoder.layer.{layer}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            linear(f"{name}.attention.{part}", width, width)
        norm(f"{name}.attention.output.LayerNorm")
        linear(f"{name}.intermediate.dense", 4 * width, width)
        linear(f"{name}.output.dense", width, 4 * width)
        norm(f"{name}.output.LayerNorm")
    linear("pooler.dense", width, width)
    return tensors


def write_lite(path: Path, **changes: Any) -> Path:
    """A file of `LITE`; tensors that are changed to None are left out."""
    tensors = {**lite_tensors(), **changes}
    write_safetensors(path, {name: t for name, t in tensors.items() if t is not None})
    return path


def write_bert(folder: Path, pooling: str = "mean_tokens", **config: Any) -> Path:
    """A folder of sentence-transformers with `MINI`."""
    write_safetensors(folder / "model.safetensors", bert_tensors())
    values = dict(
        model_type="bert",
        architectures=["BertModel"],
        hidden_act="gelu",
        hidden_size=MINI.width,
        intermediate_size=4 * MINI.width,
        layer_norm_eps=1e-12,
        max_position_embeddings=MINI.positions,
        num_attention_heads=MINI.heads,
        num_hidden_layers=MINI.layers,
        vocab_size=MINI.vocab_size,
    )
    (folder / "config.json").write_text(json.dumps(values | config))
    (folder / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{pooling}": True, "pooling_mode_max_tokens": False}
    text = json.dumps({"word_embedding_dimension": MINI.width, **modes})
    (folder / "1_Pooling" / "config.json").write_text(text)
    return folder
