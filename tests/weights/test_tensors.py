"""Tensors survive files, and no file does more than fail."""

import json
import os
import subprocess
import sys
import tracemalloc
import weakref
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from weightfiles import (
    W,
    as_array,
    entry,
    mutations,
    raw,
    read_all,
    refuses,
    same,
    survives,
    written,
)

from clip_jax.errors import UserError
from clip_jax.weights.tensor_writing import Lazy, write_safetensors, write_torch
from clip_jax.weights.tensors import open_tensors
from support import says

DTYPES = [np.float16, np.float32, np.int64, ml_dtypes.bfloat16]
NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=8)


@st.composite
def tensors(draw: st.DrawFn) -> np.ndarray:
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)


# safetensors


@given(st.dictionaries(NAMES, tensors(), max_size=5))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, named: dict) -> None:
    path = tmp_path_factory.mktemp("t") / "m.safetensors"
    write_safetensors(path, named)
    with open_tensors(path) as tensors:
        assert tensors.shapes == {name: a.shape for name, a in named.items()}
        assert tensors.dtypes == {name: a.dtype for name, a in named.items()}
        assert tensors.nbytes == sum(a.nbytes for a in named.values())
        assert tensors.path == path
        assert all(same(tensors.read(name), a) for name, a in named.items())


@given(st.dictionaries(NAMES, tensors(), max_size=5))
def test_the_safetensors_package_reads_what_is_written_and_writes_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, named: dict
) -> None:
    theirs = pytest.importorskip("safetensors.numpy")
    path = tmp_path_factory.mktemp("t") / "m.safetensors"
    write_safetensors(path, named)
    tensors = theirs.load_file(path)
    assert tensors.keys() == named.keys()
    assert all(same(tensors[name], a) for name, a in named.items())
    theirs.save_file(named, path)
    assert all(same(read_all(path)[name], a) for name, a in named.items())


