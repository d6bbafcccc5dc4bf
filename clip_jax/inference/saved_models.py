"""Models on disk, whoever wrote them: a run's newest checkpoint, or another library's files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from clip_jax.data.images.preprocess import Preprocess
from clip_jax.errors import UserError
from clip_jax.inference import pretrained
from clip_jax.models.clip import Variables
from clip_jax.models.model_config import CLIPConfig
from clip_jax.training import checkpointing
from clip_jax.weights import library
from clip_jax.weights.param_mapping import LIBRARIES


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A model before its parameters are read.

    library: whose files it is in, in words.
    config: its architecture.
    preprocess: from a picture to pixels.
    tokenizer: as for `tokenizers.load`, or None.
    read: its parameters and batch statistics, held in a dtype of `arrays.DTYPES`.
    guessed: what was taken for granted or passed over, in words, or nothing.
    dtype: what its activations were computed in when it was trained here; else empty.
    """

    library: str
    config: CLIPConfig
    preprocess: Preprocess
    tokenizer: str | None
    read: Callable[[str], Variables]
    guessed: str = ""
    dtype: str = ""


def is_run(path: Path) -> bool:
    """Whether a path is a run's folder, or RUN/checkpoints/STEP."""
    if path.is_dir() and path.name.isdigit() and path.parent.name == checkpointing.FOLDER:
        return True
    # transformers' folders have a file of that name, too
    return (path / checkpointing.CONFIG).is_file() and not library.is_weights(path)


def open_saved_model(
    path: str | Path, model: str | None = None, activation: str | None = None
) -> SavedModel:
    """What a run, or another library's file or folder, holds.

    Args:
      path: it.
      model: the architecture of a lone file, see `library.find`. activation: likewise.

    Raises:
      UserError: neither is there, or it is another model than `model`.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"{path} does not exist: give the folder of a run or a file of weights")
    if is_run(path):
        said: list[str] = []
        workdir, step = pretrained.find_run(path, said.append)
        run = checkpointing.read_model_config(workdir, step)
        return SavedModel(
            "a run",
            run.model,
            library.preprocess_of(run.model),
            run.tokenizer,
            lambda _: pretrained.read_step(workdir, step, run.model),
            "; ".join(said),
            run.dtype,
        )
    found = library.find(path, model, activation)
    return SavedModel(
        LIBRARIES[found.library].partition(":")[0],
        found.config,
        found.preprocess,
        found.tokenizer,
        lambda dtype: library.read(found, dtype),
        found.guessed,
    )
