"""A folder of pictures is its pairs, by the captions beside them or the folders they are in."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest

from clip_jax.data.folders import MAX_TEXT, FolderSource
from clip_jax.data.images import decode
from clip_jax.data.pairs import Pair
from clip_jax.data.sources import open_source
from support import encoded, picture, refused


def write(folder: Path, content: dict[str, bytes | str]) -> Path:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def pairs(folder: Path) -> list[Pair]:
    source = open_source(str(folder))
    assert isinstance(source, FolderSource)
    return [source[i] for i in range(len(source))]


def test_captions_stand_beside_their_pictures(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "b.jpg": b"B",
            "b.txt": " a bee\n",
            "a/1.x.PNG": b"1",
            "a/1.x.json": json.dumps({"caption": "one", "alt": "eins"}),
            "a/1.x.txt": "json comes first",
            "a/nothing is said.webp": b"2",
            "a/3.txt": "no picture",
            "a/4.small.jpg": b"4",
            "a/4.txt": "four",
            ".hidden.jpg": b"4",
            ".hidden/5.jpg": b"5",
            "a/6.svg": b"6",
        },
    )
    assert pairs(tmp_path) == [
        Pair(b"1", {"caption": "one", "alt": "eins"}, f"{tmp_path}/a/1.x.PNG"),
        Pair(b"4", {"caption": "four"}, f"{tmp_path}/a/4.small.jpg"),
        Pair(b"B", {"caption": "a bee"}, f"{tmp_path}/b.jpg"),
    ]
    assert FolderSource(str(tmp_path)).opening_report().left_out["no_text"].count == 1


@pytest.mark.parametrize("end", ["jpg", "png", "webp", "gif", "bmp", "ppm", "pgm", "tif", "TIFF"])
def test_every_kind_of_picture_counts(tmp_path: Path, end: str) -> None:
    """GTSRB comes as ppm, UC Merced as tif; what torchvision finds in a folder is found here."""
    kind = {"jpg": "JPEG", "tif": "TIFF", "pgm": "PPM"}.get(end, end.upper())
    write(tmp_path, {"sign/1.jpg": encoded(picture()), f"sign/2.{end}": encoded(picture(), kind)})
    assert [decode(p.image, p.name).mode for p in pairs(tmp_path)] == ["RGB", "RGB"]


def test_or_folders_say_what_their_pictures_show(tmp_path: Path) -> None:
    names = ["golden_retriever/1.jpg", "cat/2.jpg", "cat/more/tabby cat/3.jpeg"]
    write(tmp_path, dict.fromkeys(names, b"x"))
    assert [(Path(p.name).name, p.text) for p in pairs(tmp_path)] == [
        ("2.jpg", {"caption": "cat", "label": "cat"}),
        ("3.jpeg", {"caption": "tabby cat", "label": "tabby cat"}),
        ("1.jpg", {"caption": "golden retriever", "label": "golden_retriever"}),
    ]


def test_the_fingerprint_changes_with_the_files(tmp_path: Path) -> None:
    write(tmp_path, {"a/1.jpg": b"1", "a/1.txt": "one", "b/2.jpg": b"2", "b/2.txt": "two"})
    prints = [FolderSource(str(tmp_path)).fingerprint, FolderSource(str(tmp_path)).fingerprint]
    for name, data in {
        "a/1.txt": "eins",
        "b/2.jpg": b"22",
        "c/3.jpg": b"3",
        "c/3.txt": "x",
    }.items():
        write(tmp_path, {name: data})
        prints.append(FolderSource(str(tmp_path)).fingerprint)
    assert prints[0] == prints[1]
    assert len({*prints}) == 4, "what is not described is no pair"


def test_names_of_any_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "é ☃"
    name = os.fsdecode(b"\xff\xfe \n.jpg")
    write(folder, {name: b"x"})
    (found,) = pairs(tmp_path)
    assert found.image == b"x" and found.text["label"] == "é ☃"
    assert found.name == str(folder / name)


def test_workers_get_a_source_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, {"a/1.jpg": b"1", "a/2.jpg": b"2"})
    source = FolderSource(str(tmp_path))
    again = pickle.loads(pickle.dumps(source))
    assert [again[i] for i in range(2)] == [source[i] for i in range(2)]


def test_links_stay_in_the_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {"a/1.jpg": b"1"})
    write(tmp_path, {"out.jpg": b"secret", "elsewhere/2.jpg": b"2"})
    (folder / "a" / "link.jpg").symlink_to(folder / "a" / "1.jpg")
    (folder / "elsewhere").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(folder / "a" / "pipe.jpg")
    assert [p.image for p in pairs(folder)] == [b"1", b"1"]
    (folder / "a" / "out.jpg").symlink_to(tmp_path / "out.jpg")
    refused(lambda: open_source(str(folder)), f"{folder}/a/out.jpg is a link out of the folder")


def test_what_is_no_set_of_pairs_is_one_line(tmp_path: Path) -> None:
    empty = write(tmp_path / "empty", {"x.txt": "x"})
    refused(lambda: open_source(str(empty)), f"{empty} holds no picture")
    silent = write(tmp_path / "silent", {"a/1.jpg": b"1", "2.jpg": b"2"})
    refused(lambda: open_source(str(silent)), f"{silent} holds pictures of which nothing is said")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("1.json", "[1]", "is no object"),
        ("1.json", "{", "its text cannot be read"),
        ("1.txt", b"\xff", "its text cannot be read"),
        ("1.txt", b"x" * (MAX_TEXT + 1), "is over 1 MiB"),
    ],
)
def test_a_caption_that_is_none_is_named(
    tmp_path: Path, name: str, data: bytes | str, said: str
) -> None:
    write(tmp_path, {"1.jpg": encoded(picture()), name: data})
    refused(lambda: open_source(str(tmp_path))[0], f"{tmp_path}/{name}", said)


def test_a_picture_that_went_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"a/1.jpg": b"1"})
    source = open_source(str(tmp_path))
    (tmp_path / "a" / "1.jpg").unlink()
    refused(lambda: source[0], f"{tmp_path}/a/1.jpg cannot be read")


def test_text_without_the_picture(tmp_path: Path) -> None:
    write(tmp_path / "a", {"1.jpg": b"1", "1.cls": "4", "2.jpg": b"2", "2.txt": "two"})
    write(tmp_path / "b", {"cat/1.jpg": b"1"})
    for folder in (tmp_path / "a", tmp_path / "b"):
        source = FolderSource(str(folder))
        expected = [(source[i].text, source[i].name) for i in range(len(source))]
        for picture_file in folder.rglob("*.jpg"):
            picture_file.unlink()
        assert [source.text(i) for i in range(len(source))] == expected
    assert expected == [({"caption": "cat", "label": "cat"}, f"{tmp_path}/b/cat/1.jpg")]
