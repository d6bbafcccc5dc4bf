"""CLIP's byte-level BPE: the ids that OpenAI's released weights were trained on."""

from __future__ import annotations

import functools
import gzip
from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import regex

from clip_jax.io.files import JsonObject
from clip_jax.tokenizers import vocab_files
from clip_jax.tokenizers.cleaning import clean
from clip_jax.tokenizers.packing import check_context_length, pack
from clip_jax.tokenizers.protocol import DEFAULT_CONTEXT_LENGTH

if TYPE_CHECKING:
    import numpy as np

MERGES_FILE = Path(__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
MERGES = 48_894
FIRST_MERGE = 512
SOT = FIRST_MERGE + MERGES
EOT = SOT + 1
SPECIALS = {"<|startoftext|>": SOT, "<|endoftext|>": EOT}

_WORD = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)
_CACHED_CHUNKS = 1 << 16
_CACHED_CHUNK_LENGTH = 64


class BPE:
    """CLIP's tokenizer: lower-case, with 49,408 ids, the last two of which are start and end.

    Every text can be encoded: what no merge covers is spelled in bytes.
    """

    vocab_size: int = EOT + 1
    sot_id: int = SOT
    eot_id: int = EOT
    pad_id: int = 0

    def __init__(self, context_length: int = DEFAULT_CONTEXT_LENGTH) -> None:
        """Makes a tokenizer; the vocabulary is read once per process, when a text is first encoded.

        Args:
            context_length: the width of the rows.

        Raises:
            UserError: `context_length` is under 3.
        """
        self.context_length = check_context_length(context_length)

    @classmethod
    def open(cls, path: str, context_length: int | None) -> BPE:
        """Makes CLIP's tokenizer, whose vocabulary ships with the package; see `TokenizerKind`."""
        return cls(DEFAULT_CONTEXT_LENGTH if context_length is None else context_length)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text of any length, without start, end or padding."""
        # No token contains white space, so the text between two spaces is encoded by itself.
        chunks = clean(text).lower().split()
        return list(chain.from_iterable(map(vocabulary().__getitem__, chunks)))

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids` in lower case, with a space after each token that ends a word.

        Start tokens are skipped and the first end token ends the text, so a packed row decodes to
        its caption. Bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: an id is outside [0, vocab_size).
        """
        pieces = vocabulary().pieces
        text = bytearray()
        for token in ids:
            if token == EOT:
                break
            if not 0 <= token < EOT:
                raise ValueError(f"token id {token} is outside [0, {self.vocab_size})")
            if token != SOT:
                text += pieces[token]
        return text.decode("utf-8", errors="replace").strip(" ")

    def __call__(
        self, texts: str | Sequence[str], truncate: bool = False
    ) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
        """Tokenizes texts.

        Returns:
            int32 [n, context_length]: start, ids, end, then zeros.

        Raises:
            UserError: see `packing.pack`.
        """
        return pack(self, texts, truncate)

    @property
    def open_clip_settings(self) -> JsonObject:
        """The keys of open_clip's `text_cfg`: none, because this is its own tokenizer."""
        return {}

    def write_hugging_face(self, folder: Path) -> None:
        """Writes the tokenizer for transformers; see the function `write_hugging_face`."""
        write_hugging_face(folder, self.context_length)

    def __reduce__(self) -> tuple[type[BPE], tuple[int]]:
        return type(self), (self.context_length,)


