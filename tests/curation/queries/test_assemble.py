"""Joining the candidates of sources: what is left out is counted, and limits hold."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from clip_jax.curation.queries.assemble import ORDER, Candidates, assemble, numbers


def test_sources_are_joined_and_named():
    sources = [
        Candidates("titles", [("Red fox", 90), ("fox", 80), ("A  b", 75), ("7", 70)]),
        Candidates("words", [("fox", 500), ("7", 400)], Counter({"under 100 times": 9})),
        numbers(),
        Candidates("wordnet", [("fox", 7), ("red fox", 1)]),
    ]
    queries, reports = assemble(sources)
    rows = dict(
        zip(queries.queries, zip(queries.counts, queries.sources, strict=True), strict=True)
    )
    assert rows["fox"] == (500, "words+titles+wordnet")
    assert rows["7"] == (400, "words+titles+numbers") and rows["8"] == (0, "numbers")
    assert rows["A b"] == (75, "titles")
    assert queries.queries[100:] == ("fox", "red fox", "Red fox", "A b")
    assert reports["titles"].kept == 4 and reports["titles"].new == 2
    assert reports["words"].offered == 11 and reports["words"].left_out == {"under 100 times": 9}


def test_what_cannot_be_a_query_is_counted():
    rows = [("", 1), (" ", 1), ("!", 1), ("—", 1), ("... ?", 1), ("x" * 257, 1), ("a\x07b", 1)]
    rows += [("a\tb", 1), ("a b", 1), ("😀", 1), ("C++", 1), ("$9", 1)]
    queries, reports = assemble([Candidates("titles", rows)])
    assert queries.queries == ("a b", "😀", "C++", "$9")
    assert reports["titles"].left_out == {
        "empty": 2,
        "punctuation alone": 3,
        "over 256 characters": 1,
        "control characters": 1,
        "repeated": 1,
    }


ROWS = st.lists(st.tuples(st.sampled_from("abcdef!"), st.integers(0, 9)), max_size=9)


@given(st.dictionaries(st.sampled_from(ORDER), ROWS), st.none() | st.integers(0, 6), st.data())
def test_every_candidate_is_accounted_for(offered, limit, data):
    by_source = data.draw(st.dictionaries(st.sampled_from(ORDER), st.integers(0, 3)))
    sources = [Candidates(source, rows) for source, rows in offered.items()]
    queries, reports = assemble(sources, limit, by_source)
    assert len(set(queries.queries)) == len(queries) == sum(r.new for r in reports.values())
    assert limit is None or len(queries) <= limit
    for source, report in reports.items():
        assert report.offered == len(offered[source])
        assert report.new <= by_source.get(source, 9)
        assert report.kept == sum(source in names.split("+") for names in queries.sources)
