"""Long captions without their less important words: nouns stay before adjectives, then verbs.

Source: CLIPA's syntax masking (Li et al. 2023, arXiv:2305.07017), and the order of open_clip's.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

from clip_jax.errors import UserError
from clip_jax.tokenizers import packing
from clip_jax.tokenizers.protocol import Tokenizer

# The start of a Penn Treebank tag, the most important first; all others come after these.
ORDER = ("NN", "JJ", "VB")
_WORDS = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")


@functools.cache
def load_tagger() -> Any:
    """Loads NLTK's tagger of English.

    Raises:
      UserError: the package or its data are missing.
    """
    try:
        from nltk.tag.perceptron import PerceptronTagger
    except ImportError:
        raise UserError(
            "config.data.long_captions=syntax needs NLTK: pip install 'clip_jax[syntax]'"
        ) from None
    try:
        return PerceptronTagger()
    except Exception as error:  # NLTK has several for files that are missing or damaged
        reason = "is not there" if isinstance(error, LookupError) else f"can't be read ({error})"
        raise UserError(
            f"config.data.long_captions=syntax: NLTK's tagger {reason:.120}: "
            "python -m nltk.downloader averaged_perceptron_tagger_eng; NLTK_DATA names its folder"
        ) from None


def shortener(caption: str, tokenizer: Tokenizer) -> Callable[[list[int], int], list[int]]:
    """Returns what shortens the ids of a caption, for `packing.pack`; see `shortened`."""
    return lambda _, count: tokenizer.encode(shortened(caption, tokenizer))[:count]


def shortened(caption: str, tokenizer: Tokenizer) -> str:
    """Returns a caption that fits into a row of a tokenizer.

    The words that stay are in their order. The first words of a kind stay. A caption that fits is
    returned as it is; a single word may still be too long.

    Args:
      caption: an English text. Its first `packing.CHARACTERS` characters for each place are read.
      tokenizer: gives the ids and the width.

    Raises:
      UserError: see `load_tagger`.
    """
    most = packing.room(tokenizer)
    caption = packing.cut(caption, tokenizer.context_length)
    if len(tokenizer.encode(caption)) <= most:
        return caption
    words = _WORDS.findall(caption)
    tags = [tag for _, tag in load_tagger().tag(words)]
    ranks = [next((i for i, kind in enumerate(ORDER) if tag.startswith(kind)), 3) for tag in tags]
    important = sorted(range(len(words)), key=lambda place: (ranks[place], place))
    for count in range(min(most, len(words)), 1, -1):
        text = " ".join(words[place] for place in sorted(important[:count]))
        if len(tokenizer.encode(text)) <= most:
            return text
    return words[important[0]] if words else caption
