"""`curate inspect`: the pairs of a query against a search of its own, and what strangers write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation.report.test_page import Reader

from clip_jax.cli.curate import run
from clip_jax.curation import facts
from clip_jax.curation.queries.matching import normalize
from clip_jax.data.sources import open_source
from curation import strangers
from support import refused


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return strangers.curate(tmp_path_factory.mktemp("pool"), "--chunk", "25")


def inspect(out: Path, *words: str) -> int:
    return run(["inspect", "--in", str(out), *words])


def values(out: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert inspect(out, "--json", *words) == 0
    return json.loads(capsys.readouterr().out)


def test_all_pairs_of_a_query_are_found(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = values(out, capsys, "red house", "--top", "1000")
    source = open_source(str(out.parent / "{00000..00002}.tar"))
    broken = {f * 60 + i for f in range(3) for i in (7, 27, 47)}
    expected = [
        i
        for i in range(len(source))
        if i not in broken and " red house " in normalize(source[i].text["caption"])
    ]
    names = [str(out.parent / f"{i // 60:05}.tar") for i in expected]
    pairs = found["pairs"]
    assert [(p["file"], p["pair"]) for p in pairs] == [
        (name, i % 60) for name, i in zip(names, expected, strict=True)
    ]
    assert all("red house" in pair["caption"] for pair in pairs)
    assert sum(found["reasons"].values()) == len(expected)
    (counts,) = found["counts"]
    kept, balance = (found["reasons"].get(name, 0) for name in ("kept", "balance"))
    assert (counts["before"], counts["after"]) == (kept + balance, kept)
    assert counts["p"] == 20 / max(20, counts["before"])
    bits = [np.fromfile(out / f"selection/{n:05}.bits", np.uint8) for n in range(3)]
    selected = np.concatenate([np.unpackbits(b, count=60) for b in bits])
    is_kept = [pair["reason"] == "kept" for pair in pairs]
    assert is_kept == selected[expected].astype(bool).tolist()


def test_pairs_are_chosen(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = values(out, capsys, "cat", "--top", "1000")["pairs"]
    some = values(out, capsys, "cat", "--top", "7")["pairs"]
    assert len(some) == 7
    assert all(pair in every for pair in some)
    assert some == sorted(some, key=lambda pair: (pair["file"], pair["pair"]))
    kept, dropped = (
        values(out, capsys, "cat", "--top", "1000", flag)["pairs"]
        for flag in ("--kept", "--dropped")
    )
    assert {pair["reason"] for pair in kept} == {"kept"}
    assert "kept" not in {pair["reason"] for pair in dropped}
    assert len(kept) + len(dropped) == len(every)
    broken = values(out, capsys, "--reason", "picture")
    assert broken["reasons"]["picture"] == len(broken["pairs"]) == 9
    assert broken["query"] is None


def test_lines_are_safe(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert inspect(out, "cat", "--top", "1000") == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\u202e" not in printed
    assert all(len(line) < 300 for line in printed.splitlines())
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert inspect(out, "cat", "--top", "1000") == 0
    printed = capsys.readouterr().out
    assert "\x1b[1;33mcat\x1b[0m" in printed
    assert printed.count("\x1b") == 2 * printed.count("\x1b[1;33mcat\x1b[0m")


def test_a_page_of_pairs(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cat.html"
    assert inspect(out, "cat", "--top", "30", "--html", str(path)) == 0
    assert capsys.readouterr().out.endswith(f"look at them: {path}\n")
    content = path.read_text()
    Reader(content)
    assert content.count("<figure") == 30
    assert "<mark>cat</mark>" in content
    assert "data:image/webp" in content
    assert "<script>alert" not in content


def test_mistakes_are_one_line(out: Path, tmp_path: Path) -> None:
    refused(lambda: inspect(out, "Cat"), "none of the 5 queries", "near ones", "'cat'")
    refused(lambda: inspect(out, "red hause"), "'red house'")
    refused(lambda: inspect(out), "give a QUERY")
    refused(lambda: inspect(out, "--reason", "nope"), "nope", "no_query")
    refused(lambda: inspect(out, "cat", "--reason", "side", "--kept"), "give one of them")
    refused(lambda: inspect(tmp_path, "cat"), "no selection")


def test_a_curation_that_was_stopped_is_noticed(tmp_path: Path) -> None:
    out = strangers.curate(tmp_path, "--no-page")
    path = out / "decisions/00001-0000000000.npz"
    content = path.read_bytes()
    with np.load(path) as arrays:
        np.savez(
            path, reasons=1 - np.minimum(arrays["reasons"], 1), thresholds=arrays["thresholds"]
        )
    refused(lambda: inspect(out, "cat"), "does not fit", "start it again")
    path.write_bytes(content)
    assert inspect(out, "cat") == 0
    facts.query_table.cache_clear()
    queries = tmp_path / "queries.txt"
    queries.write_text(queries.read_text() + "\nlion")
    refused(lambda: inspect(out, "cat"), "other queries")
