"""Inspects the data of a config: what it contains, what is broken, and how fast it is read.

python -m clip_jax inspect configs/vit_b32.py --config.data.train='/data/*.tar'
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from clip_jax import config as config_lib
from clip_jax import tokenizers
from clip_jax.cli.common import CommandParser, split_overrides
from clip_jax.config.checks import check
from clip_jax.config.schema import Config
from clip_jax.data import captions, filters, mixture, pipeline
from clip_jax.data.example import PairError, only_pair_errors
from clip_jax.data.images import decoding, lettering
from clip_jax.data.opening import meaning, quoted
from clip_jax.data.rows import Prepare
from clip_jax.data.sources import read_pair
from clip_jax.distributed import hardware
from clip_jax.errors import UserError, counted
from clip_jax.io import files
from clip_jax.io.files import JsonObject
from clip_jax.io.redirects import allow_redirects
from clip_jax.losses.objective import Objective
from clip_jax.models.model_config import CLIPConfig
from clip_jax.training import class_labels, flops, setup

CHIPS, CHIP = 256, "v5e"
_SHOWN, _COLUMNS, _CELL, _SIDE, _LINES = 12, 4, (300, 340), 276, 3
_WARM_UP = 2  # batches before the clock starts


class Inspected(NamedTuple):
    """A pair that was read: its content, or the reason why it is broken.

    Attributes:
      part: the number of the source in the mixture.
      pair: the number of the pair in the source.
      bytes: the size of the encoded image.
      format: the format of the image.
      width: the width of the full image, in pixels.
      height: the height of the full image, in pixels.
      tokens: the number of tokens of the caption, with start and end, before truncation.
      caption: the caption.
      reason: the kind of damage; empty for an intact pair.
      complaint: the error message; empty for an intact pair.
    """

    part: int
    pair: int
    bytes: int = 0
    format: str = ""
    width: int = 0
    height: int = 0
    tokens: int = 0
    caption: str = ""
    reason: str = ""
    complaint: str = ""


def inspect_pairs(
    data: mixture.Mixture, prepare: Prepare, count: int, seed: int, threads: int
) -> Iterator[Inspected]:
    """Inspects pairs in the order in which training draws them.

    Args:
      data: the mixture of sources.
      prepare: the preparation of a pair.
      count: the number of pairs, at most those of an epoch; 0: all pairs, source by source.
      seed: the seed of the order and of the captions.
      threads: the number of threads that read.
    """
    prepares = pipeline.prepares_of(data, prepare)

    def inspect_pair(place: tuple[int, int]) -> Inspected:
        part, i = place
        own, size = prepares[part], 0
        try:
            pair = read_pair(data.parts[part].source, i)
            size = len(pair.image)
            rng = np.random.default_rng((seed, part, i))
            with only_pair_errors("caption", pair.name):
                text = captions.sample(own.templates, pair.text, pair.name, rng, own.weights, i)
                marks = 1 + (own.tokenizer.sot_id is not None)
                tokens = len(own.tokenizer.encode(text)) + marks
            with only_pair_errors("picture", pair.name):
                own.decode(pair.image, pair.name)
                with decoding.open_image(pair.image) as picture:
                    file_format, (width, height) = picture.format or "", picture.size
        except PairError as error:
            return Inspected(part, i, size, reason=error.reason, complaint=str(error))
        return Inspected(part, i, size, file_format, width, height, tokens, text)

    def places() -> Iterator[tuple[int, int]]:
        if not count:
            for number, part in enumerate(data.parts):
                yield from ((number, i) for i in range(len(part.source)))
        for position in range(min(count, len(data))):  # at most one epoch
            place = data.place(position, seed)
            yield place.part, place.pair

    with ThreadPoolExecutor(threads) as pool:
        remaining = places()
        while block := list(itertools.islice(remaining, 64 * threads)):
            yield from pool.map(inspect_pair, block)


def _spread(values: Sequence[int]) -> dict[str, int]:
    """Returns the minimum, median, 95th percentile and maximum."""
    if not values:
        return {}
    low, middle, high, top = np.percentile(values, [0, 50, 95, 100], method="nearest")
    return {"least": int(low), "median": int(middle), "95%": int(high), "most": int(top)}


def summarize(pairs: Sequence[Inspected], image_size: int, context_length: int) -> JsonObject:
    """Computes statistics of pairs, for `--json` and for `format_summary`.

    Args:
      pairs: the inspected pairs.
      image_size: the side of the model's images, in pixels; smaller images are counted.
      context_length: the length of the model's texts, in tokens; longer captions are counted.
    """
    good = [pair for pair in pairs if not pair.reason]
    complaints: dict[str, str] = {}
    for pair in pairs:
        if pair.reason:
            complaints.setdefault(pair.reason, pair.complaint)
    return {
        "looked_at": len(pairs),
        "broken": dict(Counter(pair.reason for pair in pairs if pair.reason).most_common()),
        "complaints": complaints,
        "formats": dict(Counter(pair.format for pair in good).most_common()),
        "bytes": _spread([pair.bytes for pair in good]),
        "width": _spread([pair.width for pair in good]),
        "height": _spread([pair.height for pair in good]),
        "small": sum(min(pair.width, pair.height) < image_size for pair in good),
        "tokens": _spread([pair.tokens for pair in good]),
        "cut": sum(pair.tokens > context_length for pair in good),
    }


def measure_speed(data: mixture.Mixture, prepare: Prepare, c: Config, seconds: float) -> float:
    """Measures how many images per second this machine prepares with the settings of a config.

    Args:
      data: the mixture of sources.
      prepare: the preparation of a pair.
      c: the config.
      seconds: the duration of the measurement.
    """
    batch_size = min(c.batch_size, 256)
    batches = pipeline.iterator(
        pipeline.batches(data, prepare, batch_size=batch_size, seed=c.seed),
        threads=c.data.threads,
        workers=c.data.workers,
        prefetch=c.data.prefetch,
        max_bad_fraction=1.0,
    )
    try:
        # prefetched batches would make the measured rate too high
        for _ in range(_WARM_UP + c.data.prefetch * max(1, c.data.workers)):
            next(batches)
        began, images_made = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            next(batches)
            images_made += batch_size
        return images_made / (time.perf_counter() - began)
    finally:
        batches.close()


def draw(pairs: Sequence[tuple[Image.Image, str]]) -> Image.Image:
    """Draws a sheet of images with their captions below them."""
    rows = math.ceil(len(pairs) / _COLUMNS)
    sheet = Image.new("RGB", (_CELL[0] * _COLUMNS, _CELL[1] * max(rows, 1)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for i, (picture, caption) in enumerate(pairs):
        x, y = i % _COLUMNS * _CELL[0] + 12, i // _COLUMNS * _CELL[1] + 8
        scale = _SIDE / max(picture.size)
        size = tuple(max(1, round(side * scale)) for side in picture.size)
        sheet.paste(
            picture.resize((size[0], size[1])),
            (x + (_SIDE - size[0]) // 2, y + (_SIDE - size[1]) // 2),
        )
        pen.text(
            (x, y + _SIDE + 4),
            lettering.wrap(pen, caption, font, _SIDE, _LINES),
            "black",
            font,
            spacing=2,
        )
    return sheet


def _draw_first(data: mixture.Mixture, pairs: Sequence[Inspected]) -> Image.Image:
    """Draws the first pairs that are not broken."""
    drawn = []
    for inspected in [pair for pair in pairs if not pair.reason][:_SHOWN]:
        pair = data.parts[inspected.part].source[inspected.pair]
        drawn.append((decoding.decode(pair.image, pair.name), inspected.caption))
    return draw(drawn)


def _sources(data: mixture.Mixture) -> list[JsonObject]:
    """Returns the number of pairs and of rows in an epoch of each source.

    Also returns what opening the source and a filter left out.
    """
    sources = []
    for part in data.parts:
        source = {"name": part.name, "pairs": len(part.source), "rows": part.rows}
        source["opening"] = part.source.opening_report().to_dict()
        if isinstance(part.source, filters.Selected):
            source["left_out"] = part.source.left_out
        sources.append(source)
    return sources


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def format_summary(summary: Mapping[str, Any], image_size: int, context_length: int) -> str:
    """Formats a summary as lines of text.

    Args:
      summary: the summary that `inspect` returns.
      image_size: the side of the model's images, in pixels.
      context_length: the length of the model's texts, in tokens.
    """
    total = max(1, summary["looked_at"])

    def share(count: int) -> str:
        return f"{count:,} ({100 * count / total:.3g} %)"

    def spread(key: str, unit: str, scale: float = 1) -> str:
        n = {name: _rounded(value / scale) for name, value in summary[key].items()}
        middle = f"{n['median']} {unit} (median), 95 % up to {n['95%']}"
        return f"{middle}, from {n['least']} to {n['most']}"

    lines = [f"pairs      {summary['pairs']:,}; an epoch has {counted(summary['rows'], 'row')}"]
    for source in summary["sources"]:
        why = ", ".join(f"{reason} {n:,}" for reason, n in source.get("left_out", {}).items())
        if source["name"] or why:
            pairs, rows = counted(source["pairs"], "pair"), counted(source["rows"], "row")
            line = f"{source['name'] or 'all'}: {pairs}, {rows}"
            lines.append(f"           {line}{why and f'; left out: {why}'}")
        opening = source["opening"]
        lines += [f"note       {note}" for note in opening["notes"]]
        lines += [
            f"left out   {reason} {item['count']:,} of {opening['seen']:,} {opening['unit']}: "
            f"{meaning(reason)}, such as {quoted(item['example'])}"
            for reason, item in opening["left_out"].items()
        ]
    lines.append(f"looked at  {summary['looked_at']:,}, the first that training draws")
    if summary["bytes"]:
        formats = ", ".join(f"{name} {share(n)}" for name, n in summary["formats"].items())
        lines += [
            f"images     {formats}",
            f"           {spread('bytes', 'KB', 1e3)}",
            f"           {spread('width', 'wide')}; {spread('height', 'high')}",
            f"           {share(summary['small'])} have a side below the model's {image_size}",
            f"captions   {spread('tokens', 'tokens')}",
            f"           {share(summary['cut'])} are cut at {context_length}",
        ]
    lines += [
        f"broken     {reason} {share(n)}, such as: {summary['complaints'][reason]}"
        for reason, n in summary["broken"].items()
    ] or ["broken     none"]
    if "images_per_second" in summary:
        lines.append(
            f"speed      {summary['images_per_second']:,.0f} images/s as config.data reads them, "
            f"on {counted(summary['cores'], 'core')}; {CHIPS} {CHIP} chips at "
            f"{100 * summary['mfu']:.0f} % MFU train {summary['trained_per_second']:,.0f} a "
            f"second: {summary['hosts']:,} such hosts feed them"
        )
    return "\n".join(lines)


def inspect(
    c: Config,
    model: CLIPConfig,
    objective: Objective,
    count: int,
    seconds: float,
    mfu: float,
    picture: str,
) -> JsonObject:
    """Inspects the data of a config and draws a picture of some pairs.

    Args:
      c: the config, from `setup.checked`.
      model: the architecture, from `setup.checked`.
      objective: the objective, from `setup.checked`.
      count: the number of pairs to read; 0: all.
      seconds: the duration of the speed measurement; 0: no measurement.
      mfu: the share of the chips' peak that training reaches.
      picture: the file of the picture; empty: none.

    Returns:
      The summary that `--json` prints.
    """
    tokenizer = tokenizers.load(c.tokenizer, model.text.context_length)
    data = mixture.open_mixture(c.data.to_dict(), _say, report=False)  # it is in the summary
    size = model.vision.image_size
    prepare = Prepare.from_config({**c.data.to_dict(), "cache_mib": 0}, tokenizer, model.vision)
    total = count or data.pairs
    pairs = inspect_pairs(data, prepare, count, c.seed, c.data.threads)
    quiet = not sys.stderr.isatty()
    inspected = list(tqdm(pairs, "looking", total, unit="pair", disable=quiet, leave=False))
    result = {"pairs": data.pairs, "rows": len(data), "sources": _sources(data)}
    result |= summarize(inspected, size, tokenizer.context_length)
    if picture:
        with files.atomic_write(Path(picture)) as file:
            _draw_first(data, inspected).save(file, "png")
    if seconds and result["bytes"]:
        groups = setup.check_groups(c, model)
        step = flops.step(model, objective, c.batch_size, groups=groups, lora=c.lora) / c.batch_size
        trained = CHIPS * hardware.chip_named(CHIP).peak * mfu / step
        prepare = Prepare.from_config(c.data.to_dict(), tokenizer, model.vision)
        images_per_second = measure_speed(data, prepare, c, seconds)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        hosts = math.ceil(trained / images_per_second)
        result |= {"images_per_second": images_per_second, "cores": cores, "mfu": mfu}
        result |= {"trained_per_second": trained, "hosts": hosts}
    return result


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command's flags."""
    p = CommandParser(
        prog="python -m clip_jax inspect",
        description="Shows what the data of a config contain, what is broken, and how fast they "
        "are read.",
        epilog="any key of the config can be set: --config.data.train='/data/*.tar'",
        allow_abbrev=False,
    )
    p.add_argument("config", metavar="CONFIG", help="a file such as configs/vit_b32.py, or "
                   "a shipped config by name: vit_b32")  # fmt: skip
    p.add_argument("--pairs", type=int, default=2_000, metavar="N", help="pairs to read; "
                   "0: all (default %(default)s)")  # fmt: skip
    p.add_argument("--seconds", type=float, default=5.0, metavar="S", help="seconds of the "
                   "speed measurement; 0: no measurement (default %(default)s)")  # fmt: skip
    p.add_argument("--mfu", type=float, default=0.4, metavar="SHARE", help="share of the "
                   "chips' peak that training reaches (default %(default)s)")  # fmt: skip
    p.add_argument("--picture", default="inspect.png", metavar="FILE", help="file for a "
                   "picture of twelve pairs; empty: none (default %(default)s)")  # fmt: skip
    p.add_argument("--json", action="store_true", help="print one line of JSON instead of text")
    return p


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    flags, overrides = split_overrides(argv)
    args = parser().parse_args(flags)
    for name, value, most in (("pairs", args.pairs, math.inf), ("seconds", args.seconds, 1e6)):
        if not 0 <= value <= most:
            raise UserError(f"--{name} {value} must be at least 0")
    if not 0 < args.mfu <= 1:
        raise UserError(f"--mfu {args.mfu} must be above 0 and at most 1")
    config, _ = config_lib.load(args.config, overrides)
    c = check(config)
    allow_redirects(c.data.redirects)
    c = class_labels.with_classifier(c, class_labels.open_for_labels)
    c, model, objective = setup.checked(c, 1)
    result = inspect(c, model, objective, args.pairs, args.seconds, args.mfu, args.picture)
    if args.json:
        print(json.dumps(result))
        return 0
    print(format_summary(result, model.vision.image_size, model.text.context_length))
    if args.picture:
        print(f"picture    {args.picture}: {_SHOWN} of them")
    return 0
