"""A folder of pictures is its pairs, by the captions beside them or the folders they are in."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest

from clip_jax.data.example import Pair
from clip_jax.data.images.decoding import decode
from clip_jax.data.sources import SourceOptions, open_source
from clip_jax.data.sources.folders import MAX_TEXT, FolderSource
from clip_jax.io.paths import expand
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
            "a/1.x.TXT": "beside the json",
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
        Pair(
            b"1",
            {"caption": "one", "alt": "eins", "txt": "beside the json"},
            f"{tmp_path}/a/1.x.PNG",
        ),
        Pair(b"4", {"caption": "four", "txt": "four"}, f"{tmp_path}/a/4.small.jpg"),
        Pair(b"B", {"caption": "a bee", "txt": "a bee"}, f"{tmp_path}/b.jpg"),
    ]
    assert FolderSource(str(tmp_path)).opening_report().to_dict() == {
        **{"seen": 12, "used": 7, "unit": "files", "notes": ()},
        "left_out": {
            "no_text": {"count": 1, "example": "a/nothing is said.webp"},
            "no_picture": {"count": 1, "example": "a/3.txt"},
            "unknown_ending": {"count": 1, "example": "a/6.svg"},
            "hidden": {"count": 2, "example": ".hidden"},
        },
    }


@pytest.mark.parametrize("end", ["jpg", "png", "webp", "gif", "bmp", "ppm", "pgm", "tif", "TIFF"])
def test_every_kind_of_picture_counts(tmp_path: Path, end: str) -> None:
    """GTSRB comes as ppm, UC Merced as tif; what torchvision finds in a folder is found here."""
    kind = {"jpg": "JPEG", "tif": "TIFF", "pgm": "PPM"}.get(end, end.upper())
    write(tmp_path, {"road/1.jpg": encoded(picture()), f"sign/2.{end}": encoded(picture(), kind)})
    assert [decode(p.image, p.name).mode for p in pairs(tmp_path)] == ["RGB", "RGB"]


def test_folder_names_are_labels(tmp_path: Path) -> None:
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
    write(tmp_path, {"z/1.jpg": b"z"})
    _, pair = pairs(tmp_path)
    assert pair.image == b"x" and pair.text["label"] == "é ☃"
    assert pair.name == str(folder / name)


def test_workers_get_a_source_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, {"a/1.jpg": b"1", "b/2.jpg": b"2"})
    source = FolderSource(str(tmp_path))
    again = pickle.loads(pickle.dumps(source))
    assert [again[i] for i in range(2)] == [source[i] for i in range(2)]


def left_out(folder: Path) -> dict[str, int]:
    """What opening left out; a part of what was seen."""
    report = open_source(str(folder)).opening_report()
    return {reason: item.count for reason, item in report.left_out.items()}


def test_links_of_the_user_are_followed_and_loops_end(tmp_path: Path) -> None:
    write(tmp_path, {"dogs/1.jpg": b"1", "all/dogs/2.jpg": b"2", "out.jpg": b"3"})
    folder = write(tmp_path / "in", {"cat/4.jpg": b"4", "cat/deep/er/5.jpg": b"5"})
    (folder / "dog").symlink_to(tmp_path / "dogs")
    (folder / "hound").symlink_to(Path("..") / "all" / "dogs")
    (folder / "cat" / "out.jpg").symlink_to(tmp_path / "out.jpg")
    assert {p.image: p.text["label"] for p in pairs(folder)} == {
        **{b"1": "dog", b"2": "hound", b"3": "cat", b"4": "cat", b"5": "er"}
    }
    assert left_out(folder) == {}
    (folder / "cat" / "deep" / "up").symlink_to(folder)
    (folder / "again").symlink_to(tmp_path / "dogs")  # the first name in order is its name
    (folder / "circle").symlink_to(folder / "circle")
    (folder / "gone.jpg").symlink_to(tmp_path / "gone.jpg")
    os.mkfifo(folder / "cat" / "pipe.jpg")
    assert {p.image: p.text["label"] for p in pairs(folder)} == {
        **{b"1": "again", b"2": "hound", b"3": "cat", b"4": "cat", b"5": "er"}
    }
    assert left_out(folder) == {"repeated": 2, "unreadable": 3}


def test_a_snapshot_of_the_hub_is_a_folder(tmp_path: Path) -> None:
    """huggingface_hub keeps a revision as links into a folder of blobs."""
    blobs = write(tmp_path / "blobs", {"aa": b"1", "bb": "one", "cc": b"2", "dd": "two"})
    folder = tmp_path / "snapshots" / "0123abc"
    for name, blob in {"1.jpg": "aa", "1.txt": "bb", "x/2.jpg": "cc", "x/2.txt": "dd"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(os.path.relpath(blobs / blob, (folder / name).parent))
    assert [(p.image, p.text["caption"]) for p in pairs(folder)] == [(b"1", "one"), (b"2", "two")]
    assert left_out(folder) == {}


def test_one_text_does_not_make_the_others_vanish_unsaid(tmp_path: Path) -> None:
    names = [f"{label}/{i}.jpg" for label in ("cat", "dog") for i in range(3)]
    write(tmp_path, {**dict.fromkeys(names, b"x"), "cat/1.txt": "one", "dog/7.txt": "no picture"})
    report = open_source(str(tmp_path)).opening_report()
    (note,) = report.notes
    assert "only 1 of 6 images have a text" in note and str(tmp_path) in note
    assert left_out(tmp_path) == {"no_text": 5, "no_picture": 1}
    assert any(line.startswith("  no_text 5: ") for line in report.lines("x"))


SILENT = [
    ["train/1.jpg", "train/2.jpg"],
    ["train/1.jpg", "val/2.jpg", "test/3.jpg"],
    ["Images/1.jpg", "Images/2.jpg"],
    ["images_001/1.jpg", "images_002/2.jpg"],
    ["cat/1.jpg", "cat/2.jpg"],
    ["train/1.jpg", "val/1.jpg", "cat/1.jpg"],
    ["1.jpg"],
]


@pytest.mark.parametrize("names", SILENT, ids="+".join)
def test_splits_single_classes_and_words_for_pictures_are_no_captions(
    tmp_path: Path, names: list[str]
) -> None:
    write(tmp_path, dict.fromkeys(names, b"x"))
    refused(lambda: open_source(str(tmp_path)), f"{tmp_path} holds images of which nothing")


def test_folders_that_are_no_captions_are_left_out_of_classes(tmp_path: Path) -> None:
    names = ["cat/1.jpg", "dog/1.jpg", "train/1.jpg", "test/1.jpg", "images/1.jpg", "1.jpg"]
    write(tmp_path, dict.fromkeys(names, b"x"))
    assert [p.text["label"] for p in pairs(tmp_path)] == ["cat", "dog"]
    assert left_out(tmp_path) == {"no_text": 4}
    vehicles = write(tmp_path / "vehicles", dict.fromkeys(["bus/1.jpg", "train/1.jpg"], b"x"))
    assert [p.text["label"] for p in pairs(vehicles)] == ["bus", "train"], "which is one of them"
    splits = [f"{split}/{label}/1.jpg" for split in ("train", "test") for label in ("cat", "dog")]
    nested = write(tmp_path / "nested", dict.fromkeys(splits, b"x"))
    assert [p.text["label"] for p in pairs(nested)] == ["cat", "dog"] * 2


def test_masks_in_folders(tmp_path: Path) -> None:
    beside = write(tmp_path / "beside", {"0.png": b"p", "0.seg.png": b"m", "0.txt": "zero"})
    labels = {f"{label}/0{end}": end.encode() for label in "ab" for end in (".png", ".Mask.png")}
    classes = write(tmp_path / "classes", labels)
    assert [p.image for p in pairs(beside)] == [b"p"]
    assert [p.image for p in pairs(classes)] == [b".png"] * 2
    assert left_out(beside) == {"extra_picture": 1} and left_out(classes) == {"extra_picture": 2}
    assert open_source(str(beside), SourceOptions("seg"))[0][:2] == (
        b"m",
        {"txt": "zero", "caption": "zero"},
    )
    assert open_source(str(classes), SourceOptions("mask.png"))[1].image == b".Mask.png"
    assert (
        len({open_source(str(beside), SourceOptions(image)).fingerprint for image in ("", "seg")})
        == 2
    )
    refused(
        lambda: open_source(str(classes), SourceOptions("depth")),
        "no image",
        "config.data.image='depth'",
    )


def test_a_folder_of_something_else_says_what_to_use(tmp_path: Path) -> None:
    img2dataset = ["00000.tar", "00000.parquet", "00000_stats.json", "00001.tar"]
    tars = write(tmp_path / "tars", dict.fromkeys(img2dataset, b"x"))
    refused(lambda: open_source(str(tars)), "holds no image", f"use {tars}/*.tar")
    tables = write(tmp_path / "tables", {"data/0.parquet": b"x", "README.md": b"x"})
    refused(lambda: open_source(str(tables)), f"use {tables}/data/*.parquet")
    packed = write(tmp_path / "packed", {"0.tar.gz": b"x", "x.png": b"x"})
    refused(lambda: open_source(str(packed)), "nothing is said", "1 .tar.gz files: unpack them")


def test_a_table_beside_classes_is_not_passed_over(tmp_path: Path) -> None:
    names = [f"{label}/{label}{i}.jpg" for label in ("a1", "b2") for i in range(3)]
    labels = "".join(f"{name},{name[:2]}\n" for name in names)
    write(tmp_path, {**dict.fromkeys(names, b"x"), "labels.csv": labels, "README.txt": "a " * 99})
    assert len(pairs(tmp_path)) == 6 and left_out(tmp_path) == {
        "no_picture": 1,
        "unknown_ending": 1,
    }
    lines = "".join(f"{name},a dog runs over the wet grass\n" for name in names)
    for table in ("x/descriptions.csv", "descriptions.txt", "x.parquet"):
        write(tmp_path, {table: lines})
        refused(lambda: open_source(str(tmp_path)), f"{tmp_path}/{table}", "give that table")
        (tmp_path / table).unlink()


def test_a_folder_without_pairs_is_a_one_line_error(tmp_path: Path) -> None:
    empty = write(tmp_path / "empty", {"x.txt": "x"})
    refused(lambda: open_source(str(empty)), f"{empty} holds no image")
    silent = write(tmp_path / "silent", {"a/1.jpg": b"1", "2.jpg": b"2"})
    refused(lambda: open_source(str(silent)), f"{silent} holds images of which nothing is said")
    refused(lambda: FolderSource(str(tmp_path / "gone")), f"{tmp_path}/gone cannot be read")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("1.json", "[1]", "is no object"),
        ("1.json", "{", "its text cannot be read"),
        ("1.txt", b"\xff", "its text cannot be read"),
        ("1.txt", b"x" * (MAX_TEXT + 1), "is over 1 MiB"),
    ],
)
def test_a_file_without_a_usable_caption_is_named(
    tmp_path: Path, name: str, data: bytes | str, message: str
) -> None:
    write(tmp_path, {"1.jpg": encoded(picture()), name: data})
    refused(lambda: open_source(str(tmp_path))[0], f"{tmp_path}/{name}", message)


def test_a_picture_that_went_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"a/1.jpg": b"1", "b/1.jpg": b"1"})
    source = open_source(str(tmp_path))
    (tmp_path / "a" / "1.jpg").unlink()
    refused(lambda: source[0], f"{tmp_path}/a/1.jpg cannot be read")


def test_text_without_the_picture(tmp_path: Path) -> None:
    write(tmp_path / "a", {"1.jpg": b"1", "1.cls": "4", "2.jpg": b"2", "2.txt": "two"})
    write(tmp_path / "b", {"cat/1.jpg": b"1", "dog/1.jpg": b"1"})
    for folder in (tmp_path / "a", tmp_path / "b"):
        source = FolderSource(str(folder))
        expected = [(source[i].text, source[i].name) for i in range(len(source))]
        for picture_file in folder.rglob("*.jpg"):
            picture_file.unlink()
        assert [source.text(i) for i in range(len(source))] == expected
    assert expected == [
        ({"caption": name, "label": name}, f"{tmp_path}/b/{name}/1.jpg") for name in ("cat", "dog")
    ]


def test_archives_in_several_folders_are_all_named(tmp_path: Path) -> None:
    for name in ("a/0.tar", "b/c/1.tar", "b/c/2.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    refused(lambda: open_source(str(tmp_path)), "3 .tar files", f"use {tmp_path}/**/*.tar")
    assert [Path(path).name for path in expand(f"{tmp_path}/**/*.tar")] == [
        "0.tar",
        "1.tar",
        "2.tar",
    ]
