"""What a config's data hold and how fast this machine reads them, before a run depends on it.

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
from clip_jax.data import captions, filters, mixture, pipeline
from clip_jax.data.example import PairError, only_pair_errors
from clip_jax.data.images import decoding, lettering
from clip_jax.data.opening import meaning, quoted
from clip_jax.data.sources import read_pair
from clip_jax.distributed import hardware
from clip_jax.errors import UserError, counted
from clip_jax.io.files import whole
from clip_jax.training import flops, setup

CHIPS, CHIP = 256, "v5e"
_SHOWN, _COLUMNS, _CELL, _SIDE, _LINES = 12, 4, (300, 340), 276, 3
_AHEAD = 2  # batches that are made before the clock starts


class Seen(NamedTuple):
    """One pair: what is in it, or why it is broken.

    width, height: pixels of the whole picture. tokens: of a caption, with start and end, before
    they are cut.
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


def look(
    data: mixture.Mixture, prepare: pipeline.Prepare, count: int, seed: int, threads: int
) -> Iterator[Seen]:
    """The first `count` pairs that training draws; all of them, in their order, where it is 0."""
    prepares = pipeline.prepares_of(data, prepare)

    def seen(place: tuple[int, int]) -> Seen:
        part, i = place
        ready, size = prepares[part], 0
        try:
            pair = read_pair(data.parts[part].source, i)
            size = len(pair.image)
            rng = np.random.default_rng((seed, part, i))
            with only_pair_errors("caption", pair.name):
                text = captions.sample(ready.templates, pair.text, pair.name, rng, ready.weights, i)
                marks = 1 + (ready.tokenizer.sot_id is not None)
                tokens = len(ready.tokenizer.encode(text)) + marks
            with only_pair_errors("picture", pair.name):
                ready.decode(pair.image, pair.name)
                with decoding.opened(pair.image) as picture:
                    kind, (width, height) = picture.format or "", picture.size
        except PairError as error:
            return Seen(part, i, size, reason=error.reason, complaint=str(error))
        return Seen(part, i, size, kind, width, height, tokens, text)

    def places() -> Iterator[tuple[int, int]]:
        if not count:
            for number, part in enumerate(data.parts):
                yield from ((number, i) for i in range(len(part.source)))
        for position in range(count):
            place = data.place(position, seed)
            yield place.part, place.pair

    with ThreadPoolExecutor(threads) as pool:
        waiting = places()
        while some := list(itertools.islice(waiting, 64 * threads)):
            yield from pool.map(seen, some)


def _spread(values: Sequence[int]) -> dict[str, int]:
    """Least, median, most, and what 95 of 100 do not exceed."""
    if not values:
        return {}
    low, middle, high, top = np.percentile(values, [0, 50, 95, 100], method="nearest")
    return {"least": int(low), "median": int(middle), "95%": int(high), "most": int(top)}


def summary(found: Sequence[Seen], image_size: int, context_length: int) -> dict[str, Any]:
    """Pairs in numbers, for machines and for `described`."""
    good = [seen for seen in found if not seen.reason]
    complaints: dict[str, str] = {}
    for seen in found:
        if seen.reason:
            complaints.setdefault(seen.reason, seen.complaint)
    return {
        "looked_at": len(found),
        "broken": dict(Counter(seen.reason for seen in found if seen.reason).most_common()),
        "complaints": complaints,
        "formats": dict(Counter(seen.format for seen in good).most_common()),
        "bytes": _spread([seen.bytes for seen in good]),
        "width": _spread([seen.width for seen in good]),
        "height": _spread([seen.height for seen in good]),
        "small": sum(min(seen.width, seen.height) < image_size for seen in good),
        "tokens": _spread([seen.tokens for seen in good]),
        "cut": sum(seen.tokens > context_length for seen in good),
    }


def speed(
    data: mixture.Mixture, prepare: pipeline.Prepare, c: Mapping[str, Any], seconds: float
) -> float:
    """Images a second that this machine makes of them as `config.data` says, over some seconds."""
    size = min(c["batch_size"], 256)
    batches = pipeline.iterator(
        pipeline.batches(data, prepare, batch_size=size, seed=c["seed"]),
        threads=c["data"]["threads"],
        workers=c["data"]["workers"],
        prefetch=c["data"]["prefetch"],
        max_bad_fraction=1.0,
    )
    try:
        # what was made ahead of the clock took no time of it
        for _ in range(_AHEAD + c["data"]["prefetch"] * max(1, c["data"]["workers"])):
            next(batches)
        began, made = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            next(batches)
            made += size
        return made / (time.perf_counter() - began)
    finally:
        batches.close()


