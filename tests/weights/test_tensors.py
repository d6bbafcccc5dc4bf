"""Tensors survive files, and no file does more than fail."""

import io
import json
import os
import pickle
import subprocess
import sys
import tracemalloc
import weakref
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from clip_jax.errors import UserError
from clip_jax.weights.tensors import Lazy, open_tensors, write_safetensors, write_torch
from support import says

DTYPES = [np.float16, np.float32, np.int64, ml_dtypes.bfloat16]
NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=8)
W = np.arange(6, dtype=np.float32).reshape(2, 3)


@st.composite
def tensors(draw: st.DrawFn) -> np.ndarray:
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def as_array(tensor: Any) -> np.ndarray:
    """A torch tensor as numpy has it."""
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()


def read_all(path: Path) -> dict[str, np.ndarray]:
    with open_tensors(path) as found:
        return dict(found)


def refuses(path: Path, *words: object) -> bool:
    """Whether a file is refused, or a tensor of it, by one line that names it and `words`."""
    with pytest.raises(UserError) as error:
        read_all(path)
    return says(error.value, path, *words)


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# safetensors


@given(st.dictionaries(NAMES, tensors(), max_size=5))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, named: dict) -> None:
    path = tmp_path_factory.mktemp("t") / "m.safetensors"
    write_safetensors(path, named)
    with open_tensors(path) as found:
        assert found.shapes == {name: a.shape for name, a in named.items()}
        assert found.dtypes == {name: a.dtype for name, a in named.items()}
        assert found.nbytes == sum(a.nbytes for a in named.values())
        assert found.path == path
        assert all(same(found.read(name), a) for name, a in named.items())


@given(st.dictionaries(NAMES, tensors(), max_size=5))
def test_the_safetensors_package_reads_what_is_written_and_writes_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, named: dict
) -> None:
    theirs = pytest.importorskip("safetensors.numpy")
    path = tmp_path_factory.mktemp("t") / "m.safetensors"
    write_safetensors(path, named)
    found = theirs.load_file(path)
    assert found.keys() == named.keys()
    assert all(same(found[name], a) for name, a in named.items())
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
    found = read_all(path)
    assert [found[name][0, 0] for name in "abcd"] == [0, 1, 2, 3]


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
    with open_tensors(path) as found:
        places = np.zeros((2, 2, 3), np.float32)
        assert found.read("w", places[1]) is not None
        np.testing.assert_array_equal(places, [np.zeros((2, 3)), W])
        for bad in (np.empty((3, 2), "f4"), np.empty((2, 3), "f8"), np.empty((3, 2), "f4").T):
            with pytest.raises(ValueError, match="w is float32"):
                found.read("w", bad)


def test_tensors_are_a_mapping(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_safetensors(path, {"b": W, "a": W[0]})
    with open_tensors(str(path)) as found:
        assert (len(found), sorted(found)) == (2, ["a", "b"])
        assert "a" in found and "c" not in found
        assert same(found["a"], W[0])
        with pytest.raises(KeyError):
            found.read("c")


def entry(dtype: Any = "F32", shape: Any = (2, 3), offsets: Any = (0, 24)) -> dict[str, Any]:
    return dict(dtype=dtype, shape=shape, data_offsets=offsets)


def raw(header: Any, data: bytes = W.tobytes(), length: int | None = None) -> bytes:
    text = header if isinstance(header, str) else json.dumps(header)
    size = len(text.encode()) if length is None else length
    return size.to_bytes(8, "little") + text.encode() + data


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
    with open_tensors(path) as found:
        os.truncate(path, 90)
        with pytest.raises(UserError) as error:
            found.read("w")
    assert says(error.value, path, "changed")


def mutations(content: bytes) -> st.SearchStrategy[bytes]:
    def change(edits: list[tuple[int, int]], length: int) -> bytes:
        changed = bytearray(content)
        for at, byte in edits:
            changed[at] = byte
        return bytes(changed[:length])

    place = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
    whole = st.just(len(content))
    return st.builds(
        change,
        st.lists(place, min_size=1, max_size=4),
        st.one_of(whole, whole, st.integers(0, len(content))),
    )


def survives(path: Path) -> dict[str, np.ndarray] | None:
    """What a file holds, None where it is refused as it should be."""
    try:
        return read_all(path)
    except UserError as error:
        assert says(error, path)
        return None


SMALL = raw({"w": entry(), "v": entry("F16", (2, 1), (24, 28))}, W.tobytes() + b"1234")


@settings(max_examples=500)
@given(mutations(SMALL))
def test_any_safetensors_file_is_read_as_the_package_does_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    found = survives(written(tmp_path_factory.getbasetemp() / "fuzz.safetensors", content))
    theirs = pytest.importorskip("safetensors.numpy")
    if found is not None:
        want = theirs.load(content)
        assert found.keys() == want.keys()
        assert all(same(found[name], want[name]) for name in want)


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
        with open_tensors(given_path) as found:
            assert found.shapes == {"a": (2, 3), "b": (3,)}
            assert found.nbytes == 36
            assert same(found.read("a"), W) and same(found.read("b"), W[0])


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


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)


