"""What opening leaves out is counted by a fixed list of reasons, said and written down."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.data.opening import REASONS, LeftOut, OpeningReport, Tally, all_used, quoted


@given(st.lists(st.tuples(st.sampled_from(sorted(REASONS)), st.integers(0, 3))), st.integers(0, 9))
def test_a_report_accounts_for_everything_seen(events: list[tuple[str, int]], used: int) -> None:
    tally, expected = Tally(), dict[str, int]()
    for i, (reason, count) in enumerate(events):
        tally.add(reason, f"file {i}", count)
        expected[reason] = expected.get(reason, 0) + count
    report = tally.report(used)
    assert report.metrics("x/") == {f"x/{why}": n for why, n in expected.items() if n}
    assert report.seen == used + sum(expected.values())
    for reason, item in report.left_out.items():
        first = next(i for i, (why, n) in enumerate(events) if why == reason and n)
        assert item.example == f"file {first}"
    assert len(list(report.lines("data"))) == (len(report.left_out) + 1 if report.left_out else 0)


def test_a_report_that_does_not_add_up_is_refused() -> None:
    with pytest.raises(ValueError, match="account"):
        OpeningReport(5, 3, left_out={"no_text": LeftOut(1, "x")})
    with pytest.raises(ValueError, match="Moon"):
        OpeningReport(5, 4, left_out={"Moon": LeftOut(1, "x")})


def test_a_source_has_reasons_of_its_own() -> None:
    tally = Tally()
    tally.add("too_dark", "1.jpg")
    tally.add("no_text", "2.jpg")
    report = tally.report(1)
    assert list(report.left_out) == ["no_text", "too_dark"]
    assert list(report.lines("x"))[-1] == "  too_dark 1: too dark, such as 1.jpg"
    assert report.metrics() == {"data/left_out/no_text": 1, "data/left_out/too_dark": 1}
    assert OpeningReport.from_dict(report.to_dict()) == report


def test_lines_name_the_source_the_reason_and_an_example() -> None:
    tally = Tally()
    tally.add("no_text", "cat/\x1b[31m1.jpg", 2)
    report = tally.report(1, notes=("a note",))
    assert list(report.lines("/data")) == [
        "a note",
        "/data: 2 of 3 files are left out at opening:",
        "  no_text 2: images without a text, such as cat/\\x1b[31m1.jpg",
    ]
    assert list(all_used(3, "rows").lines("/data")) == []


@given(st.text())
def test_an_example_is_short_and_printable(name: str) -> None:
    assert quoted(name).isprintable() and len(quoted(name)) <= 10 * 201
    assert quoted("x" * 9999).count("x") == 200