class Vocabulary(dict[str, tuple[int, ...]]):
    """CLIP's vocabulary: the merges, the bytes of every id, and a bounded cache from chunk to ids.

    A chunk is lower-case text without white space. The class is the cache: looking up a cached
    chunk costs one C call; `__missing__` computes the others.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        """Makes the ids from the merges.

        Args:
            lines: the merges in order of rank, each two symbols with a space between them.
        """
        letters = _byte_letters()
        order = sorted(range(256), key=lambda byte: (ord(letters[byte]) > 255, byte))
        self.byte_ids = [order.index(byte) for byte in range(256)]
        self.pieces = [bytes([byte]) for byte in order]
        self.pieces += [piece + b" " for piece in self.pieces]
        ids = {letters[byte]: i for i, byte in enumerate(order)}
        ids.update({letter + "</w>": i + 256 for letter, i in ids.items()})
        self.merges: dict[tuple[int, int], int] = {}
        for merged, line in enumerate(lines, FIRST_MERGE):
            left, right = line.split()
            pair = ids[left], ids[right]
            ids[left + right] = self.merges[pair] = merged
            self.pieces.append(self.pieces[pair[0]] + self.pieces[pair[1]])

    def __missing__(self, chunk: str) -> tuple[int, ...]:
        ids = tuple(chain.from_iterable(map(self._word, _WORD.findall(chunk))))
        if len(chunk) <= _CACHED_CHUNK_LENGTH:
            if len(self) >= _CACHED_CHUNKS:
                self.clear()
            self[chunk] = ids
        return ids

    def _word(self, word: str) -> list[int]:
        special = SPECIALS.get(word)
        if special is not None:
            return [special]
        ids = [self.byte_ids[byte] for byte in word.encode()]
        ids[-1] += 256
        return self._merge(ids)

    def _merge(self, ids: list[int]) -> list[int]:
        """Applies the merges to one word's ids, lowest rank first, leftmost first.

        An id grows with its rank and only one merge makes it, so the ids themselves are the
        priorities. The heap makes a word of n bytes cost n log n: text without spaces is one word.
        """
        merges = self.merges
        after = [*range(1, len(ids)), -1]
        before = [*range(-1, len(ids) - 1)]
        heap = [
            (merged, i)
            for i, pair in enumerate(pairwise(ids))
            if (merged := merges.get(pair)) is not None
        ]
        heapify(heap)
        while heap:
            merged, i = heappop(heap)
            j = after[i]
            if j < 0 or merges.get((ids[i], ids[j])) != merged:
                continue
            ids[i], ids[j] = merged, -1
            h, k = before[i], after[j]
            after[i], after[j] = k, -1
            if k >= 0:
                before[k] = i
                if (above := merges.get((merged, ids[k]))) is not None:
                    heappush(heap, (above, i))
            if h >= 0 and (above := merges.get((ids[h], merged))) is not None:
                heappush(heap, (above, h))
        return [i for i in ids if i >= 0]


@functools.cache
def vocabulary() -> Vocabulary:
    """Returns the vocabulary that every `BPE` of this process shares.

    Source: `bpe_simple_vocab_16e6.txt.gz` of OpenAI's CLIP: a header, then 262,144 merges, of
    which CLIP uses the first 48,894.
    """
    with gzip.open(MERGES_FILE, "rt", encoding="utf-8", newline="\n") as file:
        return Vocabulary(islice(file, 1, 1 + MERGES))


def symbols() -> list[str]:
    """Returns the 49,408 entries of the vocabulary by id, spelled as in the merges file.

    Every byte is a printable character, and `</w>` ends a word.
    """
    letters, merges = _byte_letters(), vocabulary()
    spelled = [""] * 256
    for byte, i in enumerate(merges.byte_ids):
        spelled[i] = letters[byte]
    spelled += [symbol + "</w>" for symbol in spelled]
    for left, right in merges.merges:
        spelled.append(spelled[left] + spelled[right])
    return [*spelled, *SPECIALS]


def write_hugging_face(folder: Path, context_length: int = DEFAULT_CONTEXT_LENGTH) -> None:
    """Writes the files that transformers' `CLIPTokenizer` reads, each completely or not at all.

    Its ids are those of `BPE` if cleaning changes only white space: transformers does not repair
    mojibake and keeps HTML entities; it also lower-cases a Σ at the end of a word to σ, not ς. Its
    padding is the end token instead of 0; a causal tower that pools at the first end ignores it.

    Args:
        folder: where vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json are
            written; it is made if need be.
        context_length: the width of the rows.

    Raises:
        UserError: the folder can't be written, or `context_length` is under 3.
    """
    folder = Path(folder)
    spelled = symbols()
    merges = (f"{spelled[left]} {spelled[right]}\n" for left, right in vocabulary().merges)
    start, end = SPECIALS
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": check_context_length(context_length),
        "do_lower_case": True,
        **special,
    }
    vocab_files.write_json(folder / "vocab.json", {symbol: i for i, symbol in enumerate(spelled)})
    vocab_files.write(folder / "merges.txt", ("#version: 0.2\n" + "".join(merges)).encode())
    vocab_files.write_json(folder / "tokenizer_config.json", settings)
    vocab_files.write_json(folder / "special_tokens_map.json", special)


def _byte_letters() -> list[str]:
    """Returns the printable character that stands for each byte in the merges file.

    Bytes that Latin-1 prints are themselves, the others U+0100 onwards in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
