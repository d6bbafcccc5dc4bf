"""Karpathy's splits of Flickr30k and COCO: a JSON of captions beside a folder of pictures."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from clip_jax.data.example import MAX_MEMBER, Pair, read_bytes
from clip_jax.data.opening import OpeningReport, all_used
from clip_jax.errors import UserError
from clip_jax.io import files, remote

MAX_BYTES = 256 << 20  # COCO's is 150 MB


class KarpathySource:
    """The pairs of a split of `dataset_flickr30k.json` or `dataset_coco.json`.

    A pair's text has `captions`, the list of them. The pictures are looked for beside the JSON
    and in folders there: `images/`, `flickr30k-images/`, what COCO calls `val2014/`.

    Raises:
      UserError: the file cannot be read, is over 256 MiB or not of this kind, has no such split,
        or names a picture outside its folder.
    """

    def __init__(self, path: Path, split: str) -> None:
        self.path, self.split = path, split
        self._found = [self._of(image) for image in _read(path) if _is_of(image, split)]
        if not self._found:
            raise UserError(f"{path} has no picture of the split {split!r}")
        self._root = self._where(self._found[0][0])

    def _of(self, image: dict[str, Any]) -> tuple[str, list[str]]:
        try:
            name = os.path.join(str(image.get("filepath", "")), image["filename"])
            captions = [str(sentence["raw"]) for sentence in image["sentences"]]
        except (KeyError, TypeError):
            raise UserError(f"{self.path}: an image without filename or sentences") from None
        if os.path.isabs(name) or ".." in Path(name).parts or "\0" in name:
            raise UserError(f"{self.path}: {name!r} leaves the folder of the pictures")
        if not captions:
            raise UserError(f"{self.path}: {name} has no caption")
        return name, captions

    def _where(self, name: str) -> Path:
        """The folder that the paths start at."""
        home = self.path.parent
        for folder in (home, *sorted(one for one in home.iterdir() if one.is_dir())):
            if (folder / name).is_file():
                return folder
        raise UserError(f"{self.path} names {name}, which is not in {home} or a folder in it")

    @functools.cached_property
    def fingerprint(self) -> str:
        """What changes when the captions or one of the pictures does."""
        names = [str(self.path), *(str(self._root / name) for name, _ in self._found)]
        return f"{remote.identity(names, remote.states(names))} {self.split}"

    def __len__(self) -> int:
        return len(self._found)

    def opening_report(self) -> OpeningReport:
        """Every picture of the split is used, or there is an error."""
        return all_used(len(self), "pictures")

    def text(self, i: int) -> tuple[dict[str, Any], str]:
        """The captions of the i-th picture, and its name."""
        name, captions = self._found[i]
        return {"captions": list(captions)}, str(self._root / name)

    def __getitem__(self, i: int) -> Pair:
        text, name = self.text(i)
        return Pair(read_bytes(name, MAX_MEMBER), text, name)


def _is_of(image: Any, split: str) -> bool:
    return isinstance(image, dict) and image.get("split") == split


def _read(path: Path) -> list[Any]:
    images = files.read_json(path, MAX_BYTES, "file of captions").get("images")
    if not isinstance(images, list):
        raise UserError(f"{path} has no list of images: a split of Karpathy's is expected")
    return images
