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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip_jax import config
from clip_jax.data import mixture
from clip_jax.data.example import Pair, PairError
from clip_jax.data.sources import SourceOptions, open_source, tar_index, tar_reader, tars
from clip_jax.data.sources.tar_reader import FAULTS
from clip_jax.data.sources.tars import TarSource
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
def test_pairs_equal_the_members_that_tarfile_reads(tar_factory: TarFactory, text: str) -> None:
    path = tar_factory(pairs=7, text=text, kind="webp")
    members, source = plain(path), TarSource(str(path))
    assert len(source) == 7
    for i in range(7):
        assert source[i] == Pair(
            members[f"{i:06}.webp"],
            dict.fromkeys(("caption", "txt")[: 1 + (text == "txt")], f"picture {i}"),
            f"{path}:{i:06}.webp",
        )


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
        ("1.txt", b" a cat \n", {"caption": "a cat", "txt": "a cat"}),
        ("1.TXT", b"a cat", {"caption": "a cat", "txt": "a cat"}),
        ("1.txt", "\ufeffé".encode(), {"caption": "é", "txt": "é"}),
        ("1.txt", b"{not json}", {"caption": "{not json}", "txt": "{not json}"}),
        ("1.txt", b"", {"caption": "", "txt": ""}),
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


def left_out(source: TarSource) -> dict[str, int]:
    """What opening left out; a part of what was seen."""
    report = source.opening_report()
    return {reason: item.count for reason, item in report.left_out.items()}


def captions(source: TarSource) -> dict[bytes, str]:
    return {
        pair.image: pair.text["caption"] for pair in map(source.__getitem__, range(len(source)))
    }


def test_names_with_dots_keep_their_own_captions(tmp_path: Path) -> None:
    members = []
    for i in range(20):
        members += [(f"d/photo_v1.{i}.jpg", b"%d" % i), (f"d/photo_v1.{i}.txt", b"text %d" % i)]
    source = TarSource(str(write_tar(tmp_path / "x.tar", members)))
    assert captions(source) == {b"%d" % i: f"text {i}" for i in range(20)} and not left_out(source)


@pytest.mark.parametrize("reverse", [False, True])
def test_members_that_stand_apart_are_pairs(tmp_path: Path, reverse: bool) -> None:
    pictures = [(f"{i:03}.jpg", b"%d" % i) for i in range(30)]
    texts = [(f"{i:03}.txt", b"text %d" % i) for i in range(30)]
    members = texts[::-1] + pictures if reverse else pictures + texts[::-1]
    source = TarSource(str(write_tar(tmp_path / "x.tar", members)))
    assert captions(source) == {b"%d" % i: f"text {i}" for i in range(30)}


def test_a_name_that_occurs_twice_keeps_both_texts(tmp_path: Path) -> None:
    members = []
    for i in range(3):
        members += [("0.jpg", b"%d" % i), ("0.txt", b"text %d" % i), ("1.jpg", b"one")]
    source = TarSource(
        str(write_tar(tmp_path / "x.tar", [*members, ("1.txt", b"1"), ("2.txt", b"2")]))
    )
    assert captions(source) == {b"0": "text 0", b"1": "text 1", b"2": "text 2", b"one": "1"}
    assert left_out(source) == {"repeated": 2, "no_picture": 1}


def test_a_mask_is_not_a_picture_unless_configured(tmp_path: Path, cache: Path) -> None:
    members = []
    for i in range(4):
        members += [(f"{i}.png", b"p%d" % i), (f"{i}.seg.png", b"m%d" % i)]
        members += [(f"{i}.depth.png", b"d%d" % i), (f"{i}.txt", b"%d" % i)]
    path = str(write_tar(tmp_path / "x.tar", members))
    for image, first in {"": "p", "seg.png": "m", ".seg": "m", "png": "p", "depth;x": "d"}.items():
        for _ in range(2):  # scanned, and from the cache: one choice is not another's
            source = open_source(path, SourceOptions(image))
            assert captions(source) == {f"{first}{i}".encode(): str(i) for i in range(4)}
            assert left_out(source) == {"extra_picture": 8}
    assert (
        len(
            {
                open_source(path, SourceOptions(image)).fingerprint
                for image in ("", "seg.png", "depth")
            }
        )
        == 3
    )
    refused(
        lambda: open_source(path, SourceOptions("mask")),
        path,
        "config.data.image",
        "extra_picture 12",
    )


