"""Writes a model into another library's files."""

from __future__ import annotations

import json
from pathlib import Path

from clip_jax.data.images.preprocess import Preprocess
from clip_jax.errors import UserError
from clip_jax.io import files
from clip_jax.io.buckets import on_disk
from clip_jax.models.clip import Variables
from clip_jax.models.model_config import CLIPConfig
from clip_jax.tokenizers import Tokenizer
from clip_jax.weights import arrays, configs
from clip_jax.weights.library import dtype_of, preprocess_of
from clip_jax.weights.mappings.protocol import Document
from clip_jax.weights.param_mapping import Library, leaves, mapping_of
from clip_jax.weights.tensor_writing import write_safetensors, write_torch


def write(
    path: str | Path,
    variables: Variables,
    config: CLIPConfig,
    library: Library,
    *,
    preprocess: Preprocess | None = None,
    tokenizer: Tokenizer | None = None,
    dtype: str = "keep",
) -> Path:
    """Writes a model for another library; each file is written whole or not at all.

    Args:
      path: a folder, or the file of weights (.safetensors, .bin, .pt); configs go beside it.
      variables: the model's parameters and batch statistics.
      config: its architecture.
      library: a name of `param_mapping.MAPPINGS`, or the dotted path of a user's own.
      preprocess: the model's preprocessing; None: as such models were published.
      tokenizer: the model's tokenizer; its files go into a folder of transformers or of open_clip.
      dtype: the dtype of the written parameters, one of `arrays.DTYPES`.

    Returns:
      The file of weights.

    Raises:
      UserError: the library has no such model.
    """
    file = weights_file(path, library)
    tensors = arrays.to_tensors(variables, config, library, dtype_of(dtype))
    beside = documents(config, library, preprocess or preprocess_of(config), tokenizer)
    if file.suffix == ".safetensors":
        write_safetensors(file, tensors)
    else:
        write_torch(file, tensors)
    for name, values in beside.items():
        with files.atomic_write(file.parent / name) as out:
            out.write((json.dumps(values, indent=2) + "\n").encode())
    if library in ("hugging_face", "open_clip") and tokenizer is not None:
        writer = getattr(tokenizer, f"write_{library}", None)
        if writer is not None:
            writer(file.parent)
            if library == "hugging_face" and not config.text.blind_to_padding:
                _leave_out_mask(file.parent / "tokenizer_config.json")
    return file


def _leave_out_mask(path: Path) -> None:
    """Tells transformers to give a text tower that attends to padding no mask of it."""
    settings = files.read_json(path) if path.is_file() else {}
    settings = {**settings, "model_input_names": ["input_ids"]}
    with files.atomic_write(path) as out:
        out.write((json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode())


def weights_file(path: str | Path, library: Library) -> Path:
    """Returns where `write` puts the weights: `path` itself if it names a file, or a file in it."""
    path = on_disk(path)
    if path.suffix in (".safetensors", ".bin", ".pt"):
        return path
    return path / mapping_of(library).weights_file


def documents(
    config: CLIPConfig,
    library: Library,
    preprocess: Preprocess,
    tokenizer: Tokenizer | None = None,
) -> dict[str, Document]:
    """Returns the JSON files that describe the weights beside them, by name.

    Args:
      config: the architecture.
      library: as for `write`.
      preprocess: the model's preprocessing.
      tokenizer: the model's tokenizer, which open_clip's config names; None: that of the released
        models of this kind.

    Raises:
      UserError: the library has no such model, or would build a different one from these files.
    """
    leaves(config, library)
    mapping = mapping_of(library)
    beside = mapping.documents(config, preprocess)
    theirs = mapping.interpret(config, preprocess, beside)
    for key, our_value, their_value in configs.differences(configs.essence(config), theirs):
        raise UserError(
            f"{library} has no way to say model.{key}={our_value!r}: it would compute with "
            f"{their_value!r}"
        )
    settings = getattr(tokenizer, "open_clip_settings", None)
    if library == "open_clip" and settings is not None:
        return {name: _with_tokenizer(values, settings) for name, values in beside.items()}
    return beside


def _with_tokenizer(document: Document, settings: Document) -> Document:
    """Returns open_clip's config with the keys that describe a tokenizer.

    It keeps the tokenizer's name of the released model, if any: from a folder open_clip reads the
    tokenizer in the folder, whatever its name is.
    """
    keys = ("hf_tokenizer_name", "tokenizer_kwargs")
    model = dict(document["model_cfg"])
    text = {key: value for key, value in model["text_cfg"].items() if key not in keys}
    name = model["text_cfg"].get("hf_tokenizer_name")
    named = {"hf_tokenizer_name": name} if name and settings else {}
    model["text_cfg"] = {**text, **settings, **named}
    return {**document, "model_cfg": model}
