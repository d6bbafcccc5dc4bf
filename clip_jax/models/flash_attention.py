"""Attention for GPUs that never stores its matrix (FlashAttention-2; Dao 2023), in Pallas' Triton.

A program of the grid reads a block of queries and computes with one block of keys after the other,
so that the scores stay in registers. The backward pass computes them again from the log-sum-exp of
each row. Sequences of any length are allowed: positions past the end are masked.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from clip_jax.models.flash_kernels import BACKWARD_KEYS, BACKWARD_QUERIES, FORWARD, kernel_name

Heads = Float[Array, "batch length heads size"]
Rows = Float[Array, "batch heads length"]

MAX_HEAD_SIZE = 128
_FORWARD_BLOCK = 64  # queries, and keys at a time
_BACKWARD_BLOCK = 32
_LOG2_E = math.log2(math.e)
# Finite, so that a row of a block that is masked as a whole gives no NaN.
_MASKED = -1e30


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def flash_attention(q: Heads, k: Heads, v: Heads, causal: bool, interpret: bool = False) -> Heads:
    """Returns softmax(q · kᵀ / √size) · v for each row and head of a batch.

    Args:
      q: the queries, in bfloat16 or float16, of which products have float32 sums.
      k: as many keys as there are queries.
      v: the values.
      causal: whether a position attends only to itself and those before it.
      interpret: whether to run on a CPU, slowly, for tests.
    """
    return _forward(q, k, v, causal, interpret)[0]


def _call(kernel: Any, name: str, blocks: int, inputs: Any, outputs: Any, interpret: bool) -> Any:
    """Runs a kernel on the grid (blocks of positions, rows, heads).

    Each program sees a row's and head's whole sequence of every array.
    """

    def spec(array: Any) -> pl.BlockSpec:
        if array.ndim == 3:
            return pl.BlockSpec((None, None, array.shape[2]), lambda _, row, head: (row, head, 0))
        size = pl.next_power_of_2(array.shape[3])
        shape = None, array.shape[1], None, size
        return pl.BlockSpec(shape, lambda _, row, head: (row, 0, head, 0))

    batch, _, heads, _ = inputs[0].shape
    return pl.pallas_call(
        kernel,
        grid=(blocks, batch, heads),
        in_specs=[spec(array) for array in inputs],
        out_specs=[spec(array) for array in outputs],
        out_shape=outputs,
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name=name,
    )(*inputs)


class _Sequence:
    """How a kernel reads and writes blocks of a sequence.

    Args:
      block: the positions of a block.
      length: the length of the sequence.
      size: the size of a head, which is padded to a power of two.
    """

    def __init__(self, block: int, length: int, size: int) -> None:
        self.block, self.length, self.size = block, length, size

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return pl.cdiv(self.length, self.block)

    def positions(self, index: Any) -> Array:
        """Returns the positions of a block."""
        return index * self.block + jnp.arange(self.block)

    def _place(self, ref: Any, index: Any) -> tuple[Any, Array]:
        """Returns a block of an array, and which of its elements exist."""
        exists = self.positions(index) < self.length
        block = pl.ds(index * self.block, self.block)
        if len(ref.shape) == 1:
            return ref.at[block], exists
        features = jnp.arange(ref.shape[-1]) < self.size
        return ref.at[block, :], exists[:, None] & features[None, :]

    def load(self, ref: Any, index: Any) -> Array:
        """Returns a block, with zeros past the ends."""
        block, exists = self._place(ref, index)
        return plgpu.load(block, mask=exists, other=0.0)

    def store(self, ref: Any, index: Any, value: Array) -> None:
        """Writes a block, without what is past the ends."""
        block, exists = self._place(ref, index)
        plgpu.store(block, value.astype(ref.dtype), mask=exists)

    def scores(self, q: Array, k: Array, queries: Array, keys: Array, causal: bool) -> Array:
        """Returns the scores of a block of queries and one of keys, times log₂(e)."""
        scores = plgpu.dot(q, k.T) * (_LOG2_E / math.sqrt(self.size))
        visible = (keys < self.length)[None, :]
        if causal:
            visible = visible & (queries[:, None] >= keys[None, :])
        return jnp.where(visible, scores, _MASKED)


def _forward_kernel(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    out_ref: Any,
    lse_ref: Any,
    *,
    sequence: _Sequence,
    causal: bool,
) -> None:
    """Computes the results of a block of queries, and the log-sum-exp, base 2, of their scores."""
    index = pl.program_id(0)
    q, queries = sequence.load(q_ref, index), sequence.positions(index)

    def step(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        out, most, total = carry
        k, v = sequence.load(k_ref, i), sequence.load(v_ref, i)
        scores = sequence.scores(q, k, queries, sequence.positions(i), causal)
        new_most = jnp.maximum(most, scores.max(axis=1))
        shrink = jnp.exp2(most - new_most)
        weights = jnp.exp2(scores - new_most[:, None])
        out = out * shrink[:, None] + plgpu.dot(weights.astype(v.dtype), v)
        return out, new_most, total * shrink + weights.sum(axis=1)

    start = (
        jnp.zeros(q.shape, jnp.float32),
        jnp.full(len(queries), _MASKED),
        jnp.zeros(len(queries)),
    )
    end = index + 1 if causal else sequence.blocks
    out, most, total = jax.lax.fori_loop(0, end, step, start)
    sequence.store(out_ref, index, out / total[:, None])
    sequence.store(lse_ref, index, most + jnp.log2(total))


def _backward_keys_kernel(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    gradient_ref: Any,
    lse_ref: Any,
    delta_ref: Any,
    to_k_ref: Any,
    to_v_ref: Any,
    *,
    sequence: _Sequence,
    causal: bool,
) -> None:
    """Computes the gradients by a block of keys and values, over all queries."""
    index = pl.program_id(0)
    k, v, keys = sequence.load(k_ref, index), sequence.load(v_ref, index), sequence.positions(index)

    def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        to_k, to_v = carry
        q, gradient = sequence.load(q_ref, i), sequence.load(gradient_ref, i)
        weights, to_scores = _scores_backward(
            sequence, (q, k, v), gradient, (lse_ref, delta_ref), i, keys, causal
        )
        to_v += plgpu.dot(weights.astype(v.dtype).T, gradient)
        return to_k + plgpu.dot(to_scores.astype(q.dtype).T, q), to_v

    zero = jnp.zeros(k.shape, jnp.float32)
    to_k, to_v = jax.lax.fori_loop(index if causal else 0, sequence.blocks, step, (zero, zero))
    sequence.store(to_k_ref, index, to_k / math.sqrt(sequence.size))
    sequence.store(to_v_ref, index, to_v)


def _backward_queries_kernel(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    gradient_ref: Any,
    lse_ref: Any,
    delta_ref: Any,
    to_q_ref: Any,
    *,
    sequence: _Sequence,
    causal: bool,
) -> None:
    """Computes the gradients by a block of queries, over all keys."""
    index = pl.program_id(0)
    q, gradient = sequence.load(q_ref, index), sequence.load(gradient_ref, index)

    def step(i: Array, to_q: Array) -> Array:
        k, v, keys = sequence.load(k_ref, i), sequence.load(v_ref, i), sequence.positions(i)
        _, to_scores = _scores_backward(
            sequence, (q, k, v), gradient, (lse_ref, delta_ref), index, keys, causal
        )
        return to_q + plgpu.dot(to_scores.astype(k.dtype), k)

    zero = jnp.zeros(q.shape, jnp.float32)
    to_q = jax.lax.fori_loop(0, index + 1 if causal else sequence.blocks, step, zero)
    sequence.store(to_q_ref, index, to_q / math.sqrt(sequence.size))


def _scores_backward(
    sequence: _Sequence,
    arrays: tuple[Array, Array, Array],
    gradient: Array,
    row_refs: tuple[Any, Any],
    index: Any,
    keys: Array,
    causal: bool,
) -> tuple[Array, Array]:
    """Returns the weights of a block of queries and one of keys, and the gradient by the scores.

    Args:
      sequence: how blocks are read.
      arrays: blocks of queries, keys and values.
      gradient: the gradient by the results of these queries.
      row_refs: for each query, the log-sum-exp and the product of its result and its gradient.
      index: the number of the block of queries.
      keys: the positions of the keys.
      causal: as for `flash_attention`.
    """
    q, k, v = arrays
    lse, delta = (sequence.load(ref, index) for ref in row_refs)
    scores = sequence.scores(q, k, sequence.positions(index), keys, causal)
    weights = jnp.exp2(scores - lse[:, None])
    return weights, weights * (plgpu.dot(gradient, v.T) - delta[:, None])


def _forward(
    q: Heads, k: Heads, v: Heads, causal: bool, interpret: bool
) -> tuple[Heads, tuple[Heads, Heads, Heads, Heads, Rows]]:
    batch, length, heads, size = q.shape
    sequence = _Sequence(_FORWARD_BLOCK, length, size)
    kernel = partial(_forward_kernel, sequence=sequence, causal=causal)
    outputs = [
        jax.ShapeDtypeStruct(q.shape, q.dtype),
        jax.ShapeDtypeStruct((batch, heads, length), jnp.float32),
    ]
    out, lse = _call(
        kernel, kernel_name(FORWARD, causal), sequence.blocks, (q, k, v), outputs, interpret
    )
    return out, (q, k, v, out, lse)


def _backward(
    causal: bool, interpret: bool, saved: tuple[Heads, Heads, Heads, Heads, Rows], gradient: Heads
) -> tuple[Heads, Heads, Heads]:
    q, k, v, out, lse = saved
    sequence = _Sequence(_BACKWARD_BLOCK, q.shape[1], q.shape[3])
    delta = jnp.sum(out.astype(jnp.float32) * gradient, axis=3).swapaxes(1, 2)
    inputs = q, k, v, gradient.astype(q.dtype), lse, delta
    keys = partial(_backward_keys_kernel, sequence=sequence, causal=causal)
    to_k, to_v = _call(
        keys, kernel_name(BACKWARD_KEYS, causal), sequence.blocks, inputs, [k, v], interpret
    )
    queries = partial(_backward_queries_kernel, sequence=sequence, causal=causal)
    (to_q,) = _call(
        queries, kernel_name(BACKWARD_QUERIES, causal), sequence.blocks, inputs, [q], interpret
    )
    return to_q, to_k, to_v


flash_attention.defvjp(_forward, _backward)
