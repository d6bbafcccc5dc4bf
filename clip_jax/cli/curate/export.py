"""`python -m clip_jax curate export OUT --to FOLDER`: the selected pairs as new tars or tables.

python -m clip_jax curate export curated --to /data/curated --workers 4
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from clip_jax.cli.common import CommandParser, integer_from
from clip_jax.curation import storage
from clip_jax.curation.curated import export
from clip_jax.curation.curated.export import Exporter, Settings, Shard
from clip_jax.curation.curated.reader import Curated
from clip_jax.errors import UserError, counted
from clip_jax.io import remote


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command's flags."""
    p = CommandParser(
        prog="python -m clip_jax curate export",
        description="Copies the pairs that a curation selects, in their order, into new WebDataset "
        "tars or Parquet tables. Training does not need this: config.data.selection reads them "
        "where they are.",
        epilog="example: python -m clip_jax curate export curated --to /data/curated",
        allow_abbrev=False,
    )
    p.add_argument("curated", metavar="OUT", help="the folder that curate wrote")
    p.add_argument("--to", required=True, metavar="FOLDER", help="where shards are written")
    p.add_argument(
        "--format",
        choices=export.FORMATS,
        default=export.FORMATS[0],
        help="tars hold images and texts as they are; parquet has a column for each field",
    )
    group = p.add_mutually_exclusive_group()
    group.add_argument(
        "--shard-pairs",
        type=integer_from(1),
        default=0,
        metavar="N",
        help=f"pairs of a shard (default: {export.PAIRS})",
    )
    group.add_argument(
        "--shard-mib", type=integer_from(1), default=0, metavar="M", help="its size, about"
    )
    p.add_argument(
        "--limit", type=integer_from(1), default=0, metavar="N", help="the first N pairs only"
    )
    p.add_argument(
        "--no-images",
        action="store_true",
        help="with --format parquet: the rows without images, as img2dataset downloads them",
    )
    p.add_argument(
        "--workers", type=integer_from(1), default=1, metavar="N", help="processes (default: 1)"
    )
    p.add_argument("--json", action="store_true", help="print the result as JSON")
    return p


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    if args.no_images and args.format != "parquet":
        raise UserError("--no-images writes tables only: give --format parquet, too")
    if remote.is_remote(args.to):
        raise UserError(f"--to={args.to} must be a folder of this machine: copy it afterwards")
    curated = Curated.open(args.curated)
    pairs = args.shard_pairs or (0 if args.shard_mib else export.PAIRS)
    settings = Settings(args.format, not args.no_images, pairs, args.shard_mib, args.limit)
    folder = Path(args.to).expanduser().absolute()
    with storage.alone(str(folder), "--to"):
        exporter = export.plan(curated.pool, curated.selection, folder, settings)
        total = export.run(exporter, args.workers)
    print(json.dumps(_values(exporter, total), indent=1) if args.json else _lines(exporter, total))
    return 0


def _values(exporter: Exporter, total: Shard) -> dict[str, object]:
    return {"folder": str(exporter.folder), "shards": exporter.count, **vars(total)}


def _lines(exporter: Exporter, total: Shard) -> str:
    size = f"{total.size / 2**20:,.1f} MiB"
    lines = [f"{counted(total.pairs, 'pair')} in {counted(exporter.count, 'shard')}, {size}"]
    if total.left_out:
        lines.append(f"{counted(total.left_out, 'pair')} cannot be read: {total.fault}")
    pattern = f"{exporter.folder}/*{exporter.path(0).suffix}"
    if exporter.settings.images:
        lines.append(f"train on them: --config.data.train='{pattern}'")
    else:
        lines.append(
            f"download their images: img2dataset --url_list={exporter.folder} "
            "--input_format=parquet --url_col=… --caption_col=…"
        )
    return "\n".join(lines)
