"""Features, logits, gradients and files of the released definitions, golden and live."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from weightfiles import found_in

import released
from clip_jax.losses.coca import CoCa
from clip_jax.losses.contrastive.objective import Contrastive
from clip_jax.models.clip import CLIP, abstract_model, variables
from clip_jax.models.generation import Generation
from clip_jax.weights import arrays, library
from clip_jax.weights.param_mapping import leaves, mapping_of
from clip_jax.weights.tensor_writing import write_safetensors
from clip_jax.weights.tensors import open_tensors
from tools import golden_models

GOLDEN = Path(__file__).parent.parent / "golden" / "models"
FAMILIES = golden_models.FAMILIES
TRAINED = ["open_clip_resnet"]  # whose batch statistics are held against torch's


def built(weights: library.SavedWeights) -> CLIP:
    params, stats = library.read_variables(weights)
    return nnx.merge(nnx.graphdef(abstract_model(weights.config)), params, stats)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    with open_tensors(path) as tensors:
        return {name: tensors.read(name) for name in tensors}


def close(ours: Any, theirs: np.ndarray, tolerance: float, what: str) -> None:
    """Equal to a share of the largest of theirs."""
    np.testing.assert_allclose(
        np.asarray(ours),
        theirs,
        rtol=0,
        atol=tolerance * max(1.0, np.abs(theirs).max()),
        err_msg=what,
    )


def check_features(model: CLIP, expected: Mapping[str, np.ndarray], key: Any = None) -> None:
    output = model(expected["images"], expected["tokens"], key=key)
    for name in ("image_features", "text_features", "logits_per_image"):
        close(getattr(output, name), expected[name], 1e-5, name)


def check_captions(model: CLIP, expected: Mapping[str, np.ndarray]) -> None:
    """Logits, losses and captions of open_clip's CoCa."""
    images, tokens = jnp.asarray(expected["images"]), jnp.asarray(expected["tokens"])
    _, grid = model.encode_grid(images)
    _, words = model.text.features_and_words(tokens)
    decoder = model.heads.decoder
    close(decoder(grid, words[:, :-1]) @ decoder.kernel[...], expected["logits"], 1e-5, "logits")
    objective, batch = CoCa(Contrastive("dense")), {"image": images, "tokens": tokens}
    features = objective.features(model, batch, jax.random.split(jax.random.key(0), len(tokens)))
    _, losses = objective.loss(features, model, batch)
    close(losses["contrastive_loss"], expected["contrastive_loss"], 1e-5, "contrastive")
    close(2 * losses["captioning_loss"], expected["caption_loss"], 1e-5, "captioning")
    for name, beams in (("greedy", 1), ("beams2", 2), ("beams4", 4)):
        if f"captions.{name}" not in expected:  # open_clip writes none without transformers 4
            continue
        options = Generation(
            start_id=golden_models.VOCABULARY - 2,
            end_id=golden_models.VOCABULARY - 1,
            pad_id=0,
            max_tokens=golden_models.CONTEXT,
            min_tokens=3,
            beams=beams,
            open_clip=True,
        )
        written = model.generate(images, options)
        np.testing.assert_array_equal(written, expected[f"captions.{name}"], name)


def check_gradients(
    model: CLIP, weights: library.SavedWeights, expected: Mapping[str, np.ndarray], folder: Path
) -> None:
    """Theirs, read as if they were weights, are ours."""
    gradients = {
        name.removeprefix("gradient."): value
        for name, value in expected.items()
        if name.startswith("gradient.")
    }
    with open_tensors(weights.path) as tensors:
        rest = {name: tensors.read(name) for name in tensors if name not in gradients}
    write_safetensors(folder / "gradients.safetensors", {**gradients, **rest})
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)

    def loss(params: Any) -> Any:
        output = nnx.merge(graph, params, stats)(expected["images"], expected["tokens"])
        return (output.logits_per_image * expected["weights"]).sum()

    ours = nnx.to_pure_dict(jax.jit(jax.grad(loss))(params))
    with open_tensors(folder / "gradients.safetensors") as tensors:
        theirs, _ = arrays.to_variables(tensors, weights.config, weights.library)
    theirs_flat, ours_flat = dict(arrays.flat(theirs)), dict(arrays.flat(ours))
    assert theirs_flat.keys() == ours_flat.keys()
    assert any(np.abs(value).max() > 1e-3 for value in theirs_flat.values())
    for path, value in ours_flat.items():
        close(value, np.asarray(theirs_flat[path]), 1e-4, path)


