"""Figure 2 of the CLIP paper: how many images each objective needs for the same accuracy.

    python benchmarks/figure2.py --out runs/figure2      # all runs; the same command resumes
    python benchmarks/figure2.py --out runs/figure2 --only captioning,contrastive --seeds 1
    python benchmarks/figure2.py --out runs/figure2 --write docs/figure2.md
    python benchmarks/figure2.py --out runs/mine --data '/data/{0000..0099}.tar' \\
        --caption '{caption}' --test /data/labelled --images 1024000

The same image tower, pairs, batches and optimizer with four objectives, three seeds each: a
Transformer that writes captions, the prediction of a bag of words, and contrast with a bag of words
or with a Transformer; and one seed of earlier systems. Each run is a run of clip_jax in a folder of
its own, which evaluates itself as it trains. The figure and its tables are made of the runs that
are done, in OUT or, with --write, in that page and beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import figure2_runs as runs

from clip_jax.evaluation.report import charts
from clip_jax.evaluation.report.charts import Frame
from clip_jax.evaluation.report.markup import Markup, decimal, tag
from clip_jax.evaluation.report.scales import Scale
from clip_jax.io import files

MARKS = "<!-- figure2 -->", "<!-- /figure2 -->"
_LEVELS = (0.25, 0.5, 0.75, 1.0)  # of the lowest final accuracy of the curves
_COLORS = ("#0b6e99", "#c0571b", "#4c8c2b", "#8b3fa8", "#b8860b", "#5a5a5a", "#d0447c")
_HEIGHT, _ROW = 260.0, 15.0  # of a chart without its legend, and of a line of it
_STYLE = """
svg{background:#fff;font:11px system-ui,sans-serif}text{fill:#222}
.grid{stroke:#e4e4e4}.axis{stroke:#777}.mid{text-anchor:middle}.end{text-anchor:end}
.soft{fill:#666}.line{fill:none;stroke-width:2}.band{stroke:none;fill-opacity:.16}
"""


@dataclasses.dataclass(frozen=True)
class Curve:
    """The accuracy of an objective on a test set.

    Attributes:
      name: the objective, a key of `figure2_runs.METHODS`.
      values: the accuracy of each seed, by the number of images seen.
      flops: the FLOPs of training on one image and its caption.
    """

    name: str
    values: Mapping[int, Sequence[float]]
    flops: float

    @property
    def method(self) -> runs.Method:
        """The objective."""
        return runs.METHODS[self.name]

    @property
    def means(self) -> list[tuple[float, float]]:
        """The number of images and the mean accuracy of the seeds."""
        return [(images, statistics.fmean(seeds)) for images, seeds in self.values.items()]

    def images_for(self, accuracy: float) -> float | None:
        """Returns the images after which the mean stays at an accuracy; None if it does not.

        Between two points the mean is linear in the logarithm of the images.
        """
        points = self.means
        below = [i for i, (_, mean) in enumerate(points) if mean < accuracy]
        if not below:
            return points[0][0]
        if below[-1] == len(points) - 1:
            return None
        (x, y), (after, higher) = points[below[-1] : below[-1] + 2]
        share = (accuracy - y) / (higher - y)
        return math.exp(math.log(x) + share * (math.log(after) - math.log(x)))


def curves_of(args: argparse.Namespace) -> dict[str, list[Curve]]:
    """Returns the curves of all runs that are done, by test set."""
    found: dict[str, dict[str, dict[int, list[float]]]] = {}
    last = runs.steps_of(args.images)[-1]
    for name, method in runs.METHODS.items():
        for seed in range(method.seeds):
            by_step = runs.accuracies(runs.folder_of(args, name, seed), method)
            if last not in by_step:
                continue
            for step, accuracies in sorted(by_step.items()):
                for test, value in accuracies.items():
                    values = found.setdefault(test, {}).setdefault(name, {})
                    values.setdefault(step * runs.BATCH, []).append(value)
    flops = {
        n: runs.step_flops(args, n) / runs.BATCH for n in {n for t in found.values() for n in t}
    }
    return {
        test: [Curve(name, values[name], flops[name]) for name in runs.METHODS if name in values]
        for test, values in found.items()
    }


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _range(values: Sequence[float]) -> str:
    mean = _percent(statistics.fmean(values))
    if len(values) == 1:
        return mean
    return f"{mean} ({100 * min(values):.1f}–{100 * max(values):.1f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def accuracy_table(curves: Sequence[Curve]) -> str:
    """Returns the accuracy of each objective by images seen: mean, lowest and highest seed."""
    images = sorted({n for curve in curves for n in curve.values})
    rows = [
        [
            curve.method.title,
            *(_range(curve.values[n]) if n in curve.values else "" for n in images),
        ]
        for curve in curves
    ]
    return _table(["images seen", *(f"{n:,}" for n in images)], rows)


def ratio_table(curves: Sequence[Curve]) -> str:
    """Returns the images that each curve needs for an accuracy, and how many times fewer it needs.

    The factor compares with the curve that needs most.
    """
    curves = [curve for curve in curves if curve.method.curve]
    lowest = min(curve.means[-1][1] for curve in curves)
    rows = []
    for share in _LEVELS:
        needed = [curve.images_for(share * lowest) for curve in curves]
        most = max((n for n in needed if n), default=None)
        cells = ["" if n is None or most is None else f"{n:,.0f} ({most / n:.1f}×)" for n in needed]
        rows.append([_percent(share * lowest), *cells])
    return _table(["accuracy", *(curve.method.title for curve in curves)], rows)


def cost_table(curves: Sequence[Curve]) -> str:
    """Returns how each objective is read out, and what it costs."""
    rows = [[c.method.title, c.method.readout, f"{c.flops / 1e6:,.0f}"] for c in curves]
    return _table(["objective", "score of a label", "training MFLOPs an image"], rows)


def order_line(curves: Sequence[Curve]) -> str:
    """Returns the order of the curves at the last point, for each seed."""
    curves = [curve for curve in curves if curve.method.curve]
    finals = [list(curve.values.values())[-1] for curve in curves]
    orders = []
    for seed in range(min(map(len, finals))):
        ranked = sorted(zip(finals, curves, strict=True), key=lambda pair: -pair[0][seed])
        orders.append(" > ".join(curve.method.title for _, curve in ranked))
    if len(set(orders)) == 1:
        return f"Order at the last point, in {len(orders)} of {len(orders)} seeds: {orders[0]}."
    return "Order at the last point, by seed: " + "; ".join(orders) + "."


def chart(curves: Sequence[Curve], title: str, x_label: str, x_of: Callable[[Curve], float]) -> str:
    """Draws the curves as an SVG file, with the range of the seeds as a band.

    Args:
      curves: the curves.
      title: the name of the chart.
      x_label: the name of the horizontal axis, which is logarithmic.
      x_of: the value on that axis for each image of a curve.
    """
    xs = [x_of(c) * n for c in curves for n in c.values]
    top = max(max(seeds) for c in curves for seeds in c.values.values())
    frame = Frame(
        Scale(min(xs), max(xs), "log"), Scale(0, 1.06 * top, share=True), x_label, "top-1"
    )
    frame = dataclasses.replace(frame, height=_HEIGHT)
    parts: list[Markup] = [tag("style", Markup(_STYLE)), frame.axes(_ticks(xs))]
    for i, curve in enumerate(curves):
        color, factor = _COLORS[list(runs.METHODS).index(curve.name)], x_of(curve)
        points = [(factor * n, mean) for n, mean in curve.means]
        if curve.method.curve:
            edge = [(factor * n, max(v)) for n, v in curve.values.items()]
            edge += [(factor * n, min(v)) for n, v in curve.values.items()][::-1]
            parts.append(tag("path", d=frame.path(edge) + "Z", class_="band", fill=color))
            parts.append(tag("path", d=frame.path(points), class_="line", stroke=color))
        for x, y in points if curve.method.curve else points[-1:]:
            cx, cy = frame.at(x, y)
            radius = 2.5 if curve.method.curve else 4
            parts.append(tag("circle", cx=cx, cy=cy, r=radius, fill=color))
        line = _HEIGHT + _ROW * (i + 0.8)
        parts.append(tag("circle", cx=charts.LEFT, cy=line - 4, r=4, fill=color))
        parts.append(tag("text", curve.method.title, x=charts.LEFT + 10, y=line))
    words = "; ".join(f"{c.method.title} {_percent(c.means[-1][1])}" for c in curves)
    drawn = str(charts.svg(title, words, *parts, height=_HEIGHT + _ROW * (len(curves) + 0.5)))
    size = f'width="{decimal(2 * charts.WIDTH)}"'
    return drawn.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" {size} ', 1) + "\n"


def _ticks(xs: Sequence[float]) -> list[tuple[float, str]]:
    """Returns the values that a logarithmic axis names: each if they are few, or powers of ten."""
    distinct = sorted(set(xs))
    if len(distinct) <= runs.POINTS:
        return [(x, f"{x / 1000:.3g}k") for x in distinct]
    exponents = range(math.ceil(math.log10(distinct[0])), math.floor(math.log10(distinct[-1])) + 1)
    return [(10.0**n, f"1e{n}") for n in exponents]


def write_results(args: argparse.Namespace) -> None:
    """Writes the charts, the tables and the numbers of all runs that are done."""
    by_test = curves_of(args)
    page = args.write or args.out / "figure2.md"
    sections = []
    for test, curves in by_test.items():
        parts = [f"### {test}"]
        for kind, label, x_of in (
            ("", "images seen", lambda curve: 1.0),
            ("_flops", "training FLOPs", lambda curve: curve.flops),
        ):
            drawing = page.with_name(f"figure2_{test}{kind}.svg")
            title = f"Accuracy on {test} by {label}"
            with files.atomic_write(drawing) as file:
                file.write(chart(curves, title, label, x_of).encode())
            parts.append(f"![{title}]({drawing.name})")
        parts += [accuracy_table(curves), order_line(curves)]
        if any(curve.method.curve for curve in curves):
            parts.append("Images needed for equal accuracy, and how many times fewer than most:")
            parts.append(ratio_table(curves))
        sections.append("\n\n".join(parts))
    first = next(iter(by_test.values()), None)
    if first is None:
        raise SystemExit("error: no run is done yet")
    text = "\n\n".join([cost_table(first), *sections])
    old = page.read_text() if page.exists() else "\n".join(MARKS)
    before, _, rest = old.partition(MARKS[0])
    _, found, after = rest.partition(MARKS[1])
    if not found:
        raise SystemExit(f"error: {page} has no lines {MARKS[0]} and {MARKS[1]}")
    with files.atomic_write(page) as file:
        file.write(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}".encode())
    numbers = {
        test: {
            c.name: {"flops": c.flops, "top1": {n: [*v] for n, v in c.values.items()}}
            for c in curves
        }
        for test, curves in by_test.items()
    }
    with files.atomic_write(args.out / "figure2.json") as file:
        file.write((json.dumps(numbers, indent=1) + "\n").encode())
    print(text)


def main() -> None:
    """Runs what is not done yet, and writes the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder of the runs")
    known = ", ".join(runs.METHODS)
    parser.add_argument("--only", default="", help=f"objectives, separated by commas: {known}")
    parser.add_argument("--seeds", type=int, default=0, help="seeds of a curve (default: 3)")
    parser.add_argument("--images", type=int, default=102_400, help="images that a run sees")
    parser.add_argument("--data", default=f"{runs.EMOJI}train-*.tar", help="training pairs")
    parser.add_argument("--caption", default="{name}", help="the template of a caption")
    parser.add_argument("--test", default="", help="a set with labels, needed beside --data")
    parser.add_argument("--labels", default="", help="a JSON list of the labels of --test")
    parser.add_argument("--label", default="", help="the field of a label in --test")
    parser.add_argument("--write", type=Path, help="a page between whose marks the tables go")
    args = parser.parse_args()
    chosen = [name for name in args.only.split(",") if name] or list(runs.METHODS)
    if unknown := [name for name in chosen if name not in runs.METHODS]:
        parser.error(f"--only={unknown[0]}: known are {known}")
    if args.images < (least := runs.BATCH * (runs.WARMUP + 1)):
        parser.error(f"--images={args.images} must be at least {least}")
    for seed in range(3):  # seed by seed, so that a part of the figure is there early
        for name in chosen:
            method = runs.METHODS[name]
            if seed < (min(args.seeds, method.seeds) if args.seeds else method.seeds):
                runs.run(args, name, seed)
    write_results(args)


if __name__ == "__main__":
    main()
