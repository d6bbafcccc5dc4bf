"""State dicts are read as torch reads them, and no archive does more than fail."""

import argparse
import collections
import io
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from weightfiles import (
    PAIRS,
    W,
    archive,
    as_array,
    mutations,
    named,
    number,
    read_all,
    refuses,
    refuses_in_little_memory,
    same,
    several,
    state,
    stored,
    survives,
    text,
    written,
)

from clip_jax.errors import UserError
from clip_jax.weights.formats.torch_state import WRAPPERS
from clip_jax.weights.tensors import open_model, open_tensors
from support import says

BIG = 1 << 60


def test_a_state_dict_is_read_without_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    root = state(
        w=stored(),
        transposed=stored((3, 2), (1, 3)),
        some=stored((2,), (2,), 1),
        none=stored((0, 2), (2, 1)),
        scalar=stored((), (), 5),
        spread=stored((2, 3), (0, 0), 4),
        step=number(3),
    )
    tensors = read_all(archive(tmp_path / "m.pt", root))
    wanted = dict(w=W, transposed=W.T, some=W.ravel()[1:4:2], none=W[:0, :2])
    wanted |= dict(scalar=W[1, 2], spread=np.full_like(W, 4))
    assert tensors.keys() == wanted.keys()
    assert all(same(tensors[name], np.asarray(array)) for name, array in wanted.items())


