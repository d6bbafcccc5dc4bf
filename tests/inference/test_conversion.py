"""Every pair of libraries: what is written loads there, and gives the same features."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import clip_jax
import released
import runs
from clip_jax import tokenizers
from clip_jax.cli import convert as convert_command
from clip_jax.errors import UserError
from clip_jax.inference import conversion
from clip_jax.io import files
from clip_jax.models.architectures import ARCHITECTURES
from clip_jax.models.clip import CLIP, abstract_model, variables
from clip_jax.models.model_config import CLIPConfig, ResNetConfig, TextConfig, VisionConfig
from clip_jax.training import checkpointing
from clip_jax.weights import arrays, export, library
from clip_jax.weights.tensors import open_tensors
from support import encoded, picture, says, write_tar

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
PAIRS = [
    ("hugging_face_clip", "open_clip"),
    ("hugging_face_clip", "hugging_face"),
    ("hugging_face_siglip", "hugging_face"),
    ("hugging_face_align", "hugging_face"),
    ("open_clip_vit", "hugging_face"),
    ("open_clip_vit", "open_clip"),
    ("open_clip_gelu", "hugging_face"),
    ("open_clip_gelu", "open_clip"),
    ("open_clip_resnet", "open_clip"),
    ("open_clip_coca", "open_clip"),
]
# What OpenAI's code can build has heads of 64.
WORDS = TextConfig(vocab_size=40, context_length=8, width=64, layers=1, heads=1)
OPENAI = {
    "vit": CLIPConfig(
        12,
        vision=VisionConfig(image_size=8, patch_size=4, width=64, layers=2, heads=1),
        text=WORDS,
    ),
    "resnet": CLIPConfig(12, vision=ResNetConfig(64, 2, (2, 1, 1, 1), 1), text=WORDS),
}


def random_variables(config: CLIPConfig, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)

    def draw(s: Any) -> np.ndarray:
        if np.issubdtype(s.dtype, np.integer):
            return np.full(s.shape, 7, s.dtype)
        return np.asarray((0.1 + 0.3 * rng.random(s.shape)) * rng.choice([1, 1, -1]), s.dtype)

    params, stats = variables(abstract_model(config))
    stats = jax.tree.map(lambda s: np.abs(draw(s)), stats)
    return jax.tree.map(draw, params), stats


def built(config: CLIPConfig, parameters: Any) -> CLIP:
    return nnx.merge(
        nnx.graphdef(abstract_model(config)), *jax.tree.map(jax.numpy.asarray, parameters)
    )


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    with open_tensors(path) as tensors:
        return {name: tensors.read(name) for name in tensors}


def same_tensors(ours: Path, theirs: Path) -> None:
    before, after = tensors_of(theirs), tensors_of(ours)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype, name
        assert value.tobytes() == after[name].tobytes(), name


def weights(folder: Path) -> Path:
    (file,) = (p for p in folder.iterdir() if p.name in library.usual_files())
    return file


def expected(family: str) -> dict[str, np.ndarray]:
    return tensors_of(GOLDEN / family / "expected.safetensors")


def check(actual: Any, wanted: Any) -> None:
    wanted = np.asarray(wanted)
    tolerance = 1e-5 * max(1.0, np.abs(wanted).max())
    np.testing.assert_allclose(np.asarray(actual), wanted, rtol=0, atol=tolerance)


def check_ours(path: Path, numbers: dict[str, np.ndarray]) -> None:
    model, _, _ = clip_jax.load(str(path))
    output = model(numbers["images"], numbers["tokens"])
    for key in ("image_features", "text_features", "logits_per_image"):
        check(getattr(output, key), numbers[key])


def check_transformers(folder: Path, numbers: dict[str, np.ndarray], **options: Any) -> None:
    """Loaded by the library itself, which names what it misses or does not know."""
    transformers = released.transformers()
    torch = pytest.importorskip("torch")
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, info = getattr(transformers, kind).from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32, **options
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    assert not info["mismatched_keys"], info
    model.eval()
    given: dict[str, Any] = {}
    tokens = torch.tensor(numbers["tokens"]).long()
    if kind == "AlignModel":
        given["attention_mask"] = (tokens != 0).long()
    pixels = torch.tensor(numbers["images"]).permute(0, 3, 1, 2)
    with torch.no_grad():
        out = model(input_ids=tokens, pixel_values=pixels, **given)
    check(out.image_embeds, numbers["image_features"])
    check(out.text_embeds, numbers["text_features"])
    check(out.logits_per_image, numbers["logits_per_image"])


def check_open_clip(folder: Path, numbers: dict[str, np.ndarray]) -> Any:
    open_clip = released.open_clip()
    torch = pytest.importorskip("torch")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    check_torch(model.eval(), numbers)
    side = numbers["images"].shape[1]
    assert preprocess(picture(0, (70, 90))).shape == torch.Size([3, side, side])
    return model


def check_torch(model: Any, numbers: dict[str, np.ndarray]) -> None:
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        pixels = torch.tensor(numbers["images"]).permute(0, 3, 1, 2)
        image = model.encode_image(pixels, normalize=True)
        text = model.encode_text(torch.tensor(numbers["tokens"]).long(), normalize=True)
        logits = model.logit_scale.exp() * image @ text.T
        if getattr(model, "logit_bias", None) is not None:
            logits = logits + model.logit_bias
    check(image, numbers["image_features"])
    check(text, numbers["text_features"])
    check(logits, numbers["logits_per_image"])


CHECKS: dict[str, Any] = {"hugging_face": check_transformers, "open_clip": check_open_clip}


@pytest.mark.parametrize(("family", "to"), [PAIRS[0], PAIRS[4], PAIRS[6]])
def test_the_features_stay(family: str, to: Any, tmp_path: Path) -> None:
    done = conversion.convert(GOLDEN / family, tmp_path / "out", to)
    check_ours(tmp_path / "out", expected(family))
    assert len(done.files) == len(list((tmp_path / "out").iterdir()))
    assert all(Path(path).stat().st_size == size for path, size in done.files.items())
    assert done.tensors == len(tensors_of(weights(tmp_path / "out")))


@pytest.mark.parametrize(("family", "to"), PAIRS)
def test_the_library_itself_gives_the_same_features(family: str, to: Any, tmp_path: Path) -> None:
    conversion.convert(GOLDEN / family, tmp_path / "out", to)
    CHECKS[to](tmp_path / "out", expected(family))


@pytest.mark.parametrize(
    ("family", "to", "suffix"),
    [*((*pair, ".safetensors") for pair in PAIRS), *((*PAIRS[i], ".bin") for i in (0, 3, 8))],
)
def test_there_and_back_is_bit_exact(family: str, to: Any, suffix: str, tmp_path: Path) -> None:
    if suffix == ".bin":
        pytest.importorskip("torch")
    between = "pytorch_model.bin" if to == "hugging_face" else "open_clip_pytorch_model.bin"
    out = tmp_path / "out" / between if suffix == ".bin" else tmp_path / "out"
    conversion.convert(GOLDEN / family, out, to)
    home = "hugging_face" if family.startswith("hugging") else "open_clip"
    conversion.convert(tmp_path / "out", tmp_path / "back", home)
    same_tensors(weights(tmp_path / "back"), weights(GOLDEN / family))
    first, last = library.find_weights(GOLDEN / family), library.find_weights(tmp_path / "back")
    if home == to:
        assert first.config == last.config
        assert first.preprocess == dataclasses.replace(last.preprocess, half=first.preprocess.half)


def test_open_clips_siglip_in_transformers_and_back(tmp_path: Path) -> None:
    """Of a size that open_clip has no name for, so that no config can stand beside it."""
    tower: dict[str, Any] = dict(width=16, layers=2, heads=2, eps=1e-6)
    vision = dict(image_size=8, patch_size=4, pool="map", ln_pre=False, projection=False)
    text = dict(vocab_size=40, context_length=8, causal=False, pool="last", projection_bias=True)
    config = CLIPConfig(
        16,
        "gelu",
        logit_bias=-10.0,
        vision=VisionConfig(**vision, patch_bias=True, **tower),
        text=TextConfig(**text, **tower),
    )
    file = GOLDEN / "open_clip_siglip" / "open_clip_model.safetensors"
    preprocess = library.preprocess_of(config)
    parameters = library.read_variables(
        library.SavedWeights(file, "open_clip", config, preprocess, None)
    )
    export.write(tmp_path / "out", parameters, config, "hugging_face")
    back = library.read_variables(library.find_weights(tmp_path / "out"))
    with open_tensors(file) as tensors:
        for name, lazy in arrays.to_tensors(back, config, "open_clip").items():
            assert lazy.make().tobytes() == tensors.read(name).tobytes(), name
    with pytest.raises(UserError) as caught:
        conversion.convert(tmp_path / "out", tmp_path / "no", "open_clip")
    assert says(caught.value, "model.vision.width=768 and not 16")
    check_transformers(tmp_path / "out", expected("open_clip_siglip"))


@pytest.fixture(params=OPENAI)
def openai_shaped(request: Any, tmp_path: Path) -> tuple[Path, CLIPConfig, Any]:
    """An open_clip folder of a model that OpenAI's code can build too."""
    config = OPENAI[request.param]
    parameters = random_variables(config)
    export.write(tmp_path / "source", parameters, config, "open_clip")
    return tmp_path / "source", config, parameters


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_openai_there_and_back(openai_shaped: Any, name: str, tmp_path: Path) -> None:
    if name.endswith(".pt"):
        pytest.importorskip("torch")
    source, config, parameters = openai_shaped
    file = tmp_path / "openai" / name
    conversion.convert(source, file, "openai")
    assert [p.name for p in file.parent.iterdir()] == [name]
    same_tensors(file, weights(source))
    saved = library.SavedWeights(file, "openai", config, library.preprocess_of(config), None)
    for ours, theirs in zip(
        jax.tree.leaves(library.read_variables(saved)), jax.tree.leaves(parameters), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_openais_file_in_the_code_that_loads_openais(openai_shaped: Any, tmp_path: Path) -> None:
    open_clip = released.open_clip()
    source, config, parameters = openai_shaped
    conversion.convert(source, tmp_path / "model.pt", "openai", dtype="float16")
    model = open_clip.load_openai_model(str(tmp_path / "model.pt"), precision="fp32", device="cpu")
    rounded = (
        jax.tree.map(lambda x: x.astype(np.float16).astype(x.dtype), parameters[0]),
        parameters[1],
    )
    rng = np.random.default_rng(0)
    size = config.vision.image_size
    images = rng.standard_normal((2, size, size, 3)).astype(np.float32)
    tokens = np.array([[38, 5, 39, 0, 0, 0, 0, 0], [38, 9, 1, 2, 3, 4, 5, 39]], np.int32)
    output = built(config, rounded)(images, tokens)
    numbers = {
        "images": images,
        "tokens": tokens,
        "image_features": output.image_features,
        "text_features": output.text_features,
        "logits_per_image": output.logits_per_image,
    }
    check_torch(model, {k: np.asarray(v) for k, v in numbers.items()})


def test_openais_file_to_transformers_needs_its_name(tmp_path: Path) -> None:
    config = OPENAI["vit"]
    file = tmp_path / "mine.safetensors"
    export.write(file, random_variables(config), config, "openai")
    with pytest.raises(UserError) as caught:
        conversion.convert(file, tmp_path / "out", "hugging_face")
    assert says(caught.value, file, "no config beside it")
    with pytest.raises(UserError) as caught:
        conversion.convert(file, tmp_path / "out", "hugging_face", model="ViT-B/32")
    assert says(caught.value, file, "another model")
    assert not (tmp_path / "out").exists()


# What parameters are stored in.


@pytest.mark.parametrize("to", ["open_clip", "hugging_face"])
def test_dtypes(to: Any, tmp_path: Path) -> None:
    source = GOLDEN / "hugging_face_clip"
    done = conversion.convert(source, tmp_path / "half", to, dtype="float16")
    assert done.dtype == ["float32"]
    parameters = tensors_of(weights(tmp_path / "half"))
    assert {x.dtype for x in parameters.values()} == {np.dtype(np.float16)}
    conversion.convert(tmp_path / "half", tmp_path / "kept", "hugging_face")
    conversion.convert(tmp_path / "half", tmp_path / "wide", "hugging_face", dtype="float32")
    for name, value in tensors_of(weights(source)).items():
        kept = tensors_of(weights(tmp_path / "kept"))[name]
        wide = tensors_of(weights(tmp_path / "wide"))[name]
        assert kept.dtype == np.float16 and wide.dtype == np.float32
        np.testing.assert_array_equal(kept, value.astype(np.float16))
        np.testing.assert_array_equal(wide, value.astype(np.float16).astype(np.float32))


def test_what_each_array_is_held_in_is_kept(tmp_path: Path) -> None:
    """OpenAI's files hold matrices in float16 and the rest in float32."""
    config = OPENAI["resnet"]
    params, stats = random_variables(config)
    mixed = jax.tree.map(lambda x: x.astype(np.float16) if x.ndim > 1 else x, params)
    export.write(tmp_path / "source", (mixed, stats), config, "open_clip")
    conversion.convert(tmp_path / "source", tmp_path / "out.safetensors", "openai")
    same_tensors(tmp_path / "out.safetensors", weights(tmp_path / "source"))
    kinds = {str(x.dtype) for x in tensors_of(tmp_path / "out.safetensors").values()}
    assert kinds == {"float16", "float32", "int64"}
    counted = tensors_of(tmp_path / "out.safetensors")["visual.bn1.num_batches_tracked"]
    assert counted == 7 and counted.shape == ()


def test_bfloat16_by_way_of_torch(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    file = tmp_path / "out" / "pytorch_model.bin"
    conversion.convert(GOLDEN / "hugging_face_align", file, "hugging_face", dtype="bfloat16")
    kinds = {str(x.dtype) for x in tensors_of(file).values()}
    assert kinds == {"bfloat16", "int64"}


def test_what_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    config = OPENAI["vit"]
    params, stats = random_variables(config)
    params["vision"]["class_embedding"][3] = -70_000
    export.write(tmp_path / "source", (params, stats), config, "open_clip")
    with pytest.raises(UserError) as caught:
        conversion.convert(tmp_path / "source", tmp_path / "out", "open_clip", dtype="float16")
    assert says(caught.value, "vision/class_embedding", "70000", "bfloat16")
    assert not (tmp_path / "out").exists()
    conversion.convert(tmp_path / "source", tmp_path / "out", "open_clip", dtype="bfloat16")


# Sizes.


@pytest.mark.parametrize(("to", "size", "length"), [("open_clip", 16, 12), ("hugging_face", 4, 6)])
def test_positions_are_resized_by_choice(to: Any, size: int, length: int, tmp_path: Path) -> None:
    notes: list[str] = []
    conversion.convert(
        GOLDEN / "open_clip_vit",
        tmp_path / "out",
        to,
        image_size=size,
        context_length=length,
        note=notes.append,
    )
    assert any(f"from 8 to {size} pixels" in note for note in notes)
    assert any(f"from 8 to {length} tokens" in note for note in notes)
    saved = library.find_weights(tmp_path / "out")
    assert (saved.config.vision.image_size, saved.config.text.context_length) == (size, length)
    assert saved.preprocess.size == size
    ours, _, _ = clip_jax.load(
        str(GOLDEN / "open_clip_vit"), image_size=size, context_length=length
    )
    theirs, _, _ = clip_jax.load(str(tmp_path / "out"))
    images = np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32)
    tokens = np.full((2, length), 39, np.int32)
    one, other = ours(images, tokens), theirs(images, tokens)
    np.testing.assert_array_equal(one.image_features, other.image_features)
    np.testing.assert_array_equal(one.text_features, other.text_features)


def test_open_clip_loads_a_resized_model(tmp_path: Path) -> None:
    conversion.convert(GOLDEN / "open_clip_vit", tmp_path / "out", "open_clip", image_size=16)
    ours, _, _ = clip_jax.load(str(tmp_path / "out"))
    images = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)
    tokens = expected("open_clip_vit")["tokens"][:2]
    output = ours(images, tokens)
    numbers = {"images": images, "tokens": tokens, "logits_per_image": output.logits_per_image}
    numbers |= {k: getattr(output, k) for k in ("image_features", "text_features")}
    check_open_clip(tmp_path / "out", {k: np.asarray(v) for k, v in numbers.items()})


