"""The parts of an architecture that features depend on, and differences of two architectures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from clip_jax.io.files import JsonObject
from clip_jax.models.coca_configs import MultimodalConfig
from clip_jax.models.model_config import CLIPConfig


def essence(config: CLIPConfig) -> JsonObject:
    """Returns the parts of an architecture that features depend on, as nested dictionaries.

    Initial values, training-only fields, heads, the number of patches of a NaFlex and the context
    length of a BERT are left out. The decoder of a CoCa stays, since other libraries have it, too.
    """
    others = [name for name, head in config.heads if not isinstance(head, MultimodalConfig)]
    values = config.without_heads(others).to_dict()
    del values["temperature"], values["max_logit_scale"]
    values["logit_bias"] = config.logit_bias is not None
    for tower in (values["vision"], values["text"]):
        for key in ("patch_dropout", "momentum", "max_num_patches"):
            tower.pop(key, None)
        if tower.get("activation") == config.activation:
            tower["activation"] = ""
        if "mlp_ratio" in tower:  # it stands for a whole number
            tower["mlp_ratio"] = round(tower["width"] * tower["mlp_ratio"]) / tower["width"]
    if values["text"].get("pool") != "eos":
        values["text"].pop("eos_id", None)
    if config.text.any_length:
        del values["text"]["context_length"]
    return values


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yields the differences of nested dictionaries: key, such as `vision.eps`, and both values."""
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}", a, b


def with_normalization(
    config: CLIPConfig, mean: tuple[float, ...], std: tuple[float, ...]
) -> CLIPConfig:
    """Returns the same model with another mean and deviation of its images."""
    return config.with_vision(mean=mean, std=std)
