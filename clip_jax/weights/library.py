"""Recognizes, describes and reads models in the files of other libraries."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from clip_jax import tokenizers
from clip_jax.data.images.preprocess import Preprocess
from clip_jax.errors import UserError
from clip_jax.io import files
from clip_jax.models import architectures
from clip_jax.models.architectures import ARCHITECTURES, released
from clip_jax.models.clip import Variables, abstract_model, variables
from clip_jax.models.model_config import CLIPConfig
from clip_jax.weights import arrays, configs
from clip_jax.weights.param_mapping import (
    MAPPINGS,
    OPENAIS_OWN,
    Library,
    is_ignored,
    leaves,
    mapping_of,
)
from clip_jax.weights.tensors import ModelTensors, Tensors, open_model

_QUICK_GELU_ASSUMED = (
    "no config is known of {} that says its activation: QuickGELU is taken, as in OpenAI's models; "
    "open_clip's own, but for those called -quickgelu, need activation=gelu"
)


def usual_files(library: Library = "") -> frozenset[str]:
    """Returns the usual names of files of weights: those of our mappings and of a user's `library`.

    Configs beside files of other names may describe other models.
    """
    names = {name: mapping_of(name).weights_file for name in (*MAPPINGS.names, library) if name}
    return frozenset((*names.values(), "pytorch_model.bin", "open_clip_pytorch_model.bin"))


@dataclasses.dataclass(frozen=True)
class SavedWeights:
    """A file or folder of weights, before its tensors are read.

    Attributes:
      path: the file or folder.
      library: the library whose names it uses.
      config: the architecture; sizes are the file's own.
      preprocess: turns an image into pixels.
      tokenizer: the tokenizer, as for `tokenizers.load`; None if there is none beside the weights.
      assumptions: what was assumed because no file states it, in words; empty if nothing was.
    """

    path: Path
    library: Library
    config: CLIPConfig
    preprocess: Preprocess
    tokenizer: str | None
    assumptions: str = ""


def is_weights(path: Path) -> bool:
    """Returns whether a folder holds another library's model; it may be in Hugging Face's cache."""
    path = snapshot(path)
    if (path / mapping_of("open_clip").config_file).is_file():
        return True
    # a run's folder has a file of this name, too
    config = path / mapping_of("hugging_face").config_file
    return config.is_file() and "model_type" in files.read_json(config)


def snapshot(path: Path) -> Path:
    """Returns the snapshot `main` of a folder in Hugging Face's cache; other paths as they are."""
    main = path / "refs" / "main"
    if not os.path.isfile(main):
        return path
    commit = files.read_small(main, 1 << 20, "commit").decode(errors="replace").strip()
    snapshot = path / "snapshots" / commit
    return snapshot if commit.isalnum() and snapshot.is_dir() else path


def find_weights(
    path: str | Path,
    name: str | None = None,
    activation: str | None = None,
    library: Library | None = None,
) -> SavedWeights:
    """Finds the model at `path` and describes it, without reading its tensors.

    Args:
      path: a file (.safetensors, .bin, .pt), or a folder of transformers or open_clip.
      name: the architecture, as in `models.architectures`; needed if there is no config beside the
        weights and their shapes match no known architecture.
      activation: the activation of a CLIP's MLPs if no config states it; None: QuickGELU.
      library: the library whose names the file uses; None: one of ours, recognized by the tensors.

    Raises:
      UserError: no such file, no CLIP in it, or another model than `name`.
    """
    path = snapshot(Path(path).expanduser())
    recognize = library is None
    if library is not None:
        own = path / mapping_of(library, "library").weights_file
        path = own if path.is_dir() and own.is_file() else path
    with open_model(path, exact=_is_users(library)) as tensors:
        library = library or _recognize(tensors)
        folder = path if path.is_dir() else path.parent
        beside = folder / mapping_of(library).config_file
        assumptions = _describe_left_out(tensors)
        if beside.is_file():
            if path.is_dir() or path.name in usual_files(library):
                weights = _read_described(path, folder, library, beside, name)
                return dataclasses.replace(
                    weights, assumptions=_join(assumptions, weights.assumptions)
                )
            if renamed := _find_renamed(tensors, path, library, beside, name):
                return dataclasses.replace(
                    renamed, assumptions=_join(assumptions, renamed.assumptions)
                )
            assumptions = _join(
                assumptions, f"{beside} is about another model than {path}: not used"
            )
        if recognize and mapping_of("openai").recognizes(tensors):
            library = "openai"
        weights = _find_undescribed(tensors, path, library, name, activation)
    return dataclasses.replace(weights, assumptions=_join(assumptions, weights.assumptions))


