"""Karpathy's splits of Flickr30k and COCO: a JSON file of captions beside a folder of images.

Source: Karpathy and Fei-Fei 2015, "Deep Visual-Semantic Alignments for Generating Image
Descriptions".
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from clip_jax.data.captions import Alternatives
from clip_jax.data.example import MAX_MEMBER, Pair, read_bytes
from clip_jax.data.opening import OpeningReport, all_used
from clip_jax.data.sources.protocol import SourceOptions
from clip_jax.errors import UserError
from clip_jax.io import files, remote
from clip_jax.io.files import JsonObject
from clip_jax.io.paths import resolve

MAX_BYTES = 256 << 20  # COCO's is 150 MB
_SPEC = re.compile(r"(.*dataset_\w+\.json)(?::([\w+]+))?")


class KarpathySource:
    """The images of one or more splits of `dataset_flickr30k.json` or `dataset_coco.json`.

    `config.data.train` names them as `dataset_coco.json:train+restval`; without a split it is
    `train`. The fields of a pair are `captions`, a list of all captions, and `caption`, of which
    one is drawn. Images are looked for beside the JSON file and in the folders there, such as
    `images/`, `flickr30k-images/` or COCO's `val2014/`.

    Raises:
      UserError: the file cannot be read, is over 256 MiB or of another kind, has no such split, or
        names an image outside its folder.
    """

    def __init__(self, path: Path, split: str, root: str = "") -> None:
        self.path, self.split = path, split
        splits, images = split.split("+"), _read_images(path)
        for name in splits:
            if not any(_is_in(image, [name]) for image in images):
                known = sorted({str(i.get("split")) for i in images if isinstance(i, dict)})
                raise UserError(
                    f"{path} has no image of the split {name!r}; it has {', '.join(known[:9])}"
                )
        self._images = [self._parse(image) for image in images if _is_in(image, splits)]
        self._root = Path(root) if root else self._find_root(self._images[0][0])

    @classmethod
    def matches(cls, spec: str) -> bool:
        """Returns whether `spec` is named as Karpathy's files are."""
        return _SPEC.fullmatch(spec) is not None

    @classmethod
    def open(cls, spec: str, options: SourceOptions) -> KarpathySource:
        """Opens `dataset_NAME.json` or `dataset_NAME.json:SPLIT+SPLIT`; see `SourceKind.open`."""
        path, _, split = spec.partition(".json:")
        if split:
            path = f"{path}.json"
        return cls(Path(resolve(path)), split or "train", options.root)

    def _parse(self, image: Mapping[str, Any]) -> tuple[str, list[str]]:
        try:
            name = os.path.join(str(image.get("filepath", "")), image["filename"])
            captions = [str(sentence["raw"]) for sentence in image["sentences"]]
        except (KeyError, TypeError):
            raise UserError(f"{self.path}: an image without filename or sentences") from None
        if os.path.isabs(name) or ".." in Path(name).parts or "\0" in name:
            raise UserError(f"{self.path}: {name!r} leaves the folder of the images")
        if not captions:
            raise UserError(f"{self.path}: {name} has no caption")
        return name, captions

    def _find_root(self, name: str) -> Path:
        """Returns the folder that the paths of the images start at."""
        home = self.path.parent
        for folder in (home, *sorted(path for path in home.iterdir() if path.is_dir())):
            if (folder / name).is_file():
                return folder
        raise UserError(f"{self.path} names {name}, which is not in {home} or a folder in it")

    @functools.cached_property
    def fingerprint(self) -> str:
        """A text that changes when the JSON file or an image does."""
        names = [str(self.path), *(str(self._root / name) for name, _ in self._images)]
        return f"{remote.identity(names, remote.states(names))} {self.split}"

    def __len__(self) -> int:
        return len(self._images)

    def opening_report(self) -> OpeningReport:
        """Returns a report that says that every image of the split is used."""
        return all_used(len(self), "pictures")

    def text(self, i: int) -> tuple[JsonObject, str]:
        """Returns the captions of the i-th image and its name, without reading the image."""
        name, captions = self._images[i]
        fields = {"captions": list(captions), "caption": Alternatives(captions)}
        return fields, str(self._root / name)

    def __getitem__(self, i: int) -> Pair:
        text, name = self.text(i)
        return Pair(read_bytes(name, MAX_MEMBER), text, name)


def _is_in(image: Any, splits: Collection[str]) -> bool:
    return isinstance(image, dict) and image.get("split") in splits


def _read_images(path: Path) -> list[Any]:
    images = files.read_json(path, MAX_BYTES, "file of captions").get("images")
    if not isinstance(images, list):
        raise UserError(f"{path} has no list of images: a split of Karpathy's is expected")
    return images
