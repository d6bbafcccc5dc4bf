"""Folders of curations that somebody damaged: one line, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_jax.cli.curate import run
from clip_jax.curation.curated.reader import Curated
from clip_jax.errors import UserError
from curation import strangers
from support import refused

BAD: list[Any] = [None, 0, -1, 1 << 70, "", "x", [], [1], {}, {"x": 1}, True]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return strangers.curate(tmp_path_factory.mktemp("pool"), "--no-page", "--chunk", "40")


def test_chunks_are_all_pairs_in_order(out: Path) -> None:
    curated = Curated.open(str(out))
    decided = list(curated.chunks())
    spans = [(d.chunk.file, d.chunk.start, d.chunk.stop) for d in decided]
    assert spans == [(file, *span) for file in range(3) for span in ((0, 40), (40, 60))]
    codes = np.concatenate([d.reasons for d in decided])
    names = [curated.reason(int(code)) for code in codes]
    counts = {item["reason"]: item["pairs"] for item in curated.report["left_out"]}
    counts["kept"] = curated.report["kept"]
    assert {name: names.count(name) for name in set(names)} == counts
    facts = curated.facts(decided[1].chunk, ["text", "image"])
    assert {name: len(values) for name, values in facts.items()} == {"text": 20, "image": 20}


def test_any_value_of_the_report_may_be_wrong(out: Path) -> None:
    path = out / "curation.json"
    content = path.read_text()
    report = json.loads(content)
    places = [(key,) for key in report] + [("source", key) for key in report["source"]]
    places += [("rules", key) for key in report["rules"]] + [("limits", ""), ("queries", "")]
    try:
        for place in places:
            for bad in BAD:
                damaged = json.loads(content)
                holder = damaged[place[0]] if len(place) > 1 else damaged
                holder[place[-1]] = bad
                path.write_text(json.dumps(damaged))
                try:
                    run(["inspect", "cat", "--in", str(out), "--top", "2", "--json"])
                except UserError as error:
                    assert len(str(error)) < 600
    finally:
        path.write_text(content)


def test_missing_files_are_named(out: Path) -> None:
    for name in ("queries.npz", "decisions/00001-0000000040.npz", "curation.json"):
        path = out / name
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        refused(lambda name=name: run(["inspect", "cat", "--in", str(out)]), name)
        path.write_bytes(content)
    path = out / "queries.npz"
    content = path.read_bytes()
    np.savez(path, counts=np.zeros(2, np.int64), kept=np.zeros(2, np.int64))
    refused(lambda: run(["inspect", "dog", "--in", str(out)]), "queries.npz is missing or damaged")
    path.write_bytes(content)
    facts = next((out / "facts").rglob("*-40.npz"))
    content = facts.read_bytes()
    facts.unlink()
    refused(lambda: run(["inspect", "cat", "--in", str(out)]), facts.name, "curate the data again")
    facts.write_bytes(content)


def test_decisions_of_a_stopped_run_with_other_rules_are_told(out: Path) -> None:
    """They may keep the same pairs, and leave out others for another reason."""
    path = out / "decisions/00000-0000000000.npz"
    content = path.read_bytes()
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, **{**arrays, "key": arrays["key"] + np.uint64(1)})
    refused(lambda: run(["inspect", "cat", "--in", str(out)]), "a later curation", "was stopped")
    path.write_bytes(content)
