"""Evaluators of the heads that predict words, against direct formulas."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clip_jax.config.schema import Evaluate
from clip_jax.data.images.decoding import decode
from clip_jax.data.images.preprocess import Preprocess
from clip_jax.distributed import sharding
from clip_jax.evaluation.evaluators import load_evaluators
from clip_jax.evaluation.features import Encoder
from clip_jax.evaluation.suite import ModelParts, Suite
from clip_jax.inference.captions import generation_with
from clip_jax.models.clip import CLIP, specs_of, variables
from clip_jax.models.decoder import DecoderConfig
from clip_jax.models.words import WordsConfig
from steps import TINY
from support import Letters, TarFactory

LETTERS = Letters(8)
CONFIG = dataclasses.replace(
    TINY.with_text(vocab_size=128),
    heads=(("decoder", DecoderConfig(width=16, layers=2, heads=2)), ("words", WordsConfig())),
)
CAPTIONS = ["a cat", "dog", "otto", "owls", "a much longer text", "cat"]


@pytest.fixture(scope="module")
def model() -> CLIP:
    return nnx.jit(lambda: CLIP(CONFIG, rngs=nnx.Rngs(0)))()


def suite_of(tar: Path, names: str, **options: Any) -> Suite:
    sets = {"own": {"data": str(tar)}}
    given = Evaluate(sets=sets, caption="{caption}", keep_features=False, pictures=2, **options)
    parts = ModelParts(heads=("decoder", "words"))
    evaluators = load_evaluators(names)
    return Suite(given, LETTERS, Preprocess(16), evaluators, explicit=True, model=parts)


def encoder_of(model: CLIP) -> Encoder:
    mesh = sharding.make_mesh({"data": 4}, jax.devices()[:4])
    params = variables(model)
    params = jax.device_put(params, sharding.shardings(params, specs_of(CONFIG), mesh))
    return Encoder(nnx.graphdef(model), params, mesh, 2)


@pytest.fixture
def tar(tar_factory: TarFactory) -> Path:
    return tar_factory(pairs=6, fields=lambda i: {"caption": CAPTIONS[i]})


def test_perplexity_is_that_of_all_words_and_ends(model: CLIP, tar: Path) -> None:
    suite = suite_of(tar, "perplexity")
    metrics = suite.evaluate(encoder_of(model), 1.0).metrics()
    (dataset,) = suite._datasets
    decoder, head = model.heads.decoder, model.heads.words
    losses, words = [], []
    for i, caption in enumerate(CAPTIONS):
        pair = dataset.source[i]
        image = jnp.asarray(Preprocess(16)(decode(pair.image, pair.name)))[None]
        features, grid = model.encode_grid(image)
        row = jnp.asarray(LETTERS(caption, truncate=True))
        logits = decoder(grid, row) @ decoder.output_kernel + decoder.output_bias[...]
        shares = np.asarray(jax.nn.log_softmax(logits))[0]
        end = int((row[0] != 0).sum())
        losses += [-shares[j, row[0, j]] for j in range(1, end)]
        if ids := sorted({int(x) for x in row[0, 1 : end - 1]}):
            words.append(-np.asarray(jax.nn.log_softmax(head(features)))[0, ids].mean())
    mean = float(np.mean(losses))
    assert metrics["perplexity/own/loss"] == pytest.approx(mean, rel=1e-5)
    assert metrics["perplexity/own/perplexity"] == pytest.approx(math.exp(mean), rel=1e-4)
    assert metrics["perplexity/own/words_loss"] == pytest.approx(np.mean(words), rel=1e-5)


def test_captions_are_those_of_the_model(model: CLIP, tar: Path) -> None:
    encoder = encoder_of(model)
    for beams in (1, 2):
        suite = suite_of(tar, "captioning", beams=beams)
        results = suite.evaluate(encoder, 1.0)
        (dataset,) = suite._datasets
        chosen = generation_with(LETTERS, max_tokens=8, beams=beams)
        pixels = [Preprocess(16)(decode(dataset.source[i].image, "")) for i in range(6)]
        rows = np.asarray(model.generate(np.stack(pixels), chosen))
        written = {dataset.source[i].name: LETTERS.decode(rows[i].tolist()) for i in range(6)}
        (finding,) = results.findings
        examples = finding.result.examples  # type: ignore[attr-defined]
        assert len(examples) == 2
        assert all(example.caption == written[example.name] for example in examples)
        assert {text for example in examples for text in example.truths} < set(CAPTIONS)
        assert set(results.metrics()) == {"captioning/own/cider", "captioning/own/bleu4"}
