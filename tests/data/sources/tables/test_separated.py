"""CSV as spreadsheets and people write it: what is harmless is read, the rest is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from clip_jax.data.sources import SourceOptions, open_source
from support import refused

pytest.importorskip("pyarrow")

EXPECTED = [("b.jpg", "a, cat"), ("in/a.jpg", "a dog")]
SPELLINGS = {
    "columns left empty": 'image,caption,,\nb.jpg,"a, cat",,\nin/a.jpg,a dog,,\n',
    "a column without a name": 'image,caption,\nb.jpg,"a, cat",x\nin/a.jpg,a dog,y\n',
    "separators at the ends of rows": 'image,caption\nb.jpg,"a, cat",\nin/a.jpg,a dog,\n',
    "spaces": '"image", "caption"\n"b.jpg", "a, cat"\n"in/a.jpg", "a dog"\n',
    "spaces before": 'image , caption\nb.jpg , "a, cat"\nin/a.jpg , a dog\n',
    "backslashes": 'image,caption\n.\\b.jpg,"a, cat"\nin\\a.jpg,a dog\n',
    "blank lines": '\n\nimage,caption\n\nb.jpg,"a, cat"\n\n\nin/a.jpg,a dog\n\n',
    "semicolons": "image;caption;\nb.jpg;a, cat;\nin/a.jpg;a dog;\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, _ in EXPECTED:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(name.encode())
    return tmp_path / "data"


@pytest.mark.parametrize("text", SPELLINGS.values(), ids=[*SPELLINGS])
def test_harmless_spellings(folder: Path, text: str) -> None:
    (folder / "x.csv").write_text(text)
    source = open_source(str(folder / "x.csv"))
    pairs = [source[i] for i in range(len(source))]
    assert [(pair.image.decode(), pair.text) for pair in pairs] == [
        (name, {"caption": caption}) for name, caption in EXPECTED
    ]
    notes = source.opening_report().notes
    assert not any("quotation" in note for note in notes), "no cell holds a line break"


def test_line_breaks_are_counted_from_where_a_row_begins(folder: Path) -> None:
    (folder / "x.csv").write_text('image,caption\n\n\nb.jpg,"a\nb"\n\nb.jpg,"c\nd\ne"\nb.jpg,f\n')
    (note,) = open_source(str(folder / "x.csv")).opening_report().notes
    assert "2 rows have line breaks" in note and "of 3 lines, from line 7" in note


def test_backslashes_do_not_lead_out_of_the_folder(folder: Path) -> None:
    (folder.parent / "out.jpg").write_bytes(b"out")
    (folder / "x.csv").write_text("image,caption\n..\\out.jpg,x\nb.jpg,y\n")
    source = open_source(str(folder / "x.csv"))
    refused(lambda: source[0], "leaves", folder)
    (folder / "..\\out.jpg").write_bytes(b"a name with a backslash")
    assert source[0].image == b"a name with a backslash"


def test_a_cell_too_many_is_still_a_broken_row(folder: Path) -> None:
    (folder / "x.csv").write_text("image,caption\nb.jpg,a, cat\n")
    refused(lambda: open_source(str(folder / "x.csv")), "line 2", "3 cells", "quote cells")


def test_marks_that_backslashes_escape_are_reported(folder: Path) -> None:
    (folder / "x.csv").write_text('image,caption\nb.jpg,x\nb.jpg,"say \\"a\\" b"\n')
    (note,) = open_source(str(folder / "x.csv")).opening_report().notes
    assert "1 rows, such as line 3" in note and '\\"' in note


def test_a_missing_picture_leads_to_the_root(folder: Path) -> None:
    (folder / "x.csv").write_text("image,caption\nno.jpg,x\n")
    source = open_source(str(folder / "x.csv"))
    refused(lambda: source[0], folder / "no.jpg", "No such file", "config.data.root")


def test_the_line_in_which_excel_names_the_separator(tmp_path: Path) -> None:
    for name, separator in {"sep=;": ";", '"SEP=,"': ",", "sep=\t": "\t"}.items():
        path = tmp_path / "x.csv"
        lines = [name, "filepath,caption", 'b.jpg,"a, b; c"', "b.jpg", "b.jpg,two"]
        path.write_text("\r\n".join(lines).replace("h,c", f"h{separator}c").replace(
            "g,", f"g{separator}"))  # fmt: skip
        source = open_source(str(path), SourceOptions(max_bad_fraction=0.5))
        assert [source.text(i)[0]["caption"] for i in range(2)] == ["a, b; c", "two"]
        report = source.opening_report()
        assert "line 4: it has 1 cells" in report.left_out["unreadable"].example
        assert report.notes == ()


def test_a_picture_of_json_lines_may_be_an_object(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(b"B")
    path = tmp_path / "x.jsonl"
    path.write_text('{"image": {"path": "b.jpg"}, "caption": "one"}\n')
    assert open_source(str(path))[0][:2] == (b"B", {"caption": "one"})
