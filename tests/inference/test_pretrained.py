"""The library's front on other libraries' files: load, the tutorial's lines, the pipeline."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import clip_jax
from clip_jax.cli import classify
from clip_jax.data.images import decoding
from clip_jax.errors import GuessedWarning, UserError
from clip_jax.inference import pretrained
from clip_jax.models.architectures import ARCHITECTURES
from clip_jax.models.clip import CLIP, variables
from clip_jax.models.model_config import CLIPConfig, TextConfig, VisionConfig
from clip_jax.weights import export, library
from support import picture, says

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
SMALL = dict(width=16, layers=1, heads=2)
CONFIG = CLIPConfig(
    12,
    vision=VisionConfig(image_size=16, patch_size=8, **SMALL),
    text=TextConfig(context_length=12, **SMALL),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small CLIP with CLIP's vocabulary, as transformers writes it."""
    place = tmp_path_factory.mktemp("weights") / "tiny-clip"
    export.write(place, variables(CLIP(CONFIG, rngs=nnx.Rngs(1))), CONFIG, "hugging_face")
    return place


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "cat.png"
    picture(3, (40, 30)).save(path)
    return path


def test_the_tutorials_lines(folder, image):
    model, preprocess, tokenize = clip_jax.load(str(folder))
    pixels = preprocess(Image.open(image))[None]
    text = tokenize(["a diagram", "a dog", "a cat"])
    image_features = model.encode_image(pixels)
    text_features = model.encode_text(text)
    image_features /= jnp.linalg.norm(image_features, axis=-1, keepdims=True)
    text_features /= jnp.linalg.norm(text_features, axis=-1, keepdims=True)
    scale = jnp.exp(model.logit_scale[...])
    probs = jax.nn.softmax(scale * image_features @ text_features.T, axis=-1)
    output = model(pixels, text)
    assert probs.shape == (1, 3) and float(probs.sum()) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(
        jax.nn.softmax(output.logits_per_image, axis=-1), probs, rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(output.logits_per_text, output.logits_per_image.T)


def test_the_pipeline_answers_as_transformers_does(folder, image):
    classifier = clip_jax.pipeline("zero-shot-image-classification", model=str(folder))
    one = classifier(str(image), candidate_labels=["a cat", "a dog", "a sun"])
    assert [set(item) for item in one] == [{"label", "score"}] * 3
    assert sum(item["score"] for item in one) == pytest.approx(1, abs=1e-5)
    assert [i["score"] for i in one] == sorted((i["score"] for i in one), reverse=True)
    several = classifier([Image.open(image), str(image)], "a cat,a dog,a sun")
    for answer in several:
        assert [i["label"] for i in answer] == [i["label"] for i in one]
        for ours, first in zip(answer, one, strict=True):
            assert ours["score"] == pytest.approx(first["score"], rel=1e-5)
    ensemble = classifier(image, ["a cat", "a dog"], hypothesis_template=["{}", "a photo of {}."])
    assert len(ensemble) == 2


def test_the_pipeline_of_a_sigmoid_model_scores_each_label_alone():
    values = dataclasses.replace(
        CONFIG, embed_dim=16, logit_bias=-1.0, temperature=0.5, max_logit_scale=0.0
    )
    model = CLIP(values, rngs=nnx.Rngs(0))
    classifier = pretrained.ZeroShotClassifier(
        model, library.preprocess_of(values), lambda texts: clip_jax.tokenize(texts, 12)
    )
    labels = ["a cat", "a dog", "a sun"]
    together = {i["label"]: i["score"] for i in classifier(picture(0), labels)}
    for label in labels:
        (alone,) = classifier(picture(0), [label])
        assert alone["score"] == pytest.approx(together[label], rel=1e-4)


def test_a_lone_file_does_not_say_its_activation(folder, image, tmp_path, monkeypatch, capsys):
    """OpenAI's and open_clip's models have the same tensors and compute otherwise."""
    monkeypatch.setitem(ARCHITECTURES, "tiny", CONFIG)
    described = tmp_path / "described" / "renamed.safetensors"
    export.write(
        described, library.read_variables(library.find_weights(folder)), CONFIG, "open_clip"
    )
    file = tmp_path / "lone.safetensors"
    file.write_bytes(described.read_bytes())
    with pytest.warns(GuessedWarning, match="lone.safetensors.*QuickGELU.*activation=gelu"):
        quick = clip_jax.load("tiny", weights=file)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", GuessedWarning)
        told = clip_jax.load("tiny", weights=file, activation="quick_gelu")[0]
        exact, preprocess, _ = clip_jax.load("tiny", weights=file, activation="gelu")
        named = clip_jax.load("tiny-quickgelu", weights=file)[0]
        beside = clip_jax.load("tiny", weights=described)[0]  # its config stands beside it
    assert named.config == beside.config == told.config
    assert (quick.config, exact.config.activation) == (told.config, "gelu")
    pixels = preprocess(Image.open(image))[None]
    features = [np.asarray(m.encode_image(pixels, normalized=True)) for m in (quick, told, exact)]
    assert (features[0] == features[1]).all() and np.abs(features[0] - features[2]).max() > 1e-6

    argv = ["--checkpoint", "tiny", "--weights", str(file), str(image), "--labels", "a cat,a dog"]
    assert classify.run(argv) == 0
    assert capsys.readouterr().err.count("\n") == 1
    assert classify.run([*argv, "--activation", "gelu"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((["a"], "no place"), ["'no place'", "{}"]),
        (([],), ["label"]),
        ((None,), ["give labels", "classification"]),
        ((5,), ["labels", "5"]),
        ((["a"], 5), ["templates", "5"]),
    ],
)
def test_mistakes_in_a_call_are_named(folder, image, arguments, words):
    with pytest.raises(UserError) as caught:
        clip_jax.pipeline(model=str(folder))(image, *arguments)
    assert says(caught.value, *words)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda f: clip_jax.load("ViT-B/32"), ["weights=FILE", "downloaded"]),
        (lambda f: clip_jax.load("ViT-B/33"), ["ViT-B/33", "ViT-B/32"]),
        (lambda f: clip_jax.load("ViT-B/33", weights=f), ["ViT-B/33", "known"]),
        (lambda f: clip_jax.load("ViT-B/32", weights=f), ["does not hold ViT-B/32"]),
        (lambda f: clip_jax.load("RN50", weights=f / "nothing.pt"), ["nothing.pt"]),
        (lambda f: clip_jax.load(f, params="float8"), ["float8", "bfloat16"]),
        (lambda f: clip_jax.load(f, image_size=20), ["patch_size=8", "image_size=20"]),
        (lambda f: clip_jax.load(f, image_size=48.0), ["image_size=48.0", "whole"]),
        (lambda f: clip_jax.load(f, image_size=True), ["image_size=True", "whole"]),
        (lambda f: clip_jax.load(f, image_size=10**6), ["image_size=1000000", "8192"]),
        (lambda f: clip_jax.load(f, context_length=0), ["context_length", "at least 3"]),
        (lambda f: clip_jax.load(f, dtype="fp16"), ["dtype='fp16'", "bfloat16"]),
        (lambda f: clip_jax.load(f, activation="relu"), ["activation='relu'", "gelu"]),
        (lambda f: clip_jax.load(f, activation="gelu"), ["quick_gelu", "activation='gelu'"]),
        (lambda f: clip_jax.load(f, tokenizer=5), ["tokenizer", "not 5"]),
        (lambda f: clip_jax.load(""), ["model=''", "names nothing"]),
        (lambda f: clip_jax.load(None), ["model=None", "names nothing"]),
        (lambda f: clip_jax.load("x" * 6000), ["no run or model at"]),
        (lambda f: clip_jax.load("az://box/run"), ["az://box/run", "copy it"]),
        (lambda f: clip_jax.load("RN50", "https://a.b/RN50.pt"), ["https://a.b/", "copy it"]),
        (lambda f: clip_jax.load("openai/clip-vit-base-patch32"), ["none are downloaded"]),
        (lambda f: clip_jax.load("siglip-b16", f / "model.safetensors"), ["siglip-b16"]),
        (lambda f: clip_jax.pipeline(), ["model=''"]),
        (lambda f: clip_jax.pipeline("text-to-image", f), ["text-to-image", "image-to-text"]),
        (lambda f: clip_jax.pipeline("image-to-text", f), ["writes no captions"]),
    ],
)
def test_mistakes_in_loading_are_named(folder, call, words):
    with pytest.raises(UserError) as caught:
        call(folder)
    assert says(caught.value, *words)


