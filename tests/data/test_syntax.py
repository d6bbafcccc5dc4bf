"""Which words of long captions stay, by a tagger of NLTK that is trained here."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_jax import tokenizers
from clip_jax.data import syntax
from clip_jax.data.rows import Prepare
from clip_jax.errors import UserError
from clip_jax.models.model_config import VisionConfig

SENTENCES = [
    [("a", "DT"), ("red", "JJ"), ("bus", "NN"), ("stops", "VBZ"), ("here", "RB")],
    [("the", "DT"), ("old", "JJ"), ("dog", "NN"), ("sleeps", "VBZ"), ("now", "RB")],
    [("two", "CD"), ("dogs", "NNS"), ("on", "IN"), ("a", "DT"), ("wet", "JJ"), ("street", "NN")],
    [("in", "IN"), ("London", "NNP"), ("at", "IN"), ("night", "NN")],
]
CAPTION = "two old dogs sleeps on a wet street in London at night"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of NLTK's data, with a tagger of the words above."""
    from nltk.tag.perceptron import PerceptronTagger

    tagger = PerceptronTagger(load=False)
    tagger.train(25 * SENTENCES, nr_iter=1)  # words seen 20 times are tagged by their own tag
    folder = tmp_path_factory.mktemp("nltk_data")
    place = folder / "taggers" / "averaged_perceptron_tagger_eng"
    place.mkdir(parents=True)
    names = ("weights", "tagdict", "classes")
    for name, values in zip(names, tagger.encode_json_obj(), strict=True):
        (place / f"averaged_perceptron_tagger_eng.{name}.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def data(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(trained)])
    syntax.load_tagger.cache_clear()
    yield
    syntax.load_tagger.cache_clear()


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize(
    ("length", "text"),
    [
        (4, "dogs street"),
        (6, "dogs street London night"),
        (8, "old dogs wet street London night"),
        (9, "old dogs sleeps wet street London night"),
        (10, "two old dogs sleeps wet street London night"),
        (14, CAPTION),
    ],
)
def test_nouns_stay_before_adjectives_before_verbs(length: int, text: str) -> None:
    tokenizer = tokenizers.load("clip", length)
    assert syntax.shortened(CAPTION, tokenizer) == text


@pytest.mark.usefixtures("data")
def test_words_of_several_tokens_leave_room_for_fewer() -> None:
    tokenizer = tokenizers.load("clip", 6)
    text = syntax.shortened("a xylographically old dog on a street", tokenizer)
    assert len(tokenizer.encode(text)) <= 4 and text.split()
    assert syntax.shortened("!" * 10_000, tokenizer)
    assert syntax.shortened(" ", tokenizer) == " "


@pytest.mark.usefixtures("data")
def test_a_config_chooses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizers.load("clip", 6)
    vision = VisionConfig(image_size=8, patch_size=4)
    prepare = Prepare.from_config({"long_captions": "syntax"}, tokenizer, vision)
    tokens = prepare._tokens(CAPTION, np.random.default_rng(0))
    assert tokens.tolist() == tokenizer("dogs street London night")[0].tolist()


@pytest.mark.parametrize("missing", ["package", "data"])
def test_what_is_missing_is_said_before_anything_starts(
    missing: str, tmp_path: Path, monkeypatch: Any
) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    if missing == "package":
        monkeypatch.setitem(sys.modules, "nltk.tag.perceptron", None)
    syntax.load_tagger.cache_clear()
    words = r"clip_jax\[syntax\]" if missing == "package" else "nltk.downloader"
    with pytest.raises(UserError, match=words):
        Prepare.from_config(
            {"long_captions": "syntax"}, tokenizers.load("clip", 6), VisionConfig(8, 4)
        )
