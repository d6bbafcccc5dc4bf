"""A model into another library's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clip_jax.data.images import preprocess as preprocessing
from clip_jax.data.images.preprocess import Preprocess
from clip_jax.errors import UserError
from clip_jax.io import files
from clip_jax.models.clip import Variables
from clip_jax.models.model_config import CLIPConfig
from clip_jax.tokenizers import Tokenizer
from clip_jax.weights import arrays, configs
from clip_jax.weights.library import CONFIG, PREPROCESSOR, WEIGHTS, dtype_of, preprocess_of
from clip_jax.weights.param_mapping import LIBRARIES, Library, leaves
from clip_jax.weights.tensor_writing import write_safetensors, write_torch


def write(
    path: str | Path,
    held: Variables,
    config: CLIPConfig,
    library: Library,
    *,
    preprocess: Preprocess | None = None,
    tokenizer: Tokenizer | None = None,
    dtype: str = "keep",
) -> Path:
    """Writes a model for another library; each file is there whole or not at all.

    Args:
      path: a folder, or the weights' file (.safetensors, .bin, .pt); configs go beside it.
      held: a model's parameters and batch statistics.
      config: its architecture.
      library: for whom.
      preprocess: of the model; the kind's own when None.
      tokenizer: of the model; its files go into a folder of transformers'.
      dtype: of `arrays.DTYPES`: what parameters are written in.

    Returns:
      The file of the weights.

    Raises:
      UserError: the library has no such model.
    """
    if library not in LIBRARIES:
        raise UserError(f"unknown library {library!r}; known: {', '.join(LIBRARIES)}")
    file = weights_file(path, library)
    tensors = arrays.write(held, config, library, dtype_of(dtype))
    described = documents(config, library, preprocess or preprocess_of(config))
    if file.suffix == ".safetensors":
        write_safetensors(file, tensors)
    else:
        write_torch(file, tensors)
    for name, values in described.items():
        with files.whole(file.parent / name) as out:
            out.write((json.dumps(values, indent=2) + "\n").encode())
    if library == "hugging_face" and tokenizer is not None:
        writer = getattr(tokenizer, "write_hugging_face", None)
        if writer is not None:
            writer(file.parent)
    return file


def weights_file(path: str | Path, library: Library) -> Path:
    """Where `write` puts the weights: `path` if it names a file of weights, or in that folder."""
    path = Path(path).expanduser()
    return path if path.suffix in (".safetensors", ".bin", ".pt") else path / WEIGHTS[library]


def documents(
    config: CLIPConfig, library: Library, preprocess: Preprocess
) -> dict[str, dict[str, Any]]:
    """The JSON files that say what the weights beside them are, by name.

    Raises:
      UserError: the library has no such model, or would take it for another.
    """
    leaves(config, library)
    if library == "openai":
        _check_said(config, configs.as_openai(config), library)
        return {}
    if library == "hugging_face":
        values = configs.to_hugging_face(config)
        said = configs.from_hugging_face(values)
        pixels = preprocessing.to_hugging_face(preprocess, values["model_type"])
        found = {CONFIG[library]: values, PREPROCESSOR: pixels}
    else:
        values = configs.to_open_clip(config)
        said = configs.from_open_clip(values)
        pixels = preprocessing.to_open_clip(preprocess)
        found = {CONFIG[library]: {"model_cfg": values, "preprocess_cfg": pixels}}
    said = configs.with_normalization(said, preprocess.mean, preprocess.std)
    _check_said(config, configs.essence(said), library)
    return found


def _check_said(config: CLIPConfig, said: dict[str, Any], library: Library) -> None:
    for key, ours, theirs in configs.differences(configs.essence(config), said):
        raise UserError(
            f"{library} has no way to say model.{key}={ours!r}: it would compute with {theirs!r}"
        )
