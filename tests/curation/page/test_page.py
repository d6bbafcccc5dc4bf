"""curation.html: its numbers, its pictures, and what strangers write into captions."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
from evaluation.report.test_page import NASTY, Reader, structure

from clip_jax.curation import page
from clip_jax.curation.curated.reader import Curated
from clip_jax.curation.engine.outcome import MISSING, bin_values, column_bins
from clip_jax.curation.page import drawings, reasons
from clip_jax.curation.page.queries import QueryCounts
from clip_jax.curation.page.samples import Place, ShownPair
from clip_jax.evaluation.report.markup import clean
from curation import strangers
from curation.pools import curate, picture, write_tar


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return strangers.curate(tmp_path_factory.mktemp("pool"))


@pytest.fixture(scope="module")
def content(out: Path) -> str:
    return (out / page.PAGE).read_text()


def texts(content: str) -> str:
    return "|".join(Reader(content).texts)


def test_counts_stand_on_the_page(out: Path, content: str) -> None:
    report = json.loads((out / "curation.json").read_text())
    shown = texts(content)
    assert f"{report['kept']} of {report['pairs']} pairs" in shown
    assert report["left_out"]
    for item in report["left_out"]:
        assert f"|{item['reason']}|" in shown
        assert f"|−{item['pairs']}|" in shown
        assert item["meaning"] in shown
    for limit in ("at least 9 pixels", "at most 9 words", "at least 0.2", "t = 20"):
        assert limit in shown
    with np.load(out / "queries.npz") as arrays:
        counts, kept = arrays["counts"], arrays["kept"]
    p = 20 / counts[0]
    assert counts[0] > 20
    assert f"|cat|{counts[0]}|{p:.3g}|{kept[0]}|" in shown
    tail = counts < 20
    share = kept[tail].sum() / kept.sum()
    assert f"|Matches in the tail|{100 * share:.1f}\u202f%|" in shown
    assert "5 queries, 1 of them without a pair" in shown


def test_pairs_of_each_reason_are_shown(out: Path, content: str) -> None:
    report = json.loads((out / "curation.json").read_text())
    heading = r"<h3><bdi>([^<]*)</bdi><small>[^<]*</small></h3>"
    block = dict(re.findall(rf'{heading}<div class="pairs">(.*?)</div>', content))
    assert list(block) == ["kept", *(item["reason"] for item in report["left_out"])]
    for item in [{"reason": "kept", "pairs": report["kept"]}, *report["left_out"]]:
        assert block[item["reason"]].count("<figure") == min(12, item["pairs"])
    assert "fault" in block["picture"]
    assert 'role="img"' not in block["picture"]
    assert block["kept"].count('role="img"') == 12
    assert "is not an image that can be read" in block["picture"]


def test_the_page_requests_nothing_and_is_the_same_again(out: Path, content: str) -> None:
    for tag, attrs in Reader(content).tags:
        assert tag not in ("link", "iframe", "object", "embed", "form", "base", "img", "image")
        assert "src" not in attrs
        assert str(attrs.get("href", "#")).startswith("#")
    assert set(re.findall(r"url\((?!data:image/webp;base64,)", content)) == set()
    page.write(str(out))
    assert (out / page.PAGE).read_text() == content


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_texts_stay_texts(out: Path, text: str) -> None:
    curated = Curated.open(str(out))
    counts = page.query_counts(curated)
    assert counts

    def drawn(words: str) -> str:
        report = json.loads(json.dumps(curated.report))
        report["data"] = words
        report["captions"] = [words]
        report["broken_files"] = [{"file": words, "fault": words}]
        report["columns"][0]["column"] = words
        report["reasons"] = {
            (words if name == "score" else name): words for name in report["reasons"]
        }
        own = QueryCounts([words] * 5, counts.languages, counts.before, counts.after, counts.limit)
        places = [p for name in report["samples"] for p in reasons.places(report, name)]
        pairs = {place: ShownPair(Place(words, 1), words, b"", words) for place in places}
        return page.render(report, own, pairs)

    if text:
        assert structure(drawn(text)) == structure(drawn("label"))
    else:
        Reader(drawn(text))


def test_a_pool_that_is_gone_shows_faults(out: Path, tmp_path: Path) -> None:
    moved = tmp_path / "out"
    report = json.loads((out / "curation.json").read_text())
    for samples in report["samples"].values():
        for sample in samples:
            sample["file"] = str(tmp_path / "gone.tar")
    (moved / "selection").mkdir(parents=True)
    (moved / "curation.json").write_text(json.dumps(report))
    for name in ("selection.json", "queries.npz"):
        (moved / name).write_bytes((out / name).read_bytes())
    page.write(str(moved))
    content = (moved / page.PAGE).read_text()
    assert "data:image" not in content
    assert "gone.tar" in content
    Reader(content)


def test_no_page_is_written_on_request(tmp_path: Path) -> None:
    out = strangers.curate(tmp_path, "--no-page")
    assert not (out / page.PAGE).exists()
    assert (out / "selection.json").exists()


def test_bins_of_columns_keep_order_and_place() -> None:
    rng = np.random.default_rng(0)
    values = np.sort(rng.normal(size=999).astype(np.float32) * 10.0 ** rng.integers(-9, 9, 999))
    values = np.sort(values.astype(np.float32))
    bins = column_bins(values)
    assert (np.diff(bins) >= 0).all()
    least = bin_values(bins)
    assert (least <= values).all()
    assert (values - least <= np.abs(values) / 1024).all()
    odd = column_bins(np.array([np.nan, -0.0, 0.0, np.inf, -np.inf], np.float32))
    assert odd[0] == MISSING
    assert odd[1] == odd[2] == 0
    assert odd[4] < bins[0] < bins[-1] < odd[3]


@pytest.mark.parametrize(
    ("text", "query", "found"),
    [
        ("a cat, cats and cat!", "cat", ["cat", "cat"]),
        ("red\thouse; red  house", "red house", ["red\thouse"]),
        ("c++ (c++) c++.", "c++", ["c++", "c++"]),
        ("Cat", "cat", []),
        ("黒猫と猫", "猫", ["猫", "猫"]),
        ("cat", "", []),
    ],
)
def test_queries_are_marked_where_matching_finds_them(
    text: str, query: str, found: list[str]
) -> None:
    assert [text[a:b] for a, b in drawings.spans(text, query)] == found
    assert html.unescape(re.sub("</?mark>", "", drawings.marked(text, query))) == clean(text)


def test_languages_and_a_curation_that_does_not_balance(out: Path) -> None:
    report = json.loads((out / "curation.json").read_text())
    before, after = np.array([90, 30, 4, 0, 12]), np.array([33, 25, 4, 0, 11])
    limit = np.array([20, 20, 20, 10, 10])
    names = ["cat", "dog", "sky", "Katze", "Hund"]
    counts = QueryCounts(names, [("en", 3), ("de", 2)], before, after, limit)
    report["limits"] = {"en": 20, "de": 10}
    report["queries"] = {"en": "en.txt", "de": "de.txt"}
    shown = texts(page.render(report, counts, {}))
    assert "|en|20|3|2|124|62|" in shown
    assert "|de|10|2|1|12|11|" in shown
    assert "|Hund|de|12|0.833|11|" in shown
    assert "t = 10 … 20 by language" in shown
    assert "3 queries have t pairs or more and 97.1\u202f% of all matches" in shown
    report["rules"]["balance"] = False
    shown = texts(page.render(report, counts, {}))
    assert "|cat|en|90|dog|en|30|" in shown
    Reader(page.render(report, None, {}))


def test_what_opening_left_out_is_on_the_page(tmp_path: Path) -> None:
    pairs = [(picture(i), {"caption": "a wall"}) for i in range(4)]
    write_tar(tmp_path / "0.tar", pairs)
    whole = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[: whole.index(b"000002.png") + 100])
    curate(tmp_path / "*.tar", tmp_path / "out", "--min-words=1")
    shown = texts((tmp_path / "out" / page.PAGE).read_text())
    assert "1 of 5 members are left out: texts without an image, such as " in shown
    assert "0.tar: it is cut short" in shown
