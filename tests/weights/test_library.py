"""What files are, which of their tensors are missing, and how many each model has."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

from clip_jax.errors import UserError
from clip_jax.models import architectures
from clip_jax.models.architectures import ARCHITECTURES
from clip_jax.models.clip import CLIP, abstract_model, variables
from clip_jax.models.model_config import CLIPConfig, TextConfig, VisionConfig
from clip_jax.weights import arrays, export, library
from clip_jax.weights.tensor_writing import write_safetensors
from clip_jax.weights.tensors import open_tensors
from support import says

GOLDEN = Path(__file__).parent.parent / "golden" / "models"
COUNTS = {
    "RN50": 489,
    "RN101": 795,
    "RN50x4": 669,
    "RN50x16": 921,
    "RN50x64": 1353,
    "ViT-B/32": 302,
    "ViT-B/16": 302,
    "ViT-L/14": 446,
    "ViT-L/14@336px": 446,
}
PARAMETERS = {"RN50": 102_007_137, "RN50x64": 623_258_305, "ViT-B/32": 151_277_313}
TINY = CLIPConfig(
    embed_dim=8,
    activation="gelu",
    vision=VisionConfig(image_size=16, patch_size=8, width=64, layers=1, heads=1),
    text=TextConfig(vocab_size=49408, width=64, layers=1, heads=1),
)


def planned(name: str, to: Any, dtype: str = "keep") -> dict[str, Any]:
    """The tensors of a model's file, none of which is made."""
    config = ARCHITECTURES[name]
    return arrays.to_tensors(variables(abstract_model(config)), config, to, arrays.DTYPES[dtype])


