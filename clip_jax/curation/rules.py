"""The rules: why a pair is left out, decided on facts and on numbers of other programs."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, UInt8

from clip_jax.curation import overlaps
from clip_jax.curation.facts import NO_LANGUAGE, Facts
from clip_jax.curation.pool import Chunk
from clip_jax.curation.queries.balance import LIMIT
from clip_jax.curation.scores.annotations import Annotations
from clip_jax.data.example import REASONS
from clip_jax.errors import UserError, counted

Reasons = UInt8[np.ndarray, " n"]
KEPT = 0  # the code of a pair that is kept; that of another is 1 + the number of its reason

# What the reasons mean, in the order in which the rules are applied: a pair has the first.
MEANINGS: Mapping[str, str] = {
    "unreadable": "its bytes cannot be read",
    "text": "its text cannot be parsed",
    "caption": "it gives no caption",
    "picture": "its image cannot be read",
    "side": "the shorter side of the image is too short",
    "aspect": "the image is too long and narrow",
    "words": "the caption has too few or too many words",
    "language": "there are no queries of its language",
    "rare_words": "the caption has a word or a pair of words that is not frequent",
    "many_texts": "the image has too many texts",
    "shared_text": "the text has too many images",
    "test_image": "the image is nearly one of a test set",
    "duplicate": "the same as an earlier pair",
    "near_duplicate": "the image looks as that of an earlier pair",
    "no_query": "no query occurs in the caption",
    "balance": "its queries have enough pairs without it",
}
_BEFORE_COLUMNS = "duplicate"  # conditions on columns are applied before this rule
DUPLICATES = ("", "pair", "image")


def column_reason(column: str) -> str:
    """Returns the reason of pairs outside the limits of a column, which is no other reason."""
    return f"column {column}" if column in MEANINGS or column == "kept" else column


@dataclasses.dataclass(frozen=True)
class Rules:
    """Limits on pairs; 0 or empty: no limit.

    Attributes:
      min_side: the least pixels of the shorter side.
      aspect_below: the longer side is less than this many times the shorter.
      min_words, max_words: the least and the most words of a caption, between blanks.
      frequent: the number of frequent words and pairs of words; a caption has no others.
      texts_per_image: the most texts of an image.
      images_per_text: the most images of a text.
      test_similarity: an image this similar to one of the test sets is left out.
      least, most: limits on columns of annotations.
      top_share: the share of all pairs that is kept, those with the highest values of a column.
      duplicates: leave out further pairs with the same image and caption ("pair") or with the same
        image ("image").
      near: leave out an image whose perceptual hash differs in at most this many bits from that of
        an earlier one; -1: no limit.
      limit: t of the balance.
      tail_share: find t so that the tail has this share of all matches.
      pairs: find t so that at most this many pairs are kept.
      balance: whether to balance pairs by their queries.
    """

    min_side: int = 0
    aspect_below: float = 0.0
    min_words: int = 0
    max_words: int = 0
    frequent: int = 0
    texts_per_image: int = 0
    images_per_text: int = 0
    test_similarity: float = overlaps.THRESHOLD
    least: tuple[tuple[str, float], ...] = ()
    most: tuple[tuple[str, float], ...] = ()
    top_share: tuple[tuple[str, float], ...] = ()
    duplicates: str = ""
    near: int = -1
    limit: int = LIMIT
    tail_share: float = 0.0
    pairs: int = 0
    balance: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of annotations that have limits."""
        limits = (*self.least, *self.most, *self.top_share)
        return tuple(dict.fromkeys(name for name, _ in limits))

    @property
    def compares_images(self) -> bool:
        """Whether a rule asks which images are the same."""
        return bool(self.duplicates or self.texts_per_image or self.images_per_text)

    @functools.cached_property
    def reasons(self) -> tuple[str, ...]:
        """All reasons, in the order in which the rules are applied."""
        names = list(MEANINGS)
        at = names.index(_BEFORE_COLUMNS)
        return (*names[:at], *map(column_reason, self.columns), *names[at:])

    def code(self, reason: str) -> int:
        """Returns the code of a reason."""
        return 1 + self.reasons.index(reason)

    def meaning(self, reason: str) -> str:
        """Returns what a reason means, in words."""
        return MEANINGS.get(reason) or f"{reason} is missing or outside its limits"


ALIGN_FIELDS = (
    *("min_side", "aspect_below", "min_words", "max_words", "frequent"),
    *("texts_per_image", "images_per_text"),
)
# ALIGN's rules (Jia et al. 2021, section 3); tests are compared by `overlaps`.
ALIGN = Rules(
    min_side=201,
    aspect_below=3.0,
    min_words=3,
    max_words=20,
    frequent=100_000_000,
    texts_per_image=1_000,
    images_per_text=10,
)


def mark(reasons: Reasons, condition: Bool[np.ndarray, " n"], code: int) -> None:
    """Gives a code to the pairs that meet a condition and have none."""
    reasons[condition & (reasons == KEPT)] = code


def is_usable(reasons: Reasons) -> Bool[np.ndarray, " n"]:
    """Returns which pairs are not broken, whether or not another rule leaves them out."""
    return (reasons == KEPT) | (reasons > len(REASONS))


