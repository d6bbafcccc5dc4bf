"""How rows are split into pieces; `tests/models/test_stack.py` has their gradients."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.distributed.pieces import split


@given(st.integers(1, 60), st.integers(1, 70))
def test_pieces_are_equal_and_at_most_a_chunk(n, chunk):
    (pieces,) = split((jnp.arange(n),), chunk)
    assert pieces.shape[1] <= chunk
    np.testing.assert_array_equal(pieces.reshape(-1), jnp.arange(n))
    assert not any(n % m == 0 for m in range(pieces.shape[1] + 1, min(chunk, n) + 1))
