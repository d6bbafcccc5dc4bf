"""The report of forty sets: its size, the time to write it, and the time to its first paint.

    pip install playwright && python benchmarks/report.py

Chromium opens the file as a phone and as a desktop, each time with an empty profile; the result is
the median time from navigation to the first contentful paint. It fails if a page is larger than
3 MB or if that median is a second or more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from evaluation.report.browser import chromium
from evaluation.report.sample import sample

from clip_jax.evaluation.evaluators import registered_sections
from clip_jax.evaluation.report import render

SIZES = {"phone": (360, 740), "desktop": (1280, 900)}
PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


def main() -> None:
    """Measures and prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    titles = {f"set{i}": (f"A set, number {i}", 1000, 50_000) for i in range(args.sets)}
    results, pictures = sample(titles, pictures=800, examples=24)
    began = time.perf_counter()
    page = render(results, pictures, registered_sections())
    figures = {"sets": args.sets, "seconds_to_make": round(time.perf_counter() - began, 2)}
    figures["megabytes"] = round(len(page.encode()) / 1e6, 2)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        path = Path(folder) / "report.html"
        path.write_text(page, encoding="utf-8")
        for name, (width, height) in SIZES.items():
            times = []
            for _ in range(args.rounds):
                context = browser.new_context(viewport={"width": width, "height": height})
                tab = context.new_page()
                tab.goto(path.as_uri())
                times.append(tab.evaluate(PAINT))
                context.close()
            figures[f"{name}_paint_ms"] = round(statistics.median(times))
            figures[f"{name}_slowest_ms"] = round(max(times))
    print(json.dumps(figures))
    slow = [name for name in SIZES if figures[f"{name}_paint_ms"] >= 1000]
    if slow or figures["megabytes"] > 3:
        sys.exit(f"too slow or too large: {slow or 'over 3 MB'}")


if __name__ == "__main__":
    main()