def test_a_resized_preprocessing_keeps_its_ways(tmp_path: Path) -> None:
    config = library.find_weights(GOLDEN / "hugging_face_align").config
    before = library.preprocess_of(config)
    conversion.convert(GOLDEN / "hugging_face_align", tmp_path, "hugging_face", image_size=66)
    after = library.find_weights(tmp_path).preprocess
    wanted = dataclasses.replace(before, size=66, resize_size=2 * (before.resize_size or 0))
    assert dataclasses.replace(after, half=wanted.half) == wanted


# Tokenizers.


@pytest.fixture(scope="module")
def with_words(tmp_path_factory: Any) -> Path:
    """A folder of open_clip's with CLIP's own vocabulary."""
    folder = tmp_path_factory.mktemp("words")
    text = dataclasses.replace(WORDS, vocab_size=49408, context_length=16, width=8, heads=2)
    config = dataclasses.replace(OPENAI["vit"], text=text)
    export.write(folder, random_variables(config), config, "open_clip")
    return folder


def test_transformers_gets_the_tokenizer_and_the_preprocessing(
    with_words: Path, tmp_path: Path
) -> None:
    done = conversion.convert(with_words, tmp_path / "out", "hugging_face")
    names = {Path(p).name for p in done.files}
    assert {"vocab.json", "merges.txt", "tokenizer_config.json"} < names
    assert tokenizers.find_tokenizer(tmp_path / "out") == "clip"
    transformers = released.transformers()
    texts = ["a photo of a cat.", "two dogs, perhaps"]
    ours = tokenizers.load("clip", 16)(texts)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs = tokenizer(texts, padding="max_length", max_length=16)["input_ids"]
    ends = ours.argmax(axis=1) + 1
    for row, other, end in zip(ours, theirs, ends, strict=True):
        assert row[:end].tolist() == other[:end]
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    given = processor(
        text=texts,
        images=picture(0, (20, 30)),
        padding="max_length",
        max_length=16,
        return_tensors="pt",
    )
    assert tuple(given["pixel_values"].shape) == (1, 3, 8, 8)
    model, preprocess, _ = clip_jax.load(str(with_words))
    check_transformers(
        tmp_path / "out",
        {
            "images": np.asarray(given["pixel_values"].permute(0, 2, 3, 1)),
            "tokens": np.asarray(given["input_ids"]),
            "text_features": model.encode_text(ours, normalized=True),
            **_image_side(model, preprocess(picture(0, (20, 30))), ours),
        },
    )


