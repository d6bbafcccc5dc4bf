"""The layouts of datasets: finding a split in a folder, and opening it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clip_jax.data.example import IMAGES
from clip_jax.data.opening import OpeningReport
from clip_jax.data.sources import Source, SourceOptions, open_source, read_text
from clip_jax.data.sources.endings import RECORDS, TABLES
from clip_jax.data.sources.karpathy import KarpathySource
from clip_jax.errors import UserError
from clip_jax.evaluation.datasets.registry import StandardDataset
from clip_jax.io.files import JsonObject

SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "val", "validation", "valid", "dev"),
}
_MAX_LINES = 4 << 20  # bytes of class names or templates
_MAX_SHARDS = 100_000


class SplitLocation(NamedTuple):
    """The location of a split.

    Attributes:
      kind: `suite` (CLIP_benchmark's WebDataset layout), `karpathy` (a JSON file of captions),
        `tfds` (a dataset prepared by TensorFlow Datasets), or `data` (anything else that
        `open_source` takes).
      path: a folder, a file, or a name that `open_source` or TensorFlow Datasets takes.
      split: the split's name there.
      root: the folder that paths of a table start at, or that prepared datasets are in.
      source: the kind of data source, if a config names it.
      key: the config key of the dataset.
    """

    kind: str
    path: str
    split: str
    root: str = ""
    source: str = ""
    key: str = "config.evaluate.sets"


def find_split(folder: Path, split: str, files: Sequence[str] = ()) -> SplitLocation | None:
    """Returns the location of a split in the folder of a dataset; None if it is not there.

    Args:
      folder: the folder of one dataset.
      split: train, validation or test.
      files: names of the split's files, which are tried before the usual ones.
    """
    if not folder.is_dir():
        return None
    for name in (*files, *SPLITS[split]):
        if (folder / name / "nshards.txt").is_file():
            return SplitLocation("suite", str(folder), name)
        if path := _split_path(folder, name):
            return SplitLocation("data", path, name, str(folder))
    captions = sorted(path for path in folder.glob("dataset_*.json") if path.is_file())
    if captions:
        return SplitLocation(
            "karpathy", str(captions[0]), "val" if split == "validation" else split
        )
    if split == "test" and not has_splits(folder) and _has_images(folder):
        return SplitLocation("data", str(folder), "test")
    return None


def _split_path(folder: Path, name: str) -> str:
    """Returns a table, tars, records or a folder of images that belong to a split; '' for none."""
    for end in (*TABLES, ".tar", *RECORDS):
        for form in (f"{name}{end}", f"{name}-*{end}", f"*_{name}{end}", f"{name}/*{end}"):
            if any(path.is_file() for path in folder.glob(form)):
                return str(folder / form)
    inner = folder / name
    return str(inner) if inner.is_dir() and _has_images(inner) else ""


def has_splits(folder: Path) -> bool:
    """Returns whether a folder's entries are splits of one dataset."""
    names = {path.name.split(".")[0] for path in folder.iterdir()}
    return "test" in names or ("train" in names and not names.isdisjoint(SPLITS["test"]))


def _has_images(folder: Path) -> bool:
    """Returns whether an image is in a folder, at most three folders deep."""
    return any(
        path.suffix.lower() in IMAGES and path.is_file()
        for depth in ("*", "*/*", "*/*/*", "*/*/*/*")
        for path in folder.glob(depth)
    )


def find_prepared(folder: str, standard: StandardDataset, split: str) -> SplitLocation | None:
    """Returns the location of a split that TensorFlow Datasets prepared; None if it is not there.

    Args:
      folder: the folder of all prepared datasets.
      standard: the dataset.
      split: train, validation or test.
    """
    spec = standard.tfds.get(split, "")
    dataset = spec.split(":")[0].split("/")[0]
    if not dataset or not folder:
        return None
    root = Path(folder) / dataset
    if not any(any(root.glob(f"{depth}/features.json")) for depth in ("*", "*/*")):
        return None
    return SplitLocation("tfds", spec, spec.rpartition(":")[2], folder)


def lines(path: Path) -> list[str]:
    """Returns the lines of a small text file, stripped and without empty ones; [] without a file.

    Raises:
      UserError: it is over 4 MiB or not UTF-8.
    """
    try:
        if not path.is_file():
            return []
        if path.stat().st_size > _MAX_LINES:
            raise UserError(f"{path} is over {_MAX_LINES >> 20} MiB")
        return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except ValueError:
        raise UserError(f"{path} is not UTF-8") from None


def _suite(folder: Path, split: str) -> Source:
    path = folder / split / "nshards.txt"
    number = next(iter(lines(path)), "")
    count = int(number) if number.isdecimal() and len(number) < 9 else 0
    if not 0 < count <= _MAX_SHARDS:
        raise UserError(f"{path} must hold the number of tars, 1…{_MAX_SHARDS:,}")
    return open_source(f"{folder / split}/{{0..{count - 1}}}.tar", kind="tars")


def open_at(location: SplitLocation, image: str = "") -> Source:
    """Opens the source of a split's images.

    Args:
      location: the location of the split.
      image: the option `image` of the source, see `SourceOptions`.

    Raises:
      UserError: as for `open_source`.
    """
    if location.kind == "suite":
        return _suite(Path(location.path), location.split)
    if location.kind == "karpathy":
        return KarpathySource(Path(location.path), location.split)
    if location.kind == "tfds":
        return open_source(f"tfds:{location.path}", SourceOptions(tfds_folder=location.root))
    options = SourceOptions(image, location.root, classes=True)
    return open_source(location.path, options, kind=location.source, key=location.key)


def class_names(location: SplitLocation) -> list[str]:
    """Returns the class names of a suite in the order of the numbers in its files.

    There are none for other kinds of datasets.
    """
    return lines(Path(location.path) / "classnames.txt") if location.kind == "suite" else []


def own_templates(location: SplitLocation) -> list[str]:
    """Returns the prompts of a suite, with `{}` for a name; none for other kinds of datasets."""
    if location.kind != "suite":
        return []
    templates = lines(Path(location.path) / "zeroshot_classification_templates.txt")
    return [template.replace("{c}", "{}") for template in templates]


def has_captions(location: SplitLocation) -> bool:
    """Returns whether a split has captions and no classes."""
    if location.kind == "suite":
        return "retrieval" in lines(Path(location.path) / "dataset_type.txt")
    return location.kind == "karpathy"


class Chosen:
    """A selection of the pairs of a source."""

    def __init__(self, source: Source, chosen: Sequence[int]) -> None:
        self._source, self._chosen = source, list(chosen)

    @property
    def fingerprint(self) -> str:
        """A digest of the source and the selection."""
        chosen = hashlib.sha256(np.array(self._chosen, np.int64).tobytes()).hexdigest()
        return f"{self._source.fingerprint} {chosen}"

    def opening_report(self) -> OpeningReport:
        """Returns the opening report of the source."""
        return self._source.opening_report()

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, i: int) -> Any:
        return self._source[self._chosen[i]]

    def text(self, i: int) -> tuple[JsonObject, str]:
        """Returns the fields of the i-th pair's text, and the name of the pair."""
        return read_text(self._source, self._chosen[i])