def _find_undescribed(
    tensors: ModelTensors, path: Path, library: Library, name: str | None, activation: str | None
) -> SavedWeights:
    """Returns the model of a file without a config, by its name, or by the file's name or shapes.

    Arguments as for `find_weights`.
    """
    assumptions, published = "", None
    if name is None and (published := released.find_file(path.name)):
        assumptions = f"no config is beside {path}: by the file's name it is {published.name}"
    elif name is None:
        name, others = _architecture_by_shapes(tensors, library)
        same = f" ({', '.join(others)} have the same shapes)" if others else ""
        assumptions = f"no config is known of {path}: by its shapes it is taken for {name}{same}"
    if name is not None:
        config = architectures.find_architecture(name)
        found = architectures.find_released(name)
        published = None if found is None or found.name in ARCHITECTURES else found
    if published is not None:
        return _as_published(path, library, published, activation, assumptions)
    assert name is not None
    _check_names(config, library, path, name)
    activation = activation or architectures.named_activation(name)
    if _is_clip(config):
        config = dataclasses.replace(config, activation=activation or config.activation)
        stated = activation is not None or OPENAIS_OWN in tensors
        if config.activation == "quick_gelu" and not stated:
            assumptions = _join(assumptions, _QUICK_GELU_ASSUMED.format(path))
    if library == "open_clip" and config.activation == "gelu_tanh":
        config = dataclasses.replace(config, activation="gelu")  # as open_clip computes SigLIP
    preprocess, tokenizer = preprocess_of(config), _usual_tokenizer(config)
    return SavedWeights(path, library, config, preprocess, tokenizer, assumptions)


def _as_published(
    path: Path,
    library: Library,
    published: released.Released,
    activation: str | None,
    assumptions: str,
) -> SavedWeights:
    """Returns a model that open_clip publishes, of a file without a config."""
    config = published.config
    if library == "openai":
        library = "open_clip"  # with the same names, and configs of more models
    if library == "hugging_face" and config.vision.preprocess().get("resize") == "squash":
        # transformers computes both towers of a SigLIP by the approximate GELU
        config = dataclasses.replace(config.with_vision(activation=""), activation="gelu_tanh")
    if activation is not None and _is_clip(config):
        config = dataclasses.replace(config, activation=activation)
    _check_names(config, library, path, published.name)
    preprocess = dataclasses.replace(preprocess_of(config), **published.pixels)
    return SavedWeights(path, library, config, preprocess, _usual_tokenizer(config), assumptions)


def _is_users(library: Library | None) -> bool:
    """Returns whether a library is a user's own, whose tensors' names are taken as they are."""
    return library is not None and library not in MAPPINGS


def _check_names(config: CLIPConfig, library: Library, path: Path, name: str) -> None:
    try:
        leaves(config, library)
    except UserError:
        raise UserError(
            f"{path} does not hold {name}: its tensors are called as in a model of another kind"
        ) from None


def config_activation(model: CLIPConfig, name: str | None) -> str | None:
    """Returns the activation in a run's config, as `find_weights` takes it.

    It is used for a file of weights without a config. None if it is the architecture's own, which
    is the default.

    Args:
      model: the architecture of the run.
      name: the name of an architecture, or None.
    """
    own = name is not None and architectures.find_architecture(name).activation == model.activation
    return None if own else model.activation


def _is_clip(config: CLIPConfig) -> bool:
    """Returns whether a model is a CLIP, of which files with either activation exist.

    It is not if it is an ALIGN or a SigLIP.
    """
    return config.activation in ("quick_gelu", "gelu") and config.log_scale


def _join(*lines: str) -> str:
    return "; ".join(line for line in lines if line)


def _describe_left_out(tensors: ModelTensors) -> str:
    """Returns a line about tensors of a file that do not belong to the model."""
    lines = []
    if len(tensors.models) > 1:
        first, *others = (ascii(key[:80]) for key in tensors.models)
        lines.append(f"of {tensors.path} the model under {first} is read, not {', '.join(others)}")
    if names := tensors.left_out:
        lines.append(
            f"{len(names):,} tensors of {tensors.path} do not belong to the model and are left "
            f"out, such as {names[0]}"
        )
    return _join(*lines)


def _find_renamed(
    tensors: Tensors, path: Path, library: Library, beside: Path, name: str | None
) -> SavedWeights | None:
    """Returns the model of the config beside a file, if it describes exactly these tensors.

    The file may have any name.
    """
    try:
        weights = _read_described(path, path.parent, library, beside, name)
        shapes = dict(arrays.flat(*variables(abstract_model(weights.config))))
        arrays.check(tensors, leaves(weights.config, library, tensors), shapes)
    except UserError:
        return None
    return weights


def _recognize(tensors: Tensors) -> Library:
    """Returns the first of our libraries that uses the names of these tensors."""
    for name in MAPPINGS.names:
        if mapping_of(name).recognizes(tensors):
            return name
    raise UserError(
        f"{tensors.path} holds no CLIP: no tensor's name starts with visual. (OpenAI, open_clip) "
        "or vision_model. (transformers)"
    )