def _image_side(model: CLIP, pixels: np.ndarray, tokens: np.ndarray) -> dict[str, Any]:
    output = model(pixels[None], tokens)
    return {
        "image_features": output.image_features,
        "logits_per_image": output.logits_per_image,
    }


def test_siglips_tokenizer_goes_along(tmp_path: Path) -> None:
    spiece = GOLDEN.parent / "siglip.model"
    size = tokenizers.load(f"siglip:{spiece}").vocab_size
    base = library.find_weights(GOLDEN / "hugging_face_siglip").config
    config = dataclasses.replace(base, text=dataclasses.replace(base.text, vocab_size=size))
    export.write(tmp_path / "source", random_variables(config), config, "hugging_face")
    out = tmp_path / "out"
    conversion.convert(tmp_path / "source", out, "hugging_face", tokenizer=f"siglip:{spiece}")
    assert (out / "spiece.model").read_bytes() == spiece.read_bytes()
    assert tokenizers.find_tokenizer(out) == f"siglip:{out / 'spiece.model'}"
    conversion.convert(out, tmp_path / "again", "hugging_face")
    assert (tmp_path / "again" / "spiece.model").read_bytes() == spiece.read_bytes()


def test_a_tokenizer_of_too_many_words(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        conversion.convert(
            GOLDEN / "hugging_face_clip", tmp_path / "out", "hugging_face", tokenizer="clip"
        )
    assert says(caught.value, "clip", "49408", "40")
    assert not (tmp_path / "out").exists()


def test_what_no_tokenizer_is_known_of(tmp_path: Path) -> None:
    notes: list[str] = []
    source = GOLDEN / "hugging_face_clip"
    conversion.convert(source, tmp_path, "open_clip", note=notes.append)
    assert len(notes) == 2 and "--tokenizer" in notes[1]
    assert says(notes[0], "preprocessor_config.json", "usually")


def test_siglip_computes_the_exact_gelu_in_open_clip_by_choice() -> None:
    config = dataclasses.replace(ARCHITECTURES["siglip-b16"], activation="gelu")
    values = export.documents(config, "open_clip", library.preprocess_of(config))
    assert values["open_clip_config.json"]["model_cfg"]["vision_cfg"]["timm_pool"] == "map"


def test_another_activation_by_choice(tmp_path: Path) -> None:
    notes: list[str] = []
    source = GOLDEN / "open_clip_vit"
    out = tmp_path / "out"
    conversion.convert(source, out, "hugging_face", activation="gelu", note=notes.append)
    assert any("gelu from here on, not quick_gelu" in note for note in notes)
    assert library.find_weights(out).config.activation == "gelu"
    same = tensors_of(weights(source))
    conversion.convert(out, tmp_path / "back", "open_clip")
    assert tensors_of(weights(tmp_path / "back")).keys() == same.keys()


# Runs.


def write_run(
    folder: Path,
    config: CLIPConfig,
    parameters: Any,
    tokenizer: str,
    dtype: str = "float32",
    step: int = 3,
) -> Path:
    """A run's folder as training leaves it, without training."""
    folder.mkdir()
    values = {"model": config.to_dict(), "tokenizer": tokenizer, "dtype": dtype}
    (folder / "config.json").write_text(json.dumps(values))
    parameters = jax.tree.map(jax.numpy.asarray, parameters)
    state = {k: tree for k, tree in zip(("params", "stats"), parameters, strict=True) if tree}
    checkpoints = checkpointing.Checkpoints(folder)
    checkpoints.save(step, state, {}, values, force=True)
    checkpoints.close()
    return folder


@pytest.mark.parametrize("to", ["hugging_face", "open_clip", "openai"])
def test_a_run(to: Any, tmp_path: Path) -> None:
    config = OPENAI["vit"]
    parameters = random_variables(config)
    run = write_run(tmp_path / "run", config, parameters, "sentencepiece:/gone/emoji.model")
    notes: list[str] = []
    out = tmp_path / "out.safetensors" if to == "openai" else tmp_path / "out"
    done = conversion.convert(run, out, to, note=notes.append)
    assert done.library == "a run" and len(notes) == 1
    assert "sentencepiece:/gone/emoji.model" in notes[0]
    if to == "openai":
        return
    images = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    tokens = np.array([[30, 5, 31, 0, 0, 0, 0, 0], [30, 9, 1, 2, 3, 4, 5, 31]], np.int32)
    output = built(config, parameters)(images, tokens)
    keys = ("image_features", "text_features", "logits_per_image")
    numbers = {k: np.asarray(getattr(output, k)) for k in keys}
    numbers |= {"images": images, "tokens": tokens}
    check_ours(tmp_path / "out", numbers)
    # the end of a text is the largest id of its row, and not the last of the vocabulary
    CHECKS[to](tmp_path / "out", numbers)


def test_a_run_of_a_resnet_by_a_step(tmp_path: Path) -> None:
    config = OPENAI["resnet"]
    parameters = random_variables(config)
    run = write_run(tmp_path / "run", config, parameters, "clip", step=5)
    conversion.convert(run / "checkpoints" / "5", tmp_path / "out", "open_clip")
    saved = library.find_weights(tmp_path / "out")
    for ours, theirs in zip(
        jax.tree.leaves(library.read_variables(saved)), jax.tree.leaves(parameters), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_run_that_was_trained_in_bfloat16_says_so(tmp_path: Path) -> None:
    config = OPENAI["vit"]
    run = write_run(tmp_path / "run", config, random_variables(config), "clip", "bfloat16")
    notes: list[str] = []
    conversion.convert(run, tmp_path / "out", "open_clip", note=notes.append)
    assert says(notes[0], "config.dtype=bfloat16", "in float32")


@pytest.mark.parametrize(
    "special",
    [dict(stem=8), dict(registers=2), dict(pool="mean"), dict(patch_bias=True)],
)
def test_what_only_we_have_is_refused(special: dict[str, Any], tmp_path: Path) -> None:
    config = OPENAI["vit"]
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, **special))
    run = write_run(tmp_path / "run", config, random_variables(config), "clip")
    for to in ("hugging_face", "open_clip", "openai"):
        with pytest.raises(UserError) as caught:
            conversion.convert(run, tmp_path / "out.safetensors", to)
        assert says(caught.value, to, "has no model of a vit and a transformer")
        ((field, value),) = special.items()
        assert says(caught.value, f", with vision.{field}={value!r}: ")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.slow
