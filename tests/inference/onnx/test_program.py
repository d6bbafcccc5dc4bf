"""Rules of single primitives, against JAX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from jax import lax

from clip_jax.errors import UserError
from clip_jax.inference.onnx import writing
from clip_jax.inference.onnx.fusions import fuse
from clip_jax.inference.onnx.graph import Graph
from clip_jax.inference.onnx.program import convert

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(11, 4)).astype(np.float32)
KERNEL = RNG.normal(size=(3, 3, 4, 6)).astype(np.float32)
DEPTHWISE = RNG.normal(size=(3, 3, 1, 4)).astype(np.float32)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def integers(*shape: int) -> np.ndarray:
    return RNG.integers(0, 11, shape).astype(np.int32)


def run_onnx(function: Any, example: np.ndarray, *others: np.ndarray) -> list[Any]:
    """Converts a function for any number of rows; returns its results for the arrays."""
    graph, inputs, outputs = converted(function, example)
    named = {f"result{i}": output for i, output in enumerate(outputs)}
    model = writing.model_proto(graph, inputs, named)
    model.graph.initializer.extend(
        writing.onnx.numpy_helper.from_array(np.asarray(array, order="C"), name)
        for name, array in graph.constants.items()
    )
    writing.onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return [session.run(None, {"rows": rows}) for rows in (example, *others)]


def converted(function: Any, example: np.ndarray) -> tuple[Graph, Any, Any]:
    (batch,) = jax.export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((batch, *example.shape[1:]), example.dtype)
    graph, inputs, outputs = convert(function, {"rows": shape})
    fuse(graph)
    graph.prune(outputs)
    return graph, inputs, outputs


def positions(rows: jax.Array) -> jax.Array:
    return jnp.argmax(rows.sum(2), axis=1)


def loop(rows: jax.Array, reverse: bool) -> Any:
    def step(carry: jax.Array, own: jax.Array) -> Any:
        carry = jnp.tanh(carry + own)
        return carry, carry[:, :1]

    return lax.scan(step, rows, jnp.asarray(TABLE), reverse=reverse)


def over_tokens(rows: jax.Array) -> Any:
    return lax.scan(lambda carry, own: (carry + own, carry * own), rows[:, 0], rows.swapaxes(0, 1))


FUNCTIONS: dict[str, tuple[Any, np.ndarray]] = {
    "windows": (
        lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
        floats(2, 6, 6, 4),
    ),
    "padded windows": (
        lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 2, 2, 1), "SAME"),
        floats(2, 6, 6, 4),
    ),
    "maximum of windows": (
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME"),
        floats(2, 6, 6, 4),
    ),
    "convolution": (
        lambda x: lax.conv_general_dilated(
            x, KERNEL, (2, 1), ((1, 2), (0, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        floats(2, 7, 6, 4),
    ),
    "depthwise convolution": (
        lambda x: lax.conv_general_dilated(
            x,
            DEPTHWISE,
            (1, 1),
            "SAME",
            rhs_dilation=(2, 1),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=4,
        ),
        floats(2, 7, 6, 4),
    ),
    "a table's rows": (lambda x: jnp.asarray(TABLE)[x], integers(2, 5)),
    "columns": (lambda x: x[:, :, jnp.array([2, 0, 2])], floats(2, 5, 4)),
    "rows at positions": (lambda x: x[jnp.arange(x.shape[0]), positions(x)], floats(2, 5, 4)),
    "every second pixel": (lambda x: x[:, 1::2, ::2], floats(2, 6, 4, 3)),
    "pixels by row and column": (
        lambda x: x[:, jnp.array([[0, 2], [1, 1]]), jnp.array([[3, 1], [0, 2]])],
        floats(2, 3, 4, 5),
    ),
    "along an axis": (
        lambda x: jnp.take_along_axis(x, positions(x)[:, None, None], axis=1),
        floats(2, 5, 4),
    ),
    "first and last": (lambda x: (x[:, 0], x[:, -1], x[:, 1:-1:2]), floats(2, 6, 4)),
    "reversed": (lambda x: x[:, ::-1], floats(2, 5, 4)),
    "padded": (
        lambda x: lax.pad(x, 2.0, ((0, 0, 0), (1, 2, 0), (-1, 0, 0))),
        floats(2, 5, 4),
    ),
    "counted": (lambda x: jnp.cumsum(x != 3, axis=1), integers(2, 5)),
    "counted from the end": (lambda x: lax.cumsum(x, axis=1, reverse=True), integers(2, 5)),
    "is any, are all": (lambda x: ((x > 3).any(1), (x > 3).all(1)), integers(3, 5)),
    "least": (lambda x: (jnp.argmin(x, 1), x.min(1), x.max(1), x.prod(1)), floats(3, 5)),
    "products over two axes": (lambda x: jnp.einsum("bijk,bljk->bil", x, x), floats(2, 3, 4, 5)),
    "a kernel from the left": (lambda x: jnp.einsum("ij,bkj->bik", TABLE, x), floats(2, 3, 4)),
    "an outer product": (lambda x: jnp.einsum("bi,bj->bij", x, x), floats(2, 3)),
    "rows joined": (lambda x: jnp.einsum("bi,ci->bc", x, TABLE), floats(2, 4)),
    "broadcasts that are summed": (
        lambda x: jnp.broadcast_to(x[:, None], (x.shape[0], 3, 4)).sum(1),
        floats(2, 4),
    ),
    "a constant for each row": (
        lambda x: jnp.concatenate([jnp.broadcast_to(TABLE[:1], (x.shape[0], 4)), x], 1),
        floats(2, 4),
    ),
    "the number of rows": (lambda x: x * x.shape[0], floats(3, 4)),
    "merged with the batch": (lambda x: (x.reshape(-1, 4) @ TABLE.T).sum(1), floats(2, 5, 4)),
    "a loop": (lambda x: loop(x, False), floats(2, 4)),
    "a loop backwards": (lambda x: loop(x, True), floats(2, 4)),
    "a loop over tokens": (over_tokens, floats(2, 3, 4)),
    "functions": (
        lambda x: (jax.nn.gelu(x, approximate=False), jax.nn.gelu(x), jax.nn.silu(x), jnp.log1p(x)),
        np.abs(floats(2, 4)),
    ),
    "choices": (
        lambda x: jnp.where(x > 0, jnp.clip(x, -0.5, 0.5), jnp.round(x) % 2),
        3 * floats(4, 5),
    ),
    "softmax": (lambda x: jax.nn.softmax(5 * x, axis=-1), floats(2, 5)),
    "powers": (lambda x: (x**3, x**2, jnp.abs(x) ** 0.5, 1 / jnp.sqrt(1 + x * x)), floats(2, 5)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_gives_what_jax_gives_for_any_batch(name: str) -> None:
    function, example = FUNCTIONS[name]
    more = np.concatenate([example[::-1], example])
    for rows, results in zip(
        (example, more, example[:1]), run_onnx(function, example, more, example[:1]), strict=True
    ):
        expected = jax.tree.leaves(function(jnp.asarray(rows)))
        assert len(results) == len(expected)
        for ours, theirs in zip(results, expected, strict=True):
            assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
            np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_what_depends_on_no_input_is_computed_once() -> None:
    def function(rows: jax.Array) -> jax.Array:
        return rows + jnp.sin(jnp.arange(4.0)) @ jnp.ones((4, 4))

    graph, _, _ = converted(function, floats(2, 4))
    assert [node.operator for node in graph.nodes] == ["Add"]


def test_equal_constants_are_stored_once() -> None:
    graph, _, _ = converted(lambda x: (x @ TABLE.T) @ TABLE + 3.0 * x + 3.0, floats(2, 4))
    scalars = [a for a in graph.constants.values() if a.size == 1]
    assert len(scalars) == 1


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: lax.sort(x), "the primitive sort"),
        (lambda x: lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x), "a condition that depends"),
        (
            lambda x: lax.while_loop(lambda y: y.sum() < 3, lambda y: y + 1, x),
            "the primitive while",
        ),
        (
            lambda x: lax.conv_transpose(x, KERNEL, (2, 2), "SAME"),
            "a transposed convolution",
        ),
    ],
)
def test_what_has_no_counterpart_is_named(function: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        converted(function, floats(2, 5, 5, 4))
