"""Building the candidates of each source of queries from files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import cast

from clip_jax.curation.queries.assemble import Candidates
from clip_jax.curation.queries.corpora import read_corpus
from clip_jax.curation.queries.count_files import read_counts
from clip_jax.curation.queries.ngram_counts import NgramCounter, select_bigrams
from clip_jax.curation.queries.saved_counts import (
    add_saved_counts,
    counts_folder,
    save_counts,
)
from clip_jax.curation.queries.titles import read_titles, read_views
from clip_jax.curation.queries.wordnet import read_lemmas
from clip_jax.curation.queries.words import Segmenter, joined, split_words
from clip_jax.errors import UserError

_BATCH = 1 << 16  # bigrams that are added together


def count_corpora(
    counter: NgramCounter, paths: Sequence[str], segmenter: Segmenter, quiet: bool = False
) -> None:
    """Adds the words and bigrams of corpora to a counter.

    Raises:
      UserError: a file cannot be read.
    """
    for path in paths:
        for text in read_corpus(path, quiet):
            counter.add(split_words(text, segmenter))


def count_corpora_once(
    counter: NgramCounter,
    paths: Sequence[str],
    segmenter: tuple[str, Segmenter],
    root: Path,
    new_counter: Callable[[], NgramCounter],
    quiet: bool = False,
) -> None:
    """Adds the words and bigrams of corpora; each file's counts are saved, and read next time.

    Args:
      counter: the counter.
      paths: the files.
      segmenter: its name, by which counts are found again, and the function.
      root: the folder of the counts of all files.
      new_counter: makes an empty counter.
      quiet: whether to show no progress.

    Raises:
      UserError: a file cannot be read.
    """
    name, function = segmenter
    folders = [counts_folder(root, path, name) for path in paths]
    for path, folder in zip(paths, folders, strict=True):
        if not folder.is_dir():
            of_file = new_counter()
            count_corpora(of_file, [path], function, quiet)
            save_counts(of_file, folder)
    for folder in folders:
        add_saved_counts(counter, folder)


def add_count_files(
    counter: NgramCounter, words: Sequence[str], bigrams: Sequence[str], quiet: bool = False
) -> None:
    """Adds files of counts of words and of bigrams to a counter.

    Raises:
      UserError: a file cannot be read.
    """
    for path in words:
        for (word,), count in read_counts(path, 1, quiet):
            counter.add_word(word, count)
    for path in bigrams:
        rows = read_counts(path, 2, quiet)
        while batch := list(islice(rows, _BATCH)):
            pairs, counts = zip(*batch, strict=True)
            counter.add_bigrams(cast(tuple[tuple[str, str], ...], pairs), counts)


def word_candidates(counter: NgramCounter, min_count: int) -> Candidates:
    """Returns the words that are seen often enough, the most frequent first."""
    frequent, rare = [], 0
    for word, count in counter.words():
        if count >= min_count:
            frequent.append((word, count))
        else:
            rare += 1
    frequent.sort(key=lambda row: (-row[1], row[0]))
    return Candidates("words", frequent, Counter({f"under {min_count:,} times": rare}))


def bigram_candidates(counter: NgramCounter, min_pmi: float, min_count: int) -> Candidates:
    """Returns the bigrams of high pointwise mutual information, the highest first."""
    bigrams, left_out = select_bigrams(counter, min_pmi, min_count)
    rows = [(joined(bigram.first, bigram.second), bigram.count) for bigram in bigrams]
    return Candidates("bigrams", rows, Counter(left_out))


def highest_pmi(total: int, min_count: int) -> float:
    """Returns the highest pointwise mutual information that a corpus of `total` words allows."""
    return math.log2(total / min_count) if total else 0.0


def title_candidates(
    titles_file: str,
    views_files: Sequence[str],
    language: str,
    min_views: int,
    min_line_views: int,
    quiet: bool = False,
) -> Candidates:
    """Returns the titles that are viewed often enough, the most viewed first.

    Args:
      titles_file: the titles of the articles; empty: all that have views.
      views_files: the files of views; without one, all titles are candidates.
      language: the language of the Wikipedia.
      min_views: the least sum of views.
      min_line_views: the least views of a line that counts.
      quiet: whether to show no progress.

    Raises:
      UserError: a file cannot be read, or the views of no title are in the files.
    """
    titles = read_titles(titles_file, quiet) if titles_file else None
    left_out: Counter[str] = Counter()
    if views_files:
        views, lines = read_views(views_files, language, titles, min_line_views, quiet)
        if not views:
            raise UserError(
                f"no title of the {language} Wikipedia is in {views_files[0]}: see --language"
                + "".join(f"; {n:,} lines {reason}" for reason, n in lines.most_common(2))
            )
        left_out.update({f"lines {reason}": n for reason, n in lines.items()})
        if titles is not None:
            left_out["never viewed"] = len(titles) - len(views)
    else:
        views = Counter(dict.fromkeys(titles or (), 0))
    rows, rare, damaged = [], 0, 0
    for title, count in views.items():
        if count < min_views:
            rare += 1
            continue
        try:
            rows.append((title.decode().replace("_", " "), count))
        except UnicodeDecodeError:
            damaged += 1
    rows.sort(key=lambda row: (-row[1], row[0]))
    left_out[f"under {min_views:,} views"] = rare
    left_out["not UTF-8"] = damaged
    return Candidates("titles", rows, left_out)


def wordnet_candidates(path: str, rule: str) -> Candidates:
    """Returns the words of WordNet, those of the most synsets first.

    Raises:
      UserError: the files are not WordNet's.
    """
    lemmas = read_lemmas(path, rule)
    return Candidates("wordnet", sorted(lemmas.items(), key=lambda row: (-row[1], row[0])))
