"""What opening the files of a pool left out."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.curation.engine.openings import Openings
from clip_jax.data.opening import LeftOut, OpeningReport
from curation.pools import curate, picture, write_tar

counts = st.dictionaries(st.sampled_from(["no_text", "no_picture", "other"]), st.integers(1, 9))


@given(st.lists(st.tuples(counts, st.integers(0, 7)), max_size=6), st.randoms())
def test_the_sum_does_not_depend_on_the_order(files, random) -> None:
    parts = []
    for number, (counted, notes) in enumerate(files):
        left_out = {reason: LeftOut(n, f"{number}:{reason}") for reason, n in counted.items()}
        seen = sum(counted.values())
        lines = tuple(f"line {i}" for i in range(notes))
        parts.append(Openings.of_file(number, OpeningReport(seen, 0, "members", left_out, lines)))
    whole = Openings.sum(parts)
    random.shuffle(parts)
    cut = random.randint(0, len(parts))
    halves = [Openings.sum(parts[:cut]), Openings(), Openings.sum(parts[cut:])]
    assert Openings.sum(halves).to_dict() == whole.to_dict()
    values = whole.to_dict()
    assert values["seen"] == sum(item["count"] for item in values["left_out"])
    assert values["notes_count"] == sum(notes for _, notes in files)
    for item in values["left_out"]:
        first = next(n for n, (counted, _) in enumerate(files) if item["reason"] in counted)
        assert item["example"] == f"{first}:{item['reason']}"
        assert item["count"] == sum(counted.get(item["reason"], 0) for counted, _ in files)


def test_a_tar_that_is_cut_short_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [(picture(i), {"caption": "a wall"}) for i in range(4)]
    write_tar(tmp_path / "0.tar", pairs)
    write_tar(tmp_path / "1.tar", pairs)
    whole = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[: whole.index(b"000002.png") + 100])
    flags = ("--min-words=1", "--no-page", "--chunk=1")
    assert curate(tmp_path / "*.tar", tmp_path / "out", *flags) == {"kept": 6}
    opening = json.loads((tmp_path / "out/curation.json").read_text())["opening"]
    assert opening["notes_count"] == len(opening["notes"]) == 1
    assert "1.tar: it is cut short" in opening["notes"][0]
    lines = capsys.readouterr().out
    assert "note: 1 of 1 tars are damaged" in lines
    assert "left out at opening: no_picture 1 of 13 members: texts without an image" in lines