def test_a_trained_run(tmp_path: Path) -> None:
    members = []
    for i in range(16):
        members.append((f"{i:03}.png", encoded(picture(i, (20, 18)))))
        members.append((f"{i:03}.json", f'{{"caption": "picture {i}"}}'.encode()))
    config = runs.write_config(tmp_path, write_tar(tmp_path / "pairs.tar", members), 16)
    done = runs.run(config, tmp_path / "run", "--config.steps=4")
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "-m", "clip_jax", "convert", str(tmp_path / "run")]
    command += [str(tmp_path / "out"), "--to", "hugging_face"]
    done = subprocess.run(command, env=runs.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "bit for bit" in done.stdout
    model, preprocess, tokenize = clip_jax.load(str(tmp_path / "run"))
    pixels = np.stack([preprocess(picture(i, (20, 18))) for i in range(2)])
    mean, std = (np.array(x, np.float32) for x in (preprocess.mean, preprocess.std))
    tokens = tokenize(["picture 1", "a 2"])
    output = model(pixels, tokens)
    keys = ("image_features", "text_features", "logits_per_image")
    numbers = {k: np.asarray(getattr(output, k)) for k in keys}
    images = ((pixels / np.float32(255) - mean) / std).astype(np.float32)
    check_transformers(tmp_path / "out", {**numbers, "images": images, "tokens": tokens})
    _, _, written = clip_jax.load(tmp_path / "out")
    np.testing.assert_array_equal(written(["picture 1", "a 2"]), tokens)


# What is refused.


def refused(argv: list[str], *words: object) -> None:
    with pytest.raises(UserError) as caught:
        convert_command.run(argv)
    assert says(caught.value, *words), str(caught.value)


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    source, out = str(GOLDEN / "open_clip_vit"), str(tmp_path / "out")
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    refused([source, out], "--to")
    refused([source], "DEST")
    refused([source, out, "--to", "timm"], "timm", "open_clip")
    refused([source, out, "--to", "open_clip", "--dtype", "int8"], "int8", "float16")
    refused([source, out, "--to", "open_clip", "--image-size", "0"], "--image-size 0")
    refused([source, out, "--to", "open_clip", "--image-size", "x"], "--image-size", "'x'")
    refused([source, out, "--to", "open_clip", "--image-size", "10"], "patch_size=4", "10")
    refused([source, out, "--to", "open_clip", "--context-length", "-1"], "--context-length -1")
    refused([source, out, "--to", "open_clip", "--model", "RN50"], "does not hold RN50")
    refused([source, out, "--to", "open_clip", "--model", "RN5"], "unknown model 'RN5'")
    refused([source, out, "--to", "hugging_face", "--tokenizer", "gpt2"], "'gpt2'")
    refused([f"{source}/none.pt", out, "--to", "open_clip"], "none.pt", "does not exist")
    refused([str(nothing), out, "--to", "open_clip"], "nothing", "no weights")
    refused([str(other), out, "--to", "open_clip"], "other.safetensors", "no CLIP")
    refused([source, f"{out}.pth", "--to", "openai"], "out.pth", ".pt")
    refused([source, f"{other}/in", "--to", "open_clip"], str(other), "no folder")
    assert not Path(out).exists()


def test_what_exists_is_kept(tmp_path: Path) -> None:
    source, out = str(GOLDEN / "open_clip_vit"), tmp_path / "out"
    argv = [source, str(out), "--to", "hugging_face"]
    assert convert_command.run(argv) == 0
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    refused(argv, "model.safetensors", "--overwrite")
    (out / "model.safetensors").unlink()
    refused(argv, "config.json", "--overwrite")
    assert convert_command.run([*argv, "--overwrite"]) == 0
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_files_of_another_tokenizer_are_neither_left_nor_lost(tmp_path: Path) -> None:
    config = OPENAI["vit"]
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=49408))
    run = write_run(tmp_path / "run", config, random_variables(config), "clip")
    out = tmp_path / "out"
    out.mkdir()
    argv = [str(run), str(out), "--to", "hugging_face"]
    (out / "spiece.model").write_bytes(b"mine")
    for flags in ([], ["--overwrite"]):
        refused([*argv, *flags], out / "spiece.model", "of another tokenizer")
    assert [path.name for path in out.iterdir()] == ["spiece.model"]
    (out / "spiece.model").rename(out / "vocab.json")  # which is written
    refused(argv, out / "vocab.json", "--overwrite")
    assert convert_command.run([*argv, "--overwrite"]) == 0
    assert (out / "vocab.json").read_bytes() != b"mine"


