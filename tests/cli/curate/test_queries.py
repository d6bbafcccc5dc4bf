"""`curate queries`: the list from all sources, its summary, and flags that do not fit."""

import bz2
import gzip
import json

import pytest

from clip_jax.cli.curate import run
from clip_jax.curation.queries import build as build_module
from clip_jax.curation.queries.query_list import HEADER, read_queries
from clip_jax.errors import UserError

SYNSET = "00000001 05 n 02 red_fox 0 Vulpes_vulpes 0 000 | a fox\n"


@pytest.fixture
def inputs(tmp_path):
    (tmp_path / "a.txt").write_text("The red fox ran. " * 60 + "\nrare word\n")
    (tmp_path / "b.txt.bz2").write_bytes(bz2.compress(b"the red fox, a red den\n" * 60))
    (tmp_path / "views.gz").write_bytes(gzip.compress(b"en Red_fox 99 0\nen Den 9 0\nen - 80 0\n"))
    for part in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"data.{part}").write_text(SYNSET if part == "noun" else "")
    return tmp_path


def build(folder, *flags):
    corpora = ["--corpus", str(folder / "a.txt"), str(folder / "b.txt.bz2")]
    rest = ["--page-views", f"{folder}/views*", "--wordnet", str(folder), "--synonyms", "all"]
    return run(["queries", *corpora, *rest, "--out", str(folder / "queries.txt"), *flags])


def test_the_list_of_all_sources(inputs, capsys):
    assert build(inputs, "--min-pmi", "1.5", "--min-bigram-count", "100") == 0
    lines = (inputs / "queries.txt").read_text().splitlines()
    assert lines == [
        HEADER,
        "Vulpes vulpes\t1\twordnet",
        "red fox\t120\tbigrams+wordnet",
        "red\t180\twords",
        "fox\t120\twords",
        "Red fox\t99\ttitles",
    ]
    out = capsys.readouterr().out
    assert "words: 2 of 9, 2 of them new\n  7 left out: under 100 times\n" in out
    assert "bigrams: 1 of 7, 0 of them new\n  6 left out: under 100 times\n" in out
    assert "  1 left out: under 70 views\n" in out and "queries.txt: 5 queries\n" in out
    assert not [path for path in inputs.iterdir() if path.name.startswith(".")]


def test_counts_are_saved_and_a_killed_run_goes_on(inputs, capsys, monkeypatch):
    flags = ["--numbers", "--min-count", "60", "--min-pmi", "1", "--json"]
    assert build(inputs, *flags) == 0
    expected = read_queries(inputs / "queries.txt")
    summary = json.loads(capsys.readouterr().out)
    assert summary["queries"] == len(expected) and summary["words_counted"] == 60 * 4 + 2 + 60 * 6
    assert summary["sources"]["words"]["left_out"] == {"under 60 times": 2}

    read_corpus, read = build_module.read_corpus, []

    def killed_at_the_second_file(path, quiet):
        read.append(path)
        if len(read) == 2:
            raise KeyboardInterrupt
        return read_corpus(path, quiet)

    monkeypatch.setattr(build_module, "read_corpus", killed_at_the_second_file)
    flags += ["--counts", str(inputs / "counts"), "--memory", "1"]
    with pytest.raises(KeyboardInterrupt):
        build(inputs, *flags)
    (inputs / "queries.txt").unlink()
    for _ in range(2):
        assert build(inputs, *flags) == 0
        assert read_queries(inputs / "queries.txt") == expected
    assert [path.rpartition("/")[2] for path in read] == ["a.txt", "b.txt.bz2", "b.txt.bz2"]
    assert not [path for path in inputs.rglob("*") if path.name.startswith(".")]

    (inputs / "a.txt").write_text("another text " * 60)
    assert build(inputs, *flags) == 0 and "another" in read_queries(inputs / "queries.txt").queries
    for folder in (inputs / "counts").iterdir():
        (folder / "bigrams-00000.npy").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"counts/a\.txt-\w+ is damaged \(.*\): delete it"):
        build(inputs, *flags)


def test_published_counts_in_place_of_a_corpus(inputs):
    (inputs / "words.csv").write_text("word,count\nred,200\nfox,150\nrare,3\n")
    (inputs / "bigrams.tsv").write_text("120\tred\tfox\n3\trare\tfox\n")
    counts = ["--word-counts", f"{inputs}/words.csv", "--bigram-counts", f"{inputs}/bigrams.tsv"]
    out = inputs / "queries.txt"
    assert run(["queries", *counts, "--min-pmi", "0.5", "--out", str(out)]) == 0
    # log2(120 · 353 / (200 · 150)) = 0.498; log2(3 · 353 / (3 · 150)) = 1.235
    assert read_queries(out).queries == ("red", "fox", "rare fox")
    assert run(["queries", *counts, "--min-pmi", "0.49", "--out", str(out)]) == 0
    assert read_queries(out).queries == ("red", "fox", "rare fox", "red fox")


def test_limits(inputs, capsys):
    assert build(inputs, "--min-count", "1", "--limit", "words=3", "--limit", "5") == 0
    queries = read_queries(inputs / "queries.txt").queries
    assert queries == ("Vulpes vulpes", "red fox", "red", "fox", "The")
    captured = capsys.readouterr()
    assert "left out: over the limit of 3 words" in captured.out
    assert "left out: over the limit of 5 in all" in captured.out
    assert "can reach --min-pmi 30; the highest possible is 9.2" in captured.err


@pytest.mark.parametrize(
    "flags, line",
    [
        ([], "there is no source of queries"),
        (["--bigram-counts", "x", "--wordnet", "x"], "--bigram-counts needs --word-counts"),
        (["--titles", "x"], "--titles without --page-views"),
        (["--counts", "x", "--wordnet", "x"], "--counts saves the counts of a --corpus"),
        (["--wordnet", "x", "--limit", "verbs=3"], "--limit 'verbs=3': give N or SOURCE=N"),
        (["--wordnet", "x", "--language", "English!"], "give its code, such as en"),
        (["--corpus", "none.txt"], r"no file none\.txt"),
        (["--corpus", __file__, __file__], r"test_queries\.py is given more than once"),
        (["--corpus", "none", "--segmenter", "none"], "no segmenter has this name"),
        (["--wordnet", "x", "--min-pmi", "nan"], "nan must be a number"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(tmp_path, monkeypatch, flags, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=line):
        run(["queries", *flags, "--out", "queries.txt"])
    with pytest.raises(UserError, match="is a folder: give the name of a file"):
        run(["queries", "--wordnet", "x", "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())
