"""TorchScript archives are read as torch reads them, and none does more than fail."""

import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from weightfiles import (
    PAIRS,
    W,
    as_array,
    module,
    mutations,
    named,
    read_all,
    refuses,
    refuses_in_little_memory,
    same,
    stored,
    survives,
    text,
    torchscript,
    written,
)


def test_what_modules_declare_is_read_without_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    root = module(
        w=stored(),
        b=stored((3, 2), (1, 3)),
        c=stored(),  # a constant, no part of the state
        training=b"\x89",
        inner=module(w=stored((2,), (2,), 1), b=stored((0, 2), (2, 1)), names=b"](X\0\0\0\0e"),
        scale=module(w=stored((), (), 5)),
    )
    tensors = read_all(torchscript(tmp_path / "m.pt", root))
    assert set(tensors) == {"w", "b", "inner.w", "inner.b", "scale.w"}
    assert same(tensors["w"], W) and same(tensors["b"], W.T)
    assert same(tensors["inner.w"], np.array([1, 3], np.float32))
    assert same(tensors["inner.b"], np.zeros((0, 2), np.float32))
    assert same(tensors["scale.w"], np.float32(5).reshape(()))


def shared_without_end() -> bytes:
    """Forty modules, each twice in the one before: 2**40 paths and no tensor."""
    root = module()
    for i in range(40):
        root = named("__torch__ M") + b")\x81}(" + text("w") + root + b"q" + bytes([i])
        root += text("b") + b"h" + bytes([i]) + b"ub"
    return root


HOSTILE: dict[str, tuple[bytes, str]] = {
    "state that is no dict": (named("__torch__ M") + b")\x81Nb", "broken"),
    "a module of no class": (b"N)\x81", "broken"),
    "no module": (b"N", "no tensors"),
    "a class without code": (module(w=stored()).replace(b"M\n", b"N\n"), "no tensors"),
    "a module in itself": (
        named("__torch__ M") + b")\x81q\0}" + text("w") + b"h\0sb", "no name"),
    "modules without end": (shared_without_end(), "more attributes"),
    "a doubled class": (PAIRS + b")\x81", "broken"),
}  # fmt: skip


@pytest.mark.parametrize("root, words", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_archive_is_refused(tmp_path: Path, root: bytes, words: str) -> None:
    path = torchscript(tmp_path / "m.pt", root)
    assert refuses_in_little_memory(path, words)


def test_a_program_of_impossible_size_is_refused(tmp_path: Path) -> None:
    path = torchscript(tmp_path / "m.pt", module(w=stored()), "#" * (17 << 20))
    assert refuses(path, "__torch__.py", "impossible size")


def check_like_jit(path: Path, model: Any) -> None:
    torch = pytest.importorskip("torch")
    want = torch.jit.load(path).state_dict()
    assert len(want) == len(model.state_dict()) > 0
    tensors = read_all(path)
    assert tensors.keys() == want.keys()
    assert all(same(a, as_array(want[name])) for name, a in tensors.items())


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


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_archive_of_torchscript_is_read_or_refused(
    jit: Path, tmp_path: Path, data: st.DataObject
) -> None:
    content = without_bodies(jit.read_bytes())
    survives(written(tmp_path / "m.pt", data.draw(mutations(content))))