def sparse(path: Path, tensors: dict[str, Any]) -> Path:
    """A safetensors file of these shapes and as many zeros, which take no room."""
    codes = {"float32": "F32", "float16": "F16", "int64": "I64"}
    header, reached = {}, 0
    for name, tensor in tensors.items():
        size = int(np.prod(tensor.shape)) * np.dtype(tensor.dtype).itemsize
        header[name] = {
            "dtype": codes[str(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [reached, reached + size],
        }
        reached += size
    raw = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + reached)
    return path


@pytest.mark.parametrize("name", COUNTS)
def test_openais_models_have_as_many_tensors(name: str) -> None:
    tensors = planned(name, "openai")
    assert len(tensors) == COUNTS[name]
    counted = [t for n, t in tensors.items() if not n.endswith(("_mean", "_var", "_tracked"))]
    total = sum(int(np.prod(t.shape)) for t in counted)
    assert total == PARAMETERS.get(name, total)
    assert tensors["logit_scale"].shape == ()
    assert {str(t.dtype) for t in counted} == {"float32"}


def test_types_of_what_is_written() -> None:
    half = planned("RN50", "openai", "float16")
    tracked = {n for n in half if n.endswith("num_batches_tracked")}
    assert {str(half[n].dtype) for n in tracked} == {"int64"}
    assert {str(t.dtype) for n, t in half.items() if n not in tracked} == {"float16"}


@pytest.mark.parametrize(
    ("name", "written_for", "library_found"),
    [
        ("RN50", "openai", "openai"),
        ("ViT-B/32", "open_clip", "openai"),
        ("ViT-B/16", "hugging_face", "hugging_face"),
        ("ViT-L/14@336px", "openai", "openai"),
        ("siglip-b16-256", "hugging_face", "hugging_face"),
        ("siglip-b16-256-i18n", "open_clip", "open_clip"),
        ("siglip-so400m14-384", "open_clip", "open_clip"),
        ("align-base", "hugging_face", "hugging_face"),
    ],
)
def test_a_bare_file_is_known_by_its_shapes(
    name: str, written_for: Any, library_found: str, tmp_path: Path
) -> None:
    path = sparse(tmp_path / "x.safetensors", planned(name, written_for))
    weights = library.find_weights(path)
    assert weights.library == library_found and name in weights.assumptions
    wanted = ARCHITECTURES[name]
    assert weights.config.vision == wanted.vision and weights.config.text == wanted.text
    siglip = library_found == "open_clip"
    assert weights.config.activation == ("gelu" if siglip else wanted.activation)
    clip = wanted.activation == "quick_gelu"
    assert ("QuickGELU" in weights.assumptions) == clip
    assert weights.tokenizer == ("clip" if wanted.text.vocab_size == 49408 else None)
    named = library.find_weights(path, name)
    assert named.config == weights.config and ("QuickGELU" in named.assumptions) == clip
    if clip:
        told = library.find_weights(path, name, "gelu")
        assert told.config.activation == "gelu" and not told.assumptions


def test_a_renamed_file_finds_the_config_beside_it(tmp_path: Path) -> None:
    parameters = variables(CLIP(TINY, rngs=nnx.Rngs(0)))
    for kind in ("open_clip", "hugging_face"):
        file = export.write(tmp_path / kind, parameters, TINY, kind)
        renamed = file.rename(file.parent / "my best.safetensors")
        weights = library.find_weights(renamed)
        assert weights.config == TINY and not weights.assumptions and weights.library == kind
        assert weights.preprocess.size == TINY.vision.image_size
    # a config about another model is not used, and that is said
    lone = sparse(tmp_path / "hugging_face" / "x.safetensors", planned("RN50", "openai"))
    lone.rename(tmp_path / "open_clip" / "x.safetensors")
    weights = library.find_weights(tmp_path / "open_clip" / "x.safetensors")
    assert weights.config == ARCHITECTURES["RN50"] and "about another model" in weights.assumptions


@pytest.mark.parametrize(
    ("name", "known", "activation"),
    [
        ("ViT-H-14", "ViT-H/14", "gelu"),
        ("ViT-L-14-336", "ViT-L/14@336px", "quick_gelu"),
        ("ViT-L/14@336", "ViT-L/14@336px", "quick_gelu"),
        ("ViT-L-14-336-quickgelu", "ViT-L/14@336px", "quick_gelu"),
        ("ViT-B-32-quickgelu", "ViT-B/32", "quick_gelu"),
        ("vit-h-14-quickgelu", "ViT-H/14", "quick_gelu"),
        ("RN50-quickgelu", "RN50", "quick_gelu"),
    ],
)
def test_the_names_that_open_clip_uses_are_known(name: str, known: str, activation: str) -> None:
    expected = dataclasses.replace(ARCHITECTURES[known], activation=activation)
    assert architectures.find_architecture(name) == expected


def test_a_name_that_says_quick_gelu_needs_no_guess(tmp_path: Path) -> None:
    path = sparse(tmp_path / "x.safetensors", planned("ViT-B/32", "openai"))
    assert library.find_weights(path, "ViT-B-32-quickgelu").assumptions == ""
    assert "QuickGELU" in library.find_weights(path, "ViT-B-32").assumptions
    path = sparse(tmp_path / "h.safetensors", planned("ViT-H/14", "openai"))
    assert library.find_weights(path).config == ARCHITECTURES["ViT-H/14"]
    assert library.find_weights(path, "ViT-H-14").assumptions == ""
    assert library.find_weights(path, "ViT-H-14-quickgelu").config.activation == "quick_gelu"


def test_openais_extra_tensors_do_not_matter(tmp_path: Path) -> None:
    tensors = planned("ViT-B/32", "openai")
    extra = {
        n: np.zeros((), np.int64) for n in ("input_resolution", "context_length", "vocab_size")
    }
    path = sparse(tmp_path / "x.safetensors", {**tensors, **extra})
    weights = library.find_weights(path)
    assert weights.config == ARCHITECTURES["ViT-B/32"] and "QuickGELU" not in weights.assumptions


@pytest.mark.parametrize("change", ["deeper", "wider", "shallower"])
def test_the_shapes_of_no_model(change: str, tmp_path: Path) -> None:
    tensors = planned("ViT-B/32", "openai")
    if change == "deeper":
        last = "visual.transformer.resblocks.11."
        more = {n.replace(".11.", ".12."): t for n, t in tensors.items() if n.startswith(last)}
        tensors |= more
    elif change == "wider":
        tensors["logit_scale"] = np.zeros(2, np.float32)
    else:
        tensors = {n: t for n, t in tensors.items() if ".11." not in n}
    with pytest.raises(UserError) as caught:
        library.find_weights(sparse(tmp_path / "x.safetensors", tensors))
    assert says(caught.value, "x.safetensors", "no model", "open_clip_config.json")


@pytest.mark.parametrize("name", [None, "ViT-B/32"])
@pytest.mark.parametrize("tensors", [{}, {"encoder.weight": np.zeros((2, 2), np.float32)}])
def test_a_file_that_is_no_clip(name: str | None, tensors: Any, tmp_path: Path) -> None:
    path = tmp_path / "bert.safetensors"
    write_safetensors(path, tensors)
    with pytest.raises(UserError) as caught:
        library.find_weights(path, name)
    assert says(caught.value, path, "no CLIP", "visual.", "vision_model.")


def test_a_folder_without_weights(tmp_path: Path) -> None:
    config = (GOLDEN / "hugging_face_clip" / "config.json").read_bytes()
    (tmp_path / "config.json").write_bytes(config)
    assert library.is_weights(tmp_path)
    with pytest.raises(UserError) as caught:
        library.find_weights(tmp_path)
    assert says(caught.value, tmp_path, "holds no weights", "model.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose files may be spoilt."""
    return shutil.copytree(GOLDEN / "hugging_face_clip", tmp_path / "model")


def change_tensors(folder: Path, change: Any) -> None:
    file = folder / "model.safetensors"
    with open_tensors(file) as tensors:
        tensors_by_name = {name: tensors.read(name) for name in tensors}
    change(tensors_by_name)
    write_safetensors(file, tensors_by_name)


PROBE = "vision_model.embeddings.class_embedding"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors_by_name: tensors_by_name.pop(PROBE), ["has no", PROBE]),
        (
            lambda tensors_by_name: tensors_by_name.update(other=np.zeros(2)),
            ["a other", "no place for"],
        ),
        (
            lambda tensors_by_name: tensors_by_name.update({PROBE: np.zeros((17,))}),
            [PROBE, "(17,)", "(16,)"],
        ),
        (
            lambda tensors_by_name: tensors_by_name.update({PROBE: np.zeros((1, 16))}),
            [PROBE, "(1, 16)"],
        ),
        (
            lambda tensors_by_name: [
                tensors_by_name.pop(n) for n in list(tensors_by_name) if "layers.1" in n
            ],
            ["has no", "more such", "another model"],
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder: Path, change: Any, words: list[str]) -> None:
    change_tensors(folder, change)
    with pytest.raises(UserError) as caught:
        library.read_variables(library.find_weights(folder))
    assert says(caught.value, "model.safetensors", *words)


def test_a_scalar_may_have_an_axis(folder: Path) -> None:
    before, _ = library.read_variables(library.find_weights(folder))
    change_tensors(
        folder,
        lambda tensors_by_name: tensors_by_name.update(
            logit_scale=tensors_by_name["logit_scale"].reshape(1)
        ),
    )
    after, _ = library.read_variables(library.find_weights(folder))
    assert after["logit_scale"].shape == ()
    np.testing.assert_array_equal(before["logit_scale"], after["logit_scale"])


def test_half_precision_is_kept_or_widened(folder: Path) -> None:
    def narrow(tensors_by_name: dict[str, np.ndarray]) -> None:
        for name, value in tensors_by_name.items():
            tensors_by_name[name] = value.astype(np.float16)

    wide = dict(arrays.flat(*library.read_variables(library.find_weights(folder))))
    change_tensors(folder, narrow)
    weights = library.find_weights(folder)
    kept = dict(arrays.flat(*library.read_variables(weights, "keep")))
    again = dict(arrays.flat(*library.read_variables(weights)))
    for path, value in wide.items():
        assert kept[path].dtype == np.float16 and again[path].dtype == np.float32
        rounded = np.asarray(value).astype(np.float16)
        np.testing.assert_array_equal(kept[path], rounded)
        np.testing.assert_array_equal(again[path], rounded.astype(np.float32))
    assert (
        dict(arrays.flat(*library.read_variables(weights, "bfloat16")))["logit_scale"].dtype
        == "bfloat16"
    )


def test_parts_of_different_types_are_held_in_float32(folder: Path) -> None:
    name = "vision_model.encoder.layers.0.self_attn.q_proj.weight"
    change_tensors(
        folder,
        lambda tensors_by_name: tensors_by_name.update(
            {name: tensors_by_name[name].astype(np.float16)}
        ),
    )
    kept = dict(arrays.flat(*library.read_variables(library.find_weights(folder), "keep")))
    assert {str(value.dtype) for value in kept.values()} == {"float32"}


@pytest.mark.parametrize("name", ["ViT-B/16", "siglip-b16"])
def test_another_model_than_was_named(name: str, folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        library.find_weights(folder, name)
    assert says(caught.value, folder, f"does not hold {name}", "not (")


def test_pixels_of_another_size_than_the_models(folder: Path) -> None:
    document = export.documents(
        library.find_weights(folder).config, "hugging_face", library.Preprocess(16)
    )
    (folder / "preprocessor_config.json").write_text(
        json.dumps(document["preprocessor_config.json"])
    )
    with pytest.raises(UserError) as caught:
        library.find_weights(folder)
    assert says(caught.value, "preprocessor_config.json", "16 pixels", "8")


def test_unknown_names(folder: Path, tmp_path: Path) -> None:
    weights = library.find_weights(folder)
    with pytest.raises(UserError, match="unknown dtype 'int8'; known: keep"):
        library.read_variables(weights, "int8")
    parameters = library.read_variables(weights)
    with pytest.raises(UserError, match="'timm': no library has this name; there are hugging_face"):
        export.write(tmp_path / "out", parameters, weights.config, "timm")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="unknown dtype"):
        export.write(tmp_path / "out", parameters, weights.config, "open_clip", dtype="int8")
    assert not (tmp_path / "out").exists()


def test_what_is_a_folder_of_weights(folder: Path, tmp_path: Path) -> None:
    assert library.is_weights(folder)
    assert library.is_weights(GOLDEN / "open_clip_vit")
    assert not library.is_weights(tmp_path)
    (tmp_path / "config.json").write_text('{"model": {}, "steps": 3}')
    assert not library.is_weights(tmp_path)


@pytest.mark.parametrize(
    ("path", "to", "file"),
    [
        ("out", "openai", "out/model.pt"),
        ("out", "open_clip", "out/open_clip_model.safetensors"),
        ("out.d", "hugging_face", "out.d/model.safetensors"),
        ("out/x.bin", "hugging_face", "out/x.bin"),
        ("x.pt", "openai", "x.pt"),
    ],
)
def test_where_weights_go(path: str, to: Any, file: str) -> None:
    assert export.weights_file(path, to) == Path(file)
