"""Draws `docs/architecture.svg`: the floors of the package and what each part imports.

    python tools/build_architecture.py

The floors are those of `tests/test_layout.py`, and the arrows are the imports in the code, also
those inside functions. An arrow that follows from others is left out: where `cli` imports `data`
and `data` imports `io`, the picture has no arrow from `cli` to `io`. Single modules of the ground
floor, such as `errors`, are imported everywhere and get no arrows. `tests/tools/test_docs.py` fails
while the file differs from what this script draws.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "architecture.svg"
WIDTH, FLOOR_HEIGHT, BOX_HEIGHT, MARGIN = 980, 96, 46, 24
STYLE = """\
text { font-family: sans-serif; text-anchor: middle; fill: #1b2a41 }
.name { font-size: 15px; font-weight: bold }
.part { font-size: 11px }
.box { fill: #ffffff; stroke: #324a5f; stroke-width: 1.2 }
.even { fill: #eef2f6 }
.odd { fill: #dfe7ee }
path { fill: none; stroke: #7a8ea3; stroke-width: 1.1 }"""


class Box(NamedTuple):
    """A package's modules on one floor, counted from the ground."""

    floor: int
    package: str


def boxes_of_modules() -> dict[str, Box]:
    """The box of every module of the package."""
    import test_layout

    boxes = {}
    for module in test_layout.MODULES:
        package = module.partition(".")[0] or "clip_jax"
        boxes[module] = Box(test_layout.floor_of(module), package)
    return boxes


def arrows(boxes: dict[str, Box]) -> dict[Box, set[Box]]:
    """The boxes that each box imports from, without those that others imply."""
    import test_layout

    direct: dict[Box, set[Box]] = {box: set() for box in boxes.values()}
    for module, box in boxes.items():
        direct[box] |= {boxes[name] for name in test_layout.imports(module)} - {box}
    packages = {name.partition(".")[0] for name in boxes if "." in name}
    single_modules = {b for b in direct if b.floor == 0 and b.package not in packages}
    below: dict[Box, set[Box]] = {}

    def reachable(box: Box) -> set[Box]:
        if box not in below:
            below[box] = set().union(*(reachable(b) | {b} for b in direct[box]))
        return below[box]

    return {
        box: {b for b in targets if not any(b in reachable(other) for other in targets)}
        - single_modules
        for box, targets in direct.items()
    }


def parts_of(box: Box, boxes: dict[str, Box]) -> str:
    """The modules of a box where the rest of the package stands on another floor, else nothing."""
    package = {b for b in boxes.values() if b.package == box.package}
    if len(package) == 1 or box == min(package):
        return ""
    names = sorted(m.partition(".")[2] for m, b in boxes.items() if b == box and "." in m)
    return ", ".join(name for name in names if "." not in name)


def curve(source: tuple[float, float], target: tuple[float, float]) -> str:
    """An arrow between two boxes, given the middles of their upper edges."""
    (x1, y1), (x2, y2) = source, target
    if y1 == y2:  # on one floor the arrow goes over the boxes
        bend1, bend2 = y1 - 30, y2 - 30
    else:
        y1 += BOX_HEIGHT
        bend1, bend2 = y1 + 40, y2 - 40
    return (
        f'<path d="M{x1:.0f} {y1:.0f}C{x1:.0f} {bend1:.0f} {x2:.0f} {bend2:.0f} '
        f'{x2:.0f} {y2:.0f}" marker-end="url(#tip)"/>'
    )


def draw() -> str:
    """The picture as SVG."""
    boxes = boxes_of_modules()
    floors: dict[int, list[Box]] = defaultdict(list)
    for box in sorted(set(boxes.values())):
        floors[box.floor].append(box)
    height = len(floors) * FLOOR_HEIGHT
    places: dict[Box, tuple[float, float]] = {}
    bands, rectangles = [], []
    for floor, row in floors.items():
        top = height - (floor + 1) * FLOOR_HEIGHT
        kind = "odd" if floor % 2 else "even"
        bands.append(
            f'<rect class="{kind}" x="0" y="{top}" width="{WIDTH}" height="{FLOOR_HEIGHT}"/>'
        )
        share = (WIDTH - 2 * MARGIN) / len(row)
        for i, box in enumerate(row):
            x, y = MARGIN + share * (i + 0.5), top + (FLOOR_HEIGHT - BOX_HEIGHT) / 2
            places[box] = (x, y)
            parts = parts_of(box, boxes)
            width = max(110, 9.5 * len(box.package), 6.2 * len(parts) + 16)
            rectangles.append(
                f'<rect class="box" x="{x - width / 2:.0f}" y="{y:.0f}" width="{width:.0f}" '
                f'height="{BOX_HEIGHT}" rx="6"/>'
            )
            line = y + BOX_HEIGHT / 2 + (-2 if parts else 5)
            rectangles.append(
                f'<text class="name" x="{x:.0f}" y="{line:.0f}">{escape(box.package)}</text>'
            )
            if parts:
                rectangles.append(
                    f'<text class="part" x="{x:.0f}" y="{line + 16:.0f}">{escape(parts)}</text>'
                )
    curves = []
    for box, targets in sorted(arrows(boxes).items()):
        for target in sorted(targets):
            curves.append(curve(places[box], places[target]))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}">',
            f"<style>\n{STYLE}\n</style>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8"/></marker></defs>',
            *bands,
            *curves,
            *rectangles,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    PICTURE.write_text(draw())
