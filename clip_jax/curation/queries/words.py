"""Words of any script, and where two of them stand side by side.

A word is a run of letters, marks and digits, with single apostrophes inside (don't). Two words form
a bigram if nothing but spaces stands between them; punctuation and ends of lines part them.

Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan put no spaces between words. There a word
is what a segmenter says; without one, a character with its marks, or a run of katakana.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

import regex

from clip_jax.errors import UserError, only_user_errors
from clip_jax.registry import Registry

Segmenter: TypeAlias = Callable[[str], Sequence[str]]
BREAK = "\0"  # a token that parts words; never a word
SEGMENTERS: Registry[Segmenter] = Registry(
    "segmenter", {"characters": "clip_jax.curation.queries.words:split_characters"}
)
# Letters, marks, digits, and the joiners that Persian and Indic words contain.
_WORD = r"\p{L}\p{M}\p{N}\u200c\u200d"
_BREAKS = regex.compile(rf"[^{_WORD} '’]+|(?<![{_WORD}])['’]+|['’]+(?![{_WORD}])")
# Scripts without spaces, with the marks that their words contain. For the `re` module: to search
# for these in a text that has none is ten times faster than with `regex`.
_UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Tibetan, Burmese, Khmer
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u302f\u3031-\u3035\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\ua9e0-\ua9ff\uaa60-\uaa7f\uf900-\ufaff\uff66-\uff9f"
    "\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
_UNSPACED_LETTER = re.compile(f"[{_UNSPACED}]")
_UNSPACED_RUN = re.compile(f"[{_UNSPACED}]+")
_CHARACTERS = regex.compile(r"[\p{Katakana}ー]+|\X")


def split_words(text: str, segmenter: Segmenter) -> list[str]:
    """Returns the words of a text in order, with `BREAK` wherever two of them do not touch.

    Args:
      text: one or more lines.
      segmenter: splits a run of letters of a script without spaces into words.
    """
    text = _BREAKS.sub(f" {BREAK} ", text)
    if _UNSPACED_LETTER.search(text):
        text = _UNSPACED_RUN.sub(lambda run: _segmented(run[0], segmenter), text)
    return text.split()


def _segmented(run: str, segmenter: Segmenter) -> str:
    """Returns a run's words, joined by spaces, between breaks: a space in a bigram is a space."""
    return f" {BREAK} {' '.join(segmenter(run))} {BREAK} "


def split_characters(run: str) -> Sequence[str]:
    """Splits a run into its characters with their marks, and runs of katakana."""
    return _CHARACTERS.findall(run)


def segmenter_of(name: str) -> Segmenter:
    """Returns a segmenter by its name or the dotted path of a user's function.

    Raises:
      UserError: there is none; when used: it fails, or returns anything but strings.
    """
    segmenter = SEGMENTERS.get(name, "--segmenter")
    if segmenter is split_characters:
        return segmenter

    def checked(run: str) -> Sequence[str]:
        with only_user_errors(f"--segmenter={name} on {run[:20]!r}"):
            words = list(segmenter(run))
        if not all(isinstance(word, str) for word in words):
            raise UserError(f"--segmenter={name} must return strings, not {words!r:.80}")
        return words

    return checked


def joined(first: str, second: str) -> str:
    """Returns a bigram as it stands in texts: without a space between two words that have none."""
    if _UNSPACED_LETTER.match(first[-1]) and _UNSPACED_LETTER.match(second[0]):
        return first + second
    return f"{first} {second}"
