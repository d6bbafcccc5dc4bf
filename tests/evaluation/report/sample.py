"""An evaluation as suites make it, with embedded emoji as pictures; all numbers are made up."""

from __future__ import annotations

import functools
import io
import math
import random
from typing import Any

from PIL import Image

from clip_jax.data.sources import open_source
from clip_jax.evaluation.metrics import robustness
from clip_jax.evaluation.report import thumbnail

TITLES = {
    "imagenet": ("ImageNet", 1000, 50_000),
    "cifar10": ("CIFAR-10", 10, 10_000),
    "cifar100": ("CIFAR-100", 100, 10_000),
    "food101": ("Food-101", 101, 25_250),
    "oxford_pets": ("Oxford-IIIT Pets", 37, 3_669),
    "flickr30k": ("Flickr30k", 0, 1_000),
    "eurosat": ("EuroSAT", 10, 5_000),
    "rendered_sst2": ("Rendered SST2", 2, 1_821),
}
SHIFTS = {
    "ImageNet V2": "imagenet_v2",
    "ImageNet-A": "imagenet_a",
    "ImageNet-R": "imagenet_r",
    "ImageNet Sketch": "imagenet_sketch",
    "ObjectNet": "objectnet",
    "ImageNet Vid": "imagenet_vid",
}


