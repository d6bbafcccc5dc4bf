"""Flags of commands that read a model: its sizes and its tokenizer."""

from __future__ import annotations

import argparse

from clip_jax.errors import UserError
from clip_jax.models.fields import MAX_SIZE
from clip_jax.models.patches import MOST_PATCHES


def add_loading_flags(p: argparse.ArgumentParser) -> None:
    """Adds the flags that resize a model when it is read, and that name its tokenizer."""
    p.add_argument("--image-size", type=int, metavar="N", help="resize the positions to N pixels")
    p.add_argument(
        "--context-length", type=int, metavar="N", help="resize the positions to N tokens"
    )
    p.add_argument(
        "--keep-positions",
        type=int,
        default=0,
        metavar="N",
        help="with --context-length: leave the first N positions as they are, and stretch the "
        "others; Long-CLIP is --context-length 248 --keep-positions 20",
    )
    p.add_argument(
        "--max-num-patches",
        type=int,
        metavar="N",
        help="of SigLIP 2 NaFlex: images are resized to N patches at most",
    )
    p.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="clip, sentencepiece:my.model, siglip:spiece.model, wordpiece:vocab.txt or "
        "huggingface:FOLDER (default: that of SOURCE)",
    )


def check_sizes(args: argparse.Namespace) -> None:
    """Raises UserError for a wrong value of `add_loading_flags`."""
    for flag in ("image_size", "context_length", "max_num_patches"):
        value, most = getattr(args, flag), MOST_PATCHES if flag == "max_num_patches" else MAX_SIZE
        if value is not None and not 1 <= value <= most:
            raise UserError(f"--{flag.replace('_', '-')} {value} must be from 1 to {most}")
    if args.keep_positions < 0 or (args.keep_positions and args.context_length is None):
        raise UserError(f"--keep-positions {args.keep_positions} needs --context-length N")
