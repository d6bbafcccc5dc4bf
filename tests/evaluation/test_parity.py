"""A random open_clip model is judged here as code in torch judges it, on the same pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import released
from clip_jax import main
from support import encoded, picture, write_tar

CLASSES = ["tabby cat", "beagle", "red fox", "school bus", "acorn"]
TEMPLATES = ("a photo of a {}.", "a bad photo of the {}.", "{} in a drawing")
CAPTIONS = ("a {} on grass", "one {}", "the {} that everybody knows")
SIZE = 32

Torch = tuple[Any, Callable[..., Any], Callable[..., Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parity")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Torch:
    """The model, its transform and its tokenizer; its files are in `folder/model`."""
    open_clip = released.open_clip()
    import torch
    from safetensors.torch import save_file

    config = {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {"image_size": SIZE, "patch_size": 8, "width": 64, "layers": 2},
        "text_cfg": {
            **{"context_length": 77, "vocab_size": 49408},
            **{"width": 64, "heads": 4, "layers": 2},
        },
    }
    torch.manual_seed(0)
    model = open_clip.CLIP(**config).eval()
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    path = folder / "model"
    path.mkdir()
    save_file(model.state_dict(), path / "open_clip_model.safetensors")
    pixels = {"mean": mean, "std": std, "interpolation": "bicubic", "resize_mode": "shortest"}
    document = {"model_cfg": config, "preprocess_cfg": pixels}
    (path / "open_clip_config.json").write_text(json.dumps(document))
    transform = open_clip.image_transform(SIZE, is_train=False, mean=mean, std=std)
    return model, transform, open_clip.SimpleTokenizer()


@pytest.fixture(scope="module")
def images() -> list[Any]:
    """Pictures of several sizes, whose colour says a little of their class."""
    pictures = []
    for i in range(60):
        noise = np.asarray(picture(i, (40 + i % 7, 36 + i % 5)), np.float32)
        noise[..., i % 3] *= 0.2 + 0.15 * (i % len(CLASSES))
        pictures.append(noise.astype(np.uint8))
    return pictures


@pytest.fixture(scope="module")
def report(folder: Path, theirs: Torch, images: list[Any]) -> dict[str, Any]:
    """What our command says of the model on the pictures in two layouts."""
    from PIL import Image

    tar = []
    for i, pixels in enumerate(images):
        content = encoded(Image.fromarray(pixels))
        name = CLASSES[i % len(CLASSES)]
        path = folder / "data" / "classes" / name / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        captions = [caption.format(f"{name} {i}") for caption in CAPTIONS]
        tar += [(f"{i:03}.png", content), (f"{i:03}.txt", "\n".join(captions).encode())]
    write_tar(folder / "data" / "captions" / "test" / "0.tar", tar)
    (folder / "data" / "captions" / "test" / "nshards.txt").write_text("1")
    main.run(
        [
            *("--config", "configs/vit_b32.py", "--mode=evaluate"),
            *("--checkpoint", str(folder / "model"), "--workdir", str(folder / "out")),
            f"--sets=classes={folder}/data/classes,flickr30k={folder}/data/captions",
            f"--config.evaluate.templates={TEMPLATES}",
            "--config.evaluate.batch_size=16",
        ]
    )
    return json.loads((folder / "out" / "report.json").read_text())


def features_of(theirs: Torch, images: list[Any], texts: list[str]) -> tuple[Any, Any]:
    import torch
    from PIL import Image

    model, transform, tokenize = theirs
    with torch.no_grad():
        pixels = torch.stack([transform(Image.fromarray(image)) for image in images])
        return (
            model.encode_image(pixels, normalize=True),
            model.encode_text(tokenize(texts), normalize=True),
        )


def test_zero_shot(theirs: Torch, images: list[Any], report: dict[str, Any]) -> None:
    from sklearn.metrics import balanced_accuracy_score

    classes = sorted(CLASSES)
    columns = []
    for name in classes:
        _, texts = features_of(theirs, images[:1], [t.format(name) for t in TEMPLATES])
        column = texts.mean(dim=0)
        columns.append(column / column.norm())
    import torch

    vision, _ = features_of(theirs, images, ["x"])
    logits = (100.0 * vision @ torch.stack(columns, dim=1)).numpy()
    target = np.array([classes.index(CLASSES[i % len(CLASSES)]) for i in range(len(images))])
    by_path = np.argsort(target, kind="stable")
    predicted = logits.argmax(axis=1)
    top = np.sort(logits, axis=1)
    assert (top[:, -1] - top[:, -2]).min() > 1e-4, "no picture hangs on rounding"

    result = report["sets"]["classes"]["zero_shot"]
    assert result["score"]["value"] == pytest.approx((predicted == target).mean(), abs=1e-9)
    assert 0.1 < result["score"]["value"] < 0.9, "something to get wrong, and right"
    per_class = balanced_accuracy_score(target, predicted)
    assert result["metrics"]["mean_per_class"] == pytest.approx(per_class, abs=1e-9)
    assert result["metrics"]["top5"] == 1.0
    for row in result["per_class"]:
        of_class = target == classes.index(row["label"])
        assert row["n"] == of_class.sum()
        assert row["accuracy"] == pytest.approx((predicted == target)[of_class].mean(), abs=1e-9)
    shown = {example["name"] for example in result["examples"]}
    assert len(shown) == 12
    names = [f"{i:03}.png" for i in by_path]
    for example in result["examples"]:
        i = int(Path(example["name"]).stem)
        assert f"{i:03}.png" in names
        assert example["labels"][0] == classes[predicted[i]]
        scale = float(theirs[0].logit_scale.detach().exp())
        shares = np.exp(scale / 100 * (logits[i] - logits[i].max()))
        best = np.sort(shares / shares.sum())[::-1]
        assert np.allclose(example["probabilities"], best[:5], atol=1e-4)


def test_retrieval(theirs: Torch, images: list[Any], report: dict[str, Any]) -> None:
    texts = [
        caption.format(f"{CLASSES[i % len(CLASSES)]} {i}")
        for i in range(len(images))
        for caption in CAPTIONS
    ]
    vision, text = (part.numpy() for part in features_of(theirs, images, texts))
    similarity = vision @ text.T
    owner = np.repeat(np.arange(len(images)), len(CAPTIONS))
    result = report["sets"]["flickr30k"]["retrieval"]
    assert (result["images"], result["texts"]) == (60, 180)
    for k in (1, 5, 10):
        nearest = np.argsort(-similarity, axis=1)[:, :k]
        forth = np.mean([(owner[row] == i).any() for i, row in enumerate(nearest)])
        nearest = np.argsort(-similarity.T, axis=1)[:, :k]
        back = np.mean([owner[j] in row for j, row in enumerate(nearest)])
        assert result["image_to_text"][f"r{k}"]["value"] == pytest.approx(forth, abs=1e-9)
        assert result["text_to_image"][f"r{k}"]["value"] == pytest.approx(back, abs=1e-9)
    assert 0 < result["text_to_image"]["r10"]["value"] < 1