def test_a_tokenizer_that_transformers_would_use_otherwise_is_not_written(
    tmp_path: Path, capsys: Any
) -> None:
    """A SigLIP reads padding, and transformers pads the rows of CLIP otherwise."""
    config = library.find_weights(GOLDEN / "hugging_face_siglip").config
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=49408))
    run = write_run(tmp_path / "run", config, random_variables(config), "clip")
    argv = [str(run), str(tmp_path / "out"), "--to", "hugging_face"]
    refused([*argv, "--tokenizer", "clip"], "pads its rows", "clip_jax.tokenizers")
    assert convert_command.run(argv) == 0
    assert "pads its rows" in capsys.readouterr().err
    assert not (tmp_path / "out" / "vocab.json").exists()


def test_a_folder_over_itself(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "open_clip_vit", folder)
    argv = [str(folder), str(folder), "--to", "open_clip", "--dtype", "float16"]
    refused(argv, "--overwrite")
    assert convert_command.run([*argv, "--overwrite"]) == 0
    assert {x.dtype for x in tensors_of(weights(folder)).values()} == {np.dtype(np.float16)}


def test_a_run_is_never_written_over(tmp_path: Path) -> None:
    config = OPENAI["vit"]
    run = write_run(tmp_path / "run", config, random_variables(config), "clip")
    argv = [str(run), str(run), "--to", "hugging_face", "--overwrite"]
    refused(argv, run, "folder of a run")
    refused([str(run), str(tmp_path / "out"), "--to", "open_clip", "--model", "RN50"], "--model")