@pytest.mark.parametrize("version", [5, 4, 0])
def test_an_index_of_older_rules_is_made_anew(tmp_path: Path, cache: Path, version: int) -> None:
    path = write_tar(tmp_path / "x.tar", [("1.jpg", b"x"), ("1.txt", b"x"), ("2.jpg", b"y")])
    good = tar_index.open_index(str(path))
    (cached,) = cache.iterdir()
    line, _, body = cached.read_bytes().partition(b"\n")
    cached.write_bytes(json.dumps({**json.loads(line), "version": version}).encode() + b"\n" + body)
    assert (
        same(tar_index.open_index(str(path)), good) and good.report.left_out["no_text"].count == 1
    )


def test_the_index_is_kept_and_built_again_when_the_tar_changes(
    tar_factory: TarFactory, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, scans = tar_factory(pairs=2), []
    scan = tar_index.scan
    monkeypatch.setattr(tar_index, "scan", lambda p, *more: scans.append(p) or scan(p, *more))
    first = tar_index.open_index(str(path))
    again = tar_index.open_index(str(path))
    assert len(scans) == 1
    assert same(first, again)
    assert [p.suffix for p in cache.iterdir()] == [".index"]

    tar_factory(pairs=5)
    assert len(tar_index.open_index(str(path)).spans) == 5
    touched(path)
    assert len(tar_index.open_index(str(path)).spans) == 5
    assert len(scans) == 2, "a tar that was only touched is the same"
    write_tar(path, [(f"{i}.{end}", b"x" * 2000) for i in (1, 2) for end in ("png", "txt")])
    touched(path)
    assert (
        tar_index.open_index(str(path)).spans.tolist() == tar_index.scan(str(path)).spans.tolist()
    )
    assert len(cached_indices()) == 1, "and one that is another takes the place of the first"


def same(one: tar_index.Index, other: tar_index.Index) -> bool:
    arrays = zip(one[:4], other[:4], strict=True)
    return (one.flaw, one.report) == (other.flaw, other.report) and all(
        np.array_equal(a, b) for a, b in arrays
    )


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
        assert same(tar_index.open_index(str(path)), tar_index.scan(str(path)))
    assert len({path.stat().st_size}) == 1 and len(list(cache.iterdir())) == 1


DAMAGE = ["garbage", "empty", "half", "another version", "far outside", "a bomb", "deep", "list"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_not_used(tar_factory: TarFactory, cache: Path, damage: str) -> None:
    path = tar_factory(pairs=3)
    good = tar_index.open_index(str(path))
    (cached,) = cache.iterdir()
    original = cached.read_bytes()
    line, _, body = original.partition(b"\n")
    head = json.loads(line)
    spans = good.spans.copy()
    spans[1, 0] += path.stat().st_size
    rest = good.texts.tobytes() + good.ends.tobytes() + good.names.tobytes()
    outside = zlib.compress(spans.tobytes() + rest)
    content = {
        "garbage": b"PK\x03\x04" + b"x" * 99,
        "empty": b"",
        "half": original[: len(original) // 2],
        "another version": json.dumps({**head, "version": 0}).encode() + b"\n" + body,
        "far outside": line + b"\n" + outside,
        "a bomb": json.dumps({**head, "pairs": 10**9}).encode()
        + b"\n"
        + zlib.compress(bytes(1 << 24)),
        "deep": b"[" * 100_000,
        "list": b"[1, 2]\n" + body,
    }
    cached.write_bytes(content[damage])
    assert same(tar_index.open_index(str(path)), good)
    assert TarSource(str(path))[2].text == {"caption": "picture 2"}
    assert cached.read_bytes() == original


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
    path, intact = tar_factory(pairs=4), TarSource(str(tar_factory("whole.tar", pairs=4)))
    damaged(kind, path)
    source = TarSource(str(path))
    (line,) = source.opening_report().notes
    assert "1 of 1 tars are damaged and used up to the damage" in line and str(path) in line
    assert [source[i][:2] for i in range(3)] == [intact[i][:2] for i in range(3)]
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
def test_an_unreadable_tar_is_a_one_line_error(
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
    data = mixture.open_mixture({**c, "train": str(path)}, say=lines.append)
    assert data.pairs == 3
    assert [line for line in lines if "1 of 1 tars" in line and str(path) in line]


def test_few_of_many_tars_may_be_left_out(tar_factory: TarFactory) -> None:
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
        assert "1 of 5 tars are damaged and used up to" in cut and str(paths[4]) in cut
        assert [source[i].text["caption"] for i in range(len(source))] == expected
        assert source.fingerprint != before
    refused(lambda: TarSource(pattern), paths[1], "1 of 5 tars", "max_bad_fraction=0.01")
    damaged("gzip", paths[0])
    refused(lambda: TarSource(pattern, max_bad_fraction=1.0), paths[0], "gunzip")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "no.tar", tmp_path):
        for read in (TarSource, tar_index.scan, tar_index.open_index):
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
        spans = tar_index.scan(str(path)).spans
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


def test_folders_and_hidden_files_are_skipped_and_special_members_are_unreadable(
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
        add(tar, "d/._0.png", b"of a Mac")
        add(tar, "d/0.png", b"one")
        for i, (end, (kind, link, _)) in enumerate(odd.items(), 1):
            tar.addfile(member(f"d/{i}.{end}", kind, link))
            add(tar, f"d/{i}.txt", b"text")
        add(tar, "d/._0.txt", b"of a Mac")
        add(tar, "d/0.txt", b"text")
        add(tar, "l.png", b"two")
        tar.addfile(member("l.txt", tarfile.SYMTYPE, "d/0.txt"))
    source = TarSource(str(path))
    assert source[0] == Pair(b"one", {"caption": "text", "txt": "text"}, f"{path}:d/0.png")
    wrong = [(f"d/{i}.{end}", why) for i, (end, (*_, why)) in enumerate(odd.items(), 1)]
    wrong.append(("l.png", "a link"))
    assert len(source) == 1 + len(wrong)
    assert source.opening_report().to_dict() == {
        **{"seen": 16, "used": 14, "unit": "members", "notes": ()},
        "left_out": {"hidden": {"count": 2, "example": f"{path}:d/._0.png"}},
    }
    for i, (name, why) in enumerate(wrong, 1):
        with pytest.raises(PairError) as error:
            source[i]
        assert says(error.value, f"{path}:{name}", why) and error.value.reason == "unreadable"


def test_only_members_that_are_read_must_be_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_reader, "MAX_MEMBER", 10)
    members = [("1.png", b"x" * 10), ("1.mp4", b"x" * 11), ("2.jpg", b"x" * 11), ("1.txt", b"x")]
    members.append(("2.txt", b"x"))
    source = TarSource(str(write_tar(tmp_path / "x.tar", members)))
    assert source[0].image == b"x" * 10 and len(source) == 2
    refused(lambda: source[1], "x.tar:2.jpg", "256 MiB")


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


def test_missing_data_is_an_error() -> None:
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


def test_all_texts_of_an_example_are_fields(tmp_path: Path) -> None:
    numbers = io.BytesIO()
    np.save(numbers, np.array([1.5, 2.5]))
    texts = {"npy": numbers.getvalue(), "cls": b"7", "txt": b"t", "json": b'{"n": 1}'}
    for name, chosen in {"all": texts, "some": {"txt": b"t", "cls": b"7"}}.items():
        members = [("1.png", b"A"), *((f"1.{end}", text) for end, text in chosen.items())]
        source = TarSource(str(write_tar(tmp_path / f"{name}.tar", members)))
        fields = {"caption": "t", "txt": "t", "cls": 7}
        fields |= {"npy": [1.5, 2.5], "n": 1} if name == "all" else {}
        assert source.text(0)[0] == source[0].text == fields


@pytest.mark.parametrize("caption", ["null", '""', '" "', "[]", "[null]", "NaN", None])
def test_a_caption_that_is_blank_falls_back_to_the_text(
    tmp_path: Path, caption: str | None
) -> None:
    fields = '{"n": 1}' if caption is None else f'{{"caption": {caption}, "n": 1}}'
    members = [("1.png", b"A"), ("1.txt", b"from the text"), ("1.json", fields.encode())]
    source = TarSource(str(write_tar(tmp_path / "x.tar", members)))
    assert source[0].text == {"caption": "from the text", "txt": "from the text", "n": 1}


def test_a_caption_of_the_json_stands_beside_the_text(tmp_path: Path) -> None:
    fields = b'{"caption": "from the json", "txt": "no file", "cls": "no file"}'
    members = [("1.json", fields), ("1.png", b"A"), ("1.txt", b"from the text"), ("1.cls", b"3")]
    source = TarSource(str(write_tar(tmp_path / "x.tar", members)))
    assert source[0].text == {"caption": "from the json", "txt": "from the text", "cls": 3}
