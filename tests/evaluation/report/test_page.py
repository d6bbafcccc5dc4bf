"""The page as text: whole, escaped, bounded, the same every time."""

from __future__ import annotations

import copy
import html
import json
import math
import random
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from evaluation.report.sample import sample, shift
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax.evaluation import report
from clip_jax.evaluation.evaluators import registered_sections
from clip_jax.evaluation.report import formats
from clip_jax.evaluation.report.page import ordered
from clip_jax.evaluation.report.shell import LIMIT

VOID = {"meta", "input", "br"}
NASTY = [
    "<script>alert(1)</script>",
    '" onerror="alert(1)',
    "' autofocus onfocus='alert(1)",
    "</script><img src=x onerror=alert(1)>",
    "</style><b>",
    "<!-- ",
    "&lt;b&gt;",
    "مرحبا \u202eabc\u202c",
    "x" * 10_000,
    "👩‍👩‍👧‍👦 😀",
    "a\x00b\x1b[31m\udc80",
    "{}%s\\",
    "",
]


class Reader(HTMLParser):
    """Reads a page and fails where an element is not closed in its place."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.texts.append(data)


def render(document: dict[str, Any], thumbnails: dict[str, bytes]) -> str:
    return report.render(document, thumbnails, registered_sections())


def structure(page: str) -> list[tuple[str, list[str]]]:
    """The elements of a page with the names of their attributes."""
    return [(tag, sorted(attrs)) for tag, attrs in Reader(page).tags]


@pytest.fixture(scope="module")
def full_report() -> tuple[dict[str, Any], dict[str, bytes]]:
    return sample()


def test_every_part_is_there_and_in_order(full_report: Any) -> None:
    page = render(*full_report)
    reader = Reader(page)
    ids = [attrs["id"] for tag, attrs in reader.tags if tag == "section" and "id" in attrs]
    names = [section.name for section in ordered(registered_sections())]
    assert ids == names
    assert names[0] == "accuracy"
    assert names[-2:] == ["curves", "missing"]
    assert names.index("overlap") < names.index("calibration"), "details come last"
    links = [attrs["href"] for tag, attrs in reader.tags if tag == "a"]
    assert links == ["#results", *(f"#{name}" for name in names)]
    every = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(every) == len(set(every))


def test_numbers_stand_on_the_page(full_report: Any) -> None:
    results, pictures = copy.deepcopy(full_report)
    results["sets"]["cifar10"]["zero_shot"]["score"] = {
        "value": 0.61234,
        "low": 0.60111,
        "high": 0.62987,
        "n": 10_000,
    }
    text = "".join(Reader(render(results, pictures)).texts)
    assert "61.2\u202f%" in text
    assert "151,277,313" in text
    assert "81.3\u202f%" in text, "of the classifier"
    assert "1.2562.5\u202f%50.0\u202f%25619" in text  # the row of the validation loss
    assert 'title="95 % interval 60.1–63.0\u202f%"' in render(results, pictures)


def test_the_same_page_every_time(full_report: Any) -> None:
    before = json.dumps(full_report[0])
    assert render(*full_report) == render(*copy.deepcopy(full_report))
    assert json.dumps(full_report[0]) == before


def test_pictures_speak(full_report: Any) -> None:
    shown = [
        a for tag, a in Reader(render(*full_report)).tags if tag == "svg" or a.get("role") == "img"
    ]
    assert len(shown) > 100
    assert all(a.get("aria-label") for a in shown)


def test_a_picture_is_held_once(full_report: Any) -> None:
    results, pictures = full_report
    count = render(results, pictures).count("data:image/")
    again = {f"{name} again": content for name, content in pictures.items()}
    more = copy.deepcopy(results)
    for example in more["sets"]["imagenet"]["zero_shot"]["examples"]:
        example["picture"] += " again"
    assert render(more, {**pictures, **again}).count("data:image/") == count


def test_the_page_requests_nothing(full_report: Any) -> None:
    page = render(*full_report)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert html.unescape(policy[1]).startswith("default-src 'none'; img-src data:;")
    for tag, attrs in Reader(page).tags:
        assert tag not in ("link", "iframe", "object", "embed", "form", "base", "img", "image")
        assert "src" not in attrs
        assert attrs.get("href", "#").startswith("#")  # type: ignore[union-attr]
    assert set(re.findall(r"url\((?!data:image/(?:webp|jpeg|png);base64,)", page)) == set()


def replaced(value: Any, change: Any) -> Any:
    """The same dict with every text that strangers give changed."""
    if isinstance(value, dict):
        unchanged = ("sign",)
        return {k: v if k in unchanged else replaced(v, change) for k, v in value.items()}
    if isinstance(value, list):
        return [replaced(v, change) for v in value]
    return change(value)


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_texts_stay_texts(full_report: Any, text: str) -> None:
    results, pictures = full_report
    calm = replaced(results, lambda v: "label" if isinstance(v, str) and v not in pictures else v)
    wild = replaced(results, lambda v: text if isinstance(v, str) and v not in pictures else v)
    page = render(wild, pictures)
    if text:
        assert structure(page) == structure(render(calm, pictures))
    assert len(page.encode("utf-8")) < LIMIT
    assert "\x00" not in page
    assert "x" * 601 not in page


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_names_of_sets_and_curves_stay_texts(full_report: Any, text: str) -> None:
    results, pictures = copy.deepcopy(full_report)
    cifar10 = results["sets"].pop("cifar10")
    del cifar10["title"]
    results["sets"][text] = cifar10
    results["curves"] = {text: [[0, 1.0], [1, 2.0]]}
    results["robustness"]["shifts"][text] = {"score": {"value": 0.5}, "reference": {"value": 0.6}}
    page = render(results, pictures)
    Reader(page)
    assert "<script>alert" not in page
    assert "onerror=alert" not in "".join(f"{t}{sorted(a)}" for t, a in Reader(page).tags)


@pytest.mark.parametrize(
    "results", [{}, {"model": {}}, {"sets": {}}, {"model": {"name": None}, "sets": {"x": {}}}]
)
def test_an_evaluation_of_nothing(results: dict[str, Any]) -> None:
    assert "Nothing was judged" in "".join(Reader(render(results, {})).texts)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a key lies, of dicts and of the first of each list."""
    result: list[tuple[Any, ...]] = []
    if isinstance(value, dict):
        for key, inner in value.items():
            result += [(*path, key), *paths(inner, (*path, key))]
    elif isinstance(value, list) and value:
        result += paths(value[0], (*path, 0))
    return result