def test_a_folder_without_a_tokenizer_says_so_when_one_is_needed(image):
    model, preprocess, tokenize = clip_jax.load(GOLDEN / "hugging_face_siglip")
    assert model.encode_image(preprocess(Image.open(image))[None]).shape == (1, 16)
    with pytest.raises(UserError) as caught:
        tokenize(["a cat"])
    assert says(caught.value, "hugging_face_siglip", "tokenizer=")
    file = GOLDEN.parent / "siglip.model"
    _, _, tokenize = clip_jax.load(GOLDEN / "hugging_face_siglip", tokenizer=f"siglip:{file}")
    assert tokenize(["ab"]).shape == (1, 8)


def test_parameters_are_kept_or_widened_by_choice(folder, tmp_path):
    parameters = variables(CLIP(CONFIG, rngs=nnx.Rngs(1)))
    export.write(tmp_path, parameters, CONFIG, "hugging_face", dtype="float16")
    kept, _, tokenize = clip_jax.load(tmp_path, params="keep")
    wide, _, _ = clip_jax.load(tmp_path)
    full, _, _ = clip_jax.load(folder)
    assert kept.text.projection.kernel[...].dtype == jnp.float16
    assert wide.text.projection.kernel[...].dtype == jnp.float32
    tokens = tokenize(["a cat"])
    np.testing.assert_allclose(kept.encode_text(tokens), wide.encode_text(tokens), atol=1e-4)
    assert np.abs(np.asarray(wide.encode_text(tokens) - full.encode_text(tokens))).max() > 0
    np.testing.assert_allclose(wide.encode_text(tokens), full.encode_text(tokens), atol=1e-2)


