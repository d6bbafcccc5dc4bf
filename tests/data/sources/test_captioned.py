"""Folders whose captions stand in one table, as common data sets have them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip_jax.data import captions
from clip_jax.data.sources import SourceOptions, TableOptions, open_source
from clip_jax.data.sources.captioned import CaptionedSource
from clip_jax.data.sources.folders import FolderSource
from clip_jax.data.sources.walk import walk
from clip_jax.errors import UserError
from support import refused, says


def write(folder: Path, content: dict[str, bytes | str]) -> Path:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def captions_of(spec: object, *more: str) -> dict[bytes, Any]:
    source = open_source(str(spec), SourceOptions(*more))
    assert isinstance(source, CaptionedSource)
    return {source[i].image: source[i].text["caption"] for i in range(len(source))}


def left_out(spec: object) -> dict[str, int]:
    report = open_source(str(spec)).opening_report()
    assert report.seen == report.used + sum(
        reason_count.count for reason_count in report.left_out.values()
    )
    return {reason: reason_count.count for reason, reason_count in report.left_out.items()}


PICTURES: dict[str, bytes | str] = {f"train/{i}.jpg": str(i).encode() for i in range(3)}
METADATA = {
    "metadata.csv": 'file_name,text\ntrain/0.jpg,"zero, and"\ntrain/1.jpg,one\ntrain/2.jpg,two\n',
    "train/metadata.csv": "file_name,caption\n0.jpg,zero, and\n1.jpg,one\n2.jpg,two\n",
    "metadata.jsonl": "".join(
        json.dumps({"file_name": f"train/{i}.jpg", "text": text}) + "\n"
        for i, text in enumerate(("zero, and", "one", "two"))
    ),
    "captions.txt": "train/0.jpg\tzero, and\ntrain/1.jpg\tone\ntrain/2.jpg\ttwo\n",
    "captions.json": json.dumps({"0.jpg": "zero, and", "1.jpg": "one", "2.jpg": "two"}),
    "x/metadata.tsv": "image\tcaption\n../train/0.jpg\tzero, and\n1.jpg\tone\n2.jpg\ttwo\n",
}


@pytest.mark.parametrize("table", METADATA)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_table_says_the_captions_not_the_folder(
    tmp_path: Path, table: str, encoding: str
) -> None:
    write(tmp_path, {**PICTURES, table: METADATA[table].encode(encoding)})
    assert captions_of(tmp_path) == {b"0": "zero, and", b"1": "one", b"2": "two"}
    assert left_out(tmp_path) == {}
    notes = open_source(str(tmp_path)).opening_report().notes
    assert notes[0] == f"captions are those of {tmp_path}/{table}"
    assert any("utf-16" in note.lower() for note in notes) == (encoding == "utf-16")


def test_parquet_is_a_table_of_captions_too(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    table = pa.table({"file_name": ["0.jpg", "1.jpg", None], "caption": ["zero", "one", "two"]})
    write(tmp_path, PICTURES)
    parquet.write_table(table, tmp_path / "train" / "metadata.parquet")
    assert captions_of(tmp_path) == {b"0": "zero", b"1": "one"}
    assert left_out(tmp_path) == {"no_text": 1, "null_picture": 1}
    (tmp_path / "train" / "metadata.parquet").write_bytes(b"PAR1 no more")
    refused(lambda: open_source(str(tmp_path)), "metadata.parquet cannot be read as a table")


LINES = [
    ("a.jpg", "a dog, running"),
    ("a.jpg", 'a "brown" dog'),
    ("b.jpg", "a cat"),
    ("b.jpg", "x"),
]
FLICKR = {
    "captions.txt": 'image,caption\na.jpg,"a dog, running"\na.jpg,"a ""brown"" dog"\n'
    "b.jpg,a cat\nb.jpg,x\n",
    "Flickr8k.token.txt": "".join(f"{n}#{i}\t{c}\n" for i, (n, c) in enumerate(LINES)),
    "results_20130124.token": "".join(f"{n}#{i}\t{c}\r\n" for i, (n, c) in enumerate(LINES)),
    "results.csv": "image_name| comment_number| comment\n"
    + "".join(f"{n}| {i}| {c}\n" for i, (n, c) in enumerate(LINES)),
}


@pytest.mark.parametrize("table", FLICKR)
def test_flickr_has_several_captions_a_picture(tmp_path: Path, table: str) -> None:
    write(tmp_path, {"Images/a.jpg": b"A", "Images/b.jpg": b"B", table: FLICKR[table]})
    expected = {b"A": ["a dog, running", 'a "brown" dog'], b"B": ["a cat", "x"]}
    assert captions_of(tmp_path) == expected and left_out(tmp_path) == {}
    if not table.endswith(".csv"):  # which is a table of any kind
        assert captions_of(tmp_path / table) == expected, "the table by itself"
    source = open_source(str(tmp_path))
    text, name = source[0].text, source[0].name
    turns = [captions.fill("{caption:each}", text, name, turn=turn) for turn in range(3)]
    assert turns == [*expected[b"A"], expected[b"A"][0]]
    rng = np.random.default_rng(0)
    drawn = {captions.fill("{caption}", text, name, rng) for _ in range(50)}
    assert drawn == set(expected[b"A"]), "never several of them joined"
    assert pickle.loads(pickle.dumps(source))[0] == source[0]


def test_flickr30ks_row_without_a_bar_is_counted(tmp_path: Path) -> None:
    broken = FLICKR["results.csv"].replace("b.jpg| 3|", "b.jpg| 3  ")
    write(tmp_path, {"i/a.jpg": b"A", "i/b.jpg": b"B", "i/c.jpg": b"C", "results.csv": broken})
    assert captions_of(tmp_path)[b"B"] == "a cat"
    assert left_out(tmp_path) == {"no_text": 1, "unreadable": 1}


def coco(**changes: Any) -> str:
    images = [{"id": i, "file_name": f"{i:012}.jpg"} for i in range(3)]
    notes = [{"image_id": i, "caption": f"{i} {word}"} for i in range(2) for word in ("a", "b")]
    return json.dumps({"images": images, "annotations": notes, **changes})


def test_cocos_captions(tmp_path: Path) -> None:
    pictures: dict[str, bytes | str] = {f"train2017/{i:012}.jpg": b"%d" % i for i in range(3)}
    write(tmp_path, {**pictures, "annotations/captions_train2017.json": coco()})
    expected = {b"0": ["0 a", "0 b"], b"1": ["1 a", "1 b"]}
    assert captions_of(tmp_path) == expected and left_out(tmp_path) == {"no_text": 1}
    table = tmp_path / "annotations" / "captions_train2017.json"
    assert captions_of(table) == captions_of(table, "", str(tmp_path / "train2017")) == expected
    write(tmp_path, {"annotations/captions_val2017.json": coco()})
    refused(lambda: open_source(str(tmp_path)), "several tables", "captions_train2017.json", "give")
    assert captions_of(table) == expected
    other = write(tmp_path, {"annotations/instances.json": coco(annotations=[{"bbox": [1]}])})
    refused(lambda: open_source(f"{other}/annotations/instances.json"), "no captions", "captions_")
    refused(lambda: open_source(f"{tmp_path}/annotations/*.json"), "3 tables", "give one")


def test_every_row_and_picture_is_accounted_for(tmp_path: Path) -> None:
    rows = ["file_name,caption", "0.jpg,zero", "9.jpg,not there", ",no picture", "1.jpg, ", "2.jpg"]
    write(tmp_path, {"0.jpg": b"0", "1.jpg": b"1", "2.jpg": b"2", "x.heic": b"", "0.txt": "beside"})
    write(tmp_path, {".hidden": b"", "metadata.csv": "\n".join(rows)})
    assert captions_of(tmp_path) == {b"0": "zero"}
    assert left_out(tmp_path) == {
        **{"no_text": 3, "no_picture": 2, "null_picture": 1, "unknown_ending": 1, "hidden": 1},
        "unreadable": 1,
    }
    assert open_source(str(tmp_path)).opening_report().used == 3  # picture, row and the table


def test_names_in_a_table_stay_in_the_folder_and_links_are_the_users(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"secret.jpg": b"secret", "blobs/aa": b"A", "blobs/tt": "file_name,text\na.jpg,A\n"},
    )
    folder = tmp_path / "snapshots" / "0123"
    folder.mkdir(parents=True)
    (folder / "a.jpg").symlink_to(Path("../../blobs/aa"))
    (folder / "metadata.csv").symlink_to(Path("../../blobs/tt"))
    assert captions_of(folder) == {b"A": "A"} and left_out(folder) == {}
    for name in (
        "../../secret.jpg",
        f"{tmp_path}/secret.jpg",
        "..\\secret.jpg",
        "./../../secret.jpg",
    ):
        write(tmp_path, {"blobs/tt": f"file_name,text\na.jpg,A\n{name},S\n"})
        assert captions_of(folder) == {b"A": "A"} and left_out(folder) == {"no_picture": 1}


def test_a_name_in_two_folders_is_not_guessed(tmp_path: Path) -> None:
    table = "file_name,text\n0.jpg,zero\n1.jpg,one\nval/0.jpg,val\n"
    write(
        tmp_path, {"train/0.jpg": b"t", "val/0.jpg": b"v", "x/1.jpg": b"1", "metadata.csv": table}
    )
    assert captions_of(tmp_path) == {b"v": "val", b"1": "one"}
    assert left_out(tmp_path) == {"no_text": 1, "no_picture": 1}


def test_which_column_is_the_caption(tmp_path: Path) -> None:
    for columns, expected in {"text,n": "t", "n,Description": "2", "other": "t"}.items():
        cells = ",".join("t2"[: columns.count(",") + 1])
        write(tmp_path, {"0.jpg": b"0", "metadata.csv": f"file_name,{columns}\n0.jpg,{cells}\n"})
        assert captions_of(tmp_path) == {b"0": expected}
        notes = open_source(str(tmp_path)).opening_report().notes
        assert notes[-1].partition("{caption} is ")[2] in columns.split(",")
    source = open_source(str(write(tmp_path, {"metadata.csv": "file_name,a,b\n0.jpg,1,2\n"})))
    assert source[0].text == {"a": "1", "b": "2"}, "nothing is guessed of several"


@pytest.mark.parametrize(
    ("table", "content", "words"),
    [
        ("metadata.csv", "path_to,label\n0.jpg,cat\n", ["no table of captions"]),
        ("metadata.csv", "file_name,text\nx.jpg,cat\n", ["such as x.jpg", "config.data.root"]),
        ("metadata.csv", 'file_name,text\n0.jpg,"cat\n1.jpg,dog\n', ["line 2", "a quote"]),
        ("metadata.csv", "", ["no table of captions"]),
        ("metadata.jsonl", "{}\n", ["no table of captions"]),
        ("captions.json", "{", ["broken JSON"]),
        ("captions.json", "[" * 100_000, ["broken JSON"]),
        ("captions.json", '{"images": [], "dataset": "coco"}', ["Karpathy"]),
    ],
)
def test_a_table_that_is_blank_is_named(
    tmp_path: Path, table: str, content: str, words: list[str]
) -> None:
    write(tmp_path, {"train/0.jpg": b"0", "train/1.jpg": b"1", table: content})
    refused(lambda: open_source(str(tmp_path)), f"{tmp_path}/{table}", *words)
    write(tmp_path, {"train/0.txt": "zero", "train/1.txt": "one"})
    source = open_source(str(tmp_path))  # the texts beside the pictures say it
    assert isinstance(source, FolderSource) and source[1].text["caption"] == "one"


@pytest.mark.parametrize("name", ["x.json", "x.txt", "x.token"])
def test_a_text_file_is_never_called_a_tar(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, {name: '["hello"]' if name == "x.json" else "hello, world"}) / name
    with pytest.raises(UserError) as error:
        open_source(str(path))
    assert "tar" not in str(error.value).replace(str(tmp_path), "") and str(path) in str(
        error.value
    )
    refused(lambda: open_source(f"{tmp_path}/no.json"), f"no file {tmp_path}/no.json")


def test_broken_lines_of_json_are_counted(tmp_path: Path) -> None:
    lines = ['{"file_name": "0.jpg", "text": "zero"}', "{", "[1]", '{"text": "x"}', ""]
    write(tmp_path, {"0.jpg": b"0", "metadata.jsonl": "\n".join(lines)})
    assert captions_of(tmp_path) == {b"0": "zero"}
    assert left_out(tmp_path) == {"null_picture": 1, "unreadable": 2}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.sampled_from([*METADATA.items(), *FLICKR.items(), ("captions.json", coco())]), st.data())
def test_a_damaged_table_is_one_line_or_accounted_for(
    tmp_path: Path, table: tuple[str, str], data: st.DataObject
) -> None:
    raw = bytearray(table[1].encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw)))
        raw[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    if data.draw(st.integers(0, 20)) == 0:
        raw[0:0] = b"x" * 200_000
    path = write(tmp_path, {**PICTURES, "a.jpg": b"A", "b.jpg": b"B"}) / "made" / table[0]
    write(tmp_path / "made", {table[0]: bytes(raw)})
    try:
        source = CaptionedSource(str(path), walk(str(tmp_path)))
    except UserError as error:
        assert says(error, path)
        return
    report = source.opening_report()
    assert report.seen == report.used + sum(
        reason_count.count for reason_count in report.left_out.values()
    )
    assert [source[i].image in {b"0", b"1", b"2", b"A", b"B"} for i in range(len(source))]


CELL = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\r\0"), max_size=20)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), CELL), min_size=1, max_size=8))
def test_any_captions_come_back(tmp_path: Path, rows: list[tuple[int, str]]) -> None:
    write(tmp_path, {f"{i}.jpg": b"%d" % i for i in range(3)})
    lines = [json.dumps({"file_name": f"{i}.jpg", "caption": caption}) for i, caption in rows]
    write(tmp_path, {"metadata.jsonl": "\n".join(lines)})
    expected: dict[bytes, list[str]] = {}
    for i, caption in rows:
        if i < 3 and caption.strip():
            several = expected.setdefault(b"%d" % i, [])
            several += [caption] * (caption not in several)
    if not expected:
        return
    captions = {
        image: [texts] if isinstance(texts, str) else texts
        for image, texts in captions_of(tmp_path).items()
    }
    assert captions == expected
    assert left_out(tmp_path).get("no_picture", 0) == sum(i > 2 for i, caption in rows)


def test_the_fingerprint_changes_with_the_table_and_the_pictures(tmp_path: Path) -> None:
    prints = set()
    for content in ({"metadata.csv": "file_name,text\n0.jpg,a\n", "0.jpg": "1"}, {"0.jpg": "22"},
                    {"metadata.csv": "file_name,text\n0.jpg,other\n"}):  # fmt: skip
        write(tmp_path, dict(content))
        prints.add(open_source(str(tmp_path)).fingerprint)
    assert len(prints) == 3


@pytest.mark.parametrize("name", ["in\\a.jpg", "in/A.JPG", "IN\\A.jpg", "./in/a.jpg"])
def test_names_as_other_systems_write_them(name: str, tmp_path: Path) -> None:
    write(tmp_path, {"in/a.jpg": b"A", "b.jpg": b"B"})
    write(tmp_path, {"metadata.csv": f"file_name,caption,\n{name},a,\nb.jpg,b,\n"})
    assert captions_of(tmp_path) == {b"A": "a", b"B": "b"}


def test_names_in_other_normal_forms(tmp_path: Path) -> None:
    write(tmp_path, {"e\u0301.jpg": b"A", "b.jpg": b"B"})
    write(tmp_path, {"metadata.csv": "file_name,caption\n\xe9.jpg,a\nb.jpg,b\n"})
    assert captions_of(tmp_path) == {b"A": "a", b"B": "b"} and not left_out(tmp_path)


def test_names_that_differ_in_case_alone_are_different_files(tmp_path: Path) -> None:
    write(tmp_path, {"a.jpg": b"a", "A.jpg": b"A", "in/A.JPG": b"in"})
    if len(list(tmp_path.iterdir())) == 3:  # a file system that tells them apart
        table = "file_name,caption\nA.jpg,two\na.jpg,one\nin/a.jpg,three\n"
        write(tmp_path, {"metadata.csv": table})
        assert captions_of(tmp_path) == {b"a": "one", b"A": "two", b"in": "three"}


@pytest.mark.parametrize("content", ["[]", '["a", "b"]', "[1]"])
def test_a_table_that_names_no_picture(content: str, tmp_path: Path) -> None:
    write(tmp_path, {"captions.json": content, "a.jpg": b"A"})
    refused(lambda: open_source(str(tmp_path / "captions.json")), "names no image")


def test_an_encoding_is_found_or_given(tmp_path: Path) -> None:
    folder = write(tmp_path, {"captions.csv": "", "1.jpg": "1", "2.jpg": "2"})
    table = folder / "captions.csv"
    table.write_bytes("file_name,caption\n1.jpg,ein Käse\n2.jpg,zwei Käse\n".encode("cp1252"))
    source = open_source(str(folder))
    assert source[0].text["caption"] == "ein Käse"
    assert any("is read as cp1252" in note for note in source.opening_report().notes)
    options = SourceOptions(table=TableOptions.from_config(encoding="cp1251"))
    assert open_source(str(folder), options)[0].text["caption"] == "ein Kдse"


def test_a_row_of_another_encoding_is_left_out(tmp_path: Path) -> None:
    folder = write(tmp_path, {"captions.csv": "", "1.jpg": "1", "2.jpg": "2", "3.jpg": "3"})
    rows = ["1.jpg,ein Käse\n".encode(), "2.jpg,☃\n".encode(), "3.jpg,Käse\n".encode("cp1252")]
    (folder / "captions.csv").write_bytes(b"file_name,caption\n" + b"".join(rows))
    source = open_source(str(folder))
    assert [source[i].text["caption"] for i in range(len(source))] == ["ein Käse", "☃"]
    left_out = source.opening_report().left_out["unreadable"]
    assert left_out.count == 1 and "line 4: it holds bytes that are not UTF-8" in left_out.example