def check_statistics(
    model: CLIP, weights: library.SavedWeights, expected: Mapping[str, np.ndarray], folder: Path
) -> None:
    """In training both normalise by the batch, and the running statistics move alike."""
    check_features(model, expected, jax.random.key(0))
    statistics = {
        name.removeprefix("statistic."): value
        for name, value in expected.items()
        if name.startswith("statistic.")
    }
    with open_tensors(weights.path) as tensors:
        rest = {name: tensors.read(name) for name in tensors if name not in statistics}
    write_safetensors(folder / "after.safetensors", {**rest, **statistics})
    with open_tensors(folder / "after.safetensors") as tensors:
        _, theirs = arrays.to_variables(tensors, weights.config, weights.library)
    ours = dict(arrays.flat(variables(model)[1]))
    for path, value in arrays.flat(theirs):
        close(ours[path], np.asarray(value), 1e-5, path)


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_numbers(family: str, tmp_path: Path) -> None:
    weights = found_in(GOLDEN / family, family)
    expected = read_tensors(GOLDEN / family / "expected.safetensors")
    model = built(weights)
    check_features(model, expected)
    if family == "open_clip_coca":
        assert "captions.greedy" in expected
        check_captions(model, expected)
    if weights.path.is_dir():
        weights = dataclasses.replace(
            weights, path=weights.path / mapping_of(weights.library).weights_file
        )
    check_gradients(model, weights, expected, tmp_path)


@pytest.mark.parametrize("family", TRAINED)
def test_golden_batch_statistics(family: str, tmp_path: Path) -> None:
    weights = found_in(GOLDEN / family, family)
    weights = dataclasses.replace(
        weights, path=weights.path / mapping_of(weights.library).weights_file
    )
    expected = read_tensors(GOLDEN / family / "training.safetensors")
    check_statistics(built(weights), weights, expected, tmp_path)


def live(family: str, folder: Path, seed: int) -> golden_models.Model:
    """A model of the installed library, its weights and configs written as it would."""
    name, build = FAMILIES[family]
    model = build(released.open_clip() if name == "open_clip" else released.transformers())
    golden_models.randomize(model.module, seed)
    for document, values in model.documents.items():
        (folder / document).write_text(json.dumps(values))
    if model.ours:
        (folder / "model.json").write_text(json.dumps(model.ours))
    write_safetensors(folder / model.file, golden_models.state(model))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_live_numbers(family: str, tmp_path: Path) -> None:
    model = live(family, tmp_path, 3)
    weights = dataclasses.replace(found_in(tmp_path, family), path=tmp_path / model.file)
    expected = golden_models.outputs(model, 3)
    ours = built(weights)
    check_features(ours, expected)
    if family == "open_clip_coca":
        check_captions(ours, expected)
    check_gradients(ours, weights, expected, tmp_path)


@pytest.mark.parametrize(
    "family", [*TRAINED, "open_clip_mobileclip", "open_clip_mobileclip_b", "hugging_face_align"]
)
def test_live_batch_statistics(family: str, tmp_path: Path) -> None:
    model = live(family, tmp_path, 5)
    if family == "hugging_face_align":  # it takes TensorFlow's momentum for torch's
        torch = pytest.importorskip("torch")
        for module in model.module.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.01
    weights = dataclasses.replace(found_in(tmp_path, family), path=tmp_path / model.file)
    expected = golden_models.outputs(model, 5, train=True)
    check_statistics(built(weights), weights, expected, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_round_trip_is_exact(family: str, tmp_path: Path) -> None:
    weights = found_in(GOLDEN / family, family)
    parameters = library.read_variables(weights, "keep")
    tensors = arrays.to_tensors(parameters, weights.config, weights.library)
    write_safetensors(tmp_path / "again.safetensors", tensors)
    file = weights.path
    file = file / mapping_of(weights.library).weights_file if file.is_dir() else file
    before, after = read_tensors(file), read_tensors(tmp_path / "again.safetensors")
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype, name
        np.testing.assert_array_equal(value.reshape(after[name].shape), after[name], err_msg=name)


def test_tables_name_every_tensor_once() -> None:
    for family in FAMILIES:
        weights = found_in(GOLDEN / family, family)
        paths = [leaf.path for leaf in leaves(weights.config, weights.library)]
        assert len(paths) == len(set(paths))
