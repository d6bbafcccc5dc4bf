"""`python -m clip_jax tfds`: prepares a data set of TensorFlow Datasets for training.

python -m clip_jax tfds NAME --data-dir FOLDER
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from clip_jax.cli.common import CommandParser
from clip_jax.data.sources.tfds.location import COMMAND, data_dir


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    parser = CommandParser(
        prog=COMMAND,
        description="Prepares a data set of TensorFlow Datasets for training, without TensorFlow.",
        epilog=f"example: {COMMAND} clip_jax_emoji --data-dir data",
        allow_abbrev=False,
    )
    parser.add_argument(
        "name", metavar="NAME", help="the data set, such as clip_jax_emoji or NAME/CONFIG:1.0.0"
    )
    parser.add_argument(
        "--data-dir",
        metavar="FOLDER",
        default=data_dir(),
        help="the folder to write to (default: TFDS_DATA_DIR, here %(default)s)",
    )
    args = parser.parse_args(argv)
    # needs the extra `tfds`, which --help does not
    from clip_jax.data.sources.tfds.prepared import prepare

    builder = prepare(args.name, os.path.expanduser(args.data_dir))
    splits = ", ".join(
        f"{name} {info.num_examples:,}" for name, info in builder.info.splits.items()
    )
    print(f"{builder.data_dir}: {splits}")
    first = next(iter(builder.info.splits), "SPLIT")
    print(
        f"to train on it: TFDS_DATA_DIR={os.path.abspath(os.path.expanduser(args.data_dir))} "
        f"python -m clip_jax.main --config FILE --config.data.train='tfds:{args.name}:{first}'"
    )
    return 0
