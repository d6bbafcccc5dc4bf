"""Rotary positions: only the distance of two places counts, and another grid is stretched."""

import jax
import numpy as np
import pytest

from clip_jax.models.rotary import grid_rotation, rotate

SIDE, SIZE = 5, 8


def products(columns_first: bool = False, **options) -> np.ndarray:
    """The product of one query and one key at every pair of places [row, column, row, column]."""
    q, k = jax.random.normal(jax.random.key(0), (2, SIZE))
    grid = np.ones((1, SIDE**2, 1, 1), np.float32)
    rotation = grid_rotation(SIDE, SIZE, reference=SIDE, columns_first=columns_first, **options)
    q, k = (np.asarray(rotate(grid * x, rotation))[0, :, 0] for x in (q, k))
    return (q @ k.T).reshape(SIDE, SIDE, SIDE, SIDE)


def test_a_product_depends_on_the_distance_of_the_places_alone():
    pairs = products()
    np.testing.assert_allclose(pairs[1:, 2:, 1:, 2:], pairs[:-1, :-2, :-1, :-2], atol=1e-5)
    assert np.ptp([pairs[0, 0, i, 0] for i in range(SIDE)]) > 0.1
    assert np.ptp([pairs[0, 0, 0, i] for i in range(SIDE)]) > 0.1
    np.testing.assert_allclose(products(offset=3.0), pairs, atol=1e-5)


def test_columns_and_rows_change_places():
    swapped = products(columns_first=True).transpose(1, 0, 3, 2)
    np.testing.assert_allclose(swapped, products(), atol=1e-6)


def test_tokens_before_the_places_do_not_turn():
    x = jax.random.normal(jax.random.key(1), (2, 2 + SIDE**2, 3, SIZE))
    turned = rotate(x, grid_rotation(SIDE, SIZE, reference=SIDE, prefix=2))
    np.testing.assert_array_equal(turned[:, :2], x[:, :2])
    assert not np.allclose(turned[:, 3:], x[:, 3:])
    np.testing.assert_allclose(np.square(turned).sum(-1), np.square(x).sum(-1), rtol=1e-5)


@pytest.mark.parametrize("finer", [2, 3])
def test_a_finer_grid_is_stretched_to_the_same_angles(finer):
    for coarse, fine in zip(
        grid_rotation(SIDE, SIZE, reference=16),
        grid_rotation(finer * SIDE, SIZE, reference=16),
        strict=True,
    ):
        fine = fine.reshape(finer * SIDE, finer * SIDE, SIZE)[::finer, ::finer]
        np.testing.assert_allclose(fine.reshape(coarse.shape), coarse, atol=1e-5)


def test_half_precision_is_turned_in_single():
    x = jax.random.normal(jax.random.key(2), (1, SIDE**2, 2, SIZE))
    rotation = grid_rotation(SIDE, SIZE, reference=SIDE)
    half = x.astype("bfloat16")
    turned = rotate(half, rotation)
    assert turned.dtype == "bfloat16"
    exact = rotate(half.astype("float32"), rotation)
    np.testing.assert_array_equal(turned, exact.astype("bfloat16"))
