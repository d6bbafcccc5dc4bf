"""The file of a list of queries: what is written is read, and what cannot be a query is named."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.curation.queries.query_list import HEADER, QueryList, read_queries, write_queries
from clip_jax.errors import UserError

PRINTABLE = st.text(
    st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=256
).filter(lambda text: text.strip())


@given(st.lists(st.tuples(PRINTABLE, st.integers(0, 10**12)), min_size=1, unique_by=lambda r: r[0]))
def test_what_is_written_is_read(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "queries.txt"
    queries, counts = zip(*rows, strict=True)
    written = QueryList(queries, counts, tuple("words+titles" for _ in rows))
    write_queries(path, written)
    assert read_queries(path) == written


def test_plain_lists_are_read(tmp_path):
    path = tmp_path / "plain.txt"
    path.write_bytes(b"\xef\xbb\xbfred fox\r\n#art\r\n[draft]\r\nstra\xc3\x9fe")
    expected = QueryList(("red fox", "#art", "[draft]", "straße"), (0,) * 4, ("",) * 4)
    assert read_queries(str(path)) == expected


def test_json_of_metaclip_is_read(tmp_path):
    path = tmp_path / "metadata.json"
    path.write_text(json.dumps(["fox", "a\u2028b", "c"]))
    assert read_queries(path).queries == ("fox", "a\u2028b", "c")
    path.write_text(json.dumps({"7": "", "fox": "w", "Fuchs": "u", "Rote Fuchs": "b", "F": "t"}))
    assert read_queries(path).sources == ("numbers", "wordnet", "words", "bigrams", "titles")
    path.write_text(json.dumps({"fox": 12}))
    assert read_queries(path).counts == (12,)


HEAD = HEADER.encode() + b"\n"


@pytest.mark.parametrize(
    "content, line",
    [
        (b"a\nb\na\n", r"line 3: 'a' stands at line 1 already"),
        (b"a\n\nb\n", r"line 2: there is no query"),
        (b"a\n \t\n", r"line 2: there is no query"),
        (b"a\n" + b"x" * 257 + b"\n", r"line 2: a query of 257 characters; at most 256"),
        (b"a\n" + b"x" * 10**6, r"line 2: over 2,048 bytes"),
        (b"a\nb\0c\n", r"line 2: .* contains a zero byte"),
        (b"a\nb\xff\n", r"line 2: b'b\\xff\\n' is not UTF-8"),
        ("a\nb\n".encode("utf-16"), r"line 1: the file is UTF-16"),
        (b"a\tb\n", r"line 1: .* contains a tab"),
        (b"", "has no queries"),
        (HEAD, "has no queries"),
        (HEAD + b"a\t1\twords\nb\n", r"line 3: 'b' is not QUERY<TAB>COUNT<TAB>SOURCES"),
        (HEAD + b"a\t-1\twords\n", "line 2: .* is not QUERY"),
        (HEAD + "a\t٣\twords\n".encode(), "line 2: .* is not QUERY"),
        (HEAD + b"a\t" + b"9" * 1000 + b"\twords\n", "line 2: the count 9+ is too large"),
        (HEAD + b"a\t1\twords\na\t2\ttitles\n", "line 3: 'a' stands at line 2"),
    ],
)
def test_what_is_no_query_is_named(tmp_path, content, line):
    path = tmp_path / "queries.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=line):
        read_queries(path)


@pytest.mark.parametrize(
    "content, line",
    [
        ('["a", 3]', "entry 2: 3 is no string"),
        ('["a", "a"]', "entry 2: 'a' stands at entry 1"),
        ('{"a": 1, "a": 2}', "entry 2: 'a' stands at entry 1"),
        ('{"en": ["a"]}', "entry 1: 'en' holds a list: give a file of one language"),
        ('{"a": null}', "neither a source nor a count"),
        ('{"a": 1e400}', "neither a source nor a count"),
        ('{"a": {"b": 1}}', "neither a source nor a count"),
        ('["a\\u0000"]', "contains a zero byte"),
        ('["\\ud800"]', "half of a surrogate"),
        ("[" * 10**5, "is not JSON"),
        ('["a"', "is not JSON"),
        ("[]", "has no queries"),
        ("[1}", "is not JSON"),
    ],
)
def test_what_is_no_query_of_json_is_named(tmp_path, content, line):
    path = tmp_path / "queries.json"
    path.write_text(content)
    with pytest.raises(UserError, match=line):
        read_queries(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.txt cannot be read \(No such file"):
        read_queries(tmp_path / "none.txt")
    with pytest.raises(UserError, match="is no file"):
        read_queries(tmp_path)
