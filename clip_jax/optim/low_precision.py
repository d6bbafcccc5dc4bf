"""16-bit storage between two steps: Adam's moments, and the text tower's weights.

Every step converts them to float32, computes, and rounds the results stochastically. On average
nothing is lost: an update far below the spacing of bfloat16 (1/128 to 1/256 of a value) is made
once in a while, where rounding to nearest would never make it.

The random bits depend only on the step and the path of the parameter. They are the same on any mesh
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

from clip_jax.distributed.param_spec import ParamSpecs, path_name

_MOMENT = re.compile(r"(?:^|/)(mu|nu)/(.+)$")


def stochastic_round(x: Float32[Array, "*shape"], key: Key[Array, ""]) -> BFloat16[Array, "*shape"]:
    """Rounds `x` stochastically to one of its two neighbours in bfloat16, the nearer the likelier.

    The rounding is unbiased. Values that bfloat16 can represent stay as they are, as do infinities
    and NaN. Above the largest finite value the upper neighbour is infinity.
    """
    return _round(x, jax.random.bits(key, x.shape, jnp.uint16))


def _round(x: Array, noise: UInt16[Array, "*shape"]) -> Array:
    """Adds random bits to the lower half of each number and cuts it off."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    # the payload of a NaN may be in the lower half alone
    special = jnp.where(jnp.isnan(x), bits | 0x00400000, bits)
    bits = jnp.where(jnp.isfinite(x), bits + noise, special)
    return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)


def _key(step: Int[Array, ""], name: str) -> Key[Array, ""]:
    """Returns a random key for each step and name."""
    step_key = jax.random.fold_in(jax.random.key(0), step)
    return jax.random.fold_in(step_key, zlib.crc32(name.encode()))


def upcast(tree: Any) -> Any:
    """Returns the tree with its bfloat16 arrays converted to float32."""
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf, tree
    )


class MomentsState(NamedTuple):
    """The state of an optimizer whose moments are stored in bfloat16.

    Attributes:
      step: the number of updates so far.
      state: the state of the wrapped optimizer.
    """

    step: Int[Array, ""]
    state: Any


def moments(
    optimizer: optax.GradientTransformation, specs: ParamSpecs
) -> optax.GradientTransformation:
    """Wraps an optimizer so that Adam's moments of matrices are stored in bfloat16.

    These are the first (`mu`) and second (`nu`) moments. The optimizer computes in float32.
    Rounding must be stochastic: with b2 = .999 a second moment shrinks by a thousandth a step, less
    than half of bfloat16's spacing, and would never decay.

    The second moment has the range of float32 and no scale per tensor (as Dhariwal et al. 2020 use
    with float16). An entry depends only on its own gradients: those of a rare word stay in
    proportion however large others are, an infinite gradient spoils only its own entry, and no
    maximum has to be communicated. In exchange, a second moment is right on average and off by up
    to √(spacing / 2) = 5 % in an entry, whatever b2 is: its step is 2.5 % longer or shorter. A
    float16 square root would halve that.

    Moments of gains, biases and the temperature stay in float32: about a thousandth of the bytes.
    """

    def init(params: Any) -> MomentsState:
        state = _map_moments(optimizer.init(params), specs, lambda x, *_: x.astype(jnp.bfloat16))
        return MomentsState(jnp.zeros((), jnp.int32), state)

    def update(updates: Any, state: MomentsState, params: Any = None) -> tuple[Any, MomentsState]:
        updates, new_state = optimizer.update(updates, upcast(state.state), params)
        step = optax.safe_increment(state.step)

        @cache
        def random_bits(name: str, shape: tuple[int, ...]) -> UInt32[Array, "*shape"]:
            return jax.random.bits(_key(step, name), shape, jnp.uint32)

        def round_moment(x: Array, moment: str, name: str) -> Array:
            bits = random_bits(name, x.shape)  # 16 for each of the two moments
            half = bits >> 16 if moment == "mu" else bits & 0xFFFF
            return _round(x, half.astype(jnp.uint16))

        return updates, MomentsState(step, _map_moments(new_state, specs, round_moment))

    return optax.GradientTransformation(init, update)


def _map_moments(state: Any, specs: ParamSpecs, change: Callable[[Array, str, str], Array]) -> Any:
    """Applies `change(moment, "mu" or "nu", path of the parameter)` to the moments of matrices."""

    def map_leaf(path: tuple[Any, ...], leaf: Array) -> Array:
        match = _MOMENT.search(path_name(path))
        if not match or match[2] not in specs or specs[match[2]].is_vector:
            return leaf
        return change(leaf, *match.groups())

    return jax.tree_util.tree_map_with_path(map_leaf, state)


def text_weights(params: Any, specs: ParamSpecs, dtype: DTypeLike) -> Any:
    """Converts the matrices of the text tower to `dtype`, rounded to nearest."""

    def cast(path: tuple[Any, ...], leaf: Array) -> Array:
        name = path_name(path)
        is_matrix = name.startswith("text/") and not specs[name].is_vector
        return leaf.astype(dtype) if is_matrix else leaf

    return jax.tree_util.tree_map_with_path(cast, params)


def downcast_like(old: Any, new: Any, step: Int[Array, ""]) -> Any:
    """Converts new float32 parameters to the dtypes of the old ones.

    Rounding to bfloat16 is stochastic.

    Args:
      old: the parameters before an update.
      new: the parameters after it, float32.
      step: the number of the update, on which the random bits depend.
    """

    def cast(path: tuple[Any, ...], old: Array, new: Array) -> Array:
        if old.dtype == new.dtype:
            return new
        return stochastic_round(new, _key(step, f"params/{path_name(path)}"))

    return jax.tree_util.tree_map_with_path(cast, old, new)
