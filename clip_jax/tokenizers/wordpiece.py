"""BERT's WordPiece, as ALIGN uses it.

Our own, because Hugging Face's `tokenizers` brings a client for its hub with it, and the cache here
makes encoding a single text faster. The golden ids of both are equal.
"""

from __future__ import annotations

import dataclasses
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import regex

from clip_jax.errors import UserError
from clip_jax.io.files import JsonObject
from clip_jax.tokenizers import vocab_files
from clip_jax.tokenizers.packing import check_context_length, pack
from clip_jax.tokenizers.protocol import SHORT_CONTEXT_LENGTH

if TYPE_CHECKING:
    import numpy as np

LONGEST_WORD = 100
CONTINUED = "##"
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt")

# These count as white space in Python and as control characters in BERT, which drops them.
_NO_SPACES = dict.fromkeys([0x0B, 0x0C, 0x1C, 0x1D, 0x1E, 0x1F, 0x85])
_CONTROLS = regex.compile(r"[\p{Cc}\p{Cf}\p{Co}\p{Cs}\uFFFD]+")
_ACCENTS = regex.compile(r"\p{Mn}+")
_MARKS = r"\p{P}$+<=>^`|~"
# transformers starts the block at U+2B920, BERT's own code at U+2B820.
_CHINESE = (
    r"\u4E00-\u9FFF\u3400-\u4DBF\U00020000-\U0002A6DF\U0002A700-\U0002B73F\U0002B740-\U0002B81F"
    r"\U0002B920-\U0002CEAF\uF900-\uFAFF\U0002F800-\U0002FA1F"
)
_CACHED_CHUNKS = 1 << 16
_CACHED_CHUNK_LENGTH = 64


@dataclasses.dataclass(frozen=True)
class Options:
    """Options for what BERT does to a text before it looks up words.

    They are named as in `tokenizer_config.json`.

    Attributes:
        do_lower_case: whether to fold case.
        strip_accents: whether to drop combining marks; None for the value of `do_lower_case`.
        tokenize_chinese_chars: whether to make every Chinese character a word.
    """

    do_lower_case: bool = True
    strip_accents: bool | None = None
    tokenize_chinese_chars: bool = True


@dataclasses.dataclass(frozen=True)
class Specials:
    """The special tokens. A special token that is spelled in a text gets its own id."""

    unk_token: str = "[UNK]"
    sep_token: str = "[SEP]"
    pad_token: str = "[PAD]"
    cls_token: str = "[CLS]"
    mask_token: str = "[MASK]"