def draw(pairs: Sequence[tuple[Image.Image, str]]) -> Image.Image:
    """A sheet of pictures with what is written about each below it."""
    rows = math.ceil(len(pairs) / _COLUMNS)
    sheet = Image.new("RGB", (_CELL[0] * _COLUMNS, _CELL[1] * max(rows, 1)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for i, (picture, caption) in enumerate(pairs):
        x, y = i % _COLUMNS * _CELL[0] + 12, i // _COLUMNS * _CELL[1] + 8
        scale = _SIDE / max(picture.size)
        size = tuple(max(1, round(side * scale)) for side in picture.size)
        shown = picture.resize((size[0], size[1]))
        sheet.paste(shown, (x + (_SIDE - size[0]) // 2, y + (_SIDE - size[1]) // 2))
        pen.text(
            (x, y + _SIDE + 4),
            lettering.wrap(pen, caption, font, _SIDE, _LINES),
            "black",
            font,
            spacing=2,
        )
    return sheet


def _shown(data: mixture.Mixture, found: Sequence[Seen]) -> Image.Image:
    chosen = [seen for seen in found if not seen.reason][:_SHOWN]
    pairs = []
    for seen in chosen:
        pair = data.parts[seen.part].source[seen.pair]
        pairs.append((decoding.decode(pair.image, pair.name), seen.caption))
    return draw(pairs)


def _sources(data: mixture.Mixture) -> list[dict[str, Any]]:
    """Each source's pairs, rows of an epoch, and what opening it and a filter left out."""
    found = []
    for part in data.parts:
        source = {"name": part.name, "pairs": len(part.source), "rows": part.rows}
        source["opening"] = part.source.opening_report().to_dict()
        if isinstance(part.source, filters.Selected):
            source["left_out"] = part.source.left_out
        found.append(source)
    return found


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def described(found: Mapping[str, Any], image_size: int, context_length: int) -> str:
    """A summary as lines for people."""
    looked = max(1, found["looked_at"])

    def share(count: int) -> str:
        return f"{count:,} ({100 * count / looked:.3g} %)"

    def spread(key: str, unit: str, scale: float = 1) -> str:
        n = {name: _rounded(value / scale) for name, value in found[key].items()}
        middle = f"{n['median']} {unit} (median), 95 % up to {n['95%']}"
        return f"{middle}, from {n['least']} to {n['most']}"

    lines = [f"pairs      {found['pairs']:,}; an epoch has {counted(found['rows'], 'row')}"]
    for source in found["sources"]:
        why = ", ".join(f"{reason} {n:,}" for reason, n in source.get("left_out", {}).items())
        if source["name"] or why:
            pairs, rows = counted(source["pairs"], "pair"), counted(source["rows"], "row")
            said = f"{source['name'] or 'all'}: {pairs}, {rows}"
            lines.append(f"           {said}{why and f'; left out: {why}'}")
        opening = source["opening"]
        lines += [f"note       {note}" for note in opening["notes"]]
        lines += [
            f"left out   {reason} {one['count']:,} of {opening['seen']:,} {opening['unit']}: "
            f"{meaning(reason)}, such as {quoted(one['example'])}"
            for reason, one in opening["left_out"].items()
        ]
    lines.append(f"looked at  {found['looked_at']:,}, the first that training draws")
    if found["bytes"]:
        formats = ", ".join(f"{name} {share(n)}" for name, n in found["formats"].items())
        lines += [
            f"pictures   {formats}",
            f"           {spread('bytes', 'KB', 1e3)}",
            f"           {spread('width', 'wide')}; {spread('height', 'high')}",
            f"           {share(found['small'])} have a side below the model's {image_size}",
            f"captions   {spread('tokens', 'tokens')}",
            f"           {share(found['cut'])} are cut at {context_length}",
        ]
    lines += [
        f"broken     {reason} {share(n)}, such as: {found['complaints'][reason]}"
        for reason, n in found["broken"].items()
    ] or ["broken     none"]
    if "images_per_second" in found:
        lines.append(
            f"speed      {found['images_per_second']:,.0f} images/s as config.data reads them, on "
            f"{counted(found['cores'], 'core')}; {CHIPS} {CHIP} chips at "
            f"{100 * found['mfu']:.0f} % MFU train "
            f"{found['trained_per_second']:,.0f} a second: {found['hosts']:,} such hosts feed them"
        )
    return "\n".join(lines)


def inspect(c: Any, count: int, seconds: float, mfu: float, picture: str) -> dict[str, Any]:
    """Looks at a config's data, draws the picture, and gives what `--json` prints."""
    c, model, objective = setup.checked(c, 1)
    tokenizer = tokenizers.load(c.tokenizer, model.text.context_length)
    data = mixture.open_mixture(c.data.to_dict(), _say, report=False)  # it is in the summary
    size = model.vision.image_size
    prepare = pipeline.Prepare.from_config({**c.data.to_dict(), "cache_mib": 0}, tokenizer, size)
    total = count or data.pairs
    pairs = look(data, prepare, count, c.seed, c.data.threads)
    quiet = not sys.stderr.isatty()
    seen = list(tqdm(pairs, "looking", total, unit="pair", disable=quiet, leave=False))
    found = {"pairs": data.pairs, "rows": len(data), "sources": _sources(data)}
    found |= summary(seen, size, tokenizer.context_length)
    if picture:
        with whole(Path(picture)) as file:
            _shown(data, seen).save(file, "png")
    if seconds and found["bytes"]:
        step = flops.step(model, objective, c.batch_size) / c.batch_size
        trained = CHIPS * hardware.chip_named(CHIP).peak * mfu / step
        made = speed(
            data,
            pipeline.Prepare.from_config(c.data.to_dict(), tokenizer, size),
            c.to_dict(),
            seconds,
        )
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        found |= {"images_per_second": made, "cores": cores, "mfu": mfu}
        found |= {"trained_per_second": trained, "hosts": math.ceil(trained / made)}
    return found


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    p = CommandParser(
        prog="python -m clip_jax inspect",
        description="Says what a config's data hold, what is broken in them, and how fast they are "
        "read.",
        epilog="any key of the config can be set: --config.data.train='/data/*.tar'",
        allow_abbrev=False,
    )
    p.add_argument("config", metavar="CONFIG", help="a config, such as configs/vit_b32.py")
    p.add_argument("--pairs", type=int, default=2_000, metavar="N", help="how many to look at; "
                   "0: all (default %(default)s)")  # fmt: skip
    p.add_argument("--seconds", type=float, default=5.0, metavar="S", help="for which reading is "
                   "timed; 0: not at all (default %(default)s)")  # fmt: skip
    p.add_argument("--mfu", type=float, default=0.4, metavar="SHARE", help="of the chips' peak "
                   "that training is taken to reach (default %(default)s)")  # fmt: skip
    p.add_argument("--picture", default="inspect.png", metavar="FILE", help="gets twelve of the "
                   "pairs; empty: none (default %(default)s)")  # fmt: skip
    p.add_argument("--json", action="store_true", help="one line of JSON in place of text")
    return p


def run(argv: Sequence[str]) -> int:
    """The whole command; returns the exit code."""
    flags, overrides = split_overrides(argv)
    args = parser().parse_args(flags)
    for name, value, most in (("pairs", args.pairs, math.inf), ("seconds", args.seconds, 1e6)):
        if not 0 <= value <= most:
            raise UserError(f"--{name} {value} must be at least 0")
    if not 0 < args.mfu <= 1:
        raise UserError(f"--mfu {args.mfu} must be above 0 and at most 1")
    config, _ = config_lib.load(args.config, overrides)
    found = inspect(config, args.pairs, args.seconds, args.mfu, args.picture)
    if args.json:
        print(json.dumps(found))
        return 0
    _, model, _ = setup.checked(config, 1)
    print(described(found, model.vision.image_size, model.text.context_length))
    if args.picture:
        print(f"picture    {args.picture}: {_SHOWN} of them")
    return 0
