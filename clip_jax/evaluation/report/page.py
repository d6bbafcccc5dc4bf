"""The page as a whole: its parts in order, within its size."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from clip_jax.evaluation.report import (
    classes,
    history,
    overview,
    pairs,
    probes,
    shifts,
    tables,
)
from clip_jax.evaluation.report.album import Album
from clip_jax.evaluation.report.markup import Markup, cut, join, tag
from clip_jax.version import __version__

LIMIT = 3_000_000  # bytes of the page
_TEXT = 1_600_000  # of them at most for what is no picture
Part = Callable[[Mapping[str, Any], Album, float], Markup | None]


def _plain(section: Callable[[Mapping[str, Any]], Markup | None]) -> Part:
    return lambda results, album, room: section(results)


SECTIONS: dict[str, tuple[str, Part]] = {
    "accuracy": ("Accuracy", _plain(overview.accuracy)),
    "prompts": ("Prompts", _plain(overview.prompts)),
    "probe": ("Zero-shot and linear probe", _plain(probes.against_zero_shot)),
    "sweep": ("Regularisation of the probe", _plain(probes.sweep)),
    "few-shot": ("Few-shot", _plain(probes.few_shot)),
    "retrieval": ("Retrieval", _plain(pairs.retrieval)),
    "galleries": ("Text finds pictures", lambda r, a, room: pairs.galleries(r, a, _most(8, room))),
    "arithmetic": ("Picture ± text", lambda r, a, room: pairs.arithmetic(r, a, _most(8, room))),
    "robustness": ("Robustness", _plain(shifts.robustness)),
    "bias": ("Bias", _plain(shifts.bias)),
    "overlap": ("Data overlap", lambda r, a, room: pairs.overlap(r, a, _most(16, room))),
    "calibration": ("Calibration", _plain(classes.calibration)),
    "confusions": ("Confusions", lambda r, a, room: classes.confusions(r, _most(20, room))),
    "classes": ("Accuracy by class", lambda r, a, room: classes.per_class(r, _most(4000, room))),
    "predictions": ("Predictions", lambda r, a, room: classes.predictions(r, a, _most(24, room))),
    "similarity": ("Similarities", lambda r, a, room: pairs.similarity(r, a)),
    "curves": ("Curves of the run", _plain(history.curves)),
    "missing": ("Not judged", _plain(history.missing)),
}


def _most(count: int, room: float) -> int:
    return max(1, int(count * room))


def render(results: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The page that shows an evaluation, as one file of HTML that asks for nothing else.

    It stays under 3 MB: lists are shortened and pictures left out, the last of each list first, and
    the page says so. The same arguments give the same page.

    Args:
      results: what report.json holds; every key but `model` may be missing. A number that is None
        or not finite is shown as a dash. Texts may hold anything.
      pictures: thumbnails by the ids that `results` names them by: JPEG, PNG or WebP. An id without
        picture, or with other bytes, shows as an empty frame.
    """
    results, room = overview.pruned(results), 1.0
    while True:
        album = Album(pictures)
        found = [
            (name, title, body)
            for name, (title, section) in SECTIONS.items()
            if (body := section(results, album, room)) is not None
        ]
        if sum(len(body.encode()) for _, _, body in found) <= _TEXT or room < 1e-3:
            return _page(results, album, found)
        room /= 2


def _page(results: Mapping[str, Any], album: Album, found: list[tuple[str, str, Markup]]) -> str:
    files = resources.files(__package__)
    css, js = (files.joinpath(f"page.{end}").read_text(encoding="utf-8") for end in ("css", "js"))
    contents = (tag("li", tag("a", title, href=f"#{name}")) for name, title, _ in found)
    sections = (
        tag("section", tag("h2", title), body, id=name, class_="part")
        for name, title, body in found
    )
    empty = None if found else tables.notes("Nothing was judged: report.json holds no results.")
    button = tag("button", "Theme: auto", id="theme", type="button", hidden=True)
    body = join(
        tag("a", "Skip to the results", href="#results", class_="skip"),
        overview.header(results),
        tag("nav", tag("ul", *contents), button, aria_label="Contents"),
        tag("main", overview.tiles(results), empty, *sections, id="results", tabindex="-1"),
    )
    used = len((body + css + js).encode()) + 3000
    style, left_out = album.style(LIMIT - used)
    told = f" {left_out} of {len(album)} pictures are left out: the page stays under 3 MB."
    words = f"Made by clip_jax {__version__}. report.json beside this page holds every number."
    footer = tag("footer", tag("p", words, told if left_out else None))
    name = cut(overview.part(results, "model").get("name") or "a model")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(js)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{name}: evaluation"),
        tag("style", Markup(css)),
        tag("style", style),
    )
    script = tag("script", Markup(js))
    return f"<!doctype html>\n{tag('html', head, tag('body', body, footer, script), lang='en')}\n"


def _policy(script: str) -> str:
    """Only this page's own script runs, whatever else should have come in."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
