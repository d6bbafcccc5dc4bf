"""Features of any set are the model's own, on any number of devices; the ensemble is a mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from clip_jax.data.example import Pair
from clip_jax.data.images.decoding import decode, resize_and_crop
from clip_jax.data.images.preprocess import Preprocess
from clip_jax.data.sources import open_source
from clip_jax.distributed import sharding
from clip_jax.evaluation.features import Encoder, classifier, fingerprint
from clip_jax.models.clip import CLIP, specs_of, variables
from clip_jax.models.model_config import CLIPConfig, TextConfig, VisionConfig
from support import Letters, TarFactory, encoded

SIZE, CONTEXT = 8, 16
CONFIG = CLIPConfig(
    embed_dim=6,
    vision=VisionConfig(image_size=SIZE, patch_size=4, width=8, layers=1, heads=2),
    text=TextConfig(vocab_size=128, context_length=CONTEXT, width=8, layers=1, heads=2),
)


@pytest.fixture(scope="module")
def model() -> CLIP:
    return nnx.jit(lambda: CLIP(CONFIG, rngs=nnx.Rngs(0)))()


@nnx.jit
def own_features(model: CLIP, images: np.ndarray, texts: np.ndarray) -> tuple[jax.Array, jax.Array]:
    return model.encode_image(images, normalized=True), model.encode_text(texts, normalized=True)


Make = Callable[..., Encoder]


@pytest.fixture
def encoder(model: CLIP) -> Make:
    """`encoder(devices=8, batch_size=8, **mesh)` of the tiny model."""

    def make(devices: int = 8, batch_size: int = 8, **mesh: int) -> Encoder:
        placed = sharding.make_mesh(mesh or {"data": devices}, jax.devices()[:devices])
        params = variables(model)
        params = jax.device_put(params, sharding.shardings(params, specs_of(CONFIG), placed))
        return Encoder(nnx.graphdef(model), params, placed, batch_size)

    return make


def pixels(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8)


def pictures(images: np.ndarray) -> list[Pair]:
    return [Pair(encoded(Image.fromarray(image)), {}, f"{i}.png") for i, image in enumerate(images)]


def tokens(n: int) -> np.ndarray:
    return Letters(CONTEXT)([f"text {i}" for i in range(n)])


def test_any_length_on_any_mesh_gives_the_models_features(model: CLIP, encoder: Make) -> None:
    images, texts = (np.asarray(f) for f in own_features(model, pixels(19), tokens(19)))
    assert np.ptp(images, axis=0).min() > 1e-3
    meshes: list[dict[str, Any]] = [
        {"devices": 1, "batch_size": 8},
        {"devices": 8, "batch_size": 3},
        {"data": 2, "fsdp": 2, "tensor": 2, "batch_size": 16},
    ]
    for options in meshes:
        towers = encoder(**options)
        for n in (1, 7, 8, 19):
            features = towers.images(pictures(pixels(19)[:n]), Preprocess(SIZE))
            assert features.shape == (n, 6)
            assert np.allclose(features, images[:n], atol=1e-5)
            assert np.allclose(towers.tokens(tokens(19)[:n]), texts[:n], atol=1e-5)
    assert np.allclose(np.linalg.norm(images, axis=1), 1, atol=1e-5)


def test_pictures_of_a_source_in_their_order(
    model: CLIP, encoder: Make, tar_factory: TarFactory
) -> None:
    source = open_source(str(tar_factory(pairs=11, size=(13, 9))))
    prepared = [resize_and_crop(decode(source[i].image, source[i].name), SIZE) for i in range(11)]
    expected, _ = own_features(model, np.stack(prepared), tokens(1))
    for threads in (1, 3):
        assert np.allclose(encoder().images(source, Preprocess(SIZE), threads), expected, atol=1e-5)


def test_later_parameters_compile_nothing(encoder: Make) -> None:
    encoder().images(pictures(pixels(3)), Preprocess(SIZE))
    encoder().tokens(tokens(3))
    second = encoder()
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if "backend_compile" in event else None
    )
    second.images(pictures(pixels(21)), Preprocess(SIZE))
    second.tokens(tokens(2))
    assert not compiled
    jax.jit(lambda x: x * 3 + 1)(np.ones(3))
    assert compiled, "the test sees what is compiled"


TEMPLATES = ("{}", "a {}", "the {}!")


def test_a_classifier_is_the_normalised_mean_over_templates(encoder: Make) -> None:
    towers, letters = encoder(), Letters(CONTEXT)
    labels = ["cat", "dog", "{x}", "sun"]
    weights = classifier(towers, letters, labels, TEMPLATES)
    assert weights.shape == (4, 6)
    assert np.allclose(np.linalg.norm(weights, axis=1), 1, atol=1e-6)
    for row, label in zip(weights, labels, strict=True):
        mean = towers.tokens(letters([t.replace("{}", label) for t in TEMPLATES])).mean(axis=0)
        assert np.allclose(row, mean / np.linalg.norm(mean), atol=1e-5)
    plain = classifier(towers, letters, labels, ("{}",))
    assert np.allclose(plain, towers.tokens(letters(labels)), atol=1e-5)
    assert not np.allclose(plain, weights, atol=1e-3)


def test_long_labels_are_cut(encoder: Make) -> None:
    assert classifier(encoder(), Letters(CONTEXT), ["x" * 99], ("{}",)).shape == (1, 6)


def test_probes_get_features_before_the_projection(model: CLIP, encoder: Make) -> None:
    encoded = encoder().encoded(pictures(pixels(11)), Preprocess(SIZE))
    assert encoded.pooled.shape == (11, CONFIG.vision.width)
    projected = encoded.pooled @ np.asarray(model.vision.projection.kernel[...])
    projected /= np.linalg.norm(projected, axis=1, keepdims=True)
    assert np.allclose(projected, encoded.features, atol=1e-5)
    assert np.allclose(encoded.features, encoder().images(pictures(pixels(11)), Preprocess(SIZE)))


def test_columns_without_text_change_nothing(model: CLIP, encoder: Make) -> None:
    wide = np.zeros((5, 64), np.int32)
    wide[:, :CONTEXT] = tokens(5)
    towers = encoder()
    towers._pad_id = 0
    shapes: list[tuple[int, ...]] = []
    program = towers._programs["text"]

    def counted(params: Any, rows: Any) -> Any:
        shapes.append(rows.shape)
        return program(params, rows)

    towers._programs["text"] = counted
    assert np.allclose(towers.tokens(wide), encoder().tokens(tokens(5)), atol=1e-6)
    assert shapes == [(64, CONTEXT)]


def test_one_device_and_eight_give_the_same_bits(encoder: Make) -> None:
    meshes: list[dict[str, Any]] = [{"devices": 1}, {"devices": 8}, {"data": 2, "fsdp": 4}]
    encoders = [encoder(batch_size=4, **mesh) for mesh in meshes]
    images = [towers.encoded(pictures(pixels(37)), Preprocess(SIZE)) for towers in encoders]
    texts = [towers.tokens(tokens(37)) for towers in encoders]
    for other, text in zip(images[1:], texts[1:], strict=True):
        assert np.array_equal(other.features, images[0].features)
        assert np.array_equal(other.pooled, images[0].pooled)
        assert np.array_equal(text, texts[0])


def test_progress_counts_every_picture_once(encoder: Make) -> None:
    counts: list[int] = []
    encoder(devices=4, batch_size=2).images(
        pictures(pixels(19)), Preprocess(SIZE), advance=counts.append
    )
    assert counts == [8, 8, 3]


def test_a_fingerprint_follows_every_number_and_no_mesh(model: CLIP) -> None:
    params = variables(model)
    prints = {fingerprint(params)}
    for shape in ({"data": 8}, {"data": 2, "fsdp": 4}):
        mesh = sharding.make_mesh(shape)
        prints.add(
            fingerprint(jax.device_put(params, sharding.shardings(params, specs_of(CONFIG), mesh)))
        )
    assert len(prints) == 1
    leaves, tree = jax.tree.flatten(params)
    for i, leaf in enumerate(leaves):
        other = np.array(leaf)
        other.reshape(-1)[-1] = np.nextafter(other.reshape(-1)[-1], np.inf, dtype=other.dtype)
        changed = jax.tree.unflatten(
            tree, [*leaves[:i], jax.numpy.asarray(other), *leaves[i + 1 :]]
        )
        prints.add(fingerprint(changed))
        if leaf.size > 1:
            moved = np.roll(np.asarray(leaf).reshape(-1), 1).reshape(leaf.shape)
            if not np.array_equal(moved, leaf):
                turned = jax.tree.unflatten(tree, [*leaves[:i], moved, *leaves[i + 1 :]])
                assert fingerprint(turned) not in prints
    assert len(prints) == 1 + len(leaves)
