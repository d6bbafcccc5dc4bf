"""A trained model, from a run's folder or another library's weights, ready to use."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx

from clip_jax import tokenizers
from clip_jax.data.images.preprocess import Preprocess
from clip_jax.distributed.compilation_cache import use_compilation_cache
from clip_jax.errors import DamageWarning, GuessedWarning, UserError
from clip_jax.inference.zero_shot import Tokenize, ZeroShotClassifier
from clip_jax.io import remote
from clip_jax.models import architectures
from clip_jax.models.architectures import ARCHITECTURES
from clip_jax.models.clip import CLIP, Variables, abstract_model, variables
from clip_jax.models.fields import MAX_SIZE
from clip_jax.models.model_config import ACTIVATIONS, DTYPES, CLIPConfig
from clip_jax.tokenizers.packing import check_context_length
from clip_jax.weights import arrays, library
from clip_jax.weights.positions import resized

if TYPE_CHECKING:
    from clip_jax.training.checkpointing import RunConfig

ZERO_SHOT = "zero-shot-image-classification"


def _warn(line: str) -> None:
    warnings.warn(line, DamageWarning, stacklevel=2)


def find_run(path: str | Path, tell: Callable[[str], None] = _warn) -> tuple[Path, int]:
    """The run's folder and the step that `path` means: a run, or RUN/checkpoints/STEP.

    The newest checkpoint that is whole, of a run. `tell` takes a line for what was passed over.

    Raises:
      UserError: there is no checkpoint, or it is damaged.
    """
    from clip_jax.training import checkpointing

    path = Path(path).expanduser()
    if path.name.isdigit() and path.parent.name == checkpointing.FOLDER and os.path.isdir(path):
        workdir, step = path.parent.parent, int(path.name)
        checkpointing.refuse_damage(workdir, step, tell)
        return workdir, step
    if not os.path.isdir(path):  # whatever the name, even one that no file can have
        raise UserError(
            f"there is no run or model at {path!s:.200}: give the --workdir of a run, a folder or "
            "file of another library's weights (none are downloaded), or with weights=FILE one of "
            f"{', '.join(ARCHITECTURES)}"
        )
    checkpointing.read_config(path)
    found = checkpointing.newest(path, tell)
    if found is None:
        raise UserError(f"{path} holds no checkpoint yet")
    return path, found


def read_run(path: str | Path) -> tuple[Variables, CLIPConfig, RunConfig]:
    """The variables of a run's newest checkpoint (or of RUN/checkpoints/STEP) and its config."""
    from clip_jax.training import checkpointing

    workdir, step = find_run(path)
    run = checkpointing.read_model_config(workdir, step)
    return read_step(workdir, step, run.model), run.model, run


def read_step(workdir: Path, step: int, model: CLIPConfig) -> Variables:
    """The variables of a run's checkpoint that `find_run` found, on one device."""
    from clip_jax.training import checkpointing

    where = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        variables(abstract_model(model)),
    )
    return checkpointing.read_variables(workdir, step, like)


