"""Scaled dot-product attention, by the implementation that suits the device.

XLA's stores the matrix of scores of every head. On NVIDIA GPUs a kernel (`flash_attention`) keeps
it on the chip.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from clip_jax.distributed import hardware, sharding
from clip_jax.errors import UserError

Heads = Float[Array, "batch length heads size"]
Queries = Float[Array, "batch queries heads size"]
Mask = Bool[Array, "#batch #heads #queries keys"]

_CHOSEN: contextvars.ContextVar[str] = contextvars.ContextVar("attention", default="auto")
_TOLERANCE = 0.03  # of values of about 1 in bfloat16


@contextlib.contextmanager
def implementation(name: str) -> Iterator[None]:
    """Sets the implementation in programs that are traced inside the context.

    Args:
      name: `config.attention`.
    """
    token = _CHOSEN.set(name)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def attend(
    q: Queries, k: Heads, v: Heads, mask: Mask | None = None, *, causal: bool = False
) -> Queries:
    """Returns softmax(q · kᵀ / √size) · v for each row and head of a batch.

    Args:
      q: the queries.
      k: the keys.
      v: the values.
      mask: True where a query attends to a key; None: everywhere.
      causal: whether a position attends only to itself and those before it.
    """
    if mask is None and _suits_kernel(q, k):
        from clip_jax.models.flash_attention import flash_attention

        return sharding.by_rows_and_heads(partial(flash_attention, causal=causal), q, k, v)
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal)


def _suits_kernel(q: Queries, k: Heads) -> bool:
    """Returns whether the kernel computes this attention on the device that is traced for."""
    chosen, gpu = _CHOSEN.get(), sharding.traced_gpu()
    if chosen == "xla" or gpu is None or not (gpu.flash or chosen == "flash"):
        return False
    is_half = q.dtype in (jnp.bfloat16, jnp.float16)
    return is_half and q.shape == k.shape and sharding.splits_rows(len(q))


def check_kernel(name: str, device: jax.Device, *, interpret: bool = False) -> None:
    """Compares the kernel with XLA's attention on a GPU that would use it, forward and backward.

    Args:
      name: `config.attention`.
      device: the device that trains.
      interpret: whether to check on a CPU, slowly, for tests.

    Raises:
      UserError: `name` needs a GPU and this is none, or the kernel fails or computes other values.
    """
    is_gpu = device.platform == "gpu"
    if name == "flash" and not (is_gpu or interpret):
        raise UserError(
            f"config.attention=flash needs an NVIDIA GPU, not {device.device_kind}: set it to auto"
        )
    chip = hardware.chip_of_device(device)
    if not interpret and not (
        is_gpu and (name == "flash" or (name == "auto" and chip is not None and chip.flash))
    ):
        return
    try:
        difference = _kernel_difference(device, interpret)
    except Exception as error:  # of any kind, from compilers and drivers
        reason = f"fails ({' '.join(str(error).split()):.200})"
    else:
        if difference <= _TOLERANCE:
            return
        reason = f"is wrong by {difference:.2g}"
    raise UserError(
        f"the attention kernel {reason} on {device.device_kind}: set config.attention=xla, and "
        "please report it"
    )


def _kernel_difference(device: jax.Device, interpret: bool) -> float:
    """Returns the largest difference of results and gradients, NaN if there is any."""
    from clip_jax.models.flash_attention import flash_attention

    def values(attend: Callable[..., Array], *arrays: Array) -> tuple[Array, ...]:
        result, pull = jax.vjp(attend, *arrays[:3])
        return result, *pull(arrays[3])

    @jax.jit
    def difference(key: Array) -> Array:
        worst = []
        for length, causal in ((197, False), (77, True)):
            shape = (4, 2, length, 2, 64)
            arrays = tuple(jax.random.normal(key, shape, jnp.bfloat16))
            flash = partial(flash_attention, causal=causal, interpret=interpret)
            xla = partial(jax.nn.dot_product_attention, is_causal=causal)
            pairs = zip(values(flash, *arrays), values(xla, *arrays), strict=True)
            worst += [jnp.max(jnp.abs(a.astype(jnp.float32) - b)) for a, b in pairs]
        return jnp.max(jnp.stack(worst))

    with jax.default_device(device):
        return float(difference(jax.random.key(0)))