def of_facts(rules: Rules, facts: Facts) -> Reasons:
    """Returns the codes of the rules that a pair meets or breaks by itself.

    Args:
      rules: the limits.
      facts: the facts of the pairs.
    """
    reasons = facts.broken.copy()  # the first reasons are those of broken pairs, in their order
    assert rules.reasons[: len(REASONS)] == REASONS
    shorter, longer = facts.sides.min(axis=1), facts.sides.max(axis=1)
    if rules.min_side:
        mark(reasons, shorter < rules.min_side, rules.code("side"))
    if rules.aspect_below:
        mark(reasons, longer >= rules.aspect_below * shorter, rules.code("aspect"))
    if rules.min_words or rules.max_words:
        most = rules.max_words or np.iinfo(np.int32).max
        inside = (facts.words >= rules.min_words) & (facts.words <= most)
        mark(reasons, ~inside, rules.code("words"))
    mark(reasons, facts.language == NO_LANGUAGE, rules.code("language"))
    return reasons


def of_similarity(rules: Rules, facts: Facts, reasons: Reasons) -> None:
    """Marks the images that are nearly images of test sets."""
    if len(facts.similarity):
        near = facts.similarity.astype(np.float32) >= rules.test_similarity
        mark(reasons, near, rules.code("test_image"))


@dataclasses.dataclass(frozen=True)
class ColumnLimits:
    """Limits on the columns of annotation folders.

    Attributes:
      folders: the folders.
      limits: for each column its least and its greatest value.
    """

    folders: tuple[str, ...] = ()
    limits: tuple[tuple[str, float, float], ...] = ()

    @classmethod
    def from_rules(
        cls, folders: tuple[str, ...], rules: Rules, files: Sequence[str]
    ) -> ColumnLimits:
        """Returns the limits of rules; a share becomes the value that as many pairs reach.

        Args:
          folders: the annotation folders.
          rules: the rules.
          files: the files of the pool; annotations may be about more.

        Raises:
          UserError: no folder has a column, or a share is not between 0 and 1.
        """
        if folders and not rules.columns:
            raise UserError("--annotations needs a limit, such as --least clip_score=0.28")
        low = dict.fromkeys(rules.columns, -math.inf) | dict(rules.least)
        high = dict.fromkeys(rules.columns, math.inf) | dict(rules.most)
        for column, share in rules.top_share:
            if not 0 < share < 1:
                raise UserError(f"--top-share {column}={share:g}: a share is between 0 and 1")
            annotations = open_annotations(folder_of(folders, column))
            low[column] = max(low[column], value_of_top(annotations, files, column, share))
        for column in rules.columns:
            folder_of(folders, column)
        return cls(folders, tuple((name, low[name], high[name]) for name in rules.columns))

    def check(self, file: str, pairs: int) -> None:
        """Checks that annotations have one row for each pair of a file.

        Raises:
          UserError: they have others.
        """
        for column, _, _ in self.limits:
            folder = folder_of(self.folders, column)
            if (rows := open_annotations(folder).entry(file).pairs) != pairs:
                raise UserError(
                    f"{folder} has {counted(rows, 'row')} about {file}, which has "
                    f"{counted(pairs, 'pair')}: write it again"
                )

    def mark(self, rules: Rules, chunk: Chunk, reasons: Reasons) -> None:
        """Marks the pairs of a chunk whose columns are missing or outside their limits.

        Raises:
          UserError: the annotations are of another version of the file.
        """
        for column, low, high in self.limits:
            values = column_values(self.folders, column, chunk)
            is_outside = ~((values >= low) & (values <= high))
            mark(reasons, is_outside, rules.code(column_reason(column)))


def value_of_top(
    annotations: Annotations, files: Sequence[str], column: str, share: float
) -> float:
    """Returns the value that a share of all pairs of some files that have a value reach.

    The values of all files are in memory at once, 4 bytes each.
    """
    values = np.concatenate([annotations.of_file(file)[column] for file in files])
    values = values[~np.isnan(values)]
    count = round(share * len(values))
    if not count:
        raise UserError(f"{annotations.folder}: no pair is in the top {share:g} of {column}")
    return float(np.partition(values, len(values) - count)[len(values) - count])


def column_values(folders: tuple[str, ...], column: str, chunk: Chunk) -> np.ndarray:
    """Returns the values of a column for the pairs of a chunk, float32 [n].

    Raises:
      UserError: no folder has the column, or it is about another version of the file.
    """
    folder = folder_of(folders, column)
    values = _file_values(folder, chunk.spec, chunk.fingerprint)[column]
    return values[chunk.start : chunk.stop]


@functools.lru_cache
def folder_of(folders: tuple[str, ...], column: str) -> str:
    """Returns the annotation folder that has a column.

    Raises:
      UserError: none has it, or several do.
    """
    having = [folder for folder in folders if column in open_annotations(folder).columns]
    if len(having) == 1:
        return having[0]
    if having:
        raise UserError(f"{column} is in {' and in '.join(having)}: give one of them")
    known = ", ".join(c for folder in folders for c in open_annotations(folder).columns)
    raise UserError(
        f"no annotations have {column!r:.80}: there are {known}"
        if known
        else f"{column!r:.80} needs --annotations FOLDER, as `curate score` writes it, or "
        "`curate fields` for a field of the pairs"
    )


@functools.lru_cache
def open_annotations(folder: str) -> Annotations:
    """Opens an annotation folder; a process keeps it."""
    return Annotations.open(folder)


@functools.lru_cache(maxsize=4)
def _file_values(folder: str, file: str, fingerprint: str) -> Mapping[str, np.ndarray]:
    annotations = open_annotations(folder)
    if annotations.entry(file).fingerprint not in ("", fingerprint):
        raise UserError(f"{file} has changed since {folder} was written: write it again")
    return annotations.of_file(file)
