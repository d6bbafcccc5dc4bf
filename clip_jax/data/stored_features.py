"""Image features that were computed once and are read in place of images.

They lie in files of `ROWS` images each, `features-00000.npy` and so on: float32 [rows, views,
embed_dim]. An image that could not be read has NaN in all of its features.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float

from clip_jax.data.example import PairError
from clip_jax.errors import UserError

ROWS = 1 << 14  # images of a file


def file_name(number: int) -> str:
    """Returns the name of the file with a given number."""
    return f"features-{number:05d}.npy"


class StoredFeatures:
    """The image features of one source, in a folder that may be written later.

    The files are opened when they are first read, so that an instance can be sent to worker
    processes.

    Attributes:
      folder: the folder of the files; None until it is known.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._files: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder, "_files": {}}

    def read(self, picture: int, view: int, name: str) -> Float[np.ndarray, " embed_dim"]:
        """Reads the features of an image.

        Args:
          picture: the number of the image in the source.
          view: the number of the view, modulo the number of stored views.
          name: the name of the pair, for messages.

        Returns:
          float32 [embed_dim].

        Raises:
          PairError: the image could not be read when the features were computed.
        """
        number, row = divmod(picture, ROWS)
        if number not in self._files:
            self._files[number] = self._open(number)
        views = self._files[number][row]
        features = np.array(views[view % len(views)])
        if not np.isfinite(features).all():
            raise PairError("picture", f"{name}: it could not be read when features were computed")
        return features

    def _open(self, number: int) -> np.ndarray:
        assert self.folder is not None, "features are read before they are computed"
        path = self.folder / file_name(number)
        try:
            return np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read ({error}): start the same command again, which computes "
                "these features again"
            ) from None
