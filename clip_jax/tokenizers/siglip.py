"""The tokenization of SigLIP and SigLIP 2: a SentencePiece model on simplified text."""

from __future__ import annotations

import os
import string
from pathlib import Path

from clip_jax.errors import UserError
from clip_jax.io.files import JsonObject
from clip_jax.tokenizers import vocab_files
from clip_jax.tokenizers.protocol import SHORT_CONTEXT_LENGTH
from clip_jax.tokenizers.sentencepiece import SentencePiece
from clip_jax.tokenizers.usage import CLEANINGS, read_usage

GEMMA_BEGINS = ("<pad>", "<eos>", "<bos>", "<unk>")  # the first pieces of Gemma's model
_NO_TEXT = dict.fromkeys(map(chr, range(0xD800, 0xE000)), "\ufffd")  # JSON may hold half a pair
_TO_SPACES_OR_NOTHING = str.maketrans({"▁": " ", **dict.fromkeys(string.punctuation), **_NO_TEXT})
_REPLACED = str.maketrans(_NO_TEXT)


class SigLIP(SentencePiece):
    """A SentencePiece model used as SigLIP and SigLIP 2 use theirs: the model's ids, then its end.

    Rows have no start token. SigLIP's model pads with the end, `</s>`, so that the last id of every
    row is `</s>`: its tower reads its output there. SigLIP 2's model, which is Gemma's, pads with
    `<pad>`.

    A SigLIP 2 sees lower-case text. A SigLIP sees it without punctuation, too. Beside an
    open_clip_config.json texts are cleaned as that says: open_clip repairs mojibake and HTML
    entities, and reads `_` as a space.

    Source: `SiglipTokenizer` and `Siglip2Tokenizer` of transformers, whose ids these are (the
    former's for models that normalise by nmt_nfkc), but for a special token such as `</s>` that is
    written in a text, which is text here.
    """

    def __init__(
        self, path: str | os.PathLike[str], context_length: int = SHORT_CONTEXT_LENGTH
    ) -> None:
        """Reads a model, such as the `spiece.model` of a published SigLIP.

        Raises:
            UserError: the file is missing, over 32 MiB, no SentencePiece model or one without an
                end piece, or `context_length` is under 3.
        """
        super().__init__(path, context_length, lower=True)
        if self.eot_id < 0:
            raise UserError(
                f"{str(path)!r} has no end piece (eos_id), with which SigLIP ends a text: "
                "use it as 'sentencepiece:PATH.model'"
            )
        self.clean = read_usage({}, Path(path).parent).clean

    @classmethod
    def open(cls, path: str, context_length: int | None) -> SigLIP:
        """Reads a .model file; see `TokenizerKind`."""
        return cls(path, SHORT_CONTEXT_LENGTH if context_length is None else context_length)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text of any length, without end or padding."""
        if self.clean:
            text = CLEANINGS[self.clean](text.translate(_REPLACED))
        elif self.is_gemma:
            text = text.translate(_REPLACED).lower()
        else:
            text = canonical(text)
        ids: list[int] = self._processor.encode(text)
        return ids

    @property
    def open_clip_settings(self) -> JsonObject:
        """The keys of open_clip's `text_cfg` by which it uses the files of `write_open_clip`."""
        clean = self.clean or ("lower" if self.is_gemma else "canonicalize")
        return {
            "hf_tokenizer_name": "timm/ViT-B-16-SigLIP" + ("2" if self.is_gemma else ""),
            **({} if clean == "whitespace" else {"tokenizer_kwargs": {"clean": clean}}),
        }

    def write_hugging_face(self, folder: Path) -> None:
        """Writes what transformers reads, each file completely or not at all.

        They are the files of `SiglipTokenizer`; for Gemma's model they are a tokenizer.json that
        folds case.

        Args:
            folder: where they are written; it is made if need be.

        Raises:
            UserError: the folder can't be written.
        """
        folder = Path(folder)
        end = self._processor.id_to_piece(self.eot_id)
        if self.is_gemma:
            self._write(folder, self.clean or "case", "", end)
            vocab_files.write(folder / "tokenizer.model", self._model)
            return
        unknown = self._processor.id_to_piece(self._processor.unk_id())
        special = {"eos_token": end, "pad_token": end, "unk_token": unknown}
        settings = {
            "tokenizer_class": "SiglipTokenizer",
            "model_max_length": self.context_length,
            "do_lower_case": True,
            **special,
        }
        vocab_files.write(folder / "spiece.model", self._model)
        vocab_files.write_json(folder / "tokenizer_config.json", settings)
        vocab_files.write_json(folder / "special_tokens_map.json", special)

    def write_open_clip(self, folder: Path) -> None:
        """Writes tokenizer.json and its settings for open_clip, and the model for this class."""
        folder = Path(folder)
        self._write(folder, "", "", self._processor.id_to_piece(self.eot_id))
        vocab_files.write(folder / "spiece.model", self._model)

    def __getstate__(self) -> tuple[bytes, int, str]:  # type: ignore[override]
        return self._model, self.context_length, self.clean

    def __setstate__(self, state: tuple[bytes, int, str]) -> None:  # type: ignore[override]
        model, context_length, self.clean = state
        self._load(model, context_length, True)

    def _load(self, model: bytes, context_length: int, lower: bool) -> None:
        super()._load(model, context_length, lower)
        piece = self._processor.id_to_piece
        self.vocab_size = self._processor.get_piece_size()
        first = range(min(len(GEMMA_BEGINS), self.vocab_size))
        self.is_gemma = tuple(map(piece, first)) == GEMMA_BEGINS
        self.sot_id = None
        self.eot_id = self._processor.eos_id()
        self.pad_id = self._processor.pad_id() if self.is_gemma else self.eot_id


def canonical(text: str) -> str:
    """Lower-cases a text, removes ASCII punctuation, and makes every run of white space one space.

    Source: `canonicalize_text` of transformers' `SiglipTokenizer`.
    """
    return " ".join(text.lower().translate(_TO_SPACES_OR_NOTHING).split())
