"""curation.html in a browser: its layout on every size, its colours, its silence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from evaluation.report import browser
from evaluation.report.test_browser import CONTRAST, OUTSIDE, SIZES, SMALL, TEXTS

from curation import strangers

WHY = browser.missing()
pytestmark = pytest.mark.skipif(WHY is not None, reason=str(WHY))
ALL = ".part { content-visibility: visible !important }"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return (strangers.curate(tmp_path_factory.mktemp("pool")) / "curation.html").as_uri()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser.chromium() as instance:
        yield instance


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(chromium: Any, address: str, size: str, scheme: str) -> None:
    wide, high = SIZES[size]
    context = chromium.new_context(viewport={"width": wide, "height": high}, color_scheme=scheme)
    page, heard = context.new_page(), list[str]()
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: heard.append(request.url[:80]))
    page.goto(address)
    page.add_style_tag(content=ALL)
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    for script in (OUTSIDE, TEXTS, SMALL):
        assert page.evaluate(script) == []
    contrast, where = page.evaluate(CONTRAST)
    assert contrast >= 4.5, where
    context.close()
    assert [line for line in heard if line != address and not line.startswith("data:")] == []


def test_it_prints(chromium: Any, address: str, tmp_path: Path) -> None:
    page = chromium.new_page()
    page.goto(address)
    assert page.pdf(format="A4", print_background=True).startswith(b"%PDF-")
    page.close()