def test_without_torch_a_pt_is_refused_before_parameters_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "find_spec", lambda name: None)
    config = OPENAI["vit"]
    source = str(write_run(tmp_path / "run", config, random_variables(config), "clip"))
    monkeypatch.setattr(checkpointing, "read_parts", lambda *_: pytest.fail("parameters were read"))
    refused([source, str(tmp_path), "--to", "openai"], "model.pt", "torch", "model.safetensors")
    refused([source, str(tmp_path / "x.bin"), "--to", "hugging_face"], "x.bin", "pip install torch")
    # nobody is told to install torch for a model that the library does not have
    source = str(GOLDEN / "hugging_face_siglip")
    refused([source, str(tmp_path), "--to", "openai"], "has no model", "logit_bias=")


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = str(GOLDEN / "open_clip_vit"), tmp_path / "out"
    argv = [source, str(out), "--to", "open_clip"]
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(conversion.shutil, "disk_usage", lambda path: usage)
        refused(argv, "open_clip_model.safetensors", "60.9 kB", "1.0 kB")

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        refused(argv, "open_clip_model.safetensors", "No space left")
    assert not list(out.iterdir())
    assert convert_command.run(argv) == 0


def test_a_file_that_changes_under_way_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = export.write

    def spoilt(*args: Any, **options: Any) -> Path:
        file = write(*args, **options)
        raw = bytearray(file.read_bytes())
        raw[-1] ^= 1
        file.write_bytes(raw)
        return file

    monkeypatch.setattr(export, "write", spoilt)
    source = str(GOLDEN / "open_clip_vit")
    refused([source, str(tmp_path), "--to", "open_clip"], "reads back otherwise")