def test_other_sizes_by_choice(folder, image):
    model, preprocess, tokenize = clip_jax.load(folder, image_size=32, context_length=20)
    assert preprocess.size == 32 and tokenize(["a cat"]).shape == (1, 20)
    pixels = preprocess(Image.open(image))[None]
    assert model.encode_image(pixels).shape == (1, 12)
    same, _, _ = clip_jax.load(folder)
    np.testing.assert_array_equal(
        model.vision.positional_embedding[0], same.vision.positional_embedding[0]
    )


def test_another_size_keeps_how_pictures_are_resized(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "squash")
    path = place / "preprocessor_config.json"
    squash = {"size": {"height": 20, "width": 20}, "do_center_crop": True, "resample": 2}
    path.write_text(json.dumps(json.loads(path.read_text()) | squash))
    small, large = (clip_jax.load(place, image_size=size)[1] for size in (16, 32))
    assert (small.resize, small.resize_size, small.interpolation) == ("squash", 20, "bilinear")
    assert large == dataclasses.replace(small, size=32, resize_size=40)


def test_a_file_and_a_folder_in_hugging_faces_cache_are_models(folder, tmp_path):
    expected = clip_jax.load(folder)[0].vision.positional_embedding[...]
    repository = tmp_path / "models--openai--tiny"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    for i, file in enumerate(folder.iterdir()):
        blob = shutil.copy(file, repository / "blobs" / str(i))
        (snapshot / file.name).symlink_to(blob)
    for place in (repository, snapshot, snapshot / "model.safetensors"):
        model, preprocess, tokenize = clip_jax.load(place)
        np.testing.assert_array_equal(model.vision.positional_embedding[...], expected)
        assert preprocess.size == 16 and tokenize("a cat").shape == (1, 12)
    (repository / "refs" / "main").write_text("../../elsewhere")
    with pytest.raises(UserError):
        clip_jax.load(repository)


def test_a_column_of_names_is_several_pictures(folder, image):
    classifier = clip_jax.pipeline(model=folder)
    for kind in (object, str):
        column = np.array([str(image)] * 3, kind)
        assert len(classifier(column, ["a", "b"], "{}", batch_size=np.int64(2))) == 3


