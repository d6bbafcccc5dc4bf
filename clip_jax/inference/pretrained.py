"""Loading trained models, from a run or the weights of another library."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from clip_jax import tokenizers
from clip_jax.data.images.preprocess import Preprocess
from clip_jax.distributed.compilation_cache import use_compilation_cache
from clip_jax.errors import DamageWarning, GuessedWarning, UserError
from clip_jax.inference import adapters as adapters_lib
from clip_jax.inference.captions import CaptionWriter
from clip_jax.inference.model_source import (
    ModelSource,
    open_model_source,
    open_run,
    open_weights,
    refuse_average,
)
from clip_jax.inference.zero_shot import Tokenize, ZeroShotClassifier
from clip_jax.io import remote
from clip_jax.io.buckets import BUCKETS, as_path, is_file, is_folder
from clip_jax.models import architectures
from clip_jax.models.clip import CLIP, abstract_model
from clip_jax.models.fields import BOUNDS
from clip_jax.models.model_config import ACTIVATIONS, DTYPES
from clip_jax.tokenizers.packing import check_context_length
from clip_jax.weights import arrays
from clip_jax.weights.library import is_weights
from clip_jax.weights.param_mapping import Library
from clip_jax.weights.positions import resize_model

ZERO_SHOT, IMAGE_TO_TEXT = "zero-shot-image-classification", "image-to-text"
TASKS = (ZERO_SHOT, IMAGE_TO_TEXT)


def load(
    model: str | Path,
    weights: str | Path | None = None,
    *,
    dtype: str | None = None,
    params: str = "float32",
    image_size: int | None = None,
    context_length: int | None = None,
    keep_positions: int = 0,
    max_num_patches: int | None = None,
    tokenizer: str | None = None,
    activation: str | None = None,
    library: Library | None = None,
    ema: bool = False,
    adapters: str | Path | None = None,
) -> tuple[CLIP, Preprocess, Tokenize]:
    """Loads a trained model with its preprocessing and its tokenizer.

    Args:
      model: a run's folder or one of its `checkpoints/STEP`; a folder of transformers or open_clip,
        also in Hugging Face's cache; a file of weights with a config beside it or with known
        shapes; or the name of an architecture (`clip_jax.available_models()`).
      weights: for a name, the file or folder of OpenAI's, open_clip's or transformers' weights.
      dtype: of matrix products, one of `model_config.DTYPES`; None: a run's own, or float32.
      params: the dtype of the parameters: float32, float16, bfloat16, or `keep` for the file's.
      image_size: a new side of images, in pixels, to which positions are resized.
      context_length: a new length of texts, 3 tokens or more, to which positions are resized.
      keep_positions: the number of first positions of texts that stay as they are then, while the
        others are stretched; `context_length=248, keep_positions=20` is Long-CLIP's rule.
      max_num_patches: the most patches of an image, for SigLIP 2 NaFlex, which keeps the shapes of
        images; None: as its files say, or 256. It was trained with 128, 256, 576, 784 and 1024.
      tokenizer: a name for `tokenizers.load`, if the model's files hold no tokenizer.
      activation: the activation function of a CLIP in a file without a config: `gelu` for
        open_clip's own models; the default is `quick_gelu`, as in OpenAI's. A warning says if the
        file does not tell. It must not differ from that of a config.
      library: the library of the weights, for a user's own: the dotted path
        `my_package.my_module:MyMapping` of a `weights.mappings.protocol.WeightsMapping`. OpenAI's,
        open_clip's and transformers' weights are recognized.
      ema: whether to use the averaged weights of a run with `config.ema.decay`.
      adapters: a file that `convert --to lora` wrote; its adapters are merged into the weights.

    Returns:
      The model (`encode_image`, `encode_text`), its preprocessing (a PIL image to uint8
      [size, size, 3], or packed patches, see `models.patches`) and its tokenizer (texts to int32
      [texts, context_length]).

    Raises:
      UserError: there is no such run, file or architecture, or the weights are of another model.
    """
    source, loaded, preprocess, tokenize = load_source(
        model,
        weights,
        dtype=dtype,
        params=params,
        image_size=image_size,
        context_length=context_length,
        keep_positions=keep_positions,
        max_num_patches=max_num_patches,
        tokenizer=tokenizer,
        activation=activation,
        library=library,
        ema=ema,
        adapters=adapters,
    )
    if "text" in source.untrained:
        warnings.warn(
            f"{source.path}: the text tower has random values, because no objective trained it: "
            "features of texts say nothing about images",
            GuessedWarning,
            stacklevel=2,
        )
    return loaded, preprocess, tokenize


def load_source(
    model: str | Path,
    weights: str | Path | None = None,
    *,
    dtype: str | None = None,
    params: str = "float32",
    image_size: int | None = None,
    context_length: int | None = None,
    keep_positions: int = 0,
    max_num_patches: int | None = None,
    tokenizer: str | None = None,
    activation: str | None = None,
    library: Library | None = None,
    ema: bool = False,
    adapters: str | Path | None = None,
) -> tuple[ModelSource, CLIP, Preprocess, Tokenize]:
    """Loads a model as `load` does, and returns what it was loaded from, too, at first."""
    use_compilation_cache()
    sizes = {"image_size": image_size, "max_num_patches": max_num_patches}
    _check_options(dtype, params, sizes, context_length, activation)
    _check_kept(keep_positions, context_length)
    source = find_model_source(model, weights, activation, library, ema)
    if adapters is not None:
        source = adapters_lib.adapted(source, adapters)
    for remark in source.remarks:
        category = DamageWarning if source.workdir else GuessedWarning
        warnings.warn(remark, category, stacklevel=3)
    parameters, statistics = source.read(params)
    parameters, config = resize_model(
        parameters, source.config, image_size, context_length, keep_positions, max_num_patches
    )
    if activation not in (None, config.activation):
        raise UserError(
            f"{source.path} was trained with {config.activation}: leave out {activation=}"
        )
    abstract = abstract_model(config, dtype or source.dtype or "float32")
    loaded = nnx.merge(nnx.graphdef(abstract), parameters, statistics)
    preprocess = source.preprocess.fitted(config.vision)
    tokenize = _load_tokenizer(source, tokenizer, config.text.context_length)
    return source, loaded, preprocess, tokenize


def _load_tokenizer(source: ModelSource, chosen: str | None, context_length: int) -> Tokenize:
    """Loads the tokenizer that the caller chose, or that of the model."""
    name = chosen or source.tokenizer
    if name is None:
        return _NoTokenizer(str(source.path))
    return tokenizers.load(name, context_length, trusted=chosen is not None)


def find_model_source(
    model: str | Path,
    weights: str | Path | None = None,
    activation: str | None = None,
    library: Library | None = None,
    ema: bool = False,
) -> ModelSource:
    """Opens the run or the weights that the arguments of `load` name; its parameters are not read.

    Raises:
      UserError: as for `load`.
    """
    path = _local("model", model)
    if weights is not None:
        architectures.find_architecture(str(model))  # a wrong name is reported before a wrong file
        file = _local("weights", weights)
        if (file / "checkpoints").is_dir():
            raise UserError(f"{file} is a run, which says what it is: load it without a name")
        refuse_average(file, ema)
        return open_weights(file, str(model), activation, library)
    if is_file(path) or (is_folder(path) and is_weights(path)):
        refuse_average(path, ema)
        return open_weights(path, None, activation, library)
    if not (is_file(path) or is_folder(path)) and _is_name(str(model)):
        raise UserError(
            f"{model} needs weights: clip_jax.load({str(model)!r}, weights=FILE) reads OpenAI's, "
            "open_clip's or transformers' files; none are downloaded"
        )
    if library is None:
        return open_run(path, ema=ema)
    return open_model_source(path, None, activation, library, ema=ema)


def _check_options(
    dtype: Any, params: Any, sizes: Mapping[str, Any], context_length: Any, activation: Any
) -> None:
    for key, value, known in (
        ("dtype", dtype, (None, *DTYPES)),
        ("params", params, tuple(arrays.DTYPES)),
        ("activation", activation, (None, *ACTIVATIONS)),
    ):
        if not isinstance(value, str | None) or value not in known:
            names = ", ".join(name for name in known if name)
            raise UserError(f"unknown {key}={value!r:.60}; known: {names}")
    for key, value in sizes.items():
        most = BOUNDS[key][1]
        integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if value is not None and not (integer and 1 <= value <= most):
            raise UserError(f"{key}={value!r:.60} must be a whole number from 1 to {most}")
    if context_length is not None:
        check_context_length(context_length)


def _check_kept(keep_positions: Any, context_length: int | None) -> None:
    integer = isinstance(keep_positions, int) and not isinstance(keep_positions, bool)
    if not integer or keep_positions < 0:
        raise UserError(f"{keep_positions=!r:.60} must be a whole number from 0 on")
    if keep_positions and context_length is None:
        raise UserError(f"{keep_positions=} needs context_length=N: positions that are stretched")


def _local(key: str, path: Any) -> Path:
    """Returns a path on disk or in a bucket; raises UserError for an empty one, or another."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise UserError(
            f"{key}={path!r:.60} names nothing: give the folder of a run, or a folder or file of "
            "weights, or a model's name with weights=FILE"
        )
    if remote.is_remote(str(path)) and not str(path).startswith(BUCKETS):
        raise UserError(f"{key}={path!s:.200} is far away: copy it to this machine, then load it")
    return as_path(path if isinstance(path, Path) else os.fspath(path))