SMALL = sample(
    {"cifar10": ("CIFAR-10", 10, 10_000), "flickr30k": ("Flickr30k", 0, 1000)}, examples=2
)


@settings(max_examples=25)
@given(st.data())
def test_any_key_may_be_missing_or_none(data: Any) -> None:
    results = copy.deepcopy(SMALL[0])
    for _ in range(data.draw(st.integers(1, 6))):
        *where, last = data.draw(st.sampled_from(paths(results)))
        holder = results
        for key in where:
            holder = holder[key]
        if data.draw(st.booleans()) or isinstance(last, int):
            holder[last] = None
        else:
            del holder[last]
        if not results:
            break
    Reader(render(results, SMALL[1]))


@pytest.mark.parametrize(
    "bad", [None, math.nan, math.inf, -math.inf, 1e308, -1e308, 0, -5.0, 1e-300]
)
def test_any_number_may_be_none_at_all(bad: float | None) -> None:
    rng = random.Random(1)

    def change(value: Any) -> Any:
        return bad if isinstance(value, (int, float)) and rng.random() < 0.5 else value

    for _ in range(3):
        page = render(replaced(SMALL[0], change), SMALL[1])
        for tag, attrs in Reader(page).tags:
            if tag in ("path", "rect", "circle", "text", "svg"):
                drawn = [attrs.get(k) or "" for k in ("d", "x", "y", "cx", "cy", "width", "height")]
                assert not re.search("nan|inf|e[+-]?[0-9]", " ".join(drawn), re.I)
        text = "".join(Reader(page).texts)
        assert not re.search(r"\b(nan|inf)\b", text, re.I)


def test_any_of_several_true_labels_is_right() -> None:
    answer = {
        "truth": "cat, dog",
        "labels": ["dog", "sun", "cat"],
        "probabilities": [0.5, 0.3, 0.2],
    }

    def kinds(example: dict[str, Any]) -> list[str | None]:
        shot = {"score": {"value": 0.5}, "examples": [example]}
        tags = Reader(render({"sets": {"x": {"zero_shot": shot}}}, {})).tags
        guess = [a["class"] for tag, a in tags if tag == "figure"]
        return guess + [a.get("class") for tag, a in tags if tag == "li" and "style" in a]

    assert kinds({**answer, "truths": ["cat", "dog"]}) == ["guess right", "true", None, "true"]
    assert kinds(answer) == ["guess wrong", "false", None, None]
    assert kinds({**answer, "truth": "sun"}) == ["guess wrong", "false", "true", None]


