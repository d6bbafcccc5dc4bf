"""A trained model from a run's folder, ready to use."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from PIL import Image

from clip_jax import checkpoint, step, tokenizers
from clip_jax.data.images import resize_and_crop, to_rgb
from clip_jax.errors import UserError
from clip_jax.models.clip import CLIP
from clip_jax.models.zoo import CLIPConfig
from clip_jax.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """A picture to what the model takes: uint8 [size, size, 3]; the model normalises it."""

    size: int

    def __call__(self, image: Image.Image) -> np.ndarray:
        """The shorter side to `size`, the centre cut out."""
        return resize_and_crop(to_rgb(image), self.size)


def find_run(path: str | Path) -> tuple[Path, int]:
    """The run's folder and the step that `path` means: a run, or RUN/checkpoints/STEP.

    Raises:
      UserError: there is no checkpoint.
    """
    path = Path(path).expanduser()
    if path.name.isdigit() and path.parent.name == checkpoint.FOLDER and path.is_dir():
        return path.parent.parent, int(path.name)
    if not path.is_dir():
        raise UserError(f"no run folder {path}: train one, or give the --workdir of your run")
    checkpoint.read_config(path)
    step = checkpoint.latest_step(path)
    if step is None:
        raise UserError(f"{path} holds no checkpoint yet")
    return path, step


def load(path: str | Path, dtype: str | None = None) -> tuple[CLIP, Preprocess, Tokenizer]:
    """The model of a run with the newest checkpoint's parameters.

    Args:
      path: a run's folder, or one of its `checkpoints/STEP`.
      dtype: of matrix products; the run's own when None.

    Returns:
      `model` (`encode_image`, `encode_text`), `preprocess` (a PIL picture to uint8
      [size, size, 3]) and `tokenize` (texts to int32 [texts, context_length]).
    """
    workdir, at = find_run(path)
    config = checkpoint.read_config(workdir)
    model_config = CLIPConfig.from_dict(config["model"])
    abstract = step.abstract_model(model_config, dtype or config["dtype"], "none")
    where = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        nnx.to_pure_dict(nnx.state(abstract, nnx.Param)),
    )
    checkpoints = checkpoint.Checkpoints(workdir, read_only=True)
    params = checkpoints.restore_params(at, like)
    checkpoints.close()
    model = nnx.merge(nnx.graphdef(abstract), params)
    tokenizer = tokenizers.load(config["tokenizer"], model_config.text.context_length)
    return model, Preprocess(model_config.vision.image_size), tokenizer
