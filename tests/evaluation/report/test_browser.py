"""The page in a browser: its layout, its keys, its colours, its silence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from evaluation.report import browser
from evaluation.report.sample import sample

from clip_jax.evaluation.evaluators import registered_sections
from clip_jax.evaluation.report import render

WHY = browser.missing()
pytestmark = pytest.mark.skipif(WHY is not None, reason=str(WHY))

SIZES = {"phone": (360, 740), "tablet": (768, 1024), "desktop": (1280, 900)}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser.chromium() as instance:
        yield instance


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(*sample(), registered_sections()), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def visit(chromium: Any, address: str) -> Iterator[Any]:
    """Opens the page at a size; whatever it says or asks for is an error in the end."""
    heard: list[str] = []
    contexts = []

    def go(size: str = "desktop", **options: Any) -> Any:
        wide, high = SIZES[size]
        context = chromium.new_context(viewport={"width": wide, "height": high}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: heard.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: heard.append(f"error: {error}"))
        page.on("request", lambda request: heard.append(request.url[:80]))
        page.goto(address)
        if options.get("java_script_enabled", True):  # what lies below is laid out as well
            style = ".part { content-visibility: visible !important }"
            page.evaluate(
                "css => document.head.append(Object.assign("
                "document.createElement('style'), {textContent: css}))",
                style,
            )
        return page

    yield go
    for context in contexts:
        context.close()
    requested = [line for line in heard if line != address and not line.startswith("data:")]
    assert requested == []


# parts that stick out of the window and are not in a box that scrolls or ends in an ellipsis
OUTSIDE = """() => [...document.querySelectorAll('main *, header *, footer *')].filter(e => {
  const r = e.getBoundingClientRect();
  return r.width && (r.right > innerWidth + 1 || r.left < -1)
    && !e.closest('.scroll, nav ul, .hidden, .skip, .guess li > span > bdi');
}).map(e => e.outerHTML.slice(0, 120))"""
# texts of a drawing that lie on one another or leave their card
TEXTS = """() => [...document.querySelectorAll('svg')].flatMap(svg => {
  if (!svg.getBoundingClientRect().width) return [];
  const card = svg.closest('.card').getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')].filter(t => t.textContent);
  const boxes = texts.map(t => [t.textContent, t.getBoundingClientRect()]);
  const bad = boxes.filter(([, r]) => r.left < card.left || r.right > card.right + 1);
  for (const [i, [a, r]] of boxes.entries()) for (const [b, s] of boxes.slice(i + 1)) {
    const wide = Math.min(r.right, s.right) - Math.max(r.left, s.left);
    const high = Math.min(r.bottom, s.bottom) - Math.max(r.top, s.top);
    if (wide > 1 && high > 3) bad.push([a + ' on ' + b + ' in ' + svg.getAttribute('aria-label')]);
  }
  return bad.map(([text]) => text);
})"""
SMALL = """() => [...document.querySelectorAll('svg')].flatMap(svg => {
  const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  const size = text => parseFloat(getComputedStyle(text).fontSize);
  return [...svg.querySelectorAll('text')].map(text => size(text) * scale);
}).filter(size => size && size < 11)"""


@pytest.mark.parametrize("size", SIZES)
def test_nothing_sticks_out_or_overlaps(visit: Any, size: str) -> None:
    page = visit(size)
    wide = page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1]
    assert page.evaluate(OUTSIDE) == []
    assert page.evaluate(TEXTS) == []
    assert page.evaluate(SMALL) == []


# the least contrast of any text with what lies behind it, by the formula of WCAG 2
CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const rgba = color => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const color = rgba(getComputedStyle(e).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255, 255];
  };
  let worst = [99, ''];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getBoundingClientRect().width || e.closest('script, style')) continue;
    const style = getComputedStyle(e);
    const a = light(rgba(e.ownerSVGElement ? style.fill : style.color)), b = light(behind(e));
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (contrast < worst[0]) worst = [contrast, e.outerHTML.slice(0, 160)];
  }
  return worst;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(visit: Any, scheme: str) -> None:
    page = visit(color_scheme=scheme)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 20, 23)"
    assert dark == (scheme == "dark")
    contrast, where = page.evaluate(CONTRAST)
    assert contrast >= 4.5, where


def test_a_theme_is_chosen_and_remembered(visit: Any, address: str) -> None:
    page = visit(color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.click("#theme")
    assert page.inner_text("#theme") == "Theme: dark"
    dark = page.evaluate(ground)
    assert dark != light
    page.goto(address)
    page.wait_for_function(f"{ground} === '{dark}'")  # a busy browser can be late
    page.click("#theme")
    assert page.evaluate(ground) == light


def test_keys_reach_a_heading_and_sort(visit: Any) -> None:
    page = visit()
    names = "[...document.querySelectorAll('#accuracy tbody tr')].map(r => +r.cells[2].dataset.v)"
    before = page.evaluate(names)
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Zero-shot":
            break
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert ring != "none"
    page.keyboard.press("Enter")
    assert page.evaluate(names) == sorted(before, reverse=True)
    page.keyboard.press("Enter")
    assert page.evaluate(names) == sorted(before)
    sorts = "[...document.querySelectorAll('#accuracy th')].map(h => h.getAttribute('aria-sort'))"
    assert [s for s in page.evaluate(sorts) if s] == ["ascending"]


def test_the_first_key_skips_the_contents(visit: Any) -> None:
    page = visit()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#results"


def test_classes_are_filtered(visit: Any) -> None:
    page = visit()
    page.evaluate("document.querySelectorAll('#classes details')[2].open = true")
    rows = "[...document.querySelectorAll('#classes details')[2].querySelectorAll('tbody tr')]"
    first = page.evaluate(f"{rows}[0].cells[0].textContent")
    page.locator("#classes details").nth(2).locator("input").fill(first.upper())
    shown = page.evaluate(f"{rows}.filter(r => r.offsetHeight).map(r => r.cells[0].textContent)")
    assert first in shown
    assert all(first in name for name in shown)
    assert len(shown) < page.evaluate(f"{rows}.length")


def test_the_loss_by_its_logarithm(visit: Any) -> None:
    page = visit()
    shown = "[...document.querySelectorAll('.as-linear, .as-log')].map(e => e.offsetHeight > 0)"
    assert page.evaluate(shown) == [True, False]
    page.click("#curves label:text('log')")
    assert page.evaluate(shown) == [False, True]


def test_the_page_is_complete_without_scripts(visit: Any) -> None:
    page = visit(java_script_enabled=False)
    assert page.locator("#accuracy tbody tr").count() == 7
    assert page.locator("#theme").is_hidden()
    assert page.locator("th button").count() == 0


def test_pictures_are_shown(visit: Any) -> None:
    page = visit()
    script = "getComputedStyle(document.querySelector('.guess .p')).backgroundImage.slice(0, 27)"
    assert page.evaluate(script) == 'url("data:image/webp;base64'


def test_it_prints_light_and_whole(visit: Any) -> None:
    page = visit(color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("nav").is_hidden()
    printed = page.pdf(format="A4", print_background=True)
    assert printed.startswith(b"%PDF-")
    assert printed.count(b"/Type /Page\n") > 3