def test_torch_reads_what_is_written_and_writes_what_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    named = {str(i): np.arange(6).reshape(2, 3).astype(d) for i, d in enumerate(DTYPES)}
    named |= {"scalar": np.array(7), "empty": np.zeros((0, 3), np.float32), "t": W.T}
    path = tmp_path / "m.bin"
    write_torch(path, named)
    found = torch.load(path, weights_only=True)
    assert found.keys() == named.keys()
    assert all(same(as_array(found[name]), a) for name, a in named.items())
    assert all(same(a, named[name]) for name, a in read_all(path).items())
    assert set(read_all(path)) == set(named)


def test_what_torch_does_not_have_is_not_written(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    with pytest.raises(ValueError, match="for torch"):
        write_torch(tmp_path / "m.bin", {"w": np.array(["a"])})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("zipped", [True, False], ids=["archive", "before 2020"])
def test_views_of_one_storage_are_tensors_of_their_own(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(24.0).reshape(4, 6)
    state = {
        "whole": base,
        "transposed": base.t(),
        "columns": base[:, 1:3],
        "row": base[2],
        "again": base,
        "spread": base[0, :1].expand(5),
        "half": base.to(torch.bfloat16).t(),
        "count": torch.tensor(3),
        "parameter": torch.nn.Parameter(base[1:]),
    }
    path = tmp_path / "m.pt"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    found = read_all(path)
    assert found.keys() == state.keys()
    assert all(same(a, as_array(state[name])) for name, a in found.items())


def test_a_mapped_file_is_mapped_anew_without_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr("clip_jax.weights.tensors._REMAP", 30)
    path = tmp_path / "m.bin"
    write_torch(path, {str(i): W + i for i in range(5)})
    with open_tensors(path) as found:
        assert all(same(found.read(str(i)), W + i) for i in (*range(5), 0, 3))
        write_torch(path, {str(i): W[:, :2] for i in range(5)})
        with pytest.raises(UserError) as error:
            [found.read("0") for _ in range(3)]
        assert says(error.value, path, "changed")


def test_a_checkpoint_of_open_clip_is_unwrapped(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    weights = {"module.visual.proj": torch.ones(2), "module.logit_scale": torch.tensor(4.6)}
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}
    path = tmp_path / "epoch_1.pt"
    torch.save({"epoch": 1, "name": "run", "state_dict": weights, "optimizer": optimizer}, path)
    assert set(read_all(path)) == {"visual.proj", "logit_scale"}
    torch.save(weights | {"logit_bias": torch.ones(())}, path)
    assert set(read_all(path)) == {"module.visual.proj", "module.logit_scale", "logit_bias"}


def test_shards_of_torch_are_read_as_one(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    write_torch(tmp_path / "1.bin", {"a": W})
    write_torch(tmp_path / "2.bin", {"b": W[0]})
    path = tmp_path / "pytorch_model.bin.index.json"
    written(path, json.dumps({"weight_map": {"a": "1.bin", "b": "2.bin"}}))
    found = read_all(tmp_path)
    assert same(found["a"], W) and same(found["b"], W[0])


class Harmful:
    def __reduce__(self) -> tuple:
        return os.system, ("exit 1",)


def test_what_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "m.pt"
    for bad, words in (
        (torch.ones(2), "state_dict"),
        ({"model": {"w": torch.ones(2)}}, "state_dict"),
        ({1: torch.ones(2)}, "state_dict"),
        ({"w": torch.ones(2).to_sparse()}, "sparse"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "complex64"),
        ({"w": torch.ones(1).expand(1 << 40)}, "many times"),
        ({"w": Harmful()}, "system"),
        (torch.nn.Linear(2, 3), "torch.nn.modules.linear.Linear"),
    ):
        torch.save(bad, path)
        assert refuses(path, words)
    assert refuses(written(path, b"neither zip nor pickle"), "weights-only")
    assert refuses(written(path, pickle.dumps({"w": 1})), "weights-only")


def test_without_torch_a_line_says_what_to_do(tmp_path: Path, without_torch: None) -> None:
    path = written(tmp_path / "m.bin", b"some bytes")
    assert refuses(path, "pip install torch", ".safetensors")
    with pytest.raises(UserError) as error:
        write_torch(tmp_path / "new.bin", {"w": W})
    assert says(error.value, "new.bin", "pip install torch", ".safetensors")


# TorchScript, as OpenAI released its models


def number(n: int) -> bytes:
    return pickle.dumps(n, 2)[2:-1]


def text(word: str) -> bytes:
    return b"X" + len(word.encode()).to_bytes(4, "little") + word.encode()


def several(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def named(name: str) -> bytes:
    return f"c{name.replace(' ', chr(10))}\n".encode()


def stored(
    shape: tuple[int, ...] = (2, 3),
    strides: tuple[int, ...] = (3, 1),
    offset: int = 0,
    numel: int = 6,
    key: str = "0",
    kind: str = "torch FloatStorage",
) -> bytes:
    storage = several(text("storage"), named(kind), text(key), text("cpu"), number(numel)) + b"Q"
    sizes = [several(*map(number, values)) for values in (shape, strides)]
    hooks = named("collections OrderedDict") + b")R"
    about = several(storage, number(offset), *sizes, b"\x88", hooks)
    return named("torch._utils _rebuild_tensor_v2") + about + b"R"


def module(**attributes: bytes) -> bytes:
    state = b"".join(text(name) + value for name, value in attributes.items())
    return named("__torch__ M") + b")\x81}(" + state + b"ub"


CODE = 'class M(Module):\n  __parameters__ = ["w", ]\n  __buffers__ = ["b", ]\n  c : Tensor\n'


def archive(
    path: Path,
    root: bytes,
    code: str = CODE,
    compression: int = zipfile.ZIP_STORED,
    **members: bytes,
) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", b"\x80\x02" + root + b".")
        file.writestr("m/code/__torch__.py", code, zipfile.ZIP_DEFLATED)
        file.writestr("m/constants.pkl", b"\x80\x02).")
        file.writestr("m/data/0", W.tobytes(), compression)
        for name, content in members.items():
            file.writestr(f"m/{name}", content)
    return path


def test_an_archive_is_read_without_torch(tmp_path: Path, without_torch: None) -> None:
    root = module(
        w=stored(),
        b=stored((3, 2), (1, 3)),
        c=stored(),  # a constant, no part of the state
        training=b"\x89",
        inner=module(w=stored((2,), (2,), 1), b=stored((0, 2), (2, 1)), names=b"](X\0\0\0\0e"),
        scale=module(w=stored((), (), 5)),
    )
    found = read_all(archive(tmp_path / "m.pt", root))
    assert set(found) == {"w", "b", "inner.w", "inner.b", "scale.w"}
    assert same(found["w"], W) and same(found["b"], W.T)
    assert same(found["inner.w"], np.array([1, 3], np.float32))
    assert same(found["inner.b"], np.zeros((0, 2), np.float32))
    assert same(found["scale.w"], np.float32(5).reshape(()))


def shared_without_end() -> bytes:
    """Forty modules, each twice in the one before: 2**40 paths and no tensor."""
    root = module()
    for i in range(40):
        root = named("__torch__ M") + b")\x81}(" + text("w") + root + b"q" + bytes([i])
        root += text("b") + b"h" + bytes([i]) + b"ub"
    return root


DEEP = b"N" + b"\x85" * 100_000
PAIRS = b"N" + b"q\0h\0\x86" * 64  # a pair of a pair of ...: its hash would take for ever
HOSTILE: dict[str, tuple[bytes, str]] = {
    "a call of the system": (named("os system") + several(text("exit")) + b"R", "os system"),
    "a global of builtins": (module(w=named("builtins eval")), "builtins eval"),
    "opcode INST": (b"(ios\nsystem\n", "INST"),
    "opcode STACK_GLOBAL": (text("os") + text("system") + b"\x93", "STACK_GLOBAL"),
    "an extension": (b"\x82\x01", "EXT1"),
    "nothing": (b"", "broken"),
    "an empty stack": (b"R", "broken"),
    "no mark": (b"t", "broken"),
    "a mark above the stack": (b"N(0t", "opcode POP"),
    "a mark that is gone": (b"]N(at", "broken"),
    "a memo of nothing": (b"h\x01", "broken"),
    "state that is no dict": (named("__torch__ M") + b")\x81Nb", "broken"),
    "a module of no class": (b"N)\x81", "broken"),
    "an item of no dict": (b"]NNs", "broken"),
    "half an item": (b"}(Nu", "broken"),
    "not ended": (b"X\xff\xff\xff\x7fabc", "broken"),
    "no module": (b"N", "no tensors"),
    "no tensors": (module(), "no tensors"),
    "a class without code": (module(w=stored()).replace(b"M\n", b"N\n"), "no tensors"),
    "a name of two lines": (module(**{"w\n": stored()}), "no name"),
    "unknown storage": (module(w=stored(kind="torch OddStorage")), "OddStorage"),
    "storage of another size": (module(w=stored(numel=5)), "size"),
    "storage of another type": (module(w=stored(kind="torch HalfStorage")), "size"),
    "no such storage": (module(w=stored(key="1")), "data/1"),
    "a storage elsewhere": (module(w=stored(key="../code/__torch__.py")), "data/../code"),
    "too big a shape": (module(w=stored((3, 3), (3, 1))), "size"),
    "too far an offset": (module(w=stored(offset=1)), "size"),
    "too wide strides": (module(w=stored((2, 3), (4, 1))), "size"),
    "strides back": (module(w=stored((2, 3), (-3, 1))), "broken"),
    "a negative offset": (module(w=stored(offset=-1)), "broken"),
    "a negative shape": (module(w=stored((-2, -3))), "impossible"),
    "strides of another rank": (module(w=stored(strides=(1,))), "broken"),
    "a shape without end": (module(w=stored((BIG, BIG), (0, 0))), "impossible"),
    "one number without end": (module(w=stored((1 << 40,), (0,))), "many times"),
    "one number, often": (module(w=stored((500,), (0,)), b=stored((500,), (0,))), "many times"),
    "a module in itself": (
        named("__torch__ M") + b")\x81q\0}" + text("w") + b"h\0sb", "no name"),
    "modules without end": (shared_without_end(), "more attributes"),
    "a doubled key": (b"}" + PAIRS + b"Ns", "no tensors"),
    "a deep value": (module(w=DEEP), "no tensors"),
    "a doubled storage": (
        several(text("storage"), PAIRS, text("0"), b"N", b"K\1") + b"Q", "broken"),
    "a doubled class": (PAIRS + b")\x81", "broken"),
}  # fmt: skip


@pytest.mark.parametrize("root, words", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_archive_is_refused(
    tmp_path: Path, without_torch: None, root: bytes, words: str
) -> None:
    path = archive(tmp_path / "m.pt", root)
    tracemalloc.start()
    try:
        assert refuses(path, words)
        assert tracemalloc.get_traced_memory()[1] < 128 << 20
    finally:
        tracemalloc.stop()


def test_an_archive_holds_what_it_says(tmp_path: Path, without_torch: None) -> None:
    path, root = tmp_path / "m.pt", module(w=stored())
    assert refuses(archive(path, root, compression=zipfile.ZIP_DEFLATED), "compressed")
    assert refuses(archive(path, root, byteorder=b"big"), "big-endian")
    assert same(read_all(archive(path, root, byteorder=b"little"))["w"], W)
    assert refuses(archive(path, b"0" * (5 << 20)), "data.pkl", "impossible size")
    assert refuses(archive(path, root, code="#" * (65 << 20)), "__torch__.py", "impossible size")
    archive(path, root)
    assert refuses(written(path, path.read_bytes()[:-30]), "broken archive")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/constants.pkl", b"")
        file.writestr("other/data.pkl", b"")
    assert refuses(path, "none of torch")


def check_like_jit(path: Path, model: Any) -> None:
    torch = pytest.importorskip("torch")
    want = torch.jit.load(path).state_dict()
    assert len(want) == len(model.state_dict()) > 0
    found = read_all(path)
    assert found.keys() == want.keys()
    assert all(same(a, as_array(want[name])) for name, a in found.items())


@pytest.fixture(scope="module")
def model() -> Any:
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 2, bias=False).half()
            self.norm = nn.BatchNorm2d(4)
            self.turned = nn.Parameter(torch.randn(3, 5).t())
            self.mask = torch.ones(2)  # neither parameter nor buffer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.conv(x.half()).float()) + self.mask.sum()

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = Inner()
            self.blocks = nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(2, 3).bfloat16())
            self.tied = nn.Linear(2, 3, bias=False)
            self.tied.weight = self.blocks[0].weight
            self.same = self.blocks
            self.register_buffer("resolution", torch.tensor(224))
            self.scale, self.names, self.pads = 3.5, ["a", "b"], (1, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.visual(x)

    return Outer().eval()


@pytest.fixture(scope="module", params=["script", "trace"])
def jit(request: pytest.FixtureRequest, model: Any, tmp_path_factory: Any) -> Path:
    import torch

    path = tmp_path_factory.mktemp("jit") / f"{request.param}.pt"
    example = () if request.param == "script" else (torch.randn(1, 3, 8, 8),)
    getattr(torch.jit, request.param)(model, *example).save(path)
    return path


@pytest.mark.filterwarnings("ignore")
def test_an_archive_of_torchscript_is_read_as_torch_reads_it(jit: Path, model: Any) -> None:
    check_like_jit(jit, model)


@pytest.mark.filterwarnings("ignore")
def test_an_archive_of_many_modules_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    # more names than the short opcodes of the memo can number
    model = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(150)))
    torch.jit.trace(model, torch.ones(1, 2)).save(tmp_path / "m.pt")
    check_like_jit(tmp_path / "m.pt", model)


def without_bodies(content: bytes) -> bytes:
    """An archive without the members that are not read, so that a change hits those that are."""
    kept = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(kept, "w") as new:
        for info in old.infolist():
            name = info.filename
            if name.endswith((".pkl", ".py")) or "/data/" in name:
                new.writestr(name, old.read(info))
    return kept.getvalue()


FUZZ = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(data=st.data())
def test_any_archive_is_read_or_refused(
    tmp_path: Path, without_torch: None, data: st.DataObject
) -> None:
    root = module(w=stored(), inner=module(b=stored((3, 2), (1, 3))))
    content = archive(tmp_path / "whole.pt", root).read_bytes()
    path = written(tmp_path / "m.pt", data.draw(mutations(content)))
    for name, array in (survives(path) or {}).items():
        assert array.nbytes <= 4 * len(content), name


@FUZZ
@given(data=st.data())
def test_any_archive_of_torchscript_is_read_or_refused(
    jit: Path, tmp_path: Path, data: st.DataObject
) -> None:
    content = without_bodies(jit.read_bytes())
    survives(written(tmp_path / "m.pt", data.draw(mutations(content))))


@FUZZ
@given(data=st.data())
@pytest.mark.parametrize("zipped", [True, False], ids=["archive", "before 2020"])
def test_any_state_dict_is_read_or_refused(
    tmp_path: Path, data: st.DataObject, zipped: bool
) -> None:
    torch = pytest.importorskip("torch")
    file = io.BytesIO()
    state = {"w": torch.ones(2, 3), "v": torch.ones(2, dtype=torch.half)}
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    survives(written(tmp_path / "m.pt", data.draw(mutations(file.getvalue()))))
