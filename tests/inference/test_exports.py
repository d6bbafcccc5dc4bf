"""Written folders, loaded by the libraries themselves: pictures and texts give the same features.

Each model is tiny and random. A picture goes through the preprocessing, and texts through the
tokenizer, that the library finds in the folder; so they do in ours, before and after.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import sentencepiece
from flax import nnx
from weightfiles import found_in

import clip_jax
import released
from clip_jax import tokenizers
from clip_jax.data.images.preprocess import Preprocess
from clip_jax.inference import conversion
from clip_jax.inference.model_source import ModelSource
from clip_jax.models.architectures import TOWERS
from clip_jax.models.clip import abstract_model, variables
from clip_jax.models.encoder_configs import EncoderTower, ProjectedEncoder
from clip_jax.models.model_config import BertConfig, CLIPConfig, RobertaConfig
from clip_jax.tokenizers import sentencepiece as pieces
from clip_jax.weights.configs.open_clip import encoders
from clip_jax.weights.configs.open_clip.timm import is_timm
from support import picture
from tools import golden_models

GOLDEN = Path(__file__).parents[1] / "golden"
CONTEXT = 16
HALF = (0.5, 0.5, 0.5)
INCEPTION = dict(mean=HALF, std=HALF)
TEXTS = ["a photo of a cat", "A Drawing of the dogs, in the Garden!", "", "café owl " * 12]
CAPTIONS = [
    f"{opening} {colour} {animal} in the garden {number}"
    for opening in ("a photo of a", "a drawing of the")
    for colour in ("red", "green")
    for animal in ("cat", "dogs house", "café owl", "日本 elephant")
    for number in (12, 345)
]
GEMMA = dict(
    **dict(pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>"),
    **dict(bos_piece="<bos>", byte_fallback=True, add_dummy_prefix=False, split_digits=True),
    **dict(remove_extra_whitespaces=False, normalization_rule_name="identity"),
    **dict(model_type="bpe", user_defined_symbols=["<mask>", "▁▁", "▁▁▁"], vocab_size=330),
)
PICTURE = picture(0, (31, 21)).resize((317, 211))
# open_clip's families: the golden model, the tokenizer, the preprocessing.
OPEN_CLIP: dict[str, tuple[str, str, dict[str, Any]]] = {
    "openai": ("open_clip_vit", "clip", {}),
    "gelu": ("open_clip_gelu", "clip", {}),
    "resnet": ("open_clip_resnet", "clip", {}),
    "coca": ("open_clip_coca", "clip", {}),
    "own_words": ("open_clip_vit", "sentencepiece:words.model", INCEPTION),
    "metaclip2": ("open_clip_worldwide", "huggingface:xlm_roberta", {}),
    "metaclip2_pieces": ("open_clip_worldwide", "huggingface:xlm_roberta_pieces", {}),
    "clipa": ("open_clip_clipa", "huggingface:clipa", dict(resize="squash", **INCEPTION)),
    "bert": ("open_clip_clipa", "wordpiece:clipa", dict(interpolation="bilinear")),
    "siglip": ("open_clip_siglip", "siglip:siglip.model", dict(resize="squash", **INCEPTION)),
    "siglip2": ("open_clip_siglip2", "siglip:gemma.model", dict(resize="squash", **INCEPTION)),
    "siglip2_json": ("open_clip_siglip2", "huggingface:gemma", dict(resize="squash", **INCEPTION)),
    "roberta": ("open_clip_roberta", "huggingface:roberta", {}),
    "xlm_roberta": ("open_clip_roberta_pooler", "huggingface:xlm_roberta", {}),
    "mt5": ("open_clip_mt5", "huggingface:mt5", {}),
    "mt5_pieces": ("open_clip_mt5", "huggingface:mt5_pieces", {}),
    "nllb": ("open_clip_nllb", "huggingface:nllb", {}),
    "perception": ("open_clip_perception", "clip", dict(resize="squash", **INCEPTION)),
    "mobileclip": (
        "open_clip_mobileclip",
        "clip",
        dict(interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3),
    ),
    "longest": ("open_clip_timm_mean", "clip", dict(resize="longest", fill=7)),
    **{
        family: (f"open_clip_{family}", "clip", {})
        for family in (
            *("timm_class", "eva01", "eva02", "eva02_enormous", "convnext", "convnext_mlp"),
            *("vitamin", "vitamin_xlarge", "mobileclip2", "mobileclip_b", "swin", "relpos"),
            "perception_gigantic",
        )
    },
}
HUGGING_FACE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "clip": ("hugging_face_clip", "clip", {}),
    "own_words": ("hugging_face_clip", "sentencepiece:words.model", INCEPTION),
    "metaclip2": ("hugging_face_metaclip2", "huggingface:xlm_roberta", {}),
    "metaclip2_pieces": ("hugging_face_metaclip2", "huggingface:xlm_roberta_pieces", {}),
    "siglip": ("hugging_face_siglip", "siglip:siglip.model", dict(resize="squash", **INCEPTION)),
    "siglip2": ("hugging_face_siglip", "siglip:gemma.model", dict(resize="squash", **INCEPTION)),
    "siglip2_json": (
        "hugging_face_siglip",
        "huggingface:gemma",
        dict(resize="squash", **INCEPTION),
    ),
    "align": (
        "hugging_face_align",
        "wordpiece:clipa",
        dict(resize="squash", resize_size=40, interpolation="bilinear"),
    ),
}


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: Any) -> Path:
    """A folder of SentencePiece models beside which no config lies."""
    folder = tmp_path_factory.mktemp("vocabularies")
    pieces.train(CAPTIONS, folder / "words.model", 330)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.lower() for text in CAPTIONS),
        model_prefix=str(folder / "gemma"),
        character_coverage=1.0,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **GEMMA,
    )
    (folder / "siglip.model").write_bytes((GOLDEN / "siglip.model").read_bytes())
    return folder


def named(tokenizer: str, folder: Path) -> str:
    """The name of a tokenizer with the path of its file."""
    kind, _, file = tokenizer.partition(":")
    if not file:
        return kind
    return f"{kind}:{folder / file if file.endswith('.model') else GOLDEN / 'tokenizers' / file}"


def source_of(family: str, tokenizer: str, pixels: dict[str, Any]) -> tuple[ModelSource, Any]:
    """A random model that reads a tokenizer's rows, and its parameters."""
    config = found_in(GOLDEN / "models" / family, family).config
    words = tokenizers.load(tokenizer, CONTEXT)
    text: Any = dataclasses.replace(
        config.text, vocab_size=words.vocab_size, context_length=CONTEXT
    )
    if isinstance(text, EncoderTower):
        text = dataclasses.replace(text, pad_id=words.pad_id)
    if isinstance(text, RobertaConfig):
        text = dataclasses.replace(text, positions=CONTEXT + words.pad_id + 1)
    if isinstance(text, BertConfig):
        text = dataclasses.replace(text, positions=CONTEXT)
    if getattr(text, "pool", "") == "eos":
        text = dataclasses.replace(text, eos_id=words.eot_id)
    config = dataclasses.replace(config, text=text)
    preprocess = Preprocess(config.vision.image_size, **pixels)
    config = config.with_vision(mean=preprocess.mean, std=preprocess.std)
    parameters = random_variables(config)
    source = ModelSource(
        path=Path(family),
        library="a run",
        config=config,
        preprocess=preprocess,
        tokenizer=tokenizer,
        read=lambda dtype: parameters,
        read_sharded=lambda like: parameters,
    )
    return source, parameters