def _is_name(name: str) -> bool:
    try:
        architectures.find_architecture(name)
    except UserError:
        return False
    return True


class _NoTokenizer:
    """The tokenizer of a model whose files hold none: calling it is an error."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, *_: Any, **__: Any) -> np.ndarray:
        raise UserError(
            f"{self.path} holds no tokenizer that is known here: give tokenizer=… (--tokenizer), "
            "such as 'siglip:spiece.model' or 'wordpiece:vocab.txt'"
        )


def pipeline(
    task: str = ZERO_SHOT, model: str | Path = "", **options: Any
) -> ZeroShotClassifier | CaptionWriter:
    """Returns a function of images, with the names and results of transformers.

    Args:
      task: `zero-shot-image-classification`: from an image and labels to
        `[{"score": …, "label": …}, …]`, by the features of texts, or by the head that predicts
        words if the text tower of a run did not learn; or `image-to-text`: from an image to
        `[{"generated_text": …}]`, by a model with a decoder.
      model: as for `load`.
      options: the other arguments of `load` (`weights`, `dtype`, …).

    Raises:
      UserError: the task is unknown, `load` fails, or the model has no decoder.
    """
    if task not in TASKS:
        raise UserError(
            f"unknown task {task!r}; known: {', '.join(TASKS)}; name a model by model=…"
        )
    source, loaded, preprocess, tokenize = load_source(model, **options)
    if task == IMAGE_TO_TEXT:
        return CaptionWriter(loaded, preprocess, tokenize)
    by_words = "text" in source.untrained
    return ZeroShotClassifier(loaded, preprocess, tokenize, by_words=by_words)
