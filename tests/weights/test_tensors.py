"""Tensors survive files, and no file does more than fail."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from clip_jax.weights.tensors import Lazy, open_tensors, write_safetensors

DTYPES = [np.float16, np.float32, np.int64, ml_dtypes.bfloat16]


@st.composite
def tensors(draw: st.DrawFn) -> np.ndarray:
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)


NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=8)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@given(st.dictionaries(NAMES, tensors(), max_size=5))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, named: dict) -> None:
    path = tmp_path_factory.mktemp("t") / "m.safetensors"
    write_safetensors(path, named)
    with open_tensors(path) as found:
        assert found.shapes == {name: a.shape for name, a in named.items()}
        assert found.nbytes == sum(a.nbytes for a in named.values())
        assert all(same(found.read(name), a) for name, a in named.items())


def test_an_array_is_made_when_it_is_written(tmp_path: Path) -> None:
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    path = tmp_path / "m.safetensors"
    write_safetensors(path, {"a": Lazy(a.T.shape, a.dtype, lambda: a.T)})
    with open_tensors(path) as found:
        out = np.empty((3, 2), np.float32)
        assert found.read("a", out) is out
        np.testing.assert_array_equal(out, a.T)
