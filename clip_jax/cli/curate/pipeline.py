"""`python -m clip_jax curate DATA --out FOLDER`: the pipeline of a curation.

python -m clip_jax curate '/data/{00000..00099}.tar' --out curated --queries queries.txt
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from clip_jax.cli.common import CommandParser, integer_from, share
from clip_jax.cli.curate import flag_types, summary
from clip_jax.cli.curate.pool_flags import add_pool_flags, pool_of
from clip_jax.curation import page, rules, storage
from clip_jax.curation.duplicates.perceptual import MAX_RADIUS
from clip_jax.curation.engine import results
from clip_jax.curation.engine import run as engine
from clip_jax.curation.engine.job import Job
from clip_jax.curation.facts import Extraction
from clip_jax.curation.overlaps import THRESHOLD
from clip_jax.curation.pool import CHUNK
from clip_jax.curation.queries.balance import LIMIT
from clip_jax.curation.rules import DUPLICATES, ColumnLimits, Rules
from clip_jax.data import captions
from clip_jax.errors import UserError
from clip_jax.io import paths, remote

# Flags of the rules, and the fields of `Rules` that they set: one limit each, 0 for none.
_LIMITS = {
    "min_side": "least pixels of the image's shorter side; ALIGN: 201",
    "min_words": "least words of a caption, between blanks; ALIGN: 3",
    "max_words": "most words of a caption; ALIGN: 20",
    "texts_per_image": "leave out an image with more distinct texts; ALIGN: 1000",
    "images_per_text": "leave out a text with more distinct images; ALIGN: 10",
    "frequent_words": "leave out a caption with a word or a pair of words that is not one of this "
    "many most frequent ones of the pool; ALIGN: 100000000",
}
_PIXELS = ("min_side", "aspect_below")  # limits on images that are read


def parser(others: Mapping[str, tuple[str, str]]) -> argparse.ArgumentParser:
    """Returns the parser of the command's flags.

    Args:
      others: the sub-commands, whose second part is a line of help.
    """
    commands = "\n".join(f"  {name:<10} {line}" for name, (_, line) in others.items())
    p = CommandParser(
        prog="python -m clip_jax curate",
        description="Selects the pairs of tars, tables or folders that are worth training on,\n"
        "by the rules of the papers. The result is a selection that config.data.selection reads.",
        epilog=f"other commands of curate:\n{commands}\n\nexample: python -m clip_jax curate "
        "'/data/*.tar' --out curated --queries queries.txt",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_pool_flags(p)
    p.add_argument("--out", required=True, metavar="FOLDER", help="where results are written")
    _add_input_flags(p)
    _add_rule_flags(p)
    _add_balance_flags(p)
    _add_engine_flags(p)
    return p


def _add_input_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--no-images",
        action="store_true",
        help="do not read images, as for a table of web addresses: pairs are told apart by the "
        "fields sha256, uid or url",
    )
    p.add_argument(
        "--no-page",
        action="store_true",
        help="do not write curation.html, for which some hundred pairs are read again",
    )
    p.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_rule_flags(p: argparse.ArgumentParser) -> None:
    group = p.add_argument_group("rules")
    group.add_argument(
        "--align",
        action="store_true",
        help="all rules of ALIGN that are marked so here; flags change single ones",
    )
    for name, line in _LIMITS.items():
        flag = f"--{name.replace('_', '-')}"
        group.add_argument(flag, type=integer_from(0), default=None, metavar="N", help=line)
    group.add_argument(
        "--aspect-below",
        type=flag_types.ratio,
        default=None,
        metavar="RATIO",
        help="the longer side is less than this many times the shorter; ALIGN: 3",
    )
    group.add_argument(
        "--test-sets",
        action="append",
        default=[],
        metavar="DATA",
        help="leave out images that are nearly images of this test set; may be given again",
    )
    group.add_argument(
        "--test-similarity",
        type=share,
        default=THRESHOLD,
        metavar="S",
        help=f"the least similarity of images that are nearly the same (default: {THRESHOLD})",
    )
    group.add_argument(
        "--duplicates",
        choices=DUPLICATES[1:],
        default="",
        help="keep the first of pairs with the same image and caption (pair), or with the same "
        "image (image)",
    )
    group.add_argument(
        "--near-duplicates",
        type=integer_from(0, MAX_RADIUS),
        default=None,
        metavar="BITS",
        help="keep the first of images whose perceptual hashes of 64 bits differ in at most BITS",
    )
    group.add_argument(
        "--annotations",
        action="append",
        default=[],
        metavar="FOLDER",
        help="numbers about each pair, as `curate score` writes them; may be given again",
    )
    for name, line in {
        "least": "the least value of a column of annotations: clip_score=0.28",
        "most": "the greatest value of a column: semantic_duplicate=0",
        "top_share": "keep this share of the pairs, those with the highest values: clip_score=0.3",
    }.items():
        flag = f"--{name.replace('_', '-')}"
        group.add_argument(
            flag, action="append", type=flag_types.column, default=[], metavar="COLUMN=X", help=line
        )


def _add_balance_flags(p: argparse.ArgumentParser) -> None:
    group = p.add_argument_group("queries")
    group.add_argument(
        "--queries",
        default="",
        metavar="FILE",
        help="keep pairs in whose caption a query occurs, and balance the queries; a folder has "
        "one list for each language, such as en.txt, of which the first is en or the first by name",
    )
    group.add_argument(
        "--language", default="", metavar="FIELD", help="the field that tells a pair's language"
    )
    group.add_argument(
        "--without-spaces",
        action="store_true",
        help="queries in Chinese, Japanese, Thai and other scripts without spaces match inside "
        "words, as in MetaCLIP 2; with --language this is always so",
    )
    group.add_argument(
        "--limit",
        type=integer_from(1),
        default=None,
        metavar="T",
        help=f"t: the pairs of a query from which on it gives up some (default: {LIMIT})",
    )
    group.add_argument(
        "--tail-share",
        type=flag_types.part,
        default=0.0,
        metavar="SHARE",
        help="find t so that queries below it have this share of all matches; MetaCLIP: 0.06",
    )
    group.add_argument(
        "--pairs",
        type=flag_types.pairs,
        default=0,
        metavar="N",
        help="find t so that at most N pairs are kept",
    )
    group.add_argument("--no-balance", action="store_true", help="match queries only")
    group.add_argument("--seed", type=integer_from(0), default=0, help="of the draws (default: 0)")


def _add_engine_flags(p: argparse.ArgumentParser) -> None:
    group = p.add_argument_group("engine")
    group.add_argument(
        "--workers",
        type=integer_from(0),
        default=0,
        metavar="N",
        help="processes on this machine (default: one for each core)",
    )
    group.add_argument(
        "--runner",
        default=engine.LOCAL,
        help="Beam's runner, such as DataflowRunner, FlinkRunner or SparkRunner; its flags follow "
        f"(default: {engine.LOCAL}, on this machine)",
    )
    group.add_argument(
        "--chunk",
        type=integer_from(1),
        default=CHUNK,
        metavar="N",
        help=f"pairs that a worker reads at a time (default: {CHUNK})",
    )


def job_of(args: argparse.Namespace) -> tuple[Job, list[str]]:
    """Returns the curation that flags describe, and the files of its pool.

    Raises:
      UserError: flags contradict each other, or name nothing.
    """
    chosen = _rules(args)
    templates = tuple(args.captions or ["{caption}"])
    for template in templates:
        captions.fields(template)
    queries = _queries(args)
    pixels = [name for name in _PIXELS if getattr(chosen, name)]
    pixels += ["near_duplicates"] * (chosen.near >= 0) + ["test_sets"] * bool(args.test_sets)
    if args.no_images and pixels:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in pixels)
        raise UserError(
            f"{flags} cannot be decided with --no-images"
            + (": give --align --min-side=0 --aspect-below=0" if args.align else "")
        )
    if not (queries or pixels or chosen != Rules()):
        raise UserError("no rule is given: see the rules and queries of curate --help")
    pool = pool_of(args, args.no_images)
    extraction = Extraction(
        captions=templates,
        queries=queries,
        language=args.language,
        without_spaces=bool(args.language or args.without_spaces),
        images=not args.no_images,
        perceptual=chosen.near >= 0,
        ngrams=chosen.frequent > 0,
        test_sets=tuple(args.test_sets),
    )
    out = args.out if remote.is_remote(args.out) else str(Path(args.out).expanduser().absolute())
    if not args.out:
        raise UserError("--out is empty: name a folder")
    if not remote.is_remote(out) and Path(out).exists() and not Path(out).is_dir():
        raise UserError(f"--out={args.out} is a file: name a folder")
    files = pool.files()
    columns = ColumnLimits.from_rules(tuple(args.annotations), chosen, files)
    job = Job(pool, extraction, extraction.digest(), chosen, columns, out, args.seed, args.chunk)
    return job, files


def _rules(args: argparse.Namespace) -> Rules:
    given = [name for name in ("limit", "tail_share", "pairs") if getattr(args, name)]
    if len(given) > 1:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(f"{flags} each decide on t: give one of them")
    if given and (args.no_balance or not args.queries):
        raise UserError(f"--{given[0].replace('_', '-')} needs --queries and no --no-balance")
    base = rules.ALIGN if args.align else Rules()
    numbers = {
        "frequent" if name == "frequent_words" else name: getattr(args, name)
        for name in (*_LIMITS, "aspect_below")
        if getattr(args, name) is not None
    }
    limits = {name: getattr(base, name) for name in rules.ALIGN_FIELDS} | numbers
    if 0 < limits["max_words"] < limits["min_words"]:
        raise UserError(
            f"no caption has at least {limits['min_words']} words and at most "
            f"{limits['max_words']}: change --min-words or --max-words"
        )
    return Rules(
        **limits,
        test_similarity=args.test_similarity,
        least=tuple(args.least),
        most=tuple(args.most),
        top_share=tuple(args.top_share),
        duplicates=args.duplicates,
        near=-1 if args.near_duplicates is None else args.near_duplicates,
        limit=args.limit or LIMIT,
        tail_share=args.tail_share,
        pairs=args.pairs,
        balance=not args.no_balance,
    )


def _queries(args: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    """Returns the file of the queries of each language."""
    if not args.queries:
        return ()
    path = Path(paths.resolve(args.queries))
    if not path.is_dir():
        if args.language:
            raise UserError("--language needs --queries=FOLDER with a list for each language")
        return (("", str(path.absolute())),)
    lists = sorted(path.glob("*.txt")) + sorted(path.glob("*.json"))
    lists.sort(key=lambda item: (item.stem != "en", item.name))
    if not lists:
        raise UserError(f"{path} has no lists of queries such as en.txt")
    if not args.language:
        raise UserError(f"{path} has a list for each language: give --language=FIELD, too")
    if args.pairs:
        raise UserError("--pairs is for one language: give --limit or --tail-share")
    if len(lists) > 254 or len({item.stem for item in lists}) < len(lists):
        raise UserError(f"{path} must have at most 254 lists, one for each language")
    return tuple((item.stem, str(item.absolute())) for item in lists)


def run(argv: Sequence[str], others: Mapping[str, tuple[str, str]]) -> int:
    """Runs the command; returns the exit code.

    Args:
      argv: the arguments.
      others: the sub-commands, for the help.
    """
    own = parser(others)
    args, flags = own.parse_known_args(argv)
    if flags and args.runner == engine.LOCAL:
        raise UserError(f"unknown flag {flags[0]:.80}; see {own.prog} --help")
    engine.require_beam()
    job, files = job_of(args)
    engine.check(job, files)
    engine.run(job, files, workers=args.workers, runner=args.runner, flags=flags)
    report = storage.read_json(storage.join(job.out, results.REPORT), "curation")
    path = "" if args.no_page else _write_page(job.out)
    print(json.dumps(report, indent=1) if args.json else summary.text(report, args.out, path))
    return 0


def _write_page(out: str) -> str:
    """Writes the page, and returns its path; the selection is good without it."""
    try:
        return page.write(out)
    except (UserError, OSError) as error:
        print(f"{page.PAGE} is not written: {error}", file=sys.stderr)
        return ""
