"""Names and FLOPs of the kernels of `flash_attention`, which a plan reads without importing it."""

from __future__ import annotations

import re
from collections.abc import Sequence

FORWARD = "flash_attention_forward"
BACKWARD_KEYS = "flash_attention_backward_keys"
BACKWARD_QUERIES = "flash_attention_backward_queries"
CAUSAL = "_causal"

# Products of [length, size] with [length, length] in each kernel. The backward pass computes the
# scores and their gradient twice.
_PRODUCTS = {FORWARD: 2, BACKWARD_KEYS: 4, BACKWARD_QUERIES: 3}


def kernel_name(base: str, causal: bool) -> str:
    """Returns the name of a kernel in a compiled program."""
    return base + CAUSAL * causal


def flops(text: str, shape: Sequence[int]) -> float:
    """Returns the FLOPs of a kernel; 0 if the text names none of these.

    Args:
      text: text that contains the name of the kernel.
      shape: [batch, length, heads, size].
    """
    names = "|".join(_PRODUCTS)
    found = re.search(rf"\b({names})({CAUSAL})?\b", text)
    if not found or len(shape) != 4:
        return 0.0
    batch, length, heads, size = shape
    seen = (length + 1) / 2 if found[2] else length  # keys of a query
    return 2.0 * _PRODUCTS[found[1]] * batch * heads * length * seen * size