def random_variables(config: CLIPConfig) -> Any:
    rng = np.random.default_rng(0)
    params, stats = variables(abstract_model(config))

    def draw(leaf: Any) -> np.ndarray:
        if np.issubdtype(leaf.dtype, np.integer):
            return np.full(leaf.shape, 7, leaf.dtype)
        return np.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype)

    def positive(leaf: Any) -> np.ndarray:
        return np.abs(draw(leaf)) + 1

    params, stats = jax.tree.map(draw, params), jax.tree.map(positive, stats)
    if "temperature" in params:
        params["temperature"] = np.abs(params["temperature"])
    return params, stats


def features(model: Any, image: Any, rows: Any) -> tuple[np.ndarray, np.ndarray]:
    output = model(np.asarray(image)[None], np.asarray(rows))
    return np.asarray(output.image_features), np.asarray(output.text_features)


def same(ours: Any, theirs: Any) -> None:
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, np.asarray(other), rtol=0, atol=1e-4)
    assert np.abs(ours[1][0] - ours[1][1]).max() > 1e-3  # the texts are not all the same


def ours(source: ModelSource, parameters: Any) -> tuple[np.ndarray, np.ndarray]:
    """Features by the parameters, the preprocessing and the tokenizer before they are written."""
    model = nnx.merge(
        nnx.graphdef(abstract_model(source.config)), *jax.tree.map(jax.numpy.asarray, parameters)
    )
    rows = tokenizers.load(str(source.tokenizer), CONTEXT)(TEXTS, truncate=True)
    return features(model, source.preprocess(PICTURE), rows)


