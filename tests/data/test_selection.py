"""Selections: training reads the selected pairs, of the same files only."""

import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clip_jax.cli.curate import run
from clip_jax.data.example import Pair
from clip_jax.data.mixture import open_mixture
from clip_jax.data.opening import OpeningReport, all_used
from clip_jax.data.selection import SelectedPairs, Selection
from clip_jax.data.sources import open_source
from clip_jax.errors import UserError
from curation.pools import curate, picture, write_tar


def write(folder: Path, data: str, files: dict[str, list[int]]) -> Path:
    """A selection: for each file, which of its pairs are selected."""
    (folder / "selection").mkdir(parents=True)
    entries = []
    for i, (file, flags) in enumerate(files.items()):
        content = np.packbits(flags).tobytes()
        (folder / f"selection/{i:05}.bits").write_bytes(content)
        entries.append(
            {
                **{"file": file, "pairs": len(flags), "kept": sum(flags)},
                "bits": f"selection/{i:05}.bits",
                "digest": hashlib.sha256(content).hexdigest(),
            }
        )
    values = {"version": 1, "data": data, "files": entries}
    (folder / "selection.json").write_text(json.dumps(values))
    return folder


class Numbers:
    """A source whose i-th pair is called i."""

    fingerprint = "numbers"

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Pair:
        return Pair(b"", {}, str(i))

    def opening_report(self) -> OpeningReport:
        return all_used(self.length, "numbers")


@given(st.lists(st.booleans(), min_size=1, max_size=1500).filter(any))
def test_the_i_th_selected_pair(flags: list[bool]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        selection = Selection.open(str(write(Path(folder) / "s", "x", {"x": flags})))
        pairs = SelectedPairs(Numbers(len(flags)), selection)
    expected = np.flatnonzero(flags).tolist()
    assert [int(pairs[i].name) for i in range(len(pairs))] == expected
    assert pairs.left_out == len(flags) - len(expected)
    with pytest.raises(IndexError):
        pairs[len(pairs)]


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    for name in ("a/0", "a/1", "b/0"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_tar(tmp_path / f"{name}.tar", [(picture(i), {"caption": f"{i}"}) for i in range(3)])
    return tmp_path


def test_files_are_found_by_the_ends_of_their_paths(tars: Path) -> None:
    flags = {"a/0.tar": [1, 0, 0], "a/1.tar": [0, 1, 1], "b/0.tar": [1, 1, 1]}
    write(tars / "s", "d", {f"/elsewhere/{name}": own for name, own in flags.items()})
    selection = Selection.open(str(tars / "s"))

    def texts(pattern: str) -> list[str]:
        pairs = SelectedPairs(open_source(f"{tars}/{pattern}"), selection)
        return [pairs.text(i)[0]["caption"] for i in range(len(pairs))]

    assert texts("*/*.tar") == ["0", "1", "2", "0", "1", "2"]
    assert texts("{b/0,a/1}.tar") == ["0", "1", "2", "1", "2"]  # some, in another order
    shutil.copy(tars / "a/0.tar", tars / "a/2.tar")
    with pytest.raises(UserError, match=r"does not tell which pairs of .*a/2\.tar"):
        texts("a/*.tar")
    write_tar(tars / "a/1.tar", [(picture(1), {"caption": "x"})])
    with pytest.raises(UserError, match=r"a/1\.tar has 1 pair, and 3 when"):
        texts("a/1.tar")


def test_other_files_with_the_same_names_are_told(
    tars: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names and numbers of pairs agree; only sizes, dates or places tell the files apart."""
    out = tars / "out"
    curate(tars / "a/*.tar", out, "--min-side=1", "--no-page")
    selection = Selection.open(str(out))

    def notes(pattern: str) -> list[str]:
        return SelectedPairs(open_source(f"{tars}/{pattern}"), selection).notes

    assert notes("a/*.tar") == []
    (tars / "moved").mkdir()
    shutil.copy(tars / "a/0.tar", tars / "moved/0.tar")
    assert notes("moved/0.tar") == []
    with pytest.raises(UserError, match=r"one file with the name of .*a/0\.tar and of .*d/0\.tar"):
        notes("{a,moved}/0.tar")
    state = (tars / "a/0.tar").stat()
    os.utime(tars / "a/0.tar", ns=(state.st_atime_ns, state.st_mtime_ns + 10**9))
    (note,) = notes("a/*.tar")
    assert f"{tars}/a/0.tar changed since {out} was made, though not in size" in note
    said: list[str] = []
    open_mixture({"train": f"{tars}/a/*.tar", "selection": str(out)}, said.append)
    assert note in said
    assert run(["export", str(out), "--to", str(tars / "copy"), "--workers=1"]) == 0
    assert note in capsys.readouterr().err
    noise = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    write_tar(tars / "b/0.tar", [(buffer.getvalue(), {"caption": f"{i}"}) for i in range(3)])
    with pytest.raises(UserError, match=r"b/0\.tar has [\d,]+ bytes, and [\d,]+ when"):
        notes("b/0.tar")
    shutil.copy(tars / "b/0.tar", tars / "a/0.tar")
    with pytest.raises(UserError, match=r"a/0\.tar has [\d,]+ bytes, and [\d,]+ when"):
        run(["export", str(out), "--to", str(tars / "copy2"), "--workers=1"])


def test_a_config_reads_it_and_its_filter_comes_after(tars: Path) -> None:
    write(tars / "s", "d", {f"{tars}/a/0.tar": [1, 0, 1], f"{tars}/a/1.tar": [0, 0, 0]})
    said: list[str] = []
    data = {"train": f"{tars}/a/*.tar", "selection": str(tars / "s")}
    part = open_mixture(data, said.append).parts[0]
    assert len(part.source) == 2
    assert f"{tars}/s selects 2 pairs (33.3%)" in said
    other = {**data, "selection": "", "train": f"{tars}/a/0.tar"}
    assert open_mixture(other).parts[0].source.fingerprint != part.source.fingerprint
    mix = {"mix": {"x": {"data": f"{tars}/a/0.tar", "selection": str(tars / "s")}}}
    assert len(open_mixture(mix).parts[0].source) == 2
    with pytest.raises(UserError, match="selects no pair"):
        open_mixture({"train": f"{tars}/a/1.tar", "selection": str(tars / "s")})


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda v: v.update(version=2), "has version 2"),
        (lambda v: v.update(files=[]), "a list of files"),
        (lambda v: v["files"].append(3), "entry 1 .* must be an object"),
        (lambda v: v["files"][0].update(pairs=-1), "'pairs' must be a number"),
        (lambda v: v["files"][0].update(bits="../x.bits"), "'bits' must be a name"),
        (lambda v: v["files"][0].update(digest="0"), "00000.bits is damaged"),
        (lambda v: v["files"].append(v["files"][0]), "names a file twice"),
        (lambda v: v["files"][0].update(size="1"), "'size' must be a number of bytes"),
    ],
)
def test_a_damaged_selection_is_told(tmp_path: Path, change, message: str) -> None:
    folder = write(tmp_path / "s", "x", {"x": [1, 0]})
    values = json.loads((folder / "selection.json").read_text())
    change(values)
    (folder / "selection.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        SelectedPairs(Numbers(2), Selection.open(str(folder)))


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no selection\.json, which .* writes when it is done"):
        Selection.open(str(tmp_path))