class WordPiece:
    """BERT's tokenizer: rows are [CLS], ids, [SEP], then [PAD].

    Source: Devlin et al. 2018; the ids are those of `BertTokenizer` in transformers, which knows
    the characters of Unicode 9. Combining marks and punctuation that were added later are
    recognised here and are letters there.
    """

    def __init__(
        self, path: str | os.PathLike[str], context_length: int = SHORT_CONTEXT_LENGTH
    ) -> None:
        """Reads a vocabulary, and the options and special tokens of the files beside it.

        Args:
            path: a vocab.txt (a token a line), a tokenizer.json of Hugging Face, or a folder that
                holds one. Options come from a tokenizer_config.json in the same folder, then from
                the tokenizer.json, and default to BERT's (uncased).
            context_length: the width of the rows.

        Raises:
            UserError: a file is missing, over 32 MiB or no vocabulary of WordPiece, or
                `context_length` is under 3.
        """
        self._start(*_read_vocabulary(Path(path)), check_context_length(context_length))

    @classmethod
    def open(cls, path: str, context_length: int | None) -> WordPiece:
        """Reads a vocabulary; see `TokenizerKind`."""
        return cls(path, SHORT_CONTEXT_LENGTH if context_length is None else context_length)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text of any length, without start, end or padding."""
        ids: list[int] = []
        for i, part in enumerate(self._special.split(text)):
            if i % 2:
                ids.append(self._words.ids[part])
                continue
            if not part.isprintable():
                part = part.translate(_NO_SPACES)
            ids += chain.from_iterable(map(self._words.__getitem__, part.split()))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the words of `ids` with a space between them.

        Start and padding are skipped and the first end token ends the text, so a packed row
        decodes to its caption as far as the vocabulary knows it.

        Raises:
            ValueError: an id is outside [0, vocab_size).
        """
        text = ""
        for token in map(int, ids):
            if token == self.eot_id:
                break
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"token id {token} is outside [0, {self.vocab_size})")
            if token not in (self.sot_id, self.pad_id):
                piece = self.tokens[token]
                text += piece[2:] if piece.startswith(CONTINUED) else " " + piece
        return text.strip(" ")

    def __call__(
        self, texts: str | Sequence[str], truncate: bool = False
    ) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
        """Tokenizes texts.

        Returns:
            int32 [n, context_length]: [CLS], ids, [SEP], then [PAD].

        Raises:
            UserError: see `packing.pack`.
        """
        return pack(self, texts, truncate)

    def write_hugging_face(self, folder: Path) -> None:
        """Writes the files that transformers' `BertTokenizer` reads, each completely or not at all.

        Args:
            folder: where vocab.txt, tokenizer_config.json and special_tokens_map.json are written;
                it is made if need be.

        Raises:
            UserError: the folder can't be written.
        """
        folder = Path(folder)
        special = dataclasses.asdict(self.specials)
        settings = {
            "tokenizer_class": "BertTokenizer",
            "model_max_length": self.context_length,
            **dataclasses.asdict(self.options),
            **special,
        }
        vocab_files.write(folder / "vocab.txt", "".join(f"{t}\n" for t in self.tokens).encode())
        vocab_files.write_json(folder / "tokenizer_config.json", settings)
        vocab_files.write_json(folder / "special_tokens_map.json", special)

    @property
    def open_clip_settings(self) -> JsonObject:
        """The keys of open_clip's `text_cfg` by which it uses the files of `write_open_clip`."""
        return {"hf_tokenizer_name": "bert-base-uncased"}

    write_open_clip = write_hugging_face  # open_clip's HFTokenizer reads them, too

    def __getstate__(self) -> tuple[tuple[str, ...], Options, Specials, int]:
        # The vocabulary itself, not its path: a worker may run in another folder.
        return self.tokens, self.options, self.specials, self.context_length

    def __setstate__(self, state: tuple[tuple[str, ...], Options, Specials, int]) -> None:
        self._start(*state)

    def _start(
        self, tokens: tuple[str, ...], options: Options, specials: Specials, context_length: int
    ) -> None:
        self.tokens = tokens
        self.options = options
        self.specials = specials
        self.context_length = context_length
        self.vocab_size = len(tokens)
        ids = {token: i for i, token in enumerate(tokens)}
        self.sot_id: int = ids[specials.cls_token]
        self.eot_id: int = ids[specials.sep_token]
        self.pad_id: int = ids[specials.pad_token]
        self._words = Words(ids, ids[specials.unk_token], options)
        spelled = sorted((t for t in dataclasses.astuple(specials) if t in ids), key=len)
        self._special = re.compile(f"({'|'.join(map(re.escape, reversed(spelled)))})")


class Words(dict[str, tuple[int, ...]]):
    """A bounded cache from chunk to ids; a chunk is text without white space.

    Looking up a cached chunk costs one C call; `__missing__` computes the others.
    """

    def __init__(self, ids: dict[str, int], unknown: int, options: Options) -> None:
        self.ids = ids
        self._unknown = unknown
        self._lower = options.do_lower_case
        strip = options.strip_accents
        self._strip_accents = options.do_lower_case if strip is None else strip
        alone = _MARKS + _CHINESE * options.tokenize_chinese_chars
        self._word = regex.compile(f"[{alone}]|[^{alone}]+")

    def split(self, chunk: str) -> list[str]:
        """Splits a chunk into its cleaned words; every punctuation mark is a word."""
        if not chunk.isascii() or not chunk.isprintable():
            chunk = _CONTROLS.sub("", chunk)
            if self._strip_accents:
                chunk = _ACCENTS.sub("", unicodedata.normalize("NFD", chunk))
            # Python lower-cases a sigma at the end of a word differently.
            chunk = chunk.replace("Σ", "σ") if self._lower else chunk
        words: list[str] = self._word.findall(chunk.lower() if self._lower else chunk)
        return words

    def __missing__(self, chunk: str) -> tuple[int, ...]:
        ids = tuple(chain.from_iterable(map(self._pieces, self.split(chunk))))
        if len(chunk) <= _CACHED_CHUNK_LENGTH:
            if len(self) >= _CACHED_CHUNKS:
                self.clear()
            self[chunk] = ids
        return ids

    def _pieces(self, word: str) -> list[int]:
        """Splits a word greedily, always into the longest token that fits next."""
        if len(word) > LONGEST_WORD:
            return [self._unknown]
        ids: list[int] = []
        start = 0
        while start < len(word):
            prefix = CONTINUED if start else ""
            for end in range(len(word), start, -1):
                token = self.ids.get(prefix + word[start:end])
                if token is not None:
                    break
            else:
                return [self._unknown]
            ids.append(token)
            start = end
        return ids


