"""The flags that name the pairs, of the pipeline and of `curate score`."""

from __future__ import annotations

import argparse

from clip_jax.cli.common import share
from clip_jax.curation.pool import Pool
from clip_jax.data.sources import SourceOptions


def add_pool_flags(p: argparse.ArgumentParser, captions: bool = True) -> None:
    """Adds DATA, and how it is read.

    Args:
      p: the parser.
      captions: whether captions are made of the pairs.
    """
    p.add_argument("data", metavar="DATA", help="the pairs, as config.data.train names them")
    if captions:
        p.add_argument(
            "--captions",
            action="append",
            metavar="TEMPLATE",
            help="the caption, as in config.data.captions; of several, the first that a pair fills "
            "(default: {caption})",
        )
    p.add_argument("--source", default="", metavar="KIND", help="as config.data.source")
    p.add_argument("--image", default="", metavar="NAME", help="as config.data.image")
    p.add_argument("--root", default="", metavar="FOLDER", help="as config.data.root")
    p.add_argument(
        "--max-bad-fraction",
        type=share,
        default=0.01,
        metavar="SHARE",
        help="the share of files that may be unreadable (default: %(default)s)",
    )


def pool_of(args: argparse.Namespace, addresses: bool = False) -> Pool:
    """Returns the pairs that the flags name.

    Args:
      args: with the values of `add_pool_flags`.
      addresses: whether images may be web addresses, see `SourceOptions`.
    """
    options = SourceOptions(
        image=args.image,
        root=args.root,
        max_bad_fraction=args.max_bad_fraction,
        addresses=addresses,
    )
    return Pool(args.data, args.source, options)