@functools.cache
def emoji(count: int) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Thumbnails of the first emoji of the test by id, and their names in the same order."""
    source = open_source("embedded:emoji/unseen_drawing-*.tar")
    pictures, names = {}, []
    for i in range(count):
        pair = source[i * 7 % len(source)]
        image = Image.open(io.BytesIO(pair.image))
        pictures[f"picture/{i}"] = thumbnail(image)
        text = pair.text
        names.append(str(text.get("name", i)) if isinstance(text, dict) else str(text))
    return pictures, tuple(names)


def score(value: float, n: int = 10_000) -> dict[str, Any]:
    half = 1.96 * math.sqrt(value * (1 - value) / max(1, n))
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half), "n": n}


def shift(name: str, value: float, reference: float = 0.79) -> dict[str, Any]:
    """A shifted set beside ImageNet, with the standard models there are."""
    result: dict[str, Any] = {"score": score(value), "reference": score(reference)}
    models = robustness.standard(name)
    points = models.beside(reference)
    if points:
        slope, intercept = robustness.fit_logit_line(points)
        result["line"] = {"slope": slope, "intercept": intercept, "models": len(points)}
        result["line"] |= {} if models.knee is None else {"knee": models.knee}
        result["standard"] = list(map(list, models.points))
    return result | {"effective": robustness.effective(value, reference, points)}


class Maker:
    """Parts of the dict, from one seed."""

    def __init__(self, pictures: int = 60, examples: int = 9) -> None:
        self.rng = random.Random(0)
        self.pictures, self.names = emoji(pictures)
        self.ids = list(self.pictures)
        self.count = examples

    def zero_shot(self, classes: int, n: int) -> dict[str, Any]:
        rng, value = self.rng, self.rng.uniform(0.35, 0.92)
        labels = [
            self.names[i % len(self.names)] + (f" {i}" if i >= len(self.names) else "")
            for i in range(classes)
        ]
        per_class = [
            {
                "label": label,
                "n": n // classes,
                "accuracy": min(1.0, max(0.0, rng.gauss(value, 0.15))),
            }
            for label in labels
        ]
        bins = []
        for i in range(15):
            right = min(1.0, max(0.0, (i + 0.5) / 15 * 0.9 + rng.gauss(0, 0.03)))
            bins.append(
                {
                    "low": i / 15,
                    "high": (i + 1) / 15,
                    "n": int(n * (i + 1) ** 2 / 1240),
                    "confidence": (i + 0.5) / 15,
                    "accuracy": right if i > 1 else None,
                }
            )
        return {
            "metric": "accuracy",
            "score": score(value, n),
            "metrics": {"top1": value, "top5": min(1.0, value + 0.12)},
            "prompts": {
                "name alone": score(value - 0.048, n),
                "one template": score(value - 0.03, n),
                "all templates": score(value, n),
            },
            "per_class": per_class,
            "confusions": [
                {
                    "truth": rng.choice(labels),
                    "predicted": rng.choice(labels),
                    "count": 40 - 3 * i,
                    "share": 0.04 - 0.003 * i,
                }
                for i in range(8)
            ],
            "calibration": {
                "ece": 0.051,
                "mce": 0.3,
                "nll": 1.23,
                "brier": 0.31,
                "temperature": 1.3,
                "ece_after": 0.018,
                "bins": bins,
            },
            "examples": [self.example(labels) for _ in range(self.count)],
        }

    def example(self, labels: list[str]) -> dict[str, Any]:
        rng, k = self.rng, min(5, len(labels))
        shown = rng.sample(labels, k)
        rest = sorted((rng.random() ** 3 for _ in range(k)), reverse=True)
        i = rng.randrange(len(self.ids))
        truth = shown[0] if rng.random() < 0.6 else rng.choice([*shown, labels[-1]])
        return {
            "picture": self.ids[i],
            "name": f"{i:05}.webp",
            "truth": truth,
            "labels": shown,
            "probabilities": [p / sum(rest) for p in rest],
        }

    def probe(self, zero: float) -> dict[str, Any]:
        value = min(0.99, max(0.05, zero + self.rng.uniform(-0.08, 0.2)))
        sweep = [
            {"lambda": 10 ** (-6 + 12 * i / 95), "accuracy": value - 0.004 * (i / 6 - 7) ** 2 / 4}
            for i in range(0, 96, 5)
        ]
        return {
            "score": score(value),
            "metric": "accuracy",
            "lambda": 10 ** (-6 + 12 * 40 / 95),
            "train": 45_000,
            "validation": 5_000,
            "sweep": sweep,
        }

    def few(self, zero: float) -> dict[str, Any]:
        mean = [zero * s for s in (0.55, 0.72, 0.88, 1.0, 1.07)]
        return {
            "shots": [1, 2, 4, 8, 16],
            "seeds": 3,
            "mean": [min(0.98, m) for m in mean],
            "std": [0.04, 0.03, 0.02, 0.01, 0.006],
            "zero_shot": zero,
        }

    def retrieval(self) -> dict[str, Any]:
        rng = self.rng

        def way(base: float) -> dict[str, Any]:
            return {f"r{k}": score(1 - (1 - base) / k**0.6, 1000) for k in (1, 5, 10)}

        gallery = [
            {
                "text": f"a drawing of {rng.choice(self.names)}",
                "pictures": rng.sample(self.ids, 6),
                "similarities": [0.34 - 0.02 * i for i in range(6)],
                "own": [i == j % 3 for i in range(6)],
            }
            for j in range(4)
        ]
        arithmetic = [
            {
                "picture": rng.choice(self.ids),
                "text": text,
                "sign": sign,
                "found": rng.sample(self.ids, 5),
            }
            for text, sign in (("red", "+"), ("at night", "+"), ("water", "-"))
        ]
        return {
            "images": 1000,
            "texts": 5000,
            "image_to_text": way(0.789),
            "text_to_image": way(0.588),
            "gallery": gallery,
            "arithmetic": arithmetic,
        }

    def bias(self) -> dict[str, Any]:
        races = [
            "Black",
            "White",
            "Indian",
            "Latino",
            "Middle Eastern",
            "Southeast Asian",
            "East Asian",
        ]
        rows = [[race, 1500, self.rng.uniform(0.01, 0.2), score(0.12, 1500)] for race in races]
        return {
            "tables": [
                {
                    "title": "Crime-related and non-human labels by race",
                    "columns": ["Race", "Images", "Non-human", "Crime-related"],
                    "rows": rows,
                    "note": "Share of pictures whose likeliest label is one.",
                }
            ]
        }

    def overlap(self) -> dict[str, Any]:
        pairs = [
            {"test": a, "train": b, "similarity": 0.99 - 0.003 * i}
            for i, (a, b) in enumerate(zip(self.ids[:8], self.ids[1:9], strict=True))
        ]
        return {
            "threshold": 0.95,
            "all": score(0.631),
            "clean": score(0.63),
            "overlap": score(0.7, 80),
            "overlapping": 80,
            "share": 0.008,
            "difference": 0.001,
            "p_value": 0.3,
            "low": 0.55,
            "high": 0.82,
            "pairs": pairs,
        }

    def similarity(self) -> dict[str, Any]:
        n = 8
        matrix = [
            [
                0.31 - 0.02 * self.rng.random() if i == j else 0.12 + 0.14 * self.rng.random()
                for j in range(n)
            ]
            for i in range(n)
        ]
        return {
            "set": "emoji",
            "pictures": self.ids[:n],
            "texts": [f"an emoji of {x}" for x in self.names[:n]],
            "matrix": matrix,
        }


def curves() -> dict[str, list[list[float]]]:
    rng, steps = random.Random(1), range(0, 12_800, 10)
    loss = [[s, 7.6 * math.exp(-s / 2500) + 1.1 + 0.08 * rng.random()] for s in steps]
    rate = [
        [s, 5e-4 * (s / 2000 if s < 2000 else 0.5 + 0.5 * math.cos((s - 2000) / 3500))]
        for s in steps
    ]
    values = {"loss": loss, "learning_rate": rate}
    for name in ("cifar10", "imagenet"):
        values[f"zero_shot/{name}/top1"] = [
            [s, 0.7 * (1 - math.exp(-s / 4000))] for s in range(0, 12_801, 800)
        ]
    return values


def sample(
    titles: dict[str, tuple[str, int, int]] | None = None, *, pictures: int = 60, examples: int = 9
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The dict and its pictures, the same at every call."""
    make = Maker(pictures, examples)
    sets: dict[str, Any] = {}
    for name, (title, classes, n) in (titles or TITLES).items():
        result: dict[str, Any] = {
            "title": title,
            "split": "test",
            "images": n,
            "classes": classes,
            "paper": True,
        }
        if classes:
            result["zero_shot"] = make.zero_shot(classes, n)
            value = result["zero_shot"]["score"]["value"]
            result |= {"linear_probe": make.probe(value), "few_shot": make.few(value)}
            if titles is None:
                shared = ("metric", "score", "metrics", "examples")
                result["scoring"] = {key: result["zero_shot"][key] for key in shared}
            result["classifier"] = {
                "metric": "accuracy",
                "score": {"value": 0.8125},
                "metrics": {"top1": 0.8125},
                "note": "",
            }
            if name == "mnist":
                result["classifier"] |= {"score": None, "note": "'zero' is no class of its"}
        else:
            result["retrieval"] = make.retrieval()
            result["captioning"] = {
                "cider": 0.9,
                "bleu4": 0.3,
                "images": 100,
                "beams": 1,
                "examples": [{"picture": "none", "caption": "a cat", "truths": ["a black cat"]}],
            }
            result["perplexity"] = {"loss": 1.5, "perplexity": 4.48, "captions": 100, "tokens": 900}
            result["validation_loss"] = {
                "loss": 1.25,
                "image_to_text_accuracy": 0.625,
                "text_to_image_accuracy": 0.5,
                "batch_size": 256,
                "batches": 19,
            }
        sets[name] = result
    first = next(iter(sets.values()))
    first["note"] = "the validation pictures stand for the test"
    first |= {"bias": make.bias(), "overlap": make.overlap()}
    shifts = {name: shift(key, 0.76 - 0.09 * i) for i, (name, key) in enumerate(SHIFTS.items())}
    results = {
        "version": 1,
        "model": {
            "name": "ViT-B/32",
            "checkpoint": "runs/laion_b32/checkpoints/12800",
            "step": 12_800,
            "parameters": 151_277_313,
            "image_size": 224,
            "dtype": "float32",
            "created": "2026-11-23T01:02:03Z",
        },
        "curves": curves(),
        "sets": sets,
        "robustness": {"reference": "imagenet", "shifts": shifts},
        "similarity": make.similarity(),
        "missing": [
            {
                "set": "birdsnap",
                "why": "download the pictures by the list of birdsnap.tgz to "
                "data/birdsnap, one folder a class",
            }
        ],
        "seconds": 1234.5,
    }
    return results, dict(make.pictures)
