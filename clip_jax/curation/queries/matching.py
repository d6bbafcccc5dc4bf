"""The queries that occur in a caption, by MetaCLIP's rule (Xu et al. 2023, section 3).

A query occurs in a text if it stands there between spaces, after both ends of the text and each of
the marks , . ; : ? ! ` were given spaces. Case matters. An Aho–Corasick automaton finds all queries
in one pass over the text, so the time does not depend on their number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import regex
from jaxtyping import UInt32

from clip_jax.errors import UserError

_WRAPPED = (",", ".", ";", ":", "?", "!", "`")
_NO_SPACE = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Myanmar}\p{Khmer}\p{Tibetan}\p{P}]"
)
_BLANK = ("\t", "\n", "\r")
_SURROGATES = regex.compile(r"[\ud800-\udfff]")


def normalize(text: str) -> str:
    """Returns a text as queries are looked up in it: marks and both ends have spaces."""
    text = f" {text} "
    for mark in _WRAPPED:
        if mark in text:
            text = text.replace(mark, f" {mark} ")
    for blank in _BLANK:
        if blank in text:
            text = text.replace(blank, " ")
    return text


def _encodable(text: str) -> str:
    """Returns a text without lone surrogates: JSON may have them, UTF-8 and queries do not."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def needs_space(letter: str) -> bool:
    """Returns whether a query that ends in a letter needs a space beside it, see `Matcher`."""
    return not _NO_SPACE.fullmatch(letter)


def _padded(query: str) -> str:
    """Returns a query with a space at each end that needs one."""
    return " " * needs_space(query[0]) + query + " " * needs_space(query[-1])


class Matcher:
    """Finds queries in texts.

    Args:
      queries: the queries; none is empty, and none occurs twice.
      without_spaces: whether a query needs no space beside an end that is punctuation, or a letter
        of a script that writes without spaces, as in MetaCLIP 2 (Chuang et al. 2025).

    Raises:
      UserError: the library for it is not installed.
    """

    def __init__(self, queries: Sequence[str], without_spaces: bool = False) -> None:
        try:
            import ahocorasick_rs
        except ImportError:
            raise UserError(
                "matching needs ahocorasick_rs: pip install 'clip_jax[curate]'"
            ) from None
        self._automaton = ahocorasick_rs.AhoCorasick(
            [_padded(query) if without_spaces else f" {query} " for query in queries],
            implementation=ahocorasick_rs.Implementation.ContiguousNFA,
            store_patterns=False,
        )

    def find(
        self, texts: Sequence[str | None]
    ) -> tuple[UInt32[np.ndarray, " n_plus_1"], UInt32[np.ndarray, " matches"]]:
        """Returns the numbers of the queries that occur in each text.

        Args:
          texts: the texts; None for a pair without one, which matches nothing.

        Returns:
          starts, uint32 [n + 1], and numbers, uint32 [matches]: text `i` has the queries
          `numbers[starts[i] : starts[i + 1]]`, in rising order, each once.
        """
        found: list[int] = []
        starts = np.zeros(len(texts) + 1, np.uint32)
        find = self._automaton.find_matches_as_indexes
        for i, text in enumerate(texts):
            if text is not None:
                matches = find(_encodable(normalize(text)), overlapping=True)
                if matches:
                    found.extend(sorted({match[0] for match in matches}))
            starts[i + 1] = len(found)
        return starts, np.array(found, np.uint32)
