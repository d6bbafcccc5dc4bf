"""A tar read through its index is the tar; what is wrong with one is said in a line."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import tarfile
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clip_jax import config
from clip_jax.data import headers, index, mixture, tars
from clip_jax.data.headers import FAULTS
from clip_jax.data.pairs import Pair, PairError
from clip_jax.data.sources import open_source
from clip_jax.data.tars import TarSource
from clip_jax.errors import UserError
from support import TarFactory, refused, says, write_tar


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
ENDS = st.sampled_from(["jpg", "png", "PPM", "x.png", "y.WEBP", "txt", "json", "cls", "npy", "tar"])


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
            texts = sorted((TEXTS.index(members[j][1]), j) for j in run if members[j][1] in TEXTS)
            expected += [
                (*content[j], content[texts[0][1]][1])
                for j in run
                if texts and members[j][1] not in (*TEXTS, "tar")
            ]
            run = []
        run.append(i)
    path = write_tar(tmp_path / "any.tar", list(content.values()))
    found = index.scan(str(path))
    raw = path.read_bytes()
    assert [
        (found.name(i), raw[at : at + size], raw[text_at : text_at + text_size])
        for i, (at, size, text_at, text_size, *_) in enumerate(found.spans)
    ] == expected
    assert expected or "holds no pair" in found.flaw


TEXTS = ("json", "txt", "cls", "npy")


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
    assert same(first, again)
    assert [p.suffix for p in cache.iterdir()] == [".index"]

    tar_factory(pairs=5)
    assert len(index.of(str(path)).spans) == 5
    touched(path)
    assert len(index.of(str(path)).spans) == 5
    assert len(scans) == 2, "a tar that was only touched is the same"
    write_tar(path, [(f"{i}.{end}", b"x" * 2000) for i in (1, 2) for end in ("png", "txt")])
    touched(path)
    assert index.of(str(path)).spans.tolist() == index.scan(str(path)).spans.tolist()
    assert len(cached_indices()) == 1, "and one that is another takes the place of the first"


def same(one: index.Index, other: index.Index) -> bool:
    arrays = zip(one[:3], other[:3], strict=True)
    return one.flaw == other.flaw and all(np.array_equal(a, b) for a, b in arrays)


def touched(path: Path) -> None:
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def test_a_tar_of_the_same_size_in_which_all_stands_elsewhere_is_scanned_again(
    tmp_path: Path, cache: Path
) -> None:
    path, sizes = tmp_path / "x.tar", (100, 2000, 100, 900, 30, 1500)
    for order in (sizes, sizes[::-1]):
        members = [(f"{i}.{'txt' if i % 2 else 'png'}", b"x" * n) for i, n in enumerate(order)]
        members = [(f"{i // 2}.{name[2:]}", content) for i, (name, content) in enumerate(members)]
        write_tar(path, members)
        touched(path)
        assert same(index.of(str(path)), index.scan(str(path)))
    assert len({path.stat().st_size}) == 1 and len(list(cache.iterdir())) == 1


DAMAGE = ["garbage", "empty", "half", "another version", "far outside", "a bomb", "deep", "list"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_not_used(tar_factory: TarFactory, cache: Path, damage: str) -> None:
    path = tar_factory(pairs=3)
    good = index.of(str(path))
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    line, _, body = whole.partition(b"\n")
    head = json.loads(line)
    spans = good.spans.copy()
    spans[1, 0] += path.stat().st_size
    outside = zlib.compress(spans.tobytes() + good.ends.tobytes() + good.names.tobytes())
    content = {
        "garbage": b"PK\x03\x04" + b"x" * 99,
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "another version": json.dumps({**head, "version": 0}).encode() + b"\n" + body,
        "far outside": line + b"\n" + outside,
        "a bomb": json.dumps({**head, "pairs": 10**9}).encode()
        + b"\n"
        + zlib.compress(bytes(1 << 24)),
        "deep": b"[" * 100_000,
        "list": b"[1, 2]\n" + body,
    }
    kept.write_bytes(content[damage])
    assert same(index.of(str(path)), good)
    assert TarSource(str(path))[2].text == {"caption": "picture 2"}
    assert kept.read_bytes() == whole


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
        "bzip2": bz2.compress(raw),
        "xz": lzma.compress(raw),
        "zstandard": b"\x28\xb5\x2f\xfd" + raw,
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


CUT = ["in a header", "in a member", "between members", "a header of garbage", "a negative size"]


@pytest.mark.parametrize("kind", CUT)
def test_a_damaged_tar_is_used_up_to_the_damage(tar_factory: TarFactory, kind: str) -> None:
    path, whole = tar_factory(pairs=4), TarSource(str(tar_factory("whole.tar", pairs=4)))
    damaged(kind, path)
    source = TarSource(str(path))
    (line,) = source.opening_report().notes
    assert "1 of 1 tars are used only up to a damage" in line and str(path) in line
    assert [source[i][:2] for i in range(3)] == [whole[i][:2] for i in range(3)]
    faulty = kind in ("in a member", "a negative size")
    assert len(source) == 3 + faulty
    if faulty:
        with pytest.raises(PairError) as error:
            source[3]
        assert says(error.value, f"{path}:000003.png", FAULTS[5 + (kind == "in a member")])
        assert error.value.reason == "unreadable"


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("in the first header", "cut short"),
        ("gzip", "gunzip"),
        ("bzip2", "bunzip2"),
        ("xz", "unxz"),
        ("zstandard", "unzstd"),
        ("not a tar", "not a tar"),
        ("empty", "cut short"),
    ],
)
def test_of_what_nothing_can_be_read_a_line_says_why(
    tar_factory: TarFactory, kind: str, word: str
) -> None:
    path = tar_factory(pairs=4)
    damaged(kind, path)
    with pytest.raises(UserError) as error:
        TarSource(str(path))
    assert says(error.value, path, word)


def test_a_run_says_which_tar_is_damaged(tar_factory: TarFactory) -> None:
    path, lines = tar_factory(pairs=4), list[str]()
    damaged("between members", path)
    c = config.load(str(config.ROOT / "configs" / "common.py"))[0].data.to_dict()
    data = mixture.opened({**c, "train": str(path)}, say=lines.append)
    assert data.pairs == 3
    assert [line for line in lines if "1 of 1 tars" in line and str(path) in line]


def test_of_many_tars_few_may_be_left_out(tar_factory: TarFactory) -> None:
    paths = [tar_factory(f"{i}.tar", pairs=2, first=2 * i) for i in range(5)]
    pattern = str(paths[0].parent / "{0..4}.tar")
    expected = [f"picture {i}" for i in (0, 1, 4, 5, 6, 7, 8)]
    before = TarSource(pattern).fingerprint
    paths[1].write_bytes(b"<html>404</html>" * 99)
    damaged("between members", paths[4])
    for _ in range(2):  # scanned, and from the catalogue
        source = TarSource(pattern, max_bad_fraction=0.2)
        left_out, cut = source.opening_report().notes
        assert "1 of 5 tars are left out" in left_out and str(paths[1]) in left_out
        assert "1 of 5 tars are used only up to" in cut and str(paths[4]) in cut
        assert [source[i].text["caption"] for i in range(len(source))] == expected
        assert source.fingerprint != before
    refused(lambda: TarSource(pattern), paths[1], "1 of 5 tars", "max_bad_fraction=0.01")
    damaged("gzip", paths[0])
    refused(lambda: TarSource(pattern, max_bad_fraction=1.0), paths[0], "gunzip")


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
        assert says(error, path, "compressed")
    else:
        assert (spans >= 0).all()
        assert (spans[:, (0, 2)] + spans[:, (1, 3)] <= len(raw)).all()


def member(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def test_folders_and_hidden_files_are_passed_over_and_what_is_no_file_is_unreadable(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.tar"
    odd = {
        "jpg": (tarfile.SYMTYPE, "/etc/passwd", "a link"),
        "webp": (tarfile.LNKTYPE, "d/1.png", "a link"),
        "x.jpeg": (tarfile.FIFOTYPE, "", "no plain file"),
        "y.jpeg": (tarfile.CHRTYPE, "", "no plain file"),
        "z.jpeg": (tarfile.GNUTYPE_SPARSE, "", "sparse"),
    }
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(member("d", tarfile.DIRTYPE))
        tar.addfile(member("d.jpg", tarfile.DIRTYPE))
        add(tar, "d/._1.png", b"of a Mac")
        add(tar, "d/1.png", b"one")
        for end, (kind, link, _) in odd.items():
            tar.addfile(member(f"d/1.{end}", kind, link))
        add(tar, "d/._1.txt", b"of a Mac")
        add(tar, "d/1.txt", b"text")
        add(tar, "2.png", b"two")
        tar.addfile(member("2.txt", tarfile.SYMTYPE, "d/1.txt"))
    source = TarSource(str(path))
    assert source[0] == Pair(b"one", {"caption": "text"}, f"{path}:d/1.png")
    wrong = [(f"d/1.{end}", why) for end, (*_, why) in odd.items()] + [("2.png", "a link")]
    assert len(source) == 1 + len(wrong) and not source.opening_report().notes
    for i, (name, why) in enumerate(wrong, 1):
        with pytest.raises(PairError) as error:
            source[i]
        assert says(error.value, f"{path}:{name}", why) and error.value.reason == "unreadable"


def test_only_members_that_are_read_must_be_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headers, "MAX_MEMBER", 10)
    members = [("1.png", b"x" * 10), ("1.mp4", b"x" * 11), ("1.jpg", b"x" * 11), ("1.txt", b"x")]
    source = TarSource(str(write_tar(tmp_path / "x.tar", members)))
    assert source[0].image == b"x" * 10 and len(source) == 2
    refused(lambda: source[1], "x.tar:1.jpg", "256 MiB")


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


def test_text_without_the_picture(tmp_path: Path) -> None:
    members = [("1.cls", b"7"), ("1.png", b"A" * 5000), ("2.png", b"B"), ("2.txt", b"two")]
    path = write_tar(tmp_path / "x.tar", members)
    source = TarSource(str(path))
    assert source.text(0) == ({"cls": 7}, f"{path}:1.png")
    assert [source.text(i) for i in range(2)] == [
        (source[i].text, source[i].name) for i in range(2)
    ]
    raw = bytearray(path.read_bytes())
    at = raw.index(b"A" * 5000)
    path.write_bytes(raw[: at + 10])  # of the first the text is left, of the second nothing
    assert source.text(0)[0] == {"cls": 7}
    refused(lambda: source[0], "1.png", "cut short")
    refused(lambda: source.text(1), "2.png", "cut short")
    with pytest.raises(IndexError):
        source.text(2)


def test_what_says_most_comes_first(tmp_path: Path) -> None:
    said = {"npy": b"x", "cls": b"7", "txt": b"t", "json": b'{"n": 1}'}
    found = []
    while said:
        members = [("1.png", b"A"), *((f"1.{end}", text) for end, text in said.items())]
        source = TarSource(str(write_tar(tmp_path / f"{len(said)}.tar", members)))
        found.append(source.text(0)[0] if len(said) > 1 else None)
        said.popitem()
    assert found == [{"n": 1}, {"caption": "t"}, {"cls": 7}, None]