def test_transformers_is_told_that_the_file_is_for_it(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    path = tmp_path / "m.safetensors"
    for metadata, want in ((None, {"format": "pt"}), ({"by": "us"}, {"by": "us"})):
        write_safetensors(path, {"w": W}, metadata)
        with safetensors.safe_open(path, "np") as file:
            assert file.metadata() == want


def test_each_tensor_stands_at_a_multiple_of_its_width(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_safetensors(path, {"a": np.ones(3, np.int8), "b": np.ones(3), "c": W.astype("f2")})
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert length % 8 == 0
    assert [header[name]["data_offsets"][0] for name in "bca"] == [0, 24, 36]


def test_an_array_is_made_when_it_is_written_and_then_let_go(tmp_path: Path) -> None:
    alive: list[weakref.ref] = []

    def make() -> np.ndarray:
        assert not any(ref() is not None for ref in alive[:-1])  # the last may still be a variable
        array = np.full((3, 2), len(alive), np.float32)
        alive.append(weakref.ref(array))
        return array

    path = tmp_path / "m.safetensors"
    write_safetensors(path, {name: Lazy((3, 2), np.dtype("f4"), make) for name in "abcd"})
    tensors = read_all(path)
    assert [tensors[name][0, 0] for name in "abcd"] == [0, 1, 2, 3]


def test_a_transposed_array_is_written_as_it_reads(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_safetensors(path, {"w": W.T})
    assert same(read_all(path)["w"], W.T)


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = written(tmp_path / "m.safetensors", "before")
    for bad in (
        {"w": np.array([None])},
        {"__metadata__": W},
        {"w": Lazy((2, 2), W.dtype, lambda: W)},
        {"w": Lazy(W.shape, np.dtype("f2"), lambda: W)},
    ):
        with pytest.raises(ValueError):
            write_safetensors(path, bad)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_tensor_may_be_read_into_a_place(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_safetensors(path, {"w": W})
    with open_tensors(path) as tensors:
        places = np.zeros((2, 2, 3), np.float32)
        assert tensors.read("w", places[1]) is not None
        np.testing.assert_array_equal(places, [np.zeros((2, 3)), W])
        for bad in (np.empty((3, 2), "f4"), np.empty((2, 3), "f8"), np.empty((3, 2), "f4").T):
            with pytest.raises(ValueError, match="w is float32"):
                tensors.read("w", bad)


def test_tensors_are_a_mapping(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_safetensors(path, {"b": W, "a": W[0]})
    with open_tensors(str(path)) as tensors:
        assert (len(tensors), sorted(tensors)) == (2, ["a", "b"])
        assert "a" in tensors and "c" not in tensors
        assert same(tensors["a"], W[0])
        with pytest.raises(KeyError):
            tensors.read("c")


BIG = 1 << 60
WRONG = {
    "header longer than the file": raw({"w": entry()}, length=1000),
    "header of 2**60": raw({"w": entry()}, length=BIG),
    "fewer than 8 bytes": b"abc",
    "empty header": raw(""),
    "spaces first": raw(" " + json.dumps({"w": entry()})),
    "no json": raw("{nothing"),
    "no object": raw([1, 2]),
    "not UTF-8": raw({"w": entry()}).replace(b'"w"', b'"\xff"'),
    "deep json": raw('{"w":' + "[" * 100_000 + "]" * 100_000 + "}"),
    "digits without end": raw('{"w":' + "1" * 5000 + "}"),
    "the same name twice": raw('{"w": %s, "w": %s}' % ((json.dumps(entry()),) * 2)),
    "the same key twice": raw(json.dumps({"w": entry()})[:-2] + ', "dtype": "F32"}}'),
    "a name of two lines": raw({"w\nv": entry()}),
    "half a surrogate": raw(json.dumps({"\ud800": entry()})),
    "a name without end": raw({"w" * 5000: entry()}),
    "no description": raw({"w": 3}),
    "nothing described": raw({"w": {}}),
    "unknown dtype": raw({"w": entry("F33")}),
    "dtype of a list": raw({"w": entry(["F32"])}),
    "shape of text": raw({"w": entry(shape="23")}),
    "negative shape": raw({"w": entry(shape=(-2, -3))}),
    "shape of floats": raw({"w": entry(shape=(2.0, 3.0))}),
    "shape of truths": raw({"w": entry(shape=(True, 6))}),
    "shape of 65": raw({"w": entry(shape=(1,) * 63 + (2, 3))}),
    "shape without end": raw({"w": entry(shape=(BIG, BIG))}),
    "shape that wraps to none": raw({"w": entry(shape=(1 << 32, 1 << 32), offsets=(0, 0))}, b""),
    "empty shape without end": raw({"w": entry(shape=(BIG, BIG, 0), offsets=(0, 0))}, b""),
    "shape of another size": raw({"w": entry(shape=(2, 2))}),
    "no offsets": raw({"w": entry(offsets=None)}),
    "one offset": raw({"w": entry(offsets=(24,))}),
    "offsets of floats": raw({"w": entry(offsets=(0.0, 24.0))}),
    "offsets back": raw({"w": entry(offsets=(24, 0))}),
    "a hole first": raw({"w": entry(offsets=(4, 28))}, W.tobytes() + b"1234"),
    "a hole between": raw({"v": entry(), "w": entry(offsets=(28, 52))}, bytes(52)),
    "an overlap": raw({"v": entry(), "w": entry(offsets=(20, 44))}, bytes(44)),
    "twice the same place": raw({"v": entry(), "w": entry()}),
    "cut short": raw({"w": entry()}, W.tobytes()[:-1]),
    "bytes left over": raw({"w": entry()}, W.tobytes() + b"1"),
    "huge": raw({"w": entry(shape=(BIG >> 3,), offsets=(0, BIG >> 1))}),
    "metadata of numbers": raw({"__metadata__": {"a": 1}, "w": entry()}),
    "metadata of a list": raw({"__metadata__": [], "w": entry()}),
}


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_refused_and_costs_no_memory(tmp_path: Path, content: bytes) -> None:
    path = written(tmp_path / "m.safetensors", content)
    tracemalloc.start()
    try:
        assert refuses(path, "fetch the file again")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_the_file_that_the_wrong_ones_come_from_is_right(tmp_path: Path) -> None:
    path = written(tmp_path / "m.safetensors", raw({"w": entry()}))
    assert same(read_all(path)["w"], W)


def test_a_file_that_changed_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path / "m.safetensors", raw({"w": entry()}))
    with open_tensors(path) as tensors:
        os.truncate(path, 90)
        with pytest.raises(UserError) as error:
            tensors.read("w")
    assert says(error.value, path, "changed")


SMALL = raw({"w": entry(), "v": entry("F16", (2, 1), (24, 28))}, W.tobytes() + b"1234")


@settings(max_examples=500)
@given(mutations(SMALL))
def test_any_safetensors_file_is_read_as_the_package_does_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    tensors = survives(written(tmp_path_factory.getbasetemp() / "fuzz.safetensors", content))
    theirs = pytest.importorskip("safetensors.numpy")
    if tensors is not None:
        want = theirs.load(content)
        assert tensors.keys() == want.keys()
        assert all(same(tensors[name], want[name]) for name in want)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells it")
def test_a_file_is_read_in_the_memory_of_its_tensors(tmp_path: Path) -> None:
    path, size = tmp_path / "m.safetensors", 4 << 20
    write_safetensors(
        path,
        {str(i): Lazy((size,), np.dtype("f4"), lambda: np.ones(size, "f4")) for i in range(10)},
    )
    # the peak of getrusage is inherited from the process that started this one
    script = """
import re, sys
from clip_jax.weights.tensors import open_tensors
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) << 10
with open_tensors(sys.argv[1]) as tensors:
    before = peak()
    held = list(tensors.values())
    print((peak() - before) / tensors.nbytes)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, cwd=root
    )
    assert 0.9 < float(done.stdout) < 1.1, done.stderr


# what stands instead of weights

INSTEAD = {
    "empty": (b"", "is empty"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n",
        "git-lfs",
    ),
    "page": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
    "page without type": (b"<HTML lang='en'>", "web page"),
}


@pytest.mark.parametrize("end", ["safetensors", "bin", "pt", "pth", "safetensors.index.json"])
@pytest.mark.parametrize("content, words", INSTEAD.values(), ids=INSTEAD)
def test_what_is_no_weights_is_named(tmp_path: Path, end: str, content: bytes, words: str) -> None:
    assert refuses(written(tmp_path / f"m.{end}", content), words)


def test_a_path_without_weights_is_named(tmp_path: Path) -> None:
    assert refuses(tmp_path / "none.safetensors", "No such file")
    assert refuses(tmp_path / "none.pt", "No such file")
    assert refuses(written(tmp_path / "m.h5", b"x"), ".safetensors")
    assert refuses(tmp_path, "holds no weights")
    os.mkfifo(tmp_path / "pipe.bin")
    assert refuses(tmp_path / "pipe.bin", "no plain file")


def test_a_folder_is_what_it_holds(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "clip.safetensors", {"one": W})
    assert list(read_all(tmp_path)) == ["one"]
    write_safetensors(tmp_path / "other.safetensors", {"two": W})
    assert refuses(tmp_path, "2 .safetensors files")
    write_safetensors(tmp_path / "open_clip_model.safetensors", {"three": W})
    assert list(read_all(tmp_path)) == ["three"]
    write_safetensors(tmp_path / "model.safetensors", {"four": W})
    assert list(read_all(tmp_path)) == ["four"]


# shards


def index(folder: Path, weights: Any) -> Path:
    path = folder / "model.safetensors.index.json"
    return written(path, json.dumps({"metadata": {"total_size": 1}, "weight_map": weights}))


def shards(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "1.safetensors", {"a": W, "unlisted": W})
    write_safetensors(folder / "2.safetensors", {"b": W[0]})
    return index(folder, {"a": "1.safetensors", "b": "2.safetensors"})


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    path = shards(tmp_path)
    for given_path in (path, tmp_path):
        with open_tensors(given_path) as tensors:
            assert tensors.shapes == {"a": (2, 3), "b": (3,)}
            assert tensors.nbytes == 36
            assert same(tensors.read("a"), W) and same(tensors.read("b"), W[0])


def test_a_shard_that_lacks_is_named(tmp_path: Path) -> None:
    path = shards(tmp_path)
    (tmp_path / "2.safetensors").unlink()
    with pytest.raises(UserError) as error:
        open_tensors(path)
    assert says(error.value, tmp_path / "2.safetensors", "missing")
    write_safetensors(tmp_path / "2.safetensors", {"c": W})
    with pytest.raises(UserError) as error:
        open_tensors(path)
    assert says(error.value, tmp_path / "2.safetensors", "'b'")


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/etc/x.safetensors", "a/x.safetensors", "a\\x.safetensors", "..", "",
     "x\0.safetensors", "x\n.safetensors", "passwd", "model.safetensors.index.json", 3, None],
)  # fmt: skip
def test_a_shard_is_a_file_beside_its_index(tmp_path: Path, shard: Any) -> None:
    write_safetensors(tmp_path / "x.safetensors", {"a": W})
    (tmp_path / "f" / "a").mkdir(parents=True)
    write_safetensors(tmp_path / "f" / "a" / "x.safetensors", {"a": W})
    assert refuses(index(tmp_path / "f", {"a": shard}), "shard")


@pytest.mark.parametrize("weights", [None, {}, [], "x"])
def test_an_index_names_tensors(tmp_path: Path, weights: Any) -> None:
    assert refuses(index(tmp_path, weights), "weight_map")


def test_a_link_leads_out_of_the_folder_into_a_cache_of_hugging_face_only(tmp_path: Path) -> None:
    blobs = tmp_path / "models--a--b" / "blobs"
    path = shards(tmp_path / "models--a--b" / "snapshots" / "f00")
    blobs.mkdir()
    (path.parent / "1.safetensors").rename(blobs / "d1f3")
    (path.parent / "1.safetensors").symlink_to("../../blobs/d1f3")
    assert same(read_all(path)["a"], W)
    elsewhere = tmp_path / "elsewhere.safetensors"
    (path.parent / "2.safetensors").rename(elsewhere)
    (path.parent / "2.safetensors").symlink_to(elsewhere)
    with pytest.raises(UserError) as error:
        open_tensors(path)
    assert says(error.value, path.parent / "2.safetensors", "leads out")


# torch


def test_torch_reads_what_is_written_and_writes_what_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    named = {str(i): np.arange(6).reshape(2, 3).astype(d) for i, d in enumerate(DTYPES)}
    named |= {"scalar": np.array(7), "empty": np.zeros((0, 3), np.float32), "t": W.T}
    path = tmp_path / "m.bin"
    write_torch(path, named)
    tensors = torch.load(path, weights_only=True)
    assert tensors.keys() == named.keys()
    assert all(same(as_array(tensors[name]), a) for name, a in named.items())
    assert all(same(a, named[name]) for name, a in read_all(path).items())
    assert set(read_all(path)) == set(named)


def test_what_torch_does_not_have_is_not_written(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    with pytest.raises(ValueError, match="for torch"):
        write_torch(tmp_path / "m.bin", {"w": np.array(["a"])})
    assert not list(tmp_path.iterdir())


def test_shards_of_torch_are_read_as_one(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    write_torch(tmp_path / "1.bin", {"a": W})
    write_torch(tmp_path / "2.bin", {"b": W[0]})
    path = tmp_path / "pytorch_model.bin.index.json"
    written(path, json.dumps({"weight_map": {"a": "1.bin", "b": "2.bin"}}))
    tensors = read_all(tmp_path)
    assert same(tensors["a"], W) and same(tensors["b"], W[0])


def test_without_torch_a_line_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError) as error:
        write_torch(tmp_path / "new.bin", {"w": W})
    assert says(error.value, "new.bin", "pip install torch", ".safetensors")