# The command.


def test_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = GOLDEN / "open_clip_vit", tmp_path / "out"
    argv = [str(source), str(out), "--to", "hugging_face", "--image-size", "16"]
    assert convert_command.run(argv) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert str(source) in lines[0] and "(open_clip)" in lines[0] and "float32" in lines[0]
    assert "15,425 parameters" in lines[0] and "16px/4" in lines[0]
    assert any(str(out / "model.safetensors") in line and "70.1 kB" in line for line in lines)
    assert lines[-1] == "read back: 78 tensors, bit for bit"
    assert "note: positions of images resized from 8 to 16 pixels" in printed.err
    assert convert_command.run([*argv, "--overwrite", "--json"]) == 0
    conversion_json = json.loads(capsys.readouterr().out)
    assert conversion_json["tensors"] == 78 and conversion_json["parameters"] == 15_425
    assert set(conversion_json["files"]) == {str(p) for p in out.iterdir()}


def test_help_names_every_pair_and_model() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "clip_jax", "convert", "--help"]
    done = subprocess.run(command, env=runs.environment(), capture_output=True, text=True)
    assert done.returncode == 0
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert not imported & {"jax", "torch", "orbax", "flax"}
    for words in ("OpenAI to open_clip", "transformers to OpenAI", "a run to transformers"):
        assert words in done.stdout
    text = " ".join(done.stdout.split())
    assert all(name in text for name in ARCHITECTURES)


def test_the_command_ends_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clip_jax", "convert", str(tmp_path / "none.pt"), "out"]
    done = subprocess.run(
        [*command, "--to", "open_clip"], env=runs.environment(), capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