def _read_described(
    path: Path, folder: Path, library: Library, beside: Path, name: str | None
) -> SavedWeights:
    """Returns the model that the config beside the weights describes."""
    assumptions = ""
    config, preprocess, where = mapping_of(library).describe(beside)
    if preprocess is None:
        preprocess = preprocess_of(config)
        assumptions = f"there is no {where}: images are prepared as such models usually are"
    if preprocess.shape != config.vision.input_shape:
        config = _as_prepared(config, preprocess, where, beside)
    config = configs.with_normalization(config, preprocess.mean, preprocess.std)
    if name is not None:
        known = dataclasses.replace(
            architectures.find_architecture(name), activation=config.activation
        )
        _check_name(config, known, path, name)
    tokenizer = tokenizers.find_tokenizer(folder)
    return SavedWeights(path, library, config, preprocess, tokenizer, assumptions)


def _as_prepared(
    config: CLIPConfig, preprocess: Preprocess, where: str, beside: Path
) -> CLIPConfig:
    """Returns the model for images as `where` prepares them, if its parameters serve any size."""
    vision, budget = config.vision, preprocess.budget
    if vision.any_size and (budget is None) == (vision.patch_budget is None):
        size = {} if budget is None else {"max_num_patches": budget.patches}
        config = config.with_vision(**(size or {"image_size": preprocess.size}))
    if preprocess.shape != config.vision.input_shape:
        made, taken = map(_in_words, (preprocess.shape, config.vision.input_shape))
        raise UserError(f"{where} makes images of {made}, {beside} says {taken}")
    return config


def _in_words(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} pixels" if len(shape) == 3 else f"patches of {shape[1]} bytes"


def _check_name(config: CLIPConfig, known: CLIPConfig, path: Path, name: str) -> None:
    shapes = [
        {key: leaf.shape for key, leaf in arrays.flat(variables(abstract_model(model))[0])}
        for model in (config, known)
    ]
    if shapes[0] != shapes[1]:
        key = next(k for k in (shapes[0] | shapes[1]) if shapes[0].get(k) != shapes[1].get(k))
        raise UserError(
            f"{path} does not hold {name}: its {key} is {shapes[0].get(key)}, not "
            f"{shapes[1].get(key)}"
        )


def _architecture_by_shapes(tensors: Tensors, library: Library) -> tuple[str, list[str]]:
    """Returns the name of the architecture that has tensors of these shapes, and others like it.

    Those of `ARCHITECTURES` come before those that open_clip publishes.
    """
    named = {name for name in tensors if not is_ignored(name)}
    for name, config in ARCHITECTURES.items():
        if _has_shapes(tensors, named, config, library):
            return name, []
    published = "open_clip" if library == "openai" else library
    names = [
        name
        for name in architectures.available()
        if name not in ARCHITECTURES
        and _has_shapes(tensors, named, architectures.find_architecture(name), published)
    ]
    if names:
        return names[0], names[1:]
    raise UserError(
        f"{tensors.path} has no config beside it and the shapes of no model that is known here: "
        f"put its {_configs_in_words(library)} beside it"
    )


def _has_shapes(tensors: Tensors, named: set[str], config: CLIPConfig, library: Library) -> bool:
    try:
        table = leaves(config, library, named)
        if named != {tensor for leaf in table for tensor in leaf.tensors}:
            return False  # quick: no shapes are needed
        arrays.check(tensors, table, dict(arrays.flat(*variables(abstract_model(config)))))
    except UserError:
        return False
    return True


def _configs_in_words(library: Library) -> str:
    """Lists the configs that can describe a file with a library's names, in words."""
    libraries = (library,) if _is_users(library) else MAPPINGS.names
    names = [mapping_of(name).config_file for name in libraries]
    return " or ".join(filter(None, names)) or "config"


def preprocess_of(config: CLIPConfig) -> Preprocess:
    """Returns the preprocessing that models of this architecture were published with."""
    vision = config.vision
    return Preprocess(vision.image_size, mean=vision.mean, std=vision.std, **vision.preprocess())


def _usual_tokenizer(config: CLIPConfig) -> str | None:
    return "clip" if config.text.vocab_size == 49408 else None


def read_variables(weights: SavedWeights, dtype: str = "float32") -> Variables:
    """Reads a model's parameters and batch statistics.

    Args:
      weights: the weights, as `find_weights` returns them.
      dtype: the dtype of the parameters in memory, one of `arrays.DTYPES`; `keep`: as in the file.

    Raises:
      UserError: a tensor is missing, superfluous, or of another shape; an unknown dtype.
    """
    with open_model(weights.path, exact=_is_users(weights.library)) as tensors:
        return arrays.to_variables(tensors, weights.config, weights.library, dtype_of(dtype))


def dtype_of(name: str) -> Any:
    """Returns the NumPy dtype of a name in `arrays.DTYPES`; None means as in the file.

    Raises:
      UserError: no dtype has this name.
    """
    if name not in arrays.DTYPES:
        raise UserError(f"unknown dtype {name!r}; known: {', '.join(arrays.DTYPES)}")
    return arrays.DTYPES[name]
