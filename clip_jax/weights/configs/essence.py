"""What of an architecture its features depend on, and where two of them differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from clip_jax.models.model_config import MEAN, STD, BertConfig, CLIPConfig, ResNetConfig


def essence(config: CLIPConfig) -> dict[str, Any]:
    """All of an architecture that features depend on, as nested dictionaries.

    Not where training starts, what only training does, and how long the rows of a BERT are.
    """
    values = config.to_dict()
    del values["temperature"], values["max_logit_scale"]
    values["logit_bias"] = config.logit_bias is not None
    for tower in (values["vision"], values["text"]):
        for key in ("patch_dropout", "momentum"):
            tower.pop(key, None)
        if "mlp_ratio" in tower:  # which means a whole number
            tower["mlp_ratio"] = round(tower["width"] * tower["mlp_ratio"]) / tower["width"]
    if isinstance(config.text, BertConfig):
        del values["text"]["context_length"]
    return values


def as_openai(config: CLIPConfig) -> dict[str, Any]:
    """The `essence` of what OpenAI's code, which sees the shapes alone, takes a model for."""
    values = essence(config)
    vision, text = values["vision"], values["text"]
    values["activation"] = "quick_gelu"
    vision |= dict(heads=max(1, vision["width"] // 64), eps=1e-5, mean=MEAN, std=STD)
    if isinstance(config.vision, ResNetConfig):
        vision["heads"] = max(1, vision["width"] // 2)
    else:
        vision |= dict(mlp_ratio=4.0, ragged=False)
    text |= dict(heads=max(1, text["width"] // 64), mlp_ratio=4.0, eps=1e-5)
    return values


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Where two nested dictionaries differ: the key, such as `vision.eps`, and both values."""
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}", a, b


def with_normalization(
    config: CLIPConfig, mean: tuple[float, ...], std: tuple[float, ...]
) -> CLIPConfig:
    """The same model with other constants that its images are normalised by."""
    return dataclasses.replace(
        config, vision=dataclasses.replace(config.vision, mean=mean, std=std)
    )
