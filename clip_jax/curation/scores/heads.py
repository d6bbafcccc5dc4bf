"""Linear heads on image features, such as predictors of what looks good."""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import Float

from clip_jax.errors import UserError

_MOST = 64 << 20  # bytes of a head
_KEYS = "'weight' [d] or [d, k], and 'bias', a number or [k]"


@dataclasses.dataclass(frozen=True)
class Head:
    """An affine function of unit-norm image features.

    Attributes:
      name: the name of its column; of k outputs those are NAME_0 and so on.
      weight: float32 [width, k].
      bias: float32 [k].
    """

    name: str
    weight: Float[np.ndarray, "width k"]
    bias: Float[np.ndarray, " k"]

    @property
    def columns(self) -> list[str]:
        """The name of the column of each output."""
        count = len(self.bias)
        return [self.name] if count == 1 else [f"{self.name}_{i}" for i in range(count)]

    @property
    def digest(self) -> str:
        """A hash of its values."""
        content = self.weight.tobytes() + self.bias.tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    def __call__(
        self, features: Float[np.ndarray, "n width"]
    ) -> dict[str, Float[np.ndarray, " n"]]:
        """Returns the outputs for image features, by the name of their column."""
        values = features.astype(np.float32) @ self.weight + self.bias
        return dict(zip(self.columns, values.T, strict=True))


def read_head(name: str, path: str | Path, width: int) -> Head:
    """Reads a head from a `.npz` file.

    Args:
      name: the name of its column.
      path: the file, with `weight` [width] or [width, k] and `bias`, a number or [k]; without
        `bias` it is 0.
      width: the number of features of an image.

    Raises:
      UserError: the file cannot be read, or it holds no head for so many features.
    """
    path = Path(path).expanduser()
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MOST:
                raise UserError(f"--head: {path} is over {_MOST >> 20} MiB: that is no linear head")
        with np.load(path, allow_pickle=False) as arrays:
            values = {key: arrays[key] for key in ("weight", "bias") if key in arrays.files}
    except UserError:
        raise
    except Exception as error:  # a damaged archive fails in many ways
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(
            f"--head: {path} cannot be read ({reason}): it must be a .npz with {_KEYS}"
        ) from None
    if "weight" not in values or any(x.dtype.kind not in "fiu" for x in values.values()):
        raise UserError(f"--head: {path} must hold {_KEYS}, as numbers")
    weight = np.asarray(values["weight"], np.float32)
    weight = weight[:, None] if weight.ndim == 1 else weight
    if weight.ndim != 2 or len(weight) != width or not weight.shape[1]:
        raise UserError(
            f"--head: {path}: 'weight' has the shape {list(values['weight'].shape)!s:.60}, and "
            f"this model gives {width} features: it must be [{width}] or [{width}, k]"
        )
    bias = np.asarray(values.get("bias", 0), np.float32).ravel()
    if len(bias) not in (1, weight.shape[1]):
        raise UserError(f"--head: {path}: 'bias' must be a number, or one for each output")
    bias = np.ascontiguousarray(np.broadcast_to(bias, weight.shape[1:]))
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise UserError(f"--head: {path} holds values that are not finite")
    return Head(name, weight, bias)