def read_back(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Features by what `clip_jax.load` makes of a folder, without further words."""
    model, preprocess, tokenize = clip_jax.load(str(folder))
    return features(model, preprocess(PICTURE), tokenize(TEXTS, truncate=True))


@pytest.fixture
def named_towers(monkeypatch: Any) -> Any:
    """Gives the tiny towers names, by which open_clip finds them in timm and transformers."""

    def register(family: str, config: CLIPConfig) -> None:
        open_clip = released.open_clip()
        _, build = golden_models.FAMILIES[family]
        if is_timm(config):
            trunk = build(open_clip).module.visual.trunk
            trunk.default_cfg = getattr(trunk, "default_cfg", {})
            own = getattr(config.vision, "activation", "-") or config.activation
            activation = {} if own == "-" else {"activation": own}
            monkeypatch.setitem(TOWERS, "tiny", config.with_vision(**activation).vision)
            monkeypatch.setattr(open_clip.timm_model.timm, "create_model", lambda *_, **__: trunk)
        if isinstance(config.text, ProjectedEncoder):
            theirs = copy.deepcopy(build(open_clip).module.text.config)
            theirs.vocab_size, theirs.pad_token_id = config.text.vocab_size, config.text.pad_id
            theirs.max_position_embeddings = getattr(config.text, "positions", CONTEXT)
            monkeypatch.setitem(encoders._ENCODERS, "tiny", config.text)
            automatic = open_clip.hf_model.AutoConfig
            find = automatic.from_pretrained
            monkeypatch.setattr(
                automatic,
                "from_pretrained",
                lambda name, *args, **options: (
                    theirs if name == "tiny" else find(name, *args, **options)
                ),
            )

    return register


def marked(family: str) -> Any:
    """A family's parameter, slow where the golden model is one of another's kind or large."""
    quick = ("openai", "own_words", "metaclip2", "clipa", "bert", "siglip", "siglip2", "nllb")
    marks = () if family in (*quick, "siglip2_json", "mt5") else (pytest.mark.slow,)
    return pytest.param(family, marks=marks)


@pytest.mark.parametrize("family", map(marked, OPEN_CLIP))
def test_open_clip(family: str, vocabularies: Path, named_towers: Any, tmp_path: Path) -> None:
    open_clip = released.open_clip()
    torch = pytest.importorskip("torch")
    golden, tokenizer, pixels = OPEN_CLIP[family]
    source, parameters = source_of(golden, named(tokenizer, vocabularies), pixels)
    named_towers(golden, source.config)
    conversion.convert(source, tmp_path / "out", "open_clip")
    name = f"local-dir:{tmp_path / 'out'}"
    model, preprocess = open_clip.create_model_from_pretrained(name)
    *_, evaluated = open_clip.create_model_and_transforms(name)
    assert str(evaluated) == str(preprocess)
    rows = open_clip.get_tokenizer(name)(TEXTS)
    with torch.no_grad():
        model.eval()
        theirs = (
            model.encode_image(preprocess(PICTURE)[None], normalize=True),
            model.encode_text(rows, normalize=True),
        )
    before = ours(source, parameters)
    np.testing.assert_array_equal(
        tokenizers.load(str(source.tokenizer), CONTEXT)(TEXTS, truncate=True), rows
    )
    same(before, theirs)
    same(before, read_back(tmp_path / "out"))


@pytest.mark.parametrize("family", HUGGING_FACE)
def test_transformers(family: str, vocabularies: Path, tmp_path: Path) -> None:
    transformers = released.transformers()
    torch = pytest.importorskip("torch")
    golden, tokenizer, pixels = HUGGING_FACE[family]
    source, parameters = source_of(golden, named(tokenizer, vocabularies), pixels)
    conversion.convert(source, tmp_path / "out", "hugging_face")
    model, loading = transformers.AutoModel.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out", backend="pil")
    given = processor(
        text=TEXTS,
        images=PICTURE,
        padding="max_length",
        truncation=True,
        max_length=CONTEXT,
        return_tensors="pt",
    )
    rows = given["input_ids"].numpy()
    words = tokenizers.load(str(source.tokenizer), CONTEXT)
    expected = words(TEXTS, truncate=True)
    if tokenizer == "clip":  # whose padding is the end there
        expected = np.where(np.cumsum(expected == words.eot_id, 1) > 0, words.eot_id, expected)
    np.testing.assert_array_equal(rows, expected)
    with torch.no_grad():
        output = model.eval()(**given)
    before = ours(source, parameters)
    same(before, (output.image_embeds, output.text_embeds))
    same(before, read_back(tmp_path / "out"))
    for automatic in ("AutoTokenizer", "AutoImageProcessor"):
        getattr(transformers, automatic).from_pretrained(tmp_path / "out")