def test_views_of_one_storage_are_tensors_of_their_own(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(24.0).reshape(4, 6)
    views = {
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
    torch.save(views, path)
    tensors = read_all(path)
    assert tensors.keys() == views.keys()
    assert all(same(a, as_array(views[name])) for name, a in tensors.items())


def test_a_module_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    kinds = ("bool", "uint8", "int8", "int16", "int32", "int64", "bfloat16", "float16", "float64")
    model = torch.nn.Sequential(*(torch.nn.BatchNorm2d(3) for _ in range(150)))
    for kind in kinds:
        model.register_buffer(f"of_{kind}", torch.arange(5).to(getattr(torch, kind)))
    path = tmp_path / "m.bin"
    for named_tensors in (model.state_dict(), dict(model.state_dict(keep_vars=True))):
        torch.save(named_tensors, path)
        tensors = read_all(path)
        assert list(tensors) == list(named_tensors)
        assert all(same(a, as_array(named_tensors[name])) for name, a in tensors.items())


def test_a_checkpoint_of_open_clip_is_unwrapped(tmp_path: Path) -> None:
    """As its training loop saved it from 2021 to 2024, with scalars of numpy beside the weights."""
    torch = pytest.importorskip("torch")
    weights = {"module.visual.proj": torch.ones(2), "module.logit_scale": torch.tensor(4.6)}
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}
    scalars = {"loss": np.float64(1.5), "random": np.random.default_rng(0), "path": Path("x")}
    path = tmp_path / "epoch_1.pt"
    torch.save(
        {"epoch": 1, "name": "run", "state_dict": weights, "optimizer": optimizer} | scalars, path
    )
    with open_model(path) as tensors:
        assert set(tensors) == {"visual.proj", "logit_scale"} and tensors.prefix == "module."
    torch.save(weights | {"logit_bias": torch.ones(())}, path)
    with open_model(path) as tensors:
        assert set(tensors) == {"visual.proj", "logit_scale"} and tensors.left_out == ["logit_bias"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "wrapper", [*WRAPPERS, "", "model/state_dict", "clip", "my/own/key", "a module", "defaultdict"]
)
def test_what_programs_save_is_unwrapped(tmp_path: Path, wrapper: str, protocol: int) -> None:
    torch = pytest.importorskip("torch")
    weights: Any = {"visual.proj": torch.ones(2), "logit_scale": torch.tensor(4.6)}
    if wrapper == "a module":
        module = torch.nn.Module()
        module.visual = torch.nn.Linear(2, 2, bias=False)
        module.register_buffer("logit_scale", torch.tensor(4.6))
        weights = module
    elif wrapper == "defaultdict":
        weights = collections.defaultdict(int, weights)
    else:
        for key in filter(None, reversed(wrapper.split("/"))):
            other = {"args": argparse.Namespace(lr=1), "epoch": np.int64(3), "when": {1, 2}}
            other |= {"loss": torch.tensor(0.5), "queue": {"rows": torch.zeros(3)}}
            weights = {**other, key: collections.OrderedDict(weights)}
    path = tmp_path / "m.ckpt"
    torch.save(weights, path, pickle_protocol=protocol)
    names = {"visual.weight" if wrapper == "a module" else "visual.proj", "logit_scale"}
    assert set(read_all(path)) == names


def test_of_several_models_the_usual_one_is_read_or_none(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "m.pt"
    models = [{"module.visual.proj": torch.full((2,), float(i))} for i in range(3)]
    torch.save({"state_dict_ema": models[1], "state_dict": models[0], "x": {"y": models[2]}}, path)
    with open_model(path) as tensors:
        assert tensors["visual.proj"].tolist() == [0, 0]
        assert tensors.models == ["state_dict", "state_dict_ema", "x/y"]
    torch.save({"student": models[0], "teacher": models[1]}, path)
    assert refuses(path, "2 models", "'student', 'teacher'", "torch.load(FILE)['student']")


class Harmful:
    def __reduce__(self) -> tuple:
        return exec, ("raise SystemExit",)


def test_what_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "m.pt"
    for bad, words in (
        (torch.ones(2), "state_dict"),
        ([{"w": torch.ones(2)}], "state_dict"),
        ({"w": np.random.default_rng(0).random(1 << 20)}, "NumPy"),
        ({1: torch.ones(2)}, "state_dict"),
        ({"w": torch.ones(2).to_sparse()}, "sparse"),
        ({"w": torch.ones(2), "v": torch.ones(2).to_sparse()}, "sparse"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "ComplexFloatStorage"),
        ({"w": torch.ones(1).expand(1 << 40)}, "many times"),
        ({"w": Harmful()}, "no tensors"),
    ):
        torch.save(bad, path)
        assert refuses(path, words)
    torch.save({"w": torch.ones(2), "x": Harmful()}, path)
    assert set(read_all(path)) == {"w"}, "what is called is only a name"
    assert refuses(written(path, b"neither zip nor pickle"), "no archive")
    torch.save(torch.nn.Linear(2, 2), path, _use_new_zipfile_serialization=False)
    assert refuses(path, "module", "state_dict")


def test_an_intact_file_is_not_to_be_fetched_again(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "m.pt"
    for one in ({"a": 1}, {"w": torch.ones(2).to_sparse()}, torch.ones(2), [torch.ones(2)]):
        torch.save(one, path)
        with pytest.raises(UserError) as error:
            read_all(path)
        assert "fetch" not in str(error.value)


DEEP = b"N" + b"\x85" * 100_000
HOSTILE: dict[str, tuple[bytes, str]] = {
    "a call of the system": (named("os system") + several(text("exit")) + b"R", "no tensors"),
    "a global of builtins": (state(w=named("builtins eval")), "no tensors"),
    "opcode INST": (b"(ios\nsystem\n", "INST"),
    "a global by stack": (text("os") + text("system") + b"\x93", "no tensors"),
    "a global of no name": (text("os") + b"N\x93", "broken"),
    "a global without module": (b"N\x93", "broken"),
    "an extension": (b"\x82\x01", "EXT1"),
    "nothing": (b"", "broken"),
    "an empty stack": (b"R", "broken"),
    "no mark": (b"t", "broken"),
    "a mark above the stack": (b"N(0t", "opcode POP"),
    "a mark that is gone": (b"]N(at", "broken"),
    "a memo of nothing": (b"h\x01", "broken"),
    "an item of no dict": (b"]NNs", "broken"),
    "half an item": (b"}(Nu", "broken"),
    "not ended": (b"X\xff\xff\xff\x7fabc", "broken"),
    "no tensors": (state(), "no tensors"),
    "a name of two lines": (state(**{"w\n": stored()}), "no name"),
    "unknown storage": (state(w=stored(kind="torch OddStorage")), "OddStorage"),
    "storage of another size": (state(w=stored(numel=5)), "size"),
    "storage of another type": (state(w=stored(kind="torch HalfStorage")), "size"),
    "no such storage": (state(w=stored(key="1")), "data/1"),
    "a storage elsewhere": (state(w=stored(key="../code/__torch__.py")), "data/../code"),
    "too big a shape": (state(w=stored((3, 3), (3, 1))), "size"),
    "too far an offset": (state(w=stored(offset=1)), "size"),
    "too wide strides": (state(w=stored((2, 3), (4, 1))), "size"),
    "strides back": (state(w=stored((2, 3), (-3, 1))), "broken"),
    "a negative offset": (state(w=stored(offset=-1)), "broken"),
    "a negative shape": (state(w=stored((-2, -3))), "impossible"),
    "strides of another rank": (state(w=stored(strides=(1,))), "broken"),
    "a shape without end": (state(w=stored((BIG, BIG), (0, 0))), "impossible"),
    "one number without end": (state(w=stored((1 << 40,), (0,))), "many times"),
    "one number, often": (state(w=stored((500,), (0,)), b=stored((500,), (0,))), "many times"),
    "a doubled key": (b"}" + PAIRS + b"Ns", "no tensors"),
    "a deep value": (state(w=DEEP), "no tensors"),
    "a doubled storage": (
        several(text("storage"), PAIRS, text("0"), b"N", b"K\1") + b"Q", "broken"),
}  # fmt: skip


@pytest.mark.parametrize("root, words", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_archive_is_refused(tmp_path: Path, root: bytes, words: str) -> None:
    path = archive(tmp_path / "m.pt", root)
    assert refuses_in_little_memory(path, words)


def test_an_archive_holds_what_it_says(tmp_path: Path) -> None:
    path, root = tmp_path / "m.pt", state(w=stored())
    assert same(read_all(archive(path, root, byteorder=b"little"))["w"], W)
    assert refuses(archive(path, root, byteorder=b"big"), "big-endian")
    assert refuses(archive(path, root, compression=zipfile.ZIP_DEFLATED), "compressed")
    assert refuses(archive(path, root, **{"\x1b[2J": b""}), "no name")
    assert refuses(archive(path, b"0" * (5 << 20)), "data.pkl", "5 MiB")
    assert refuses(archive(path, b"N" * (1 << 20)), "data.pkl", "longer than any model's")
    content = archive(path, root).read_bytes()
    assert refuses(written(path, content[:-30]), "broken archive")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/version", b"")
        file.writestr("other/data.pkl", b"")
    assert refuses(path, "none of torch")


def test_an_archive_that_changed_is_noticed(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.pt", state(w=stored()))
    with open_tensors(path) as tensors:
        os.truncate(path, 90)
        with pytest.raises(UserError) as error:
            tensors.read("w")
    assert says(error.value, path, "changed")


def saved() -> bytes:
    """A small archive."""
    file = io.BytesIO()
    archive(file, state(w=stored(), b=stored((3, 2), (1, 3))))
    return file.getvalue()


@settings(max_examples=500)
@given(mutations(saved()))
def test_any_state_dict_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = written(tmp_path_factory.getbasetemp() / "fuzz.pt", content)
    for name, array in (survives(path) or {}).items():
        assert array.nbytes <= 4 * len(content), name
