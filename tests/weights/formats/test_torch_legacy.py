"""Files of torch before 1.6 are read as torch reads them, and no file does more than fail."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from weightfiles import (
    W,
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

from clip_jax.weights.formats.torch_legacy import MAGIC

SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}


def legacy(
    root: bytes, keys: tuple[str, ...] = ("0",), numel: int = 6, system: dict[str, object] = SYSTEM
) -> bytes:
    """A file of torch before 1.6 of the pickle `root`, whose storage 0 is `W`."""
    head = MAGIC + pickle.dumps(1001, 2) + pickle.dumps(system, 2)
    listed = pickle.dumps(list(keys), 2)
    return head + b"\x80\x02" + root + b"." + listed + struct.pack("<q", numel) + W.tobytes()


def test_a_file_of_torch_before_1_6_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(24.0).reshape(4, 6)
    saved = {
        "whole": base,
        "columns": base[:, 1:3],
        "half": base.to(torch.bfloat16).t(),
        "count": torch.tensor(3),
        "parameter": torch.nn.Parameter(base[1:]),
    }
    for name, value in (("m.pth", saved), ("blob", {"state_dict": saved, "epoch": 3})):
        path = tmp_path / name
        torch.save(value, path, _use_new_zipfile_serialization=False)
        tensors = read_all(path)
        assert tensors.keys() == saved.keys()
        assert all(same(a, as_array(saved[name])) for name, a in tensors.items())


def test_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    tensors = read_all(written(path, legacy(state(w=stored(), b=stored((3, 2), (1, 3))))))
    assert same(tensors["w"], W) and np.array_equal(tensors["b"], W.T)


VIEW = several(
    *(text("storage"), named("torch FloatStorage"), text("0"), text("cpu"), number(6)),
    several(text("1"), number(0), number(3)),
)
HOSTILE = {
    "cut short": (legacy(state(w=stored()))[:-1], "cut short"),
    "another number of elements": (legacy(state(w=stored()), numel=5), "size of its tensors"),
    "a negative number": (legacy(state(w=stored()), numel=-6), "size of its tensors"),
    "a storage of no tensor": (legacy(state(w=stored()), ("0", "1")), "is not that of a tensor"),
    "no storage": (legacy(state(w=stored()), ()), "no storage"),
    "too big a shape": (legacy(state(w=stored((3, 3), (3, 1)))), "size of its shape"),
    "an unknown storage": (legacy(state(w=stored(kind="torch OddStorage"))), "OddStorage"),
    "a huge storage": (legacy(state(w=stored(numel=1 << 50)), numel=1 << 50), "cut short"),
    "a view of a storage": (legacy(VIEW + b"Q"), "parts of others"),
    "big-endian": (legacy(state(w=stored()), system={"little_endian": False}), "big-endian"),
    "a call of the system": (
        legacy(named("os system") + several(text("exit")) + b"R", ()),
        "no tensors",
    ),
    "nothing more": (MAGIC, "broken"),
    "one number, often": (legacy(state(w=stored((500,), (0,)), b=stored((500,), (0,)))), "many t"),
}


@pytest.mark.parametrize("content, words", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    assert refuses_in_little_memory(written(tmp_path / "m.pth", content), words)


def test_a_long_pickle_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "m.pth", legacy(b"N" * (1 << 20)))
    assert refuses(path, "longer than any model's")


@settings(max_examples=300)
@given(mutations(legacy(state(w=stored(), b=stored((3, 2), (1, 3))))))
def test_any_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = written(tmp_path_factory.getbasetemp() / "fuzz.pth", content)
    for name, array in (survives(path) or {}).items():
        assert array.nbytes <= 4 * len(content), name
