"""Files of counts in the layouts in which they are published."""

import gzip

import pytest

from clip_jax.curation.queries.count_files import read_counts
from clip_jax.errors import UserError


def read(tmp_path, content, words=1, name="counts.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(" ".join(row), count) for row, count in read_counts(str(path), words, quiet=True)]


@pytest.mark.parametrize(
    "content, name",
    [
        ("the\t12\nstraße\t3\n1999\t2", "a.tsv"),
        ("12\tthe\r\n3\tstraße\r\n2\t1999\r\n", "a.txt"),
        ("the 12\nstraße 3\n\n1999 2\n", "enwiki-unigram.txt"),
        ("    12 the\n     3 straße\n     2 1999\n", "uniq-c.txt"),
        ("word,count\nthe,12\nstraße,3\n1999,2\n", "a.csv"),
        ("\ufeffword\tcount\nthe\t12\nstraße\t3\n1999\t2\n", "a.tsv"),
    ],
)
def test_words_and_counts(tmp_path, content, name):
    expected = [("the", 12), ("straße", 3), ("1999", 2)]
    assert read(tmp_path, content, name=name) == expected
    assert read(tmp_path, gzip.compress(content.encode()), name=f"{name}.gz") == expected


@pytest.mark.parametrize(
    "content",
    [
        "4\tred\tfox\n2\t9\tlives\n",
        "red\tfox\t4\n9\tlives\t2",
        "red fox\t4\n9 lives\t2\n",
        "4\tred fox\n2\t9 lives\n",
        "red fox 4\n9 lives 2\n",
    ],
)
def test_bigrams_and_counts(tmp_path, content):
    assert read(tmp_path, content, 2) == [("red fox", 4), ("9 lives", 2)]


@pytest.mark.parametrize(
    "content, line",
    [
        ("the\t12\nfox\n", "line 2: b'fox' has no count where the others have it"),
        ("the\t12\nfox\t-3\n", "line 2: .* has no count"),
        ("the\t12\nfox\tx\t3\n", "line 2: .* is not one word and a count"),
        (b"the\t12\n\xff\t3\n", r"line 2: b'\\xff\\t3' is not UTF-8"),
        ("the\t12\nfox\t" + "9" * 5000, "line 2: .* has too large a count"),
        ("the\t12\n" + "x" * 70_000 + "\t3", "line 2: over 65,536 bytes"),
        ("the\t12\n" + "x" * 70_000 + "\t3\nfox\t3\n", "line 2: over 65,536 bytes"),
        ("1\t12\n2\t3\n", "both columns are numbers"),
        ("the\nfox\n", "line 1: b'the' is no word with a count"),
        ("", "is empty"),
        ("the\t1".encode("utf-16"), "is UTF-16"),
    ],
)
def test_what_is_no_count_is_named(tmp_path, content, line):
    with pytest.raises(UserError, match=line):
        read(tmp_path, content)


def test_damaged_csv_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"line 2: b'a\\rb,3' has no count"):
        read(tmp_path, "the,12\na\rb,3\n", name="a.csv")
