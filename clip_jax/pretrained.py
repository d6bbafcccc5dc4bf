"""A trained model, from a run's folder or another library's weights, ready to use."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx

from clip_jax import tokenizers
from clip_jax.cache import use_compilation_cache
from clip_jax.data.preprocess import Preprocess
from clip_jax.errors import DamageWarning, GuessedWarning, UserError
from clip_jax.models import zoo
from clip_jax.models.clip import CLIP, Variables, abstract_model, variables
from clip_jax.models.zoo import ARCHITECTURES, CLIPConfig
from clip_jax.weights import library
from clip_jax.weights.positions import resized
from clip_jax.zero_shot import Tokenize, ZeroShotClassifier

if TYPE_CHECKING:
    from clip_jax.checkpoint import RunConfig

ZERO_SHOT = "zero-shot-image-classification"


def _warn(line: str) -> None:
    warnings.warn(line, DamageWarning, stacklevel=2)


def find_run(path: str | Path, tell: Callable[[str], None] = _warn) -> tuple[Path, int]:
    """The run's folder and the step that `path` means: a run, or RUN/checkpoints/STEP.

    The newest checkpoint that is whole, of a run. `tell` takes a line for what was passed over.

    Raises:
      UserError: there is no checkpoint, or it is damaged.
    """
    from clip_jax import checkpoint

    path = Path(path).expanduser()
    if path.name.isdigit() and path.parent.name == checkpoint.FOLDER and path.is_dir():
        workdir, step = path.parent.parent, int(path.name)
        checkpoint.refuse_damage(workdir, step, tell)
        return workdir, step
    if not path.is_dir():
        raise UserError(
            f"no run folder {path}: train one, give the --workdir of your run, or one of "
            f"{', '.join(ARCHITECTURES)} with weights=FILE"
        )
    checkpoint.read_config(path)
    found = checkpoint.newest(path, tell)
    if found is None:
        raise UserError(f"{path} holds no checkpoint yet")
    return path, found


def read_run(path: str | Path) -> tuple[Variables, CLIPConfig, RunConfig]:
    """The variables of a run's newest checkpoint (or of RUN/checkpoints/STEP) and its config."""
    from clip_jax import checkpoint

    workdir, step = find_run(path)
    run = checkpoint.read_model_config(workdir, step)
    return read_step(workdir, step, run.model), run.model, run


def read_step(workdir: Path, step: int, model: CLIPConfig) -> Variables:
    """The variables of a run's checkpoint that `find_run` found, on one device."""
    from clip_jax import checkpoint

    where = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        variables(abstract_model(model)),
    )
    return checkpoint.read_variables(workdir, step, like)


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
        open_clip's; or the name of an architecture (`clip_jax.available_models()`).
      weights: for a name, the file or folder of OpenAI's, open_clip's or transformers' weights.
      dtype: of matrix products, one of `zoo.DTYPES`; a run's own, or float32, when None.
      params: what parameters are held in: float32, float16, bfloat16, or `keep`: as the file.
      image_size: for images of another size: positions are resized; None leaves them.
      context_length: for texts of another length: positions are resized; None leaves them.
      tokenizer: as `tokenizers.load` takes it, where the model's files hold none.
      activation: what the MLPs of a CLIP compute whose file stands alone: `gelu` for open_clip's
        own, `quick_gelu` (as OpenAI's) when None, which a warning says where the file does not.

    Returns:
      `model` (`encode_image`, `encode_text`), `preprocess` (a PIL picture to uint8
      [size, size, 3]) and `tokenize` (texts to int32 [texts, context_length]).

    Raises:
      UserError: no such run, file or architecture, or weights of another model.
    """
    use_compilation_cache()
    path = Path(model).expanduser()
    name = None if weights is None else str(model)
    if name:
        zoo.find(name)  # what is wrong with it is said first
    if weights is None and library.is_weights(path):
        weights = path
    if weights is None and not path.exists() and _is_name(str(model)):
        raise UserError(
            f"{model} needs weights: clip_jax.load({str(model)!r}, weights=FILE) reads OpenAI's, "
            "open_clip's or transformers' files; none are downloaded"
        )
    if weights is None:
        held, config, run = read_run(path)
        dtype, tokenizer = dtype or run.dtype, tokenizer or run.tokenizer
        preprocess = library.preprocess_of(config)
    else:
        found = library.find(weights, name, activation)
        if found.guessed:
            warnings.warn(found.guessed, GuessedWarning, stacklevel=2)
        held, config, preprocess = library.read(found, params), found.config, found.preprocess
        tokenizer = tokenizer or found.tokenizer
    resized_params, config = resized(held[0], config, image_size, context_length)
    if config.vision.image_size != preprocess.size:
        preprocess = library.preprocess_of(config)
    abstract = abstract_model(config, dtype or "float32")
    built = nnx.merge(nnx.graphdef(abstract), resized_params, held[1])
    if tokenizer is None:
        return built, preprocess, _NoTokenizer(str(weights))
    return built, preprocess, tokenizers.load(tokenizer, config.text.context_length)


def _is_name(name: str) -> bool:
    try:
        zoo.find(name)
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
