"""`python -m clip_jax curate score`: CLIP scores of all pairs, by any model.

python -m clip_jax curate score runs/quickstart 'embedded:emoji/train-*.tar' --out scores
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clip_jax.cli.common import CommandParser, add_multihost_flags, integer_from
from clip_jax.cli.curate.pool_flags import add_pool_flags, pool_of
from clip_jax.distributed import cluster_env, multihost
from clip_jax.errors import UserError
from clip_jax.io.paths import resolve

if TYPE_CHECKING:
    from clip_jax.curation.scores.heads import Head
    from clip_jax.curation.scores.scoring import Scorer
    from clip_jax.inference.model_source import ModelSource

_DTYPES = ("float32", "bfloat16", "mixed")  # those of `model_config`, which imports JAX


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command's flags."""
    p = CommandParser(
        prog="python -m clip_jax curate score",
        description="Writes the CLIP score of every pair, the cosine of image and caption, by any "
        "model, into a folder that `curate DATA --annotations FOLDER` filters by. The same command "
        "goes on where a stopped one ended.",
        epilog="example: python -m clip_jax curate score runs/quickstart "
        "'embedded:emoji/train-*.tar' --captions '{name}' --out scores",
        allow_abbrev=False,
    )
    p.add_argument(
        "model",
        metavar="MODEL",
        help="a run, its checkpoints/STEP, a folder or file of another library's weights, or with "
        "--weights the name of a model, such as ViT-B/32",
    )
    add_pool_flags(p)
    p.add_argument("--out", required=True, metavar="FOLDER", help="the folder to write to")
    p.add_argument(
        "--average",
        action="store_true",
        help="average the features of the captions by all templates that a pair fills",
    )
    p.add_argument("--column", default="clip_score", metavar="NAME", help="the name of the score")
    p.add_argument(
        "--head",
        action="append",
        default=[],
        metavar="NAME=FILE.npz",
        help="a linear head on image features, as a further column NAME, such as a predictor of "
        "aesthetics: 'weight' [d] or [d, k] and 'bias'",
    )
    p.add_argument(
        "--features",
        action="store_true",
        help="store image features, too: FOLDER/features/, for `curate semantic`",
    )
    p.add_argument(
        "--limit", type=integer_from(1), default=0, metavar="N", help="score N pairs of each file"
    )
    _add_reading_flags(p)
    add_multihost_flags(p.add_argument_group("many hosts"))
    return p


def _add_reading_flags(p: argparse.ArgumentParser) -> None:
    """Adds the flags of how the model and the pairs are read."""
    p.add_argument("--weights", metavar="FILE", help="a file of OpenAI, open_clip or transformers")
    p.add_argument("--ema", action="store_true", help="use the averaged weights of a run")
    p.add_argument(
        "--activation",
        choices=("quick_gelu", "gelu"),
        help="the activation function of a file without a config (default: quick_gelu)",
    )
    p.add_argument(
        "--tokenizer", default="", metavar="NAME", help="where the model's files hold none"
    )
    p.add_argument(
        "--dtype",
        choices=_DTYPES,
        help="what the model computes in (default: as a run was trained, or float32)",
    )
    p.add_argument(
        "--batch-size",
        type=integer_from(1),
        default=64,
        metavar="N",
        help="images that each device encodes at a time (default: %(default)s)",
    )
    p.add_argument(
        "--threads",
        type=integer_from(0),
        default=0,
        metavar="N",
        help="threads that read and decode (default: one per processor)",
    )


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    args.captions = args.captions or ["{caption}"]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    process_info = cluster_env.detect_process(
        args.coordinator, args.processes, args.process, os.environ
    )
    with multihost.process_group(process_info, args.connect_timeout, args.heartbeat_timeout):
        _score(args)
    return 0


