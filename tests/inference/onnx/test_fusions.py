"""Chains that become one operator."""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.inference.onnx.fusions import fuse
from clip_jax.inference.onnx.program import convert
from clip_jax.inference.programs import tower_program
from clip_jax.models.clip import abstract_model
from clip_jax.models.model_config import CLIPConfig, TextConfig, VisionConfig


def operators(function: Any, *shape: int) -> Counter[str]:
    (batch,) = jax.export.symbolic_shape("batch")
    argument = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    graph, _, outputs = convert(function, {"x": argument})
    fuse(graph)
    graph.prune(outputs)
    return Counter(node.operator for node in graph.nodes)


def layer_norm(x: Any, axis: int = -1, power: int = 2, epsilon: float = 1e-5) -> Any:
    mean = x.mean(axis, keepdims=True)
    variance = ((x - mean) ** power).mean(axis, keepdims=True)
    scale, bias = np.arange(1.0, 5.0), np.arange(4.0)
    return (x - mean) * (jax.lax.rsqrt(variance + epsilon) * scale) + bias


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_a_transformer_has_an_operator_for_each_norm_and_attention(activation: str) -> None:
    config = CLIPConfig(
        12,
        activation=activation,
        vision=VisionConfig(image_size=8, patch_size=4, width=16, layers=3, heads=2),
        text=TextConfig(vocab_size=40, context_length=8, width=16, layers=3, heads=2),
    )
    model = abstract_model(config)
    for name, tower, norms in (("vision", model.vision, 8), ("text", model.text, 7)):
        own, run = tower_program(tower, name, False)
        zeros = {path: jnp.zeros(x.shape, x.dtype) for path, x in own.items()}
        shape, dtype = ((8, 8, 3), jnp.uint8) if name == "vision" else ((8,), jnp.int32)
        (batch,) = jax.export.symbolic_shape("batch")
        graph, _, outputs = convert(
            lambda rows, run=run, zeros=zeros: run(zeros, rows),
            {"rows": jax.ShapeDtypeStruct((batch, *shape), dtype)},
        )
        fuse(graph)
        graph.prune(outputs)
        count = Counter(node.operator for node in graph.nodes)
        assert count["LayerNormalization"] == norms
        assert count["Softmax"] == 3 and not count["Exp"]
        assert count["Gelu"] == (3 if activation == "gelu" else 0)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: layer_norm(x, axis=1),  # over another axis
        lambda x: layer_norm(x, power=4),
        lambda x: layer_norm(x) - layer_norm(x, epsilon=1e-3) * 0 - 1,  # two, of which one is left
    ],
)
def test_what_only_looks_alike_is_left(function: Any) -> None:
    count = operators(function, 4, 4)
    assert count["LayerNormalization"] in (0, 2)
    if not count["LayerNormalization"]:
        assert count["Sqrt"]


def test_a_softmax_needs_the_sum_of_its_own_axis() -> None:
    assert operators(lambda x: jax.nn.softmax(x, axis=-1), 4, 4)["Softmax"] == 1
    other = operators(lambda x: jnp.exp(x - x.max(-1, keepdims=True)) / jnp.exp(x).sum(), 4, 4)
    assert not other["Softmax"]
    assert not operators(lambda x: jax.nn.softmax(x, axis=1), 4, 4)["Softmax"]


def test_an_approximate_gelu_is_no_gelu() -> None:
    assert not operators(jax.nn.gelu, 4)["Gelu"]
    assert operators(lambda x: jax.nn.gelu(x, approximate=False), 4)["Gelu"] == 1
