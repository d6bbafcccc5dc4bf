"""Writes what is known of open_clip's models: our architectures of them, and golden shapes.

    pip install -e '.[parity]'
    python -m tools.build_open_clip_models clip_jax/models/architectures/open_clip.json \
        tests/golden/open_clip_shapes.json

The first file holds, by open_clip's names, the architectures that we have, without the values that
are defaults; the preprocessing of their published weights; and the names by which weights are
published (repositories of Hugging Face, files). The second file holds the number of parameters and
a digest of the names and shapes of the tensors of every model that open_clip can build.
"""

from __future__ import annotations

import collections
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from clip_jax.errors import UserError
from clip_jax.models.architectures.released import compact
from clip_jax.weights import configs
from tools.released_libraries import import_library

# open_clip fetches the configs of these text encoders; they are their published values.
_BERT = dict(layer_norm_eps=1e-5, type_vocab_size=1, max_position_embeddings=514)
_LARGE = dict(
    hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
)
_MT5 = dict(vocab_size=250112, d_kv=64, feed_forward_proj="gated-gelu", is_encoder_decoder=True)
_NLLB = dict(vocab_size=256206, encoder_attention_heads=16, scale_embedding=True)
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "roberta-base": ("RobertaConfig", dict(vocab_size=50265, **_BERT)),
    "xlm-roberta-base": ("XLMRobertaConfig", dict(vocab_size=250002, **_BERT)),
    "xlm-roberta-large": ("XLMRobertaConfig", dict(vocab_size=250002, **_BERT, **_LARGE)),
    "google/mt5-base": (
        "MT5Config",
        dict(d_model=768, d_ff=2048, num_layers=12, num_heads=12, **_MT5),
    ),
    "google/mt5-xl": (
        "MT5Config",
        dict(d_model=2048, d_ff=5120, num_layers=24, num_heads=32, **_MT5),
    ),
    "facebook/nllb-200-distilled-600M": (
        "M2M100Config",
        dict(d_model=1024, encoder_layers=12, encoder_ffn_dim=4096, **_NLLB),
    ),
    "facebook/nllb-200-distilled-1.3B": (
        "M2M100Config",
        dict(d_model=1024, encoder_layers=24, encoder_ffn_dim=8192, **_NLLB),
    ),
}


def read_configs(open_clip: Any) -> dict[str, dict[str, Any]]:
    """Returns the model_cfg of every model of open_clip."""
    folder = Path(open_clip.__file__).parent / "model_configs"
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def build(open_clip: Any, values: Mapping[str, Any]) -> Any:
    """Builds a model without memory for its parameters."""
    import torch
    import transformers

    def encoder(name: str, *_: Any, **__: Any) -> Any:
        kind, options = ENCODERS[name]
        return getattr(transformers, kind)(**options)

    options = {key: value for key, value in values.items() if key != "custom_text"}
    text = dict(options["text_cfg"])
    if "hf_model_name" in text:
        options["text_cfg"] = {**text, "hf_model_pretrained": False}
    given = mock.patch.object(transformers.AutoConfig, "from_pretrained", encoder)
    with given, torch.device("meta"):
        if "multimodal_cfg" in options:
            return open_clip.coca_model.CoCa(**options)
        if values.get("custom_text") or "hf_model_name" in text:
            return open_clip.model.CustomTextCLIP(**options)
        return open_clip.model.CLIP(**options)


def digest(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Returns a digest of the names and shapes of tensors."""
    lines = (f"{name} {tuple(n for n in shapes[name])}\n" for name in sorted(shapes))
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def shapes_of(open_clip: Any) -> dict[str, Any]:
    """Returns the number of parameters and the digest of each model, or why it cannot be built."""
    result: dict[str, Any] = {}
    for name, values in read_configs(open_clip).items():
        try:
            model = build(open_clip, values)
        except Exception as error:  # whatever open_clip's own code raises
            result[name] = f"{type(error).__name__}: {error}"[:100]
            continue
        count = sum(parameter.numel() for parameter in model.parameters())
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        result[name] = [count, digest(shapes)]
    return result


def _pixels(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "mean": list(values["mean"]),
        "std": list(values["std"]),
        "interpolation": values["interpolation"],
        "resize": values["resize_mode"],
    }


def models_of(open_clip: Any) -> dict[str, Any]:
    """Returns our architectures of open_clip's models, and the names of published weights."""
    published = open_clip.pretrained._PRETRAINED
    pixels: dict[str, dict[str, Any]] = {}
    for name, tags in published.items():
        ways = collections.Counter(json.dumps(_pixels(values)) for values in tags.values())
        if ways:
            pixels[name] = json.loads(ways.most_common(1)[0][0])
    models = {}
    for name, values in read_configs(open_clip).items():
        try:
            config = configs.from_open_clip(values)
        except UserError:
            continue
        models[name] = {"model": compact(config), "pixels": pixels.get(name, {})}
    hub: dict[str, Any] = {}
    files: dict[str, Any] = {}
    for name, tags in published.items():
        for tag, values in tags.items():
            quick = name if name.endswith("-quickgelu") else f"{name}-quickgelu"
            exact = quick if values.get("quick_gelu") and quick in models else name
            if exact not in models:
                continue
            own = _pixels(values)
            entry = [exact] if own == pixels[exact] else [exact, own]
            if values.get("hf_hub"):
                hub[values["hf_hub"].rstrip("/")] = entry
            if values.get("url") and not tag.startswith("openai"):  # told by what they hold
                files[values["url"].rsplit("/", 1)[-1]] = entry
    return {"models": models, "hub": hub, "files": files}


def main() -> None:
    """Writes both files."""
    open_clip = import_library("open_clip")
    for path, values in ((sys.argv[1], models_of), (sys.argv[2], shapes_of)):
        lines = json.dumps(values(open_clip), indent=1, sort_keys=True)
        Path(path).write_text(lines + "\n")


if __name__ == "__main__":
    main()