def _read_vocabulary(path: Path) -> tuple[tuple[str, ...], Options, Specials]:
    """Returns the tokens by id, the options and the special tokens; see `WordPiece`."""
    if path.is_dir():
        candidates = [path / name for name in VOCABULARY_FILES if (path / name).is_file()]
        if not candidates:
            raise UserError(f"{str(path)!r} holds no {' and no '.join(VOCABULARY_FILES)}")
        path = candidates[0]
    tokens, settings = _read_json(path) if path.suffix == ".json" else (_read_lines(path), {})
    beside = path.with_name("tokenizer_config.json")
    if beside.is_file():
        settings |= vocab_files.read_json(beside)
    options = Options(**_fields(Options, bool, path, settings))
    specials = Specials(**_fields(Specials, str, path, settings))
    needed = {*dataclasses.astuple(specials)} - {specials.mask_token}
    missing = sorted(needed.difference(tokens))
    if missing:
        raise UserError(
            f"{str(path)!r} has no {', '.join(missing)}: it is no vocabulary of BERT's WordPiece"
        )
    added = {*_added(settings)} - {*dataclasses.astuple(specials)}
    if added:
        raise UserError(
            f"the tokenizer of {str(path)!r} adds {', '.join(sorted(added))} to BERT's special "
            "tokens, which is not supported"
        )
    return tokens, options, specials


def _read_lines(path: Path) -> tuple[str, ...]:
    try:
        lines = vocab_files.read_file(path).decode().split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{str(path)!r} is not UTF-8 text: {error.reason}") from error
    return tuple(line.rstrip() for line in (lines if lines[-1] else lines[:-1]))


def _read_json(path: Path) -> tuple[tuple[str, ...], JsonObject]:
    """Returns the tokens by id, and the settings under the names of `tokenizer_config.json`."""
    content = vocab_files.read_json(path)
    model, normalizer = (
        vocab_files.nested_object(content, "model"),
        vocab_files.nested_object(content, "normalizer"),
    )
    ids = vocab_files.nested_object(model, "vocab")
    # Old files name no type.
    if model.get("type", "WordPiece") != "WordPiece" or not ids:
        raise UserError(f"{str(path)!r} holds a {model.get('type')} tokenizer, not a WordPiece one")
    prefix = model.get("continuing_subword_prefix", CONTINUED)
    if prefix != CONTINUED or normalizer.get("type") != "BertNormalizer":
        raise UserError(
            f"{str(path)!r} prepares text otherwise than BERT: a WordPiece tokenizer needs the "
            f"normalizer BertNormalizer and the prefix {CONTINUED}"
        )
    by_id = {i: token for token, i in ids.items() if type(i) is int}
    if by_id.keys() != {*range(len(ids))}:
        raise UserError(f"the ids of {str(path)!r} are not 0 to {len(ids) - 1}, each once")
    settings = {
        "do_lower_case": normalizer.get("lowercase", True),
        "strip_accents": normalizer.get("strip_accents"),
        "tokenize_chinese_chars": normalizer.get("handle_chinese_chars", True),
        "added_tokens": content.get("added_tokens"),
    }
    return tuple(by_id[i] for i in range(len(ids))), settings


def _fields(
    kind: type[Options] | type[Specials], value_type: type, path: Path, settings: JsonObject
) -> JsonObject:
    """Returns the fields of `kind` that the settings have; null means the default."""
    fields = {}
    for name in (field.name for field in dataclasses.fields(kind)):
        value = settings.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if value is None:
            continue
        if not isinstance(value, value_type) or value == "":
            what = "true or false" if value_type is bool else "a token"
            raise UserError(
                f"the tokenizer of {str(path)!r} has {name}={value!r:.80}: it must be {what}"
            )
        fields[name] = value
    return fields


def _added(settings: JsonObject) -> list[str]:
    """Returns the texts of the added tokens in tokenizer.json and tokenizer_config.json."""
    tokens = settings.get("added_tokens")
    entries = [*(tokens if isinstance(tokens, list) else [])]
    entries += vocab_files.nested_object(settings, "added_tokens_decoder").values()
    return [str(entry.get("content")) for entry in entries if isinstance(entry, dict)]
