"""Tars that are cut, forged or odd: what is whole is used, what is not counted, nothing touched."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import damage
from clip_jax.data.example import Pair, PairError
from clip_jax.data.sources.tars import TarSource
from clip_jax.errors import UserError
from support import says

END = bytes(2 * damage.BLOCK)


def pair(name: bytes, fill: bytes = b"x") -> bytes:
    """A picture and its text as members of a tar; nothing decodes them here."""
    return damage.member(name + b".png", fill * 700) + damage.member(name + b".txt", b"of " + fill)


def listing(folder: Path) -> set[tuple[str, int]]:
    return {(str(p), p.lstat().st_size) for p in folder.rglob("*")}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for tars; nothing but them and the cache may come to be in or around it."""
    (tmp_path / "in" / "side").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"not yours")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "in")
    yield tmp_path / "in"
    read_paths = {
        path for path, _ in listing(tmp_path) if not path.startswith(str(tmp_path / "cache"))
    }
    ours = {str(p) for p in (tmp_path / "in").glob("*.tar")}
    fixed = {str(tmp_path / name) for name in ("in", "in/side", "secret.png")}
    assert read_paths == ours | fixed
    for path, size in listing(tmp_path / "cache"):
        assert size < 100_000, path


def read_tar(path: Path, raw: bytes) -> tuple[list[Pair], list[str]]:
    """The pairs of a tar that can be used, and what is said of it and of the others."""
    path.write_bytes(raw)
    try:
        source = TarSource(str(path))
    except UserError as error:
        assert says(error, path)
        return [], [str(error)]
    good, lines = [], []
    for i in range(len(source)):
        try:
            good.append(source[i])
        except PairError as error:
            assert says(error, path) and error.reason in ("unreadable", "text")
            lines.append(str(error))
    return good, lines


def names(pairs: list[Pair]) -> list[str]:
    return [pair.name.partition(".tar:")[2] for pair in pairs]


def test_a_tar_is_used_up_to_where_it_is_cut(here: Path) -> None:
    tar = b"".join(pair(b"%d" % i, b"%d" % i) for i in range(4)) + END
    # where the last byte of each text ends: a pair is five blocks
    ends = [(5 * i + 4) * damage.BLOCK + len(b"of 0") for i in range(4)]
    cuts = [*range(0, len(tar) + 1, damage.BLOCK), *ends, *(end - 1 for end in ends)]
    for cut in sorted(cuts):
        good, lines = read_tar(here / f"{cut}.tar", tar[:cut])
        expected = [i for i, end in enumerate(ends) if end <= cut]
        assert [(p.image, p.text["caption"]) for p in good] == [
            (b"%d" % i * 700, f"of {i}") for i in expected
        ], f"cut at {cut}"
        assert good or lines


def sparse(name: bytes) -> bytes:
    """A member of GNU's old kind of sparse file: 4 bytes at 0, and a gigabyte of nothing."""
    return old_sparse(name, b"%011o\0" % 0, b"%011o\0" % 4, b"%011o\0" % (1 << 30))


def old_sparse(name: bytes, at: bytes, length: bytes, real: bytes) -> bytes:
    rest = bytes(41) + at + length + bytes(72) + b"\0" + real
    return damage.header(name, 4, b"S", magic=b"ustar  \0", rest=rest) + damage.padded(b"abcd")


def endless(name: bytes) -> bytes:
    """An old sparse member whose map goes on and on in the next block."""
    entry = (b"%011o\0" % 0 + b"%011o\0" % 0) * 4
    rest = bytes(41) + entry + b"\1" + b"%011o\0" % 0
    head = damage.header(name, 0, b"S", magic=b"ustar  \0", rest=rest)
    return head + (bytes(504) + b"\1" + bytes(7)) * 40


def tricked(member: bytes) -> bytes:
    """A tar with a pair before and after what is tricky."""
    return pair(b"0") + member + pair(b"9") + END


