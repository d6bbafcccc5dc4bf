"""Text to token ids: one protocol; byte-level BPE, SentencePiece and WordPiece behind it.

`load("clip")` is CLIP's own tokenizer, `load("sentencepiece:PATH.model")` reads any SentencePiece
model, `load("wordpiece:PATH")` is ALIGN's and `load("siglip:PATH.model")` SigLIP's.
`load("huggingface:PATH")` reads the tokenizer.json of any other model. A tokenizer of the user's
own is named by its dotted path, `load("my_package.my_module:MyTokenizer")`. `find_tokenizer` tells
which tokenizer the folder of a published model holds. Importing this package imports neither NumPy
nor a tokenizer's library.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clip_jax.errors import UserError, only_user_errors
from clip_jax.registry import Registry
from clip_jax.tokenizers.folders import find_tokenizer
from clip_jax.tokenizers.protocol import (
    DEFAULT_CONTEXT_LENGTH,
    SHORT_CONTEXT_LENGTH,
    Tokenizer,
    TokenizerKind,
)

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "DEFAULT_CONTEXT_LENGTH",
    "SHORT_CONTEXT_LENGTH",
    "TOKENIZERS",
    "Tokenizer",
    "TokenizerKind",
    "find_tokenizer",
    "load",
    "windows",
]

# By the prefix of a name: `wordpiece:PATH`.
TOKENIZERS: Registry[TokenizerKind] = Registry(
    "tokenizer",
    {
        "clip": "clip_jax.tokenizers.bpe:BPE",
        "sentencepiece": "clip_jax.tokenizers.sentencepiece:SentencePiece",
        "wordpiece": "clip_jax.tokenizers.wordpiece:WordPiece",
        "siglip": "clip_jax.tokenizers.siglip:SigLIP",
        "huggingface": "clip_jax.tokenizers.hugging_face:HuggingFace",
    },
)
_WITHOUT_FILE = ("clip",)
_DOTTED = re.compile(r"(?P<path>\w+(?:\.\w+)*:[^\W\d]\w*)(?::(?P<file>.*))?", re.DOTALL)
_MEMBERS = (
    *("vocab_size", "context_length", "sot_id", "eot_id", "pad_id", "encode", "decode"),
    "__call__",
)
_METHODS = ("open", "encode", "decode", "__call__")


def load(name: str, context_length: int | None = None, *, trusted: bool = True) -> Tokenizer:
    """Loads the tokenizer that a config names.

    Args:
        name: `"clip"`; `"sentencepiece:PATH.model"`; `"wordpiece:PATH"`, a vocab.txt, a
            tokenizer.json or a folder that holds one; `"siglip:PATH.model"`; `"huggingface:PATH"`,
            a tokenizer.json or a folder that holds one; or a class of the user's own as
            `"my_package.my_module:MyTokenizer"`, with `:PATH` at the end if it reads a file. The
            prefixes of `TOKENIZERS` win over modules of the same name. A PATH that starts with
            `embedded:` is a file that ships with the package.
        context_length: the width of the rows; None for the tokenizer's own default, 77, or 64 for
            WordPiece and SigLIP, or what the folder of a tokenizer.json says.
        trusted: whether the name comes from the user. If not, a dotted path must name a module
            that is imported already.

    Raises:
        UserError: the name is unknown, the file is missing or not of its kind, or
            `context_length` has no room for a token between start and end.
    """
    if not isinstance(name, str):
        raise UserError(f"a tokenizer is named by a text such as 'clip', not {name!r:.60}")
    prefix, _, path = name.partition(":")
    if prefix in TOKENIZERS and (name == prefix if prefix in _WITHOUT_FILE else path):
        return TOKENIZERS.get(prefix).open(_resolve(path), context_length)
    dotted = _DOTTED.fullmatch(name)
    if prefix in TOKENIZERS or not dotted:
        raise UserError(
            f"unknown tokenizer {name!r}: use 'clip', 'sentencepiece:PATH.model', "
            "'wordpiece:PATH' (vocab.txt, tokenizer.json or their folder), 'siglip:PATH.model', "
            "'huggingface:PATH' (tokenizer.json or its folder) or your own as "
            "'my_package.my_module:MyTokenizer'"
        )
    return _open_users(dotted["path"], dotted["file"] or "", context_length, trusted)


def windows(tokenizer: Tokenizer, texts: str | Sequence[str]) -> np.ndarray:
    """Splits texts of any length into windows for `CLIP.encode_text`, which averages them.

    Returns:
        int32 [texts, windows, context_length]; see `packing.windows`.

    Raises:
        UserError: a text is not a str.
    """
    from clip_jax.tokenizers import packing

    return packing.windows(tokenizer, texts)


def _resolve(path: str) -> str:
    if not path:
        return ""
    from clip_jax.io.paths import resolve

    return resolve(path)


def _is_tokenizer_class(kind: object) -> bool:
    """Returns whether a class has a tokenizer's methods, so that it is safe to call its `open`.

    Methods of its metaclass do not count: every class has a `__call__` of `type`.
    """
    classes = getattr(kind, "__mro__", ())
    return all(any(method in vars(c) for c in classes) for method in _METHODS)


def _open_users(path: str, file: str, context_length: int | None, trusted: bool) -> Tokenizer:
    """Opens a tokenizer of the user's own and checks it against the protocol."""
    kind = TOKENIZERS.get(path, "config.tokenizer", trusted=trusted)
    if not trusted and not _is_tokenizer_class(kind):
        raise UserError(
            f"config.tokenizer={path} is no tokenizer: its class needs {', '.join(_METHODS)}"
        )
    if not callable(getattr(kind, "open", None)):
        raise UserError(
            f"config.tokenizer={path} is no tokenizer: it needs a class method "
            "open(path, context_length)"
        )
    with only_user_errors(f"config.tokenizer={path}: open"):
        tokenizer = kind.open(_resolve(file), context_length)
    if missing := [member for member in _MEMBERS if not hasattr(tokenizer, member)]:
        raise UserError(
            f"config.tokenizer={path} opens a {type(tokenizer).__name__} without "
            f"{', '.join(missing)}: a tokenizer needs {', '.join(_MEMBERS)}"
        )
    _check_rows(f"config.tokenizer={path}", tokenizer)
    return tokenizer


def _check_rows(where: str, tokenizer: Tokenizer) -> None:
    """Raises UserError if a user's tokenizer returns rows that no model can take."""
    import numpy as np

    texts = ["a photo of a cat", "two dogs"]
    with only_user_errors(f"{where}: tokenizing {texts[0]!r}"):
        rows = np.asarray(tokenizer(texts, truncate=True))
    shape = (len(texts), tokenizer.context_length)
    if rows.shape != shape or not np.issubdtype(rows.dtype, np.integer):
        raise UserError(
            f"{where} gives {rows.dtype} {list(rows.shape)} for two texts, not integers "
            f"{list(shape)}"
        )
    size = tokenizer.vocab_size
    if not isinstance(size, int) or rows.min() < 0 or rows.max() >= size:
        raise UserError(
            f"{where} gives ids from {rows.min()} to {rows.max()}; they must lie between 0 and "
            f"vocab_size={size!r:.40}"
        )
