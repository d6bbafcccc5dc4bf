"""Golden ids of open_clip's tokenizers: small vocabularies of each family of transformers.

    pip install -e '.[parity]'
    python -m tools.golden_tokenizers tests/golden/tokenizers

Writes one folder per family: a tokenizer as transformers saves it, the config by which open_clip
uses it, and `rows.json`, the rows that open_clip makes of `TEXTS`.
"""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.released_libraries import import_library

CONTEXT = 16
TEXTS = (
    "a photo of a cat",
    "A Photo, of: the_cat!",
    "",
    "dogs in the garden &amp; a café owl 日本 elephant " * 4,
    "the </s> x [SEP] <eos> cat",
    "  two   spaces\n",
    "İ ΟΔΟΣ ﬁ",
)
_CAPTIONS = [
    f"{opening} {colour} {animal} in the garden"
    for opening in ("a photo of a", "a drawing of the")
    for colour in ("red", "green")
    for animal in ("cat", "dogs house", "café owl", "日本 elephant")
]
_XLM = ["<s>", "<pad>", "</s>", "<unk>"]
_GEMMA = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
_WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a photo of cat ##s dog the . , !"


def _unigram(specials: list[str]) -> list[tuple[str, float]]:
    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.Unigram())
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=150, special_tokens=specials, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(_CAPTIONS, trainer)
    return [(piece, score) for piece, score in json.loads(made.to_str())["model"]["vocab"]]


def _bpe(specials: list[str], in_bytes: bool = False) -> dict[str, Any]:
    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    options: dict[str, Any] = dict(vocab_size=300, special_tokens=specials, show_progress=False)
    if in_bytes:
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        options["initial_alphabet"] = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    else:
        made.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    made.train_from_iterator(_CAPTIONS, tokenizers.trainers.BpeTrainer(**options))
    model = json.loads(made.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


def _gemma(transformers: Any, name: str) -> Any:
    ending = dict(add_bos_token=False, add_eos_token=True, padding_side="right")
    return getattr(transformers, name)(**_bpe(_GEMMA), **ending)


@dataclasses.dataclass(frozen=True)
class _Pieces:
    """A SentencePiece model, saved as folders hold it that have no tokenizer.json.

    file: its name.
    settings: tokenizer_config.json.
    layout: options of its training.
    """

    file: str
    settings: dict[str, Any]
    layout: dict[str, Any]

    def save_pretrained(self, folder: Path) -> None:
        """Trains and writes it."""
        import sentencepiece

        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_CAPTIONS),
            model_writer=model,
            **{"vocab_size": 330, **self.layout},
            hard_vocab_limit=False,
            character_coverage=1.0,
            num_threads=1,
            minloglevel=2,
        )
        (folder / self.file).write_bytes(model.getvalue())
        (folder / "tokenizer_config.json").write_text(json.dumps(self.settings) + "\n")


# By family: transformers' tokenizer, and the options of open_clip.
FAMILIES: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "roberta": (
        lambda transformers: transformers.RobertaTokenizer(**_bpe([*_XLM, "<mask>"], True)),
        {},
    ),
    "xlm_roberta": (
        lambda transformers: transformers.XLMRobertaTokenizer(
            vocab=[*_unigram(_XLM), ("<mask>", 0.0)]
        ),
        {},
    ),
    "mt5": (
        lambda transformers: transformers.T5Tokenizer(
            vocab=_unigram(["<pad>", "</s>", "<unk>"]), extra_ids=0
        ),
        {"clean": "canonicalize"},
    ),
    "nllb": (
        lambda transformers: transformers.NllbTokenizer(
            **_bpe(_XLM), extra_special_tokens=["eng_Latn", "fra_Latn"], src_lang="fra_Latn"
        ),
        {},
    ),
    "gemma": (
        lambda transformers: _gemma(transformers, "GemmaTokenizer"),
        {"clean": "canonicalize"},
    ),
    "siglip2": (lambda transformers: _gemma(transformers, "Siglip2Tokenizer"), {"clean": "lower"}),
    "clipa": (
        lambda transformers: transformers.BertTokenizer(
            vocab={word: i for i, word in enumerate(_WORDS.split())}
        ),
        {"strip_sep_token": True},
    ),
    "mt5_pieces": (
        lambda _: _Pieces(
            "spiece.model",
            {"tokenizer_class": "T5Tokenizer", "extra_ids": 3},
            dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1, byte_fallback=True),
        ),
        {},
    ),
    "xlm_roberta_pieces": (
        lambda _: _Pieces(
            "sentencepiece.bpe.model",
            {"tokenizer_class": "XLMRobertaTokenizer"},
            dict(unk_id=0, bos_id=1, eos_id=2, pad_id=-1, user_defined_symbols=["owl"]),
        ),
        {},
    ),
    "nllb_legacy": (
        lambda transformers: transformers.NllbTokenizer(
            **_bpe(_XLM), extra_special_tokens=["eng_Latn", "fra_Latn"], legacy_behaviour=True
        ),
        {},
    ),
    "nllb_pieces": (
        lambda _: _Pieces(
            "sentencepiece.bpe.model",
            {
                "tokenizer_class": "NllbTokenizer",
                "additional_special_tokens": ["eng_Latn", "fra_Latn"],
                "added_tokens_decoder": {  # without it transformers 5 puts the mask first
                    str(120 + i + 1): {"content": name, "special": True}
                    for i, name in enumerate(("eng_Latn", "fra_Latn", "<mask>"))
                },
                "src_lang": "fra_Latn",
            },
            dict(
                **dict(unk_id=0, bos_id=1, eos_id=2, pad_id=-1),
                **dict(model_type="bpe", normalization_rule_name="identity", vocab_size=120),
            ),
        ),
        {},
    ),
}


def write(folder: Path, family: str) -> list[list[int]]:
    """Writes a family's tokenizer, and returns open_clip's rows of `TEXTS`."""
    open_clip = import_library("open_clip")
    import transformers

    build, options = FAMILIES[family]
    folder.mkdir(parents=True, exist_ok=True)
    build(transformers).save_pretrained(folder)
    text = {"hf_tokenizer_name": "x", "context_length": CONTEXT, "tokenizer_kwargs": options}
    model = {"model_cfg": {"embed_dim": 8, "vision_cfg": {}, "text_cfg": text}}
    (folder / "open_clip_config.json").write_text(json.dumps(model, indent=1) + "\n")
    rows: list[list[int]] = open_clip.get_tokenizer(f"local-dir:{folder}")(list(TEXTS)).tolist()
    return rows


def main() -> None:
    """Writes all families."""
    for family in FAMILIES:
        folder = Path(sys.argv[1]) / family
        (folder / "rows.json").write_text(json.dumps(write(folder, family)) + "\n")


if __name__ == "__main__":
    main()