def load(
    model: str | Path,
    weights: str | Path | None = None,
    *,
    dtype: str | None = None,
    params: str = "float32",
    image_size: int | None = None,
    context_length: int | None = None,
    tokenizer: str | None = None,
    activation: str | None = None,
) -> tuple[CLIP, Preprocess, Tokenize]:
    """A trained model with its preprocessing and tokenizer.

    Args:
      model: a run's folder or one of its `checkpoints/STEP`; a folder of transformers' or
        open_clip's, also in Hugging Face's cache; a file of weights that a config stands beside or
        whose shapes are known; or the name of an architecture (`clip_jax.available_models()`).
      weights: for a name, the file or folder of OpenAI's, open_clip's or transformers' weights.
      dtype: of matrix products, one of `model_config.DTYPES`; a run's own, or float32, when None.
      params: what parameters are held in: float32, float16, bfloat16, or `keep`: as the file.
      image_size: for images of another size: positions are resized; None leaves them.
      context_length: for texts of another length, 3 or more: positions are resized; None leaves
        them.
      tokenizer: as `tokenizers.load` takes it, where the model's files hold none.
      activation: what the MLPs of a CLIP compute whose file stands alone: `gelu` for open_clip's
        own, `quick_gelu` (as OpenAI's) when None, which a warning says where the file does not.
        Where a config says another, it is refused.

    Returns:
      `model` (`encode_image`, `encode_text`), `preprocess` (a PIL picture to uint8
      [size, size, 3]) and `tokenize` (texts to int32 [texts, context_length]).

    Raises:
      UserError: no such run, file or architecture, or weights of another model.
    """
    use_compilation_cache()
    _check_options(dtype, params, image_size, context_length, activation)
    path = _local("model", model)
    name = None if weights is None else str(model)
    if weights is not None:
        architectures.find(str(model))  # what is wrong with it is said first
        weights = _local("weights", weights)
        if (weights / "checkpoints").is_dir():
            raise UserError(f"{weights} is a run, which says what it is: load it without a name")
    elif os.path.isfile(path) or (os.path.isdir(path) and library.is_weights(path)):
        weights = path
    elif not os.path.exists(path) and _is_name(str(model)):
        raise UserError(
            f"{model} needs weights: clip_jax.load({str(model)!r}, weights=FILE) reads OpenAI's, "
            "open_clip's or transformers' files; none are downloaded"
        )
    trusted = tokenizer is not None
    if weights is None:
        held, config, run = read_run(path)
        held = arrays.cast(held, params)
        dtype, tokenizer = dtype or run.dtype, tokenizer or run.tokenizer
        preprocess = library.preprocess_of(config)
    else:
        found = library.find(weights, name, activation)
        if found.guessed:
            warnings.warn(found.guessed, GuessedWarning, stacklevel=2)
        held, config, preprocess = library.read(found, params), found.config, found.preprocess
        tokenizer = tokenizer or found.tokenizer
    resized_params, config = resized(held[0], config, image_size, context_length)
    if activation not in (None, config.activation):
        raise UserError(
            f"{weights or path} was trained with {config.activation}: leave out {activation=}"
        )
    preprocess = preprocess.resized(config.vision.image_size)
    abstract = abstract_model(config, dtype or "float32")
    built = nnx.merge(nnx.graphdef(abstract), resized_params, held[1])
    if tokenizer is None:
        return built, preprocess, _NoTokenizer(str(weights))
    words = tokenizers.load(tokenizer, config.text.context_length, trusted=trusted)
    return built, preprocess, words


def _check_options(
    dtype: Any, params: Any, image_size: Any, context_length: Any, activation: Any
) -> None:
    for key, value, known in (
        ("dtype", dtype, (None, *DTYPES)),
        ("params", params, tuple(arrays.DTYPES)),
        ("activation", activation, (None, *ACTIVATIONS)),
    ):
        if not isinstance(value, str | None) or value not in known:
            names = ", ".join(name for name in known if name)
            raise UserError(f"unknown {key}={value!r:.60}; known: {names}")
    if image_size is not None:
        whole = isinstance(image_size, int | np.integer) and not isinstance(image_size, bool)
        if not whole or not 1 <= image_size <= MAX_SIZE:
            raise UserError(f"{image_size=!r:.60} must be a whole number from 1 to {MAX_SIZE}")
    if context_length is not None:
        check_context_length(context_length)


def _local(key: str, given: Any) -> Path:
    """A path on this machine that a caller gave."""
    if not isinstance(given, str | os.PathLike) or not os.fspath(given):
        raise UserError(
            f"{key}={given!r:.60} names nothing: give the folder of a run, or a folder or file of "
            "weights, or a model's name with weights=FILE"
        )
    if remote.is_remote(str(given)):
        raise UserError(f"{key}={given!s:.200} is far away: copy it to this machine, then load it")
    return Path(given).expanduser()


def _is_name(name: str) -> bool:
    try:
        architectures.find(name)
    except UserError:
        return False
    return True


class _NoTokenizer:
    """Stands where a model's files hold no tokenizer, and says so when one is needed."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, *_: Any, **__: Any) -> np.ndarray:
        raise UserError(
            f"{self.path} holds no tokenizer that is known here: give load(…, tokenizer=…), such "
            "as 'siglip:spiece.model' or 'wordpiece:vocab.txt'"
        )


def pipeline(task: str = ZERO_SHOT, model: str | Path = "", **options: Any) -> ZeroShotClassifier:
    """A function from a picture and labels to `[{"score": …, "label": …}, …]`.

    Args:
      task: `zero-shot-image-classification`, the only one.
      model: as for `load`, with its `options` (`weights`, `dtype`, …).

    Raises:
      UserError: another task, or what `load` raises.
    """
    if task != ZERO_SHOT:
        raise UserError(f"unknown task {task!r}; known: {ZERO_SHOT}")
    return ZeroShotClassifier(*load(model, **options))
