"""A tar read through its index is the tar; what is wrong with one is said in a line."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clip_jax.data import index, tars
from clip_jax.data.pairs import Pair
from clip_jax.data.sources import open_source
from clip_jax.data.tars import TarSource
from clip_jax.errors import UserError
from support import TarFactory, says, write_tar


def plain(path: Path) -> dict[str, bytes]:
    """Every regular member by name, read the way of the standard library."""
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar if m.isreg()}  # type: ignore[union-attr]


def cached_indices() -> dict[Path, int]:
    folder = Path(os.environ["XDG_CACHE_HOME"]) / "clip_jax" / "index"
    return {path: path.stat().st_mtime_ns for path in folder.glob("*")}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that no other test writes to."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "clip_jax" / "index"


@pytest.mark.parametrize("text", ["json", "txt"])
def test_pairs_are_what_tarfile_reads(tar_factory: TarFactory, text: str) -> None:
    path = tar_factory(pairs=7, text=text, kind="webp")
    members, source = plain(path), TarSource(str(path))
    assert len(source) == 7
    for i in range(7):
        assert source[i] == Pair(
            members[f"{i:06}.webp"], {"caption": f"picture {i}"}, f"{path}:{i:06}.webp"
        )


NAMES = st.sampled_from(["a", "b", "dir/a", "dir/b", "dir.x/a", "../a", "/a"])
ENDS = st.sampled_from(["jpg", "png", "x.png", "y.WEBP", "txt", "json", "npy", "tar"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(NAMES, ENDS, st.integers(0, 2000)), max_size=12))
@example([("a", "x.png", 9), ("a", "y.WEBP", 3), ("a", "txt", 1), ("a", "json", 5)])
def test_any_tar_gives_the_pairs_of_its_runs(
    tmp_path: Path, members: list[tuple[str, str, int]]
) -> None:
    content = {}
    for i, (name, end, size) in enumerate(members):
        text = json.dumps({"n": i}).encode() if end == "json" else f"{i} ".encode() * size
        content[i] = (f"{name}.{end}", text)
    expected: list[tuple[str, bytes, bytes]] = []
    run: list[int] = []
    for i in [*content, -1]:
        if run and (i < 0 or members[i][0] != members[run[0]][0]):
            texts = sorted((members[j][1] != "json", j) for j in run if members[j][1] in TEXTS)
            expected += [
                (*content[j], content[texts[0][1]][1])
                for j in run
                if texts and members[j][1] not in (*TEXTS, "npy", "tar")
            ]
            run = []
        run.append(i)
    path = write_tar(tmp_path / "any.tar", list(content.values()))
    if not expected:
        with pytest.raises(UserError) as error:
            index.scan(str(path))
        assert says(error.value, path, "no pair")
        return
    found = index.scan(str(path))
    raw = path.read_bytes()
    assert [
        (str(name), raw[at : at + size], raw[text_at : text_at + text_size])
        for name, (at, size, text_at, text_size, *_) in zip(found.names, found.spans, strict=True)
    ] == expected


TEXTS = ("json", "txt")


def test_several_pictures_share_their_samples_text(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "x.tar",
        [("1.json", b'{"name": "sun"}'), ("1.a.png", b"A"), ("1.b.png", b"B"), ("2.png", b"C")],
    )
    source = TarSource(str(path))
    assert [(p.image, p.text, p.name) for p in (source[0], source[1])] == [
        (b"A", {"name": "sun"}, f"{path}:1.a.png"),
        (b"B", {"name": "sun"}, f"{path}:1.b.png"),
    ]
    assert len(source) == 2


@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        ("1.txt", b" a cat \n", {"caption": "a cat"}),
        ("1.txt", "\ufeffé".encode(), {"caption": "é"}),
        ("1.txt", b"{not json} but a caption", {"caption": "{not json} but a caption"}),
        ("1.txt", b"", {"caption": ""}),
        ("1.json", b'\xef\xbb\xbf{"caption": "a", "n": 1}', {"caption": "a", "n": 1}),
        ("1.json", b"", None),
        ("1.json", b"[1]", None),
        ("1.json", b'"text"', None),
        ("1.json", b'{"a": ', None),
        ("1.json", b'{"a":' * 100_000, None),
        ("1.txt", b"\xff\xfe", None),
    ],
)
def test_text(tmp_path: Path, name: str, raw: bytes, expected: dict[str, Any] | None) -> None:
    path = write_tar(tmp_path / "x.tar", [("1.png", b"p"), (name, raw)])
    source = TarSource(str(path))
    if expected is not None:
        assert source[0].text == expected
        return
    with pytest.raises(UserError) as error:
        source[0]
    assert says(error.value, f"{path}:1.png")


def test_several_tars_are_one_sequence(tar_factory: TarFactory) -> None:
    one = tar_factory("one.tar", pairs=2)
    two = tar_factory("two.tar", pairs=3, first=2)
    source = open_source(f"{one.parent}/{{one,two}}.tar")
    assert [source[i].text["caption"] for i in range(5)] == [f"picture {i}" for i in range(5)]
    assert [source[np.int64(i)].name for i in (1, 2)] == [f"{one}:000001.png", f"{two}:000002.png"]
    for outside in (5, -1, -5, -6):
        with pytest.raises(IndexError):
            source[outside]


def test_the_index_is_kept_and_built_again_when_the_tar_changes(
    tar_factory: TarFactory, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, scans = tar_factory(pairs=2), []
    scan = index.scan
    monkeypatch.setattr(index, "scan", lambda p: scans.append(p) or scan(p))
    first = index.of(str(path))
    again = index.of(str(path))
    assert len(scans) == 1
    assert np.array_equal(first.spans, again.spans)
    assert list(first.names) == list(again.names)
    assert [p.suffix for p in cache.iterdir()] == [".npz"]

    tar_factory(pairs=5)
    assert len(index.of(str(path)).spans) == 5
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    index.of(str(path))
    assert len(scans) == 3


@pytest.mark.parametrize("damage", ["garbage", "empty", "half", "other arrays", "pickle"])
def test_a_damaged_cache_is_not_used(tar_factory: TarFactory, cache: Path, damage: str) -> None:
    path = tar_factory(pairs=3)
    good = index.of(str(path))
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    if damage == "other arrays":
        np.savez(kept, spans=np.zeros((2, 2)), names=np.zeros(7))
    elif damage == "pickle":
        names = np.array([Exploding()] * 3, object)
        np.savez(kept, allow_pickle=True, spans=good.spans, names=names)
    else:
        content = {
            "garbage": b"PK\x03\x04" + b"x" * 99,
            "empty": b"",
            "half": whole[: len(whole) // 2],
        }
        kept.write_bytes(content[damage])
    again = index.of(str(path))
    assert np.array_equal(good.spans, again.spans)
    assert list(good.names) == list(again.names)
    assert TarSource(str(path))[2].text == {"caption": "picture 2"}


class Exploding:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return pytest.fail, ("a pickle of the cache was loaded",)


def test_a_cache_that_cannot_be_written_is_done_without(
    tar_factory: TarFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(TarSource(str(tar_factory(pairs=3)))) == 3


def damaged(kind: str, path: Path) -> None:
    raw = path.read_bytes()
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    cut = {
        "in a header": raw[: last.offset + 100],
        "in a member": raw[: last.offset_data + last.size // 2],
        "between members": raw[: last.offset],
        "in the first header": raw[:100],
        "a header of garbage": raw[: last.offset] + b"\x55" * 512 + raw[last.offset + 512 :],
        "gzip": gzip.compress(raw),
        "not a tar": b"hello, world\n" * 1000,
        "empty": b"",
        "a negative size": raw[: last.offset] + negative(raw[last.offset :][:512]),
    }
    path.write_bytes(cut[kind])


def negative(header: bytes) -> bytes:
    """A header whose size is -1536: a naive reader goes back and never ends."""
    header = header[:124] + b"\xff" * 10 + (65536 - 1536).to_bytes(2, "big") + header[136:]
    blank = header[:148] + b" " * 8 + header[156:]
    return header[:148] + f"{sum(blank):06o}\0 ".encode() + header[156:]


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("in a header", "cut short"),
        ("in a member", "cut short"),
        ("between members", "cut short"),
        ("in the first header", "cut short"),
        ("a header of garbage", "cut short"),
        ("gzip", "gunzip"),
        ("not a tar", "not a tar"),
        ("empty", "empty"),
        ("a negative size", ""),
    ],
)
def test_damage_is_said_in_a_line(tar_factory: TarFactory, kind: str, word: str) -> None:
    path = tar_factory(pairs=4)
    damaged(kind, path)
    with pytest.raises(UserError) as error:
        TarSource(str(path))
    assert says(error.value, path, word)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "no.tar", tmp_path):
        for read in (TarSource, index.scan, index.of):
            with pytest.raises(UserError) as error:
                read(str(path))
            assert says(error.value, path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_gives_another_error(tar_factory: TarFactory, data: st.DataObject) -> None:
    path = tar_factory(pairs=2, size=(3, 3))
    raw = bytearray(path.read_bytes())[:5120]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + 8] = data.draw(st.binary(min_size=1, max_size=8))
    path.write_bytes(raw)
    try:
        spans = index.scan(str(path)).spans
    except UserError as error:
        assert says(error, path)
    else:
        assert (spans >= 0).all()
        assert (spans[:, 0] + spans[:, 1] <= len(raw)).all()


def member(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_links_folders_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:

        def add(name: str, content: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))

        tar.addfile(member("d", tarfile.DIRTYPE))
        add("d/._1.png", b"of a Mac")
        add("d/1.png", b"one")
        tar.addfile(member("d/1.jpg", tarfile.SYMTYPE, "/etc/passwd"))
        tar.addfile(member("d/1.webp", tarfile.LNKTYPE, "d/1.png"))
        tar.addfile(member("d/1.jpeg", tarfile.FIFOTYPE))
        add("d/._1.txt", b"of a Mac")
        add("d/1.txt", b"text")
    source = TarSource(str(path))
    assert [source[i].image for i in range(len(source))] == [b"one"]
    assert source[0].text == {"caption": "text"}


def test_sparse_pictures_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        info = member("1.png", tarfile.GNUTYPE_SPARSE)
        tar.addfile(info)
        tar.addfile(tarfile.TarInfo("1.txt"))
    with pytest.raises(UserError) as error:
        TarSource(str(path))
    assert says(error.value, path, "1.png", "sparse")


def test_only_members_that_are_read_must_be_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "MAX_MEMBER", 10)
    members = [("1.png", b"x" * 10), ("1.txt", b"x"), ("1.mp4", b"x" * 11)]
    assert len(index.scan(str(write_tar(tmp_path / "good.tar", members))).spans) == 1
    members[0] = ("1.png", b"x" * 11)
    with pytest.raises(UserError) as error:
        index.scan(str(write_tar(tmp_path / "bad.tar", members)))
    assert says(error.value, "bad.tar", "1.png")


def test_names_never_become_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    names = ["../../evil", str(tmp_path / "absolute"), "~/home", "a/../../b"]
    members = [(f"{n}.{end}", b"x") for n in names for end in ("png", "txt")]
    path = write_tar(tmp_path / "in" / "x.tar", members)
    monkeypatch.chdir(path.parent)
    before = {p for p in tmp_path.parent.rglob("*") if cache not in p.parents}
    source = TarSource("x.tar")
    assert len([source[i] for i in range(len(source))]) == 4
    new = {p for p in tmp_path.parent.rglob("*") if cache not in p.parents} - before
    assert new == {cache, *list(cache.parents)[:2]}


def test_a_pickled_source_reads_the_same(tar_factory: TarFactory) -> None:
    source = TarSource(str(tar_factory(pairs=4)))
    fresh = pickle.loads(pickle.dumps(source))
    used = source[1] and pickle.loads(pickle.dumps(source))
    assert (
        [fresh[i] for i in range(4)] == [used[i] for i in range(4)] == [source[i] for i in range(4)]
    )
    assert "4 pairs" in repr(fresh)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_threads_read_the_right_bytes_with_few_files_open(
    tar_factory: TarFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars, "MAX_OPEN", 3)
    paths = [tar_factory(f"{i}.tar", pairs=2, first=2 * i) for i in range(12)]
    members: dict[str, bytes] = {}
    for path in paths:
        members |= plain(path)
    source = TarSource(f"{paths[0].parent}/{{0..11}}.tar")
    before, most, lock = open_files(), [0], threading.Lock()

    def right(i: int) -> bool:
        pair = source[i % 24]
        with lock:
            most[0] = max(most[0], open_files())
        return pair.image == members[f"{i % 24:06}.png"] and pair.text == {
            "caption": f"picture {i % 24}"
        }

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(right, np.random.default_rng(0).permutation(2000).tolist()))
    assert most[0] - before <= 3 + 8 + 1
    del source
    assert open_files() <= before


def test_a_tar_that_shrinks_during_a_run_is_named(tar_factory: TarFactory) -> None:
    path = tar_factory(pairs=3)
    source = TarSource(str(path))
    os.truncate(path, 1000)
    with pytest.raises(UserError) as error:
        source[2]
    assert says(error.value, f"{path}:000002.png")


def test_no_data_is_said() -> None:
    with pytest.raises(UserError) as error:
        open_source("")
    assert says(error.value, "config.data.train")
