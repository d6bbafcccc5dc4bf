"""`python -m clip_jax curate fields`: numeric fields of the pairs as annotations.

python -m clip_jax curate fields '/data/*.tar' similarity pwatermark --out fields
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from clip_jax.cli.common import CommandParser
from clip_jax.cli.curate.pool_flags import add_pool_flags, pool_of
from clip_jax.curation import storage
from clip_jax.curation.scores.annotations import Annotations, AnnotationWriter
from clip_jax.curation.scores.field_files import FieldJob, check_fields, value_range
from clip_jax.curation.scores.parquet_files import require_pyarrow
from clip_jax.errors import UserError
from clip_jax.io.paths import resolve


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command's flags."""
    p = CommandParser(
        prog="python -m clip_jax curate fields",
        description="Writes numeric fields of the pairs, such as scores that DataComp and LAION "
        "come with, into a folder that `curate DATA --annotations FOLDER` filters by. Images are "
        "not read.",
        epilog="example: python -m clip_jax curate fields 'metadata/*.parquet' similarity --out "
        "fields, then curate 'metadata/*.parquet' --no-images --annotations fields --top-share "
        "similarity=0.3 --out curated",
        allow_abbrev=False,
    )
    add_pool_flags(p, captions=False)
    p.add_argument("fields", nargs="+", metavar="FIELD", help="a field, such as similarity")
    p.add_argument("--out", required=True, metavar="FOLDER", help="the folder to write to")
    p.add_argument(
        "--no-images",
        action="store_true",
        help="the images of a table are web addresses, as for curate --no-images",
    )
    return p


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    require_pyarrow("curate fields")
    names = list(dict.fromkeys(args.fields))
    pool = pool_of(args, args.no_images)
    files = pool.files()
    for file, source in pool.opened(files):
        if not isinstance(source, UserError):
            check_fields(source, file, names)
            break
    columns = {name: f"the field {name} of the pairs" for name in names}
    with storage.alone(resolve(args.out)):
        writer = AnnotationWriter(args.out, args.data, columns, files, {"kind": "fields"})
        FieldJob(pool, writer).run(files)
        annotations = Annotations.open(writer.folder)
    for name in names:
        print(value_range(annotations, name))
    return 0