def test_a_column_of_nothing_is_left_out() -> None:
    scored = {"zero_shot": {"score": {"value": 0.5}, "metrics": {"top5": 0.9}}, "images": 7}
    page = render({"sets": {"x": scored}}, {})
    assert "Top-5<" in page
    assert "Linear probe<" not in page
    assert "Classes<" not in page
    probed = render({"sets": {"x": scored, "y": {"linear_probe": {"score": {"value": 0.4}}}}}, {})
    assert "Linear probe<" in probed


def test_effective_robustness_is_shown_where_it_says_more() -> None:
    def page(effective: float) -> str:
        shift = {"score": {"value": 0.5}, "reference": {"value": 0.75}, "effective": effective}
        return render({"robustness": {"shifts": {"x": shift}}}, {})

    assert "Effective<" not in page(-0.25)
    assert "Effective<" in page(0.05)
    assert "+5.0" in page(0.05)
    assert "−25.0" in page(0.05)


def test_each_shift_shows_its_standard_models() -> None:
    shifts = {name: shift(name, 0.6) for name in ("imagenet_v2", "imagenet_a")}
    shifts["mine"] = shift("mine", 0.55)
    page = render({"model": {"name": "Net"}, "robustness": {"shifts": shifts}}, {})
    Reader(page)
    assert page.count('class="dots"') == 2
    for name, models in (("imagenet_v2", 44), ("imagenet_a", 20)):
        above = formats.points(shifts[name]["effective"])
        assert f"{above} points from the line of {models} models" in page
        assert f">{above}</span>" in page
    assert page.count(">−24.0</span>") == 1, "beside no models it is the difference, shown once"
    assert page.count(">Net</text>") == 2
    assert page.count(">mine</text>") == 1, "beside the table, against the axes' line"
    assert "Small dots" in page
    assert "Small dots" not in render({"robustness": {"shifts": {"mine": shifts["mine"]}}}, {})


@pytest.mark.parametrize(("reference", "left"), [(0.85, True), (0.93, False)])
def test_a_line_ends_at_its_knee(reference: float, left: bool) -> None:
    shift_values = shift("imagenet_a", 0.05, reference)
    page = render({"robustness": {"shifts": {"x": shift_values}}}, {})
    line = re.search(r'd="M([\d.]+) [\d.]+L([\d.]+) [\d.]+" class="line c1"', page)
    assert line
    ends = [float(end) for end in line.groups()]
    dots = [float(x) for x in re.findall(r"M([\d.]+) [\d.]+h0", page)]
    beyond = sum(x > ends[1] if left else x < ends[0] for x in dots)
    assert beyond == (23 if left else 20)


@pytest.mark.parametrize(
    "line", ["", None, 3, [], {}, {"slope": "x"}, {"slope": 1e99, "intercept": 0}]
)
def test_a_missing_line_is_not_drawn(line: Any) -> None:
    shift_values = shift("imagenet_r", 0.4) | {"line": line}
    page = render({"robustness": {"shifts": {"x": shift_values}}}, {})
    assert '"dots"' in page
    assert '"line c1"' not in page


def test_an_unreadable_picture_is_an_empty_frame(full_report: Any) -> None:
    results, pictures = full_report
    bad = dict.fromkeys(pictures, b"<svg onload=alert(1)>")
    page = render(results, bad)
    assert "data:image/" not in page
    assert "(no image)" in page
    assert "(no image)" in render(results, {})


def test_forty_sets_stay_under_three_megabytes() -> None:
    titles = {f"set{i}": (f"A set, number {i}", 1000, 50_000) for i in range(40)}
    results, pictures = sample(titles, pictures=500, examples=24)
    filler = random.Random(0)
    heavy = {k: v + filler.randbytes(6_000) for k, v in pictures.items()}
    page = render(results, heavy)
    size = len(page.encode())
    assert 0.5 * LIMIT < size <= LIMIT
    assert "images are left out" in page
    assert "worst of 1,000" in page
    first = re.findall(r'class="guesses"><figure class="[a-z ]*"><i class="p p(\d+)"', page)
    assert len(first) == 40
    assert all(f".p{number}{{" in page for number in first), "each set keeps its first"


def test_a_large_picture_is_made_small(full_report: Any) -> None:
    from support import encoded, picture

    results, pictures = copy.deepcopy(full_report)
    name = results["sets"]["imagenet"]["zero_shot"]["examples"][0]["picture"]
    pictures[name] = encoded(picture(0, (600, 400)))
    page = render(results, pictures)
    longest = max(map(len, re.findall(r"base64,([^)]*)", page)))
    assert longest < 20_000