TEXT = damage.member(b"1.txt", b"of 1")
BIG = b"\x80" + (1 << 60).to_bytes(11)
MINUS = b"\xff" * 10 + (65536 - 1536).to_bytes(2)
TRICKS = {
    "a link": damage.header(b"1.png", 0, b"2", b"../secret.png") + TEXT,
    "a hard link": damage.header(b"1.png", 0, b"1", b"../../secret.png") + TEXT,
    "a linked text": damage.member(b"1.png", b"x")
    + damage.header(b"1.txt", 0, b"2", b"/etc/passwd"),
    "a link to itself": damage.header(b"1.png", 0, b"2", b"1.png") + TEXT,
    "a terminal": damage.header(b"1.png", 0, b"3") + TEXT,
    "a disk": damage.header(b"1.png", 0, b"4") + TEXT,
    "a fifo": damage.header(b"1.png", 0, b"6") + TEXT,
    "a folder": damage.header(b"1.png", 0, b"5") + TEXT,
    "an unknown kind": damage.header(b"1.png", 5, b"Q") + damage.padded(b"12345") + TEXT,
    "a sparse picture": sparse(b"1.png") + TEXT,
    "a sparse text": damage.member(b"1.png", b"x") + sparse(b"1.txt"),
    "a sparse picture of pax": damage.pax(
        GNU__sparse__major="1", GNU__sparse__minor="0", GNU__sparse__realsize="99999999999"
    )
    + damage.member(b"1.png", b"1\n0\n4\n".ljust(512, b"\0") + b"abcd")
    + TEXT,
    "an older sparse picture of pax": damage.pax(
        GNU__sparse__size="99999999999", GNU__sparse__numblocks="1", GNU__sparse__map="0,4"
    )
    + damage.member(b"1.png", b"abcd")
    + TEXT,
    "a sparse map of nonsense": damage.pax(
        GNU__sparse__major="1", GNU__sparse__minor="0", GNU__sparse__realsize="8"
    )
    + damage.member(b"1.png", b"99999999999\n" * 40)
    + TEXT,
    "an empty picture": damage.member(b"1.png", b"") + TEXT,
    "an empty text": damage.member(b"1.png", b"x") + damage.member(b"1.txt", b""),
    "a text of bytes": damage.member(b"1.png", b"x") + damage.member(b"1.txt", b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("kind", TRICKS)
def test_only_plain_files_of_a_tar_are_read(here: Path, kind: str) -> None:
    good, lines = read_tar(here / "x.tar", tricked(TRICKS[kind]))
    assert {"0.png", "9.png"} <= {*names(good)}
    rest = [p for p in good if p.name.endswith(":1.png")]
    assert all(len(p.image) < 1000 and b"not yours" not in p.image for p in rest)
    assert len(rest) == (kind in ("an empty picture", "an empty text"))
    assert len(lines) == 1 - len(rest) - (kind == "a folder")
    assert "root:" not in repr((good, lines))


LIARS = {
    "a size below zero": damage.header(b"1.png", MINUS) + TEXT,
    "a size of exabytes": damage.header(b"1.png", BIG) + TEXT,
    "a size of letters": damage.header(b"1.png", b"not a number") + TEXT,
    "a size of spaces": damage.header(b"1.png", b" " * 12) + TEXT,
    "a size of pax": damage.pax(size="123456789012345") + damage.member(b"1.png", b"x") + TEXT,
    "a size of pax below zero": damage.pax(size="-512") + damage.member(b"1.png", b"x") + TEXT,
    "a size of pax that is none": damage.pax(size="1e3") + damage.member(b"1.png", b"x") + TEXT,
    "pax of nonsense": damage.member(b"p", b"999999999 path=x\n", kind=b"x") + pair(b"1"),
    "pax without an end": damage.member(b"p", b"12", kind=b"x") + pair(b"1"),
    "pax of nothing": damage.member(b"p", b"", kind=b"x") + pair(b"1"),
    "pax of gigabytes": damage.header(b"p", 1 << 32, b"x") + pair(b"1"),
    "pax for all": damage.member(b"p", b"16 path=../../x\n", kind=b"g") + pair(b"1"),
    "pax in pax": damage.pax(path="a") * 3000 + pair(b"1"),
    "a long name of gigabytes": damage.header(b"././@LongLink", 1 << 33, b"L") + pair(b"1"),
    "a long name of a long name": damage.member(b"././@LongLink", b"x", kind=b"L") * 3000,
    "a map without an end": endless(b"1.png") + TEXT,
    "a map that is cut": endless(b"1.png")[: 3 * damage.BLOCK],
    "a wrong sum": damage.header(b"1.png", 1)[:-1] + b"!" + bytes(512) + TEXT,
    "garbage": b"\x55" * 2048,
    "a sparse file of letters": old_sparse(b"1.png", b"x" * 12, b"y" * 12, b"z" * 12) + TEXT,
}


@pytest.mark.parametrize("kind", LIARS)
def test_headers_that_lie_cost_no_pair_before_them(here: Path, kind: str) -> None:
    good, lines = read_tar(here / "x.tar", tricked(LIARS[kind]))
    assert good[0].name.endswith("x.tar:0.png") and good[0].image == b"x" * 700
    assert all(len(p.image) < 4000 for p in good)
    assert all(line.isprintable() for line in lines)


def test_many_headers_that_say_nothing_are_no_recursion(here: Path) -> None:
    long = damage.member(b"././@LongLink", b"n" * 300, kind=b"L")
    good, _ = read_tar(here / "x.tar", pair(b"0") + long * 5000 + END)
    assert names(good) == ["0.png"]


@pytest.mark.parametrize("name", [b"/etc/x", b"../../x", b"~/x", b"a/../../x", b"C:\\x", b"//x/x"])
def test_names_are_names(here: Path, name: bytes) -> None:
    good, lines = read_tar(here / "x.tar", tricked(pair(name, b"n")))
    assert names(good) == ["0.png", os.fsdecode(name + b".png"), "9.png"] and not lines
    assert good[1].image == b"n" * 700 and good[1].text["caption"] == "of n"


@pytest.mark.parametrize(
    "name", [b"\xff\xfe", b"a\nb", b"\x1b[31mred", b"\x1b]0;title\x07", b"\xe2\x80\xae", b"a\tb"]
)
def test_names_never_reach_a_terminal_raw(here: Path, name: bytes) -> None:
    spoilt = damage.member(name + b".png", b"x") + damage.member(name + b".json", b"{")
    good, lines = read_tar(here / "x.tar", tricked(spoilt))
    assert names(good) == ["0.png", "9.png"]
    (line,) = lines
    assert line.isprintable() and line.isascii() and ".png" in line


def test_bytes_after_the_end_change_nothing(here: Path) -> None:
    tar = pair(b"0") + pair(b"1") + END
    for i, rest in enumerate((b"garbage", b"\x55" * 5000, bytes(10_240))):
        good, _ = read_tar(here / f"{i}.tar", tar + rest)
        assert names(good) == ["0.png", "1.png"]


def test_a_tar_after_a_tar(here: Path) -> None:
    good, lines = read_tar(here / "x.tar", pair(b"0") + END + pair(b"1") + END)
    assert names(good)[0] == "0.png" and not lines


def test_two_of_the_same_name(here: Path) -> None:
    good, _ = read_tar(here / "x.tar", pair(b"0", b"a") + pair(b"1", b"b") + pair(b"0", b"c") + END)
    assert [(p.image[:1], p.text["caption"]) for p in good] == [
        (b"a", "of a"),
        (b"b", "of b"),
        (b"c", "of c"),
    ]


def test_files_beside_a_tar_are_never_used_for_it(here: Path) -> None:
    raw = tricked(damage.header(b"1.png", 0, b"2", b"x.tar") + TEXT)
    good, _ = read_tar(here / "x.tar", raw)
    assert names(good) == ["0.png", "9.png"]
    with tarfile.open(here / "x.tar") as tar:
        assert tar.getmember("1.png").issym()
