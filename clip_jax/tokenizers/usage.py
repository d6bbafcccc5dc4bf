"""How a library prepares texts for a tokenizer, and with what it surrounds them."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Callable
from pathlib import Path

from clip_jax.errors import UserError
from clip_jax.io.files import JsonObject
from clip_jax.tokenizers import vocab_files
from clip_jax.tokenizers.cleaning import clean
from clip_jax.tokenizers.protocol import DEFAULT_CONTEXT_LENGTH

OPEN_CLIP = "open_clip_config.json"
_LONGEST_CONTEXT = 1 << 16  # transformers writes a huge number where there is no bound
_NO_MARKS = str.maketrans({"_": " ", **dict.fromkeys(string.punctuation.replace("_", ""))})

CLEANINGS: dict[str, Callable[[str], str]] = {
    "": lambda text: text,
    "case": str.lower,
    "whitespace": clean,
    "lower": lambda text: clean(text).lower(),
    "canonicalize": lambda text: " ".join(clean(text).translate(_NO_MARKS).lower().split()),
}
_OF_OPEN_CLIP = ("whitespace", "lower", "canonicalize")


@dataclasses.dataclass(frozen=True)
class Usage:
    """How a library uses a tokenizer.

    Attributes:
        clean: what is done to texts first, a name of `CLEANINGS`.
        strip_sep: whether separators, of which one ends a text, become the id 0.
        language: the token of the language, which starts a text; empty for that of the file.
        context_length: the width of the rows, unless another is asked for.
    """

    clean: str = ""
    strip_sep: bool = False
    language: str = ""
    context_length: int = DEFAULT_CONTEXT_LENGTH

    def open_clip_settings(self) -> JsonObject:
        """Returns the keys of open_clip's `text_cfg` that ask for this usage.

        open_clip always cleans white space: what is not cleaned here differs in that alone.
        """
        clean = "lower" if self.clean == "case" else self.clean
        options = {
            **({"clean": clean} if clean not in ("", "whitespace") else {}),
            **({"strip_sep_token": True} if self.strip_sep else {}),
            **({"language": self.language} if self.language else {}),
        }
        return {"tokenizer_kwargs": options} if options else {}


def read_usage(settings: JsonObject, folder: Path) -> Usage:
    """Returns how the library whose config is in a folder uses the folder's tokenizer.

    A SigLIP 2 in transformers' files was trained on lower-case text, whatever its tokenizer does.

    Args:
        settings: the content of tokenizer_config.json.
        folder: where open_clip_config.json or config.json are, if there are any.

    Raises:
        UserError: open_clip's config asks for something that we do not have.
    """
    open_clip = folder / OPEN_CLIP
    language = settings.get("src_lang")
    length = settings.get("model_max_length")
    usage = Usage(
        language=language if isinstance(language, str) else "",
        context_length=length
        if type(length) is int and 3 <= length <= _LONGEST_CONTEXT
        else DEFAULT_CONTEXT_LENGTH,
    )
    text = vocab_files.nested_object(read_if_there(open_clip), "model_cfg", "text_cfg")
    if not text:
        siglip = str(read_if_there(folder / "config.json").get("model_type")).startswith("siglip")
        gemma = str(settings.get("tokenizer_class")).startswith("Gemma")
        return dataclasses.replace(usage, clean="case") if siglip and gemma else usage
    options = vocab_files.nested_object(text, "tokenizer_kwargs")
    way = options.get("clean", "whitespace")
    if way not in _OF_OPEN_CLIP:
        known = ", ".join(_OF_OPEN_CLIP)
        raise UserError(f"{open_clip}: clean={way!r:.60} must be one of {known}")
    if mode := text.get("tokenizer_mode"):
        raise UserError(f"{open_clip}: tokenizer_mode={mode!r:.60} is not supported here")
    length = text.get("context_length", DEFAULT_CONTEXT_LENGTH)
    return dataclasses.replace(
        usage,
        clean=way,
        strip_sep=options.get("strip_sep_token") is True,
        language=str(options.get("language") or usage.language),
        context_length=length,
    )


def read_if_there(path: Path) -> JsonObject:
    """Returns the object in a JSON file, or an empty one if there is no such file."""
    return vocab_files.read_json(path) if path.is_file() else {}
