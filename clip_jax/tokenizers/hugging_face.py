"""The tokenizer.json of Hugging Face's `tokenizers`, used as open_clip uses it.

Such a file describes every step from a text to ids. The package is not installed by default: it
brings a client for its hub with it. `pip install 'clip_jax[tokenizers]'`
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from clip_jax.errors import UserError
from clip_jax.io.files import JsonObject
from clip_jax.tokenizers import sentencepiece_files, tokenizer_json, vocab_files
from clip_jax.tokenizers.packing import check_context_length, pack
from clip_jax.tokenizers.usage import CLEANINGS, Usage, read_if_there, read_usage

if TYPE_CHECKING:
    import numpy as np

FILE = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
MODEL = "config.json"
MAX_BYTES = 128 << 20  # that of Gemma has 34 MB
_LONGEST_TOKEN = 200  # characters of a special token, which messages quote
_PADS = ("<pad>", "[PAD]")  # what transformers' classes pad with if no file says it
_NLLB, _SIGLIP2 = "Nllb", "Siglip2"  # classes that change the steps of the file
_ON_THE_LEFT = ("Gemma", _SIGLIP2)  # classes that pad there if no file says otherwise
_NO_TEXT = dict.fromkeys(map(chr, range(0xD800, 0xE000)), "\ufffd")  # JSON may hold half a pair
_REPLACED = str.maketrans(_NO_TEXT)

T = TypeVar("T")


class HuggingFace:
    """A tokenizer.json as a tokenizer.

    Beside it, tokenizer_config.json names the special tokens, and open_clip_config.json says how
    open_clip prepares texts. Without the latter texts are taken as they are, as transformers does.

    Source: `HFTokenizer` of open_clip and `TokenizersBackend` of transformers, whose ids these are.
    open_clip's option `language` holds here; there each call of transformers' NLLB undoes it.
    """

    def __init__(self, path: str | os.PathLike[str], context_length: int | None = None) -> None:
        """Reads a folder with a tokenizer.json, or with a SentencePiece model of T5 (spiece.model)
        or of XLM-RoBERTa or NLLB (sentencepiece.bpe.model); or such a file.

        Raises:
            UserError: the package `tokenizers` is missing; a file is missing, too large or damaged;
                rows have another form than start, ids, end and padding; or `context_length` is
                under 3.
        """
        path = Path(path)
        inside = [path / name for name in (FILE, *sentencepiece_files.FILES)]
        file = next((f for f in inside if f.is_file()), inside[0]) if path.is_dir() else path
        content = vocab_files.read_file(file, MAX_BYTES)
        settings = {
            **read_if_there(file.parent / SPECIAL_TOKENS),
            **read_if_there(file.parent / SETTINGS),
        }
        if read_if_there(file.parent / MODEL).get("model_type") == "siglip2":
            # the class in Google's files is Gemma's; transformers takes this one in spite of it
            settings["tokenizer_class"] = f"{_SIGLIP2}Tokenizer"
        if file.name in sentencepiece_files.FILES:
            content = sentencepiece_files.tokenizer_json(content, file.name, settings, str(file))
        usage = read_usage(settings, file.parent)
        length = usage.context_length if context_length is None else context_length
        self._load(content, settings, usage, check_context_length(length), str(file))

    @classmethod
    def open(cls, path: str, context_length: int | None) -> HuggingFace:
        """Reads a tokenizer.json, or a folder that holds one; see `TokenizerKind`."""
        return cls(path, context_length)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text of any length, without start, end or padding."""
        text = CLEANINGS[self.usage.clean](text.translate(_REPLACED))
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [0 if i == self._separator else i for i in ids] if self.usage.strip_sep else ids

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`, without start tokens and up to the first end token.

        Raises:
            ValueError: an id is outside [0, vocab_size).
        """
        text_ids: list[int] = []
        for token in map(int, ids):
            if token == self.eot_id:
                break
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"token id {token} is outside [0, {self.vocab_size})")
            if token != self.sot_id:
                text_ids.append(token)
        text: str = self._tokenizer.decode(text_ids, skip_special_tokens=False)
        return text

    def __call__(
        self, texts: str | Sequence[str], truncate: bool = False
    ) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
        """Tokenizes texts.

        Returns:
            int32 [n, context_length]: start if there is one, ids, end, then padding.

        Raises:
            UserError: see `packing.pack`.
        """
        return pack(self, texts, truncate)

    @property
    def open_clip_settings(self) -> JsonObject:
        """The keys of open_clip's `text_cfg` by which it uses the files of `write_open_clip`."""
        return {"hf_tokenizer_name": "tokenizer.json", **self.usage.open_clip_settings()}

    def write_hugging_face(self, folder: Path) -> None:
        """Writes tokenizer.json and its settings, each completely or not at all.

        What open_clip does to a text before it tokenizes becomes steps of the tokenizer.json, but
        for the repair of mojibake and HTML entities.

        Raises:
            UserError: the folder can't be written.
        """
        content, settings = self._content, self._settings
        if self.usage.clean or self.usage.strip_sep:
            content, settings = self._self_contained()
        self._write(Path(folder), content, settings)

    def write_open_clip(self, folder: Path) -> None:
        """Writes tokenizer.json and its settings for open_clip, which cleans texts itself.

        Raises:
            UserError: the folder can't be written.
        """
        self._write(Path(folder), self._content, self._settings)

    def _write(self, folder: Path, content: bytes, settings: JsonObject) -> None:
        vocab_files.write(folder / FILE, content)
        if settings:
            vocab_files.write_json(folder / SETTINGS, settings)

    def _self_contained(self) -> tuple[bytes, JsonObject]:
        """Returns a tokenizer.json of all steps, and the settings that let it take all of them."""
        steps = json.loads(self._tokenizer.to_str())
        steps["normalizer"] = tokenizer_json.cleaned(steps["normalizer"], self.usage.clean)
        names = {
            key: None if i is None else self._tokenizer.id_to_token(i)
            for key, i in (
                ("bos_token", self.sot_id),
                ("eos_token", self.eot_id),
                ("pad_token", self.pad_id),
            )
        }
        before = [names["bos_token"]] if names["bos_token"] else []
        row = [*before, "", *map(self._tokenizer.id_to_token, self.last_ids)]
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        steps["post_processor"] = tokenizer_json.template(row, ids)
        settings = tokenizer_json.settings(self.context_length, **names)
        return json.dumps(steps, ensure_ascii=False).encode(), settings

    def __getstate__(self) -> tuple[Any, ...]:
        # The content itself, not its path: a worker may run in another folder.
        return self._content, self._settings, self.usage, self.context_length, self._where

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._load(*state)

    def _load(
        self,
        content: bytes,
        settings: JsonObject,
        usage: Usage,
        context_length: int,
        where: str,
    ) -> None:
        self._content, self._settings, self._where = content, settings, where
        self.usage, self.context_length = usage, context_length
        self._tokenizer = in_rust(where, lambda: _backend().from_buffer(content))
        in_rust(where, self._tokenizer.no_padding)
        in_rust(where, self._tokenizer.no_truncation)
        if self._is(_SIGLIP2):
            self._lower_case()
        ids: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size: int = 1 + max(ids.values(), default=0)
        self.sot_id, end = self._start_and_end(ids)
        if end is None:
            raise UserError(f"{where} ends a text by no token, by which a text tower could know it")
        self.last_ids: list[int] = [0 if usage.strip_sep else end]
        if self._is(_NLLB) and self._settings.get("legacy_behaviour") is True:
            assert self.sot_id is not None  # the language, which ends a text there
            self.last_ids, self.sot_id = [end, self.sot_id], None
        self._separator = end if usage.strip_sep else -1
        self.eot_id: int = 0 if usage.strip_sep else end
        self.pad_id: int = self._padding(ids)

    def _is(self, *classes: str) -> bool:
        """Returns whether transformers uses one of its classes, whose names start alike."""
        return str(self._settings.get("tokenizer_class", "")).startswith(classes)

    def _lower_case(self) -> None:
        from tokenizers import normalizers

        steps = [normalizers.Lowercase()]
        if self._tokenizer.normalizer is not None:
            steps.append(self._tokenizer.normalizer)
        self._tokenizer.normalizer = normalizers.Sequence(steps)

    def _start_and_end(self, ids: dict[str, int]) -> tuple[int | None, int | None]:
        """Returns the ids around those of a text, by tokenizer_config.json or by the file."""
        start: int | None
        end: int | None
        flags = {part: self._settings.get(f"add_{part}_token") for part in ("bos", "eos")}
        if self._is(_NLLB):
            start, end = (
                self._id_of("eng_Latn", ids, "its language"),
                self._id_of("</s>", ids, "end"),
            )
        elif any(isinstance(flag, bool) for flag in flags.values()):
            start, end = (
                self._special(f"{part}_token", ids) if flags[part] else None for part in flags
            )
        else:
            alone = in_rust(self._where, lambda: self._tokenizer.encode("a").ids)
            inner = self._tokenizer.encode("a", add_special_tokens=False).ids
            size = len(inner)
            place = next((i for i in range(3) if alone[i : i + size] == inner), 3)
            before, after = alone[:place], alone[place + size :]
            if max(len(before), len(after)) > 1:
                raise UserError(
                    f"{self._where} puts {len(before)} tokens before a text and {len(after)} after "
                    "it: at most one each is supported here"
                )
            start, end = (part[0] if part else None for part in (before, after))
        if self.usage.language:
            start = self._id_of(self.usage.language, ids, "its language")
        return start, end

    def _special(self, key: str, ids: dict[str, int]) -> int | None:
        """Returns the id of a special token that tokenizer_config.json names; None if it does not.

        A token is a text, or an object with its `content`.
        """
        token = self._settings.get(key)
        token = token.get("content") if isinstance(token, dict) else token
        return None if token is None else self._id_of(token, ids, key)

    def _id_of(self, token: object, ids: dict[str, int], what: str) -> int:
        if not isinstance(token, str) or len(token) > _LONGEST_TOKEN or token not in ids:
            raise UserError(f"{self._where} has no token {token!r:.80}, which is {what}")
        return ids[token]

    def _padding(self, ids: dict[str, int]) -> int:
        for key in ("padding_side", "truncation_side"):
            left = key == "padding_side" and self._is(*_ON_THE_LEFT)
            side = self._settings.get(key, "left" if left else "right")
            if side != "right":
                raise UserError(
                    f"{self._where}: {key}={side!r:.40} is not supported here, only 'right'"
                )
        pad = self._special("pad_token", ids)
        if pad is None:
            pad = next((ids[token] for token in _PADS if token in ids), None)
        if pad is None:
            raise UserError(f"{SETTINGS} beside {self._where} names no pad_token")
        return pad


def in_rust(where: str, call: Callable[[], T]) -> T:
    """Returns the result of a call into the package, whose errors and panics are one line.

    Raises:
        UserError: the call failed.
    """
    try:
        return call()
    except UserError:
        raise
    except BaseException as error:  # a panic is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        reason = ascii(" ".join(str(error).split()))[1:-1]
        raise UserError(f"{where} is no {FILE} of Hugging Face: {reason:.200}") from None


def _backend() -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError(
            f"a {FILE} needs the package tokenizers: pip install 'clip_jax[tokenizers]'"
        ) from None
    return Tokenizer