def test_the_classify_command_takes_other_libraries_folders(folder, image, capsys):
    assert classify.run(["--checkpoint", str(folder), str(image), "--labels", "a cat,a dog"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert {row.split("%  ")[1] for row in rows} == {"a cat", "a dog"}


def test_a_processor_config_is_read(folder, image, tmp_path):
    """transformers 5 writes no preprocessor_config.json."""
    expected = clip_jax.load(folder)[1]
    place = tmp_path / "new"
    shutil.copytree(folder, place)
    alone = place / "preprocessor_config.json"
    values = json.loads(alone.read_text()) | {"resample": 2, "image_mean": [0.5, 0.4, 0.3]}
    other = dataclasses.replace(expected, interpolation="bilinear", mean=(0.5, 0.4, 0.3))
    (place / "processor_config.json").write_text(
        json.dumps({"image_processor": values, "processor_class": "CLIPProcessor"})
    )
    assert clip_jax.load(place)[1] == other  # it counts more, as in transformers
    alone.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error", GuessedWarning)
        model, preprocess, _ = clip_jax.load(place)
    assert preprocess == other and model.config.vision.mean == (0.5, 0.4, 0.3)
    (place / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    with pytest.warns(GuessedWarning, match="preprocessor_config.json or processor_config.json"):
        assert clip_jax.load(place)[1].mean == expected.mean


@pytest.fixture(scope="module")
def classifier(folder):
    return clip_jax.pipeline(model=folder)


def test_many_pictures_stream_through_few_shapes(classifier):
    pictures = [np.asarray(picture(i, (20, 18))) for i in range(11)]
    labels = [f"label {i}" for i in range(30)]
    taken = []

    def given():
        for one in pictures:
            taken.append(one)
            yield one

    answers = classifier(given(), labels, ["{}", "a {}."], batch_size=2, top_k=3)
    first = next(answers)
    assert len(taken) <= 7  # some batches ahead, not all
    stream = [first, *answers]
    assert [len(answer) for answer in stream] == [3] * 11
    for one, answer in zip(pictures, stream, strict=True):
        alone = classifier(one, labels, ["{}", "a {}."])[:3]
        assert [a["label"] for a in alone] == [a["label"] for a in answer]
        for a, b in zip(alone, answer, strict=True):
            assert a["score"] == pytest.approx(b["score"], rel=1e-4)
    assert len(classifier(np.stack(pictures[:3]), labels)) == 3


def test_batches_are_of_one_shape(classifier, monkeypatch):
    shapes = {"image": [], "text": []}
    for tower in shapes:
        encode = getattr(CLIP, f"encode_{tower}")

        def counted(self, rows, *, encode=encode, tower=tower, **options):
            shapes[tower].append(rows.shape[0])
            return encode(self, rows, **options)

        monkeypatch.setattr(CLIP, f"encode_{tower}", counted)
    labels = [f"label {i}" for i in range(20)]
    classifier([picture(i) for i in range(9)], labels, batch_size=4)
    assert shapes["image"] == [4, 4, 4]
    classifier(picture(0), labels, batch_size=2)
    assert shapes["image"][3:] == [1] and shapes["text"] == [32, 16, 16]


def test_a_broken_picture_may_be_skipped(classifier):
    given = [picture(0), b"broken", "nowhere.png", picture(1)]
    with pytest.raises(UserError, match="bytes"):
        classifier(given, ["a cat", "a dog"])
    answers = classifier(given, ["a cat", "a dog"], skip_broken=True)
    assert [answer is None for answer in answers] == [False, True, True, False]
    assert classifier([b"broken"] * 3, ["a", "b"], skip_broken=True, batch_size=1) == [None] * 3


def test_labels_are_told_apart(classifier):
    answer = classifier(picture(0), 'a cat, "a dog, running" ,,5" pizza')
    assert {one["label"] for one in answer} == {"a cat", "a dog, running", '5" pizza'}
    with pytest.warns(GuessedWarning, match="'a cat' given more than once"):
        assert len(classifier(picture(0), ["a cat", "a dog", "a cat"])) == 2
    with pytest.warns(GuessedWarning, match="100 %"):
        classifier(picture(0), ["a cat"])
    long = ["a " * 50, "a dog"]
    with pytest.raises(UserError, match="truncate=True"):
        classifier(picture(0), long)
    assert len(classifier(picture(0), long, truncate=True)) == 2


@pytest.mark.parametrize(
    ("labels", "options", "words"),
    [
        ([1, 2], {}, ["must be a text", "1"]),
        (["a", " "], {}, ["must be a text"]),
        ('"a cat', {}, ["double quotes"]),
        (["a", "b"], {"batch_size": 0}, ["batch_size=0"]),
        (["a", "b"], {"top_k": 1.5}, ["top_k=1.5"]),
    ],
)
def test_mistakes_in_labels_and_options(classifier, labels, options, words):
    with pytest.raises(UserError) as caught:
        classifier(picture(0), labels, **options)
    assert says(caught.value, *words)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
def test_a_phones_picture_has_the_same_scores_by_every_way(classifier, tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"phone.{kind}"
    picture(7, (40, 24)).save(path, exif=exif)
    pixels = classifier.preprocess(Image.open(path))
    assert np.array_equal(classifier.preprocess(path), pixels)
    assert np.array_equal(classifier.preprocess(decoding.decode(path.read_bytes(), "x")), pixels)
    given = [path, str(path), Image.open(path), path.read_bytes(), decoding.read_image(path)]
    first, *others = classifier(given, ["a cat", "a dog"])
    assert all(other == first for other in others)
