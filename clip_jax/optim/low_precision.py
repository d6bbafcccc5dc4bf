"""What is kept in 16 bits between two steps: Adam's statistics, the text tower's weights.

Every step widens them to float32, computes, and rounds what it made by chance, up or down as likely
as it is near. On average nothing is lost: a change far below a bfloat16's spacing (1/128 to 1/256
of a value) is made once in a while, where rounding to the nearest would never make it.

The chance depends on the count of steps and a parameter's name alone: it is the same on any mesh
and after a resumption.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, BFloat16, Float32, Int, Key, UInt16, UInt32

from clip_jax.distributed.sharding import name_of
from clip_jax.optim.masks import is_matrix

_MOMENT = re.compile(r"(?:^|/)(mu|nu)/(.+)$")


def stochastic_round(x: Float32[Array, "*shape"], key: Key[Array, ""]) -> BFloat16[Array, "*shape"]:
    """`x` as one of its two neighbours in bfloat16, the nearer the likelier: unbiased.

    What bfloat16 can hold stays as it is, infinities and NaN among it. Beyond its largest finite
    value the upper neighbour is infinity.
    """
    return _rounded(x, jax.random.bits(key, x.shape, jnp.uint16))


def _rounded(x: Array, chance: UInt16[Array, "*shape"]) -> Array:
    """Cuts off the lower half of each number, to which chance was added."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    # the payload of a NaN may stand in that half alone
    special = jnp.where(jnp.isnan(x), bits | 0x00400000, bits)
    bits = jnp.where(jnp.isfinite(x), bits + chance, special)
    return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)


def _key(step: Int[Array, ""], name: str) -> Key[Array, ""]:
    """One for each step and name."""
    of_step = jax.random.fold_in(jax.random.key(0), step)
    return jax.random.fold_in(of_step, zlib.crc32(name.encode()))


def widened(tree: Any) -> Any:
    """A tree whose bfloat16 arrays are float32."""
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf, tree
    )


class MomentsState(NamedTuple):
    """The state of an optimizer whose moments are kept in bfloat16, and its updates so far."""

    step: Int[Array, ""]
    state: Any


def moments(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optimizer` with its first (`mu`) and second (`nu`) moments of matrices in bfloat16.

    It computes in float32 as ever. Without the chance in rounding nothing would decay: with
    b2 = .999 a second moment shrinks by a thousandth a step, less than half of bfloat16's spacing.

    The second moment has the range of float32, and no scale of its tensor (as Dhariwal et al. 2020
    use with float16). An entry depends on nothing but its own gradients: those of a rare word stay
    in proportion however large others are, where one that a scale lets vanish would divide its
    first moment by zero; an infinite gradient spoils its own entry; no maximum has to travel. The
    price is a second moment that is right on average, and in an entry off by up to
    √(spacing / 2) = 5 %, whatever b2 is: its step is 2.5 % longer or shorter. A float16 root would
    halve that.

    Gains, biases and the temperature keep theirs in float32: about a thousandth of the bytes.
    """

    def init(params: Any) -> MomentsState:
        state = _moments(optimizer.init(params), lambda x, *_: x.astype(jnp.bfloat16))
        return MomentsState(jnp.zeros((), jnp.int32), state)

    def update(updates: Any, state: MomentsState, params: Any = None) -> tuple[Any, MomentsState]:
        updates, new = optimizer.update(updates, widened(state.state), params)
        step = optax.safe_increment(state.step)

        @cache
        def chance(name: str, shape: tuple[int, ...]) -> UInt32[Array, "*shape"]:
            return jax.random.bits(_key(step, name), shape, jnp.uint32)

        def rounded(x: Array, moment: str, name: str) -> Array:
            bits = chance(name, x.shape)  # enough for both moments
            half = bits >> 16 if moment == "mu" else bits & 0xFFFF
            return _rounded(x, half.astype(jnp.uint16))

        return updates, MomentsState(step, _moments(new, rounded))

    return optax.GradientTransformation(init, update)


def _moments(state: Any, change: Callable[[Array, str, str], Array]) -> Any:
    """`change(moment, "mu" or "nu", its parameter's name)` for those of matrices."""

    def of(path: tuple[Any, ...], leaf: Array) -> Array:
        found = _MOMENT.search(name_of(path))
        return change(leaf, *found.groups()) if found and is_matrix(found[2]) else leaf

    return jax.tree_util.tree_map_with_path(of, state)


def text_weights(params: Any, dtype: DTypeLike) -> Any:
    """Parameters, with the matrices of the text tower in `dtype`, rounded to the nearest."""

    def of(path: tuple[Any, ...], leaf: Array) -> Array:
        name = name_of(path)
        return leaf.astype(dtype) if name.startswith("text/") and is_matrix(name) else leaf

    return jax.tree_util.tree_map_with_path(of, params)


def like(held: Any, params: Any, step: Int[Array, ""]) -> Any:
    """New parameters, in float32, as the old ones `held` are: rounded by chance where in bfloat16.

    step: the number of the update, on which the chance depends.
    """

    def of(path: tuple[Any, ...], old: Array, new: Array) -> Array:
        if old.dtype == new.dtype:
            return new
        return stochastic_round(new, _key(step, f"params/{name_of(path)}"))

    return jax.tree_util.tree_map_with_path(of, held, params)
