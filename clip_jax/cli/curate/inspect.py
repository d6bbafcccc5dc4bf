"""`python -m clip_jax curate inspect QUERY --in FOLDER`: the pairs of a query or of a reason.

python -m clip_jax curate inspect cat --in curated
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clip_jax.cli.common import CommandParser, integer_from
from clip_jax.curation import page
from clip_jax.curation.curated import inspection
from clip_jax.curation.curated.inspection import Found, Query, Wanted
from clip_jax.curation.curated.reader import Curated
from clip_jax.curation.page import drawings, inspected
from clip_jax.curation.page.samples import ShownPair, read_pairs
from clip_jax.curation.rules import KEPT
from clip_jax.errors import UserError, counted
from clip_jax.evaluation.report.section import Tile
from clip_jax.io.files import atomic_write

_TOP = 20
_CAPTION = 160  # characters of a caption in a line
_MARK, _END = "\x1b[1;33m", "\x1b[0m"  # of a terminal: bold and yellow


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command's flags."""
    p = CommandParser(
        prog="python -m clip_jax curate inspect",
        description="Shows pairs in whose caption a query occurs, and whether each is kept or why "
        "not; or the pairs that are left out for a reason.",
        epilog="example: python -m clip_jax curate inspect 'red panda' --in curated --dropped",
        allow_abbrev=False,
    )
    p.add_argument("query", nargs="?", default="", metavar="QUERY", help="a query of the list")
    p.add_argument("--in", dest="folder", required=True, metavar="FOLDER", help="what curate wrote")
    p.add_argument(
        "--reason",
        default="",
        metavar="NAME",
        help="pairs left out for this reason; without QUERY of all pairs",
    )
    group = p.add_mutually_exclusive_group()
    group.add_argument("--kept", action="store_true", help="only pairs that are kept")
    group.add_argument("--dropped", action="store_true", help="only pairs that are left out")
    p.add_argument(
        "--top",
        type=integer_from(1),
        default=_TOP,
        metavar="N",
        help=f"show N pairs, drawn at random (default: {_TOP})",
    )
    p.add_argument("--json", action="store_true", help="print the result as JSON")
    p.add_argument("--html", default="", metavar="FILE", help="write a page with the images")
    return p


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    if not (args.query or args.reason or args.kept or args.dropped):
        raise UserError("give a QUERY, --reason NAME, --kept or --dropped")
    if args.reason and (args.kept or args.dropped):
        raise UserError("--reason, --kept and --dropped each choose pairs: give one of them")
    curated = Curated.open(args.folder)
    codes = _codes(args, curated)
    queries = inspection.find_queries(curated, args.query) if args.query else ()
    found = inspection.find(curated, Wanted(queries, codes), args.top)
    pool, templates = curated.pool, curated.report["captions"]
    places = [place for place, _ in found.pairs]
    read = read_pairs(pool, templates, places, with_images=bool(args.html))
    pairs = [(read[place], reason) for place, reason in found.pairs]
    if args.html:
        title = args.query or args.reason or ("kept" if args.kept else "left out")
        content = inspected.render(title, args.query, _tiles(queries, found), pairs, page.style())
        with atomic_write(Path(args.html).expanduser()) as file:
            file.write(content.encode("utf-8", "replace"))
    if args.json:
        print(json.dumps(_values(args.query, queries, found, pairs), indent=1))
    else:
        print("\n".join(_lines(args.query, queries, found, pairs)))
        if args.html:
            print(f"look at them: {args.html}")
    return 0


def _codes(args: argparse.Namespace, curated: Curated) -> frozenset[int]:
    """Returns the codes of the reasons that flags name; none if all pairs are shown."""
    names = curated.reasons
    if args.kept:
        return frozenset([KEPT])
    if args.dropped:
        return frozenset(range(1, 1 + len(names)))
    if not args.reason:
        return frozenset()
    if args.reason not in names:
        raise UserError(f"--reason={args.reason!r:.60} is none of {', '.join(names)}")
    return frozenset([1 + names.index(args.reason)])


def _tiles(queries: Sequence[Query], found: Found) -> list[Tile]:
    tiles = []
    for query in queries:
        where = f" in {query.language}" if query.language else ""
        tiles.append(Tile(f"Before{where}", f"{query.before:,}", "pairs of the query"))
        if not query.limit:
            continue
        remark = f"p = {query.probability:.3g}, t = {query.limit:,}"
        tiles.append(Tile(f"After{where}", f"{query.after:,}", remark))
    return tiles + [
        Tile(reason, f"{count:,}", "pairs") for reason, count in list(found.reasons.items())[:6]
    ]


def _values(
    text: str, queries: Sequence[Query], found: Found, pairs: Sequence[tuple[ShownPair, str]]
) -> dict[str, Any]:
    """Returns the result for `--json`."""
    return {
        "query": text or None,
        "counts": [
            {
                "language": query.language,
                "before": query.before,
                "after": query.after,
                "t": query.limit or None,
                "p": query.probability,
            }
            for query in queries
        ],
        "reasons": found.reasons,
        "pairs": [
            {
                "file": pair.place.file,
                "pair": pair.place.pair,
                "caption": pair.caption,
                "reason": reason,
                "fault": pair.fault,
            }
            for pair, reason in pairs
        ],
    }


def _lines(
    text: str, queries: Sequence[Query], found: Found, pairs: Sequence[tuple[ShownPair, str]]
) -> list[str]:
    """Returns what a person reads."""
    lines = []
    for query in queries:
        where = f" ({query.language})" if query.language else ""
        line = f"{query.text}{where}: {counted(query.before, 'pair')}"
        if query.limit:
            line += f" before the balance, {query.after:,} kept; "
            line += f"p = {query.probability:.3g} at t = {query.limit:,}"
        lines.append(line)
    total = sum(found.reasons.values())
    what = "pairs with it in the caption" if text else "pairs in the pool"
    parts = ", ".join(f"{reason} {count:,}" for reason, count in found.reasons.items())
    lines.append(f"{total:,} {what}: {parts}" if parts else f"no {what}")
    wide = max((len(pair.name) for pair, _ in pairs), default=0)
    longest = max((len(reason) for _, reason in pairs), default=0)
    for pair, reason in pairs:
        caption = _shown(pair.caption, text) or _printable(pair.fault)
        lines.append(f"{pair.name:<{wide}}  {reason:<{longest}}  {caption}")
    return lines


def _shown(caption: str, query: str) -> str:
    """Returns a caption as one line, with the query marked on a terminal."""
    line = _printable(caption)
    if not (sys.stdout.isatty() and "NO_COLOR" not in os.environ):
        return line
    parts, end = [], 0
    for start, stop in drawings.spans(line, query):
        parts += [line[end:start], _MARK, line[start:stop], _END]
        end = stop
    return "".join([*parts, line[end:]])


def _printable(text: str) -> str:
    """Returns a text from strangers as one short line that no terminal obeys."""
    start = text[: 4 * _CAPTION]
    line = " ".join("".join(c if c.isprintable() else " " for c in start).split())
    return line if len(line) <= _CAPTION else line[: _CAPTION - 1] + "…"