def _score(args: argparse.Namespace) -> None:
    import jax

    from clip_jax.curation import storage
    from clip_jax.curation.scores import score_files
    from clip_jax.curation.scores.annotations import Annotations, AnnotationWriter
    from clip_jax.curation.scores.parquet_files import require_pyarrow
    from clip_jax.curation.scores.scoring import columns_of
    from clip_jax.data import captions

    require_pyarrow("curate score")
    for template in args.captions:
        captions.fields(template)  # raises for a wrong one
    pool = pool_of(args)
    files = pool.files()
    source = _open_model(args)
    scorer = _scorer(args, source)
    model = f"{source.name} {scorer.encoder.fingerprint()[:16]}"
    settings = {
        "model": model,
        "preprocess": repr(scorer.preprocess),
        "captions": args.captions,
        "average": args.average,
        "heads": {head.name: head.digest for head in scorer.heads},
        "limit": args.limit,
        "dtype": args.dtype or source.dtype or "float32",
    }
    with contextlib.ExitStack() as stack:
        if multihost.is_first():
            stack.enter_context(storage.alone(resolve(args.out)))
        writer = AnnotationWriter(args.out, args.data, columns_of(scorer, model), files, settings)
        score_files.check_shared(writer)
        job = score_files.ScoreJob(scorer, pool, writer, args.features, args.limit)
        totals = job.run(files[jax.process_index() :: jax.process_count()])
        print(totals.line(), file=sys.stderr)
        complete = score_files.wait_for_all(writer, jax.process_count())
    if complete and multihost.is_first():
        print(score_files.distribution(Annotations.open(writer.folder), args.column))


def _open_model(args: argparse.Namespace) -> ModelSource:
    """Opens the model of the flags; notes about it are printed."""
    from absl import logging

    from clip_jax.distributed.compilation_cache import use_compilation_cache
    from clip_jax.inference.pretrained import find_model_source

    logging.set_verbosity("error")  # without orbax's warning that a checkpoint is only read
    use_compilation_cache()
    source = find_model_source(args.model, args.weights, args.activation, ema=args.ema)
    for remark in source.remarks:
        multihost.say_first(f"note: {remark}")
    if "text" in source.untrained:
        raise UserError(
            f"{source.path}: its text tower has random values, because no objective trained it: "
            "scores of captions need another model"
        )
    return source.without_heads()


def _scorer(args: argparse.Namespace, source: ModelSource) -> Scorer:
    """Loads the model onto this host's devices."""
    import jax

    from clip_jax import tokenizers
    from clip_jax.curation.scores.scoring import Scorer
    from clip_jax.distributed import sharding
    from clip_jax.evaluation.evaluate import load_encoder

    name = args.tokenizer or source.tokenizer
    if not name:
        raise UserError(
            f"{source.path} holds no tokenizer that is known here: give --tokenizer, such as "
            "siglip:spiece.model or wordpiece:vocab.txt"
        )
    text = source.config.text
    tokenizer = tokenizers.load(name, text.context_length, trusted=bool(args.tokenizer))
    text.check_tokenizer(name, tokenizer)
    heads = _heads(args.head, args.column, source.config.embed_dim)
    mesh = sharding.make_mesh({"data": -1}, jax.local_devices())
    dtype = args.dtype or source.dtype or "float32"
    encoder, _, _ = load_encoder(source, dtype, tokenizer.pad_id, mesh, args.batch_size)
    return Scorer(
        encoder,
        source.preprocess,
        tokenizer,
        tuple(args.captions),
        args.average,
        tuple(heads),
        args.column,
        args.threads,
    )


def _heads(flags: Sequence[str], column: str, width: int) -> list[Head]:
    """Reads the heads of NAME=FILE flags; `column` is the name of another column."""
    from clip_jax.curation.scores.heads import read_head

    heads = []
    for flag in flags:
        name, equals, path = flag.partition("=")
        if not (name and equals and path):
            raise UserError(f"--head {flag!r:.120} must be NAME=FILE.npz")
        heads.append(read_head(name, path, width))
    names = [column, *(name for head in heads for name in head.columns)]
    if len(set(names)) < len(names):
        raise UserError(f"two columns have one name: {', '.join(names):.200}")
    return heads
