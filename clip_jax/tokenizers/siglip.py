"""SigLIP's tokenization: a SentencePiece model on text without case and punctuation."""

from __future__ import annotations

import os
import string
from pathlib import Path

from clip_jax.errors import UserError
from clip_jax.tokenizers import vocab_files
from clip_jax.tokenizers.protocol import SHORT_CONTEXT_LENGTH
from clip_jax.tokenizers.sentencepiece import SentencePiece

_NO_TEXT = dict.fromkeys(map(chr, range(0xD800, 0xE000)), "\ufffd")  # JSON may hold half a pair
_TO_SPACES_OR_NOTHING = str.maketrans({"▁": " ", **dict.fromkeys(string.punctuation), **_NO_TEXT})


class SigLIP(SentencePiece):
    """A SentencePiece model used as SigLIP uses it: the model's ids, then its `</s>` to the end.

    Rows have no start token, and `</s>` is also the padding, so the last id of every row is `</s>`:
    SigLIP's tower reads its output there.

    Source: `SiglipTokenizer` of transformers, whose ids these are for models that normalise by
    nmt_nfkc, but for a `</s>` or `<unk>` written in a text, which is a special token there and
    text here. open_clip reads `_` as a space where transformers and this class drop it, and
    repairs mojibake and HTML entities first.
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

    @classmethod
    def open(cls, path: str, context_length: int | None) -> SigLIP:
        """Reads a .model file; see `TokenizerKind`."""
        return cls(path, SHORT_CONTEXT_LENGTH if context_length is None else context_length)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text of any length, without end or padding."""
        ids: list[int] = self._processor.encode(canonical(text))
        return ids

    def write_hugging_face(self, folder: Path) -> None:
        """Writes what transformers' `SiglipTokenizer` reads, each file completely or not at all.

        Args:
            folder: where spiece.model, tokenizer_config.json and special_tokens_map.json are
                written; it is made if need be.

        Raises:
            UserError: the folder can't be written.
        """
        folder = Path(folder)
        end = self._processor.id_to_piece(self.eot_id)
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

    def _load(self, model: bytes, context_length: int, lower: bool) -> None:
        super()._load(model, context_length, lower)
        self.vocab_size = self._processor.get_piece_size()
        self.sot_id = None
        self.eot_id = self.pad_id = self._processor.eos_id()


def canonical(text: str) -> str:
    """Lower-cases a text, removes ASCII punctuation, and makes every run of white space one space.

    Source: `canonicalize_text` of transformers' `SiglipTokenizer`.
    """
    return " ".join(text.lower().translate(_TO_SPACES_OR_NOTHING).split())
