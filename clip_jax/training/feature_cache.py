"""Features of a frozen image tower, computed once (locked-image tuning with `data.cache_features`).

The folder of a source's features is named by all that they depend on: the weights of the tower, the
content of the source, and how images are prepared. Another run on the same data finds them, and a
run that is resumed reads the same.

Source: Zhai et al. 2022, "LiT: Zero-Shot Transfer with Locked-image text Tuning".
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from clip_jax.config.schema import Config, Data
from clip_jax.data import fingerprint
from clip_jax.data.example import PairError, only_pair_errors
from clip_jax.data.images.decoding import decode
from clip_jax.data.images.preprocess import Preprocess
from clip_jax.data.mixture import Mixture
from clip_jax.data.rows import Prepare
from clip_jax.data.sources import Source, read_pair
from clip_jax.data.stored_features import ROWS, StoredFeatures, file_name
from clip_jax.distributed import multihost
from clip_jax.errors import UserError, counted
from clip_jax.evaluation import features
from clip_jax.evaluation.features import Encoder
from clip_jax.io import files
from clip_jax.io.buckets import on_disk
from clip_jax.io.files import JsonObject
from clip_jax.models.clip import Variables
from clip_jax.models.model_config import CLIPConfig

_VERSION = 1  # of the files and of what is computed
_RETRIED = 16  # images of a file that could not be read, and are tried again by the next run


@dataclasses.dataclass(frozen=True)
class FeatureCache:
    """Computes the missing features of a run's images, and tells training where all of them are.

    Attributes:
      config: the config of the run.
      model: the architecture.
      mixture: the sources of the images.
      prepare: prepares images as training does.
      preprocess: prepares images without augmentation.
      stored: the features of each source of the mixture, which training reads.
    """

    config: Config
    model: CLIPConfig
    mixture: Mixture
    prepare: Prepare
    preprocess: Preprocess
    stored: tuple[StoredFeatures, ...]

    def fill(self, encoder: Encoder, variables: Variables, say: Callable[[str], None]) -> None:
        """Computes the files that are missing.

        Args:
          encoder: the encoder of the model.
          variables: the model's parameters and batch statistics.
          say: called with a line about what is computed or read.

        Raises:
          UserError: a file cannot be written.
        """
        params, stats = variables
        tower = features.fingerprint({"params": params["vision"], "stats": stats.get("vision", {})})
        for part, stored in zip(self.mixture.parts, self.stored, strict=True):
            folder = self._folder(tower, part.source)
            stored.folder = folder
            total = len(part.source)
            missing = np.array(
                [self._is_missing(folder, part.source, n) for n in range(-(-total // ROWS))], int
            )
            # every process takes part in encoding
            numbers = np.flatnonzero(multihost.sum_over_processes(missing)).tolist()
            name = f"{part.name}: " if part.name else ""
            if not numbers:
                say(f"{name}features of {counted(total, 'image')} are read from {folder}")
                continue
            _check_room(folder, len(numbers) * self._bytes_of_file(total))
            say(f"{name}computing features of {counted(total, 'image')} once, into {folder}")
            bad = self._compute(encoder, part.source, numbers, folder)
            if bad:
                say(f"{name}{counted(bad, 'image')} cannot be read and will be replaced")

    def _folder(self, tower: str, source: Source) -> Path:
        data = self.config.data
        architecture = self.model.to_dict()
        facts = {
            "version": _VERSION,
            "tower": tower,
            "architecture": [architecture[k] for k in ("vision", "embed_dim", "activation")],
            "dtype": self.config.dtype,
            # that of the source notices every file that is written again, the other one its content
            "pairs": [source.fingerprint, fingerprint.of_source(source)],
            "views": data.views,
        }
        if self.model.projection_width:
            facts["projection_width"] = self.model.projection_width
        if data.views:
            facts |= {
                "augment": dataclasses.asdict(self.prepare.augment),
                "fast_decode": data.fast_decode,
                "seed": self.config.seed,
                "size": self.prepare.image_size,
            }
            if self.prepare.budget is not None:
                facts["budget"] = dataclasses.asdict(self.prepare.budget)
        else:
            facts["preprocess"] = dataclasses.asdict(self.preprocess)
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
        return _base(data) / key

    def _bytes_of_file(self, pictures: int) -> int:
        """Returns the size of the largest file of a source with that many images."""
        return min(pictures, ROWS) * max(1, self.config.data.views) * self.model.embed_dim * 4

    def _is_missing(self, folder: Path, source: Source, number: int) -> bool:
        """Returns whether a file is not there, is damaged, or can be completed.

        The last is so if one of the first images that could not be read can be read now.
        """
        facts = _read_facts(folder / file_name(number))
        if facts is None:
            return True
        for row in facts["unreadable"][:_RETRIED]:
            with contextlib.suppress(PairError):
                self._pixels(source, number * ROWS + row, 0)
                return True
        return False

    def _compute(
        self, encoder: Encoder, source: Source, numbers: Sequence[int], folder: Path
    ) -> int:
        """Writes the files of these numbers; returns how many images could not be read."""
        views, bad = max(1, self.config.data.views), 0
        spans = {n: range(n * ROWS, min((n + 1) * ROWS, len(source))) for n in numbers}
        total = views * sum(map(len, spans.values()))
        with tqdm(total=total, unit=" images", desc="features", disable=None) as bar:
            for number, span in spans.items():
                unreadable: set[int] = set()

                def pixels(row: int, span: range = span, lost: set[int] = unreadable) -> np.ndarray:
                    picture, view = divmod(row, views)
                    try:
                        return self._pixels(source, span[picture], view)
                    except PairError:
                        lost.add(picture)
                        return np.zeros(self.preprocess.shape, np.uint8)

                encoded = encoder.pixels(len(span) * views, pixels, advance=bar.update)
                array = encoded.reshape(len(span), views, -1)
                lost = np.isin(np.arange(len(span)), list(unreadable)).astype(np.int64)
                rows = np.flatnonzero(multihost.sum_over_processes(lost))
                array[rows] = np.nan
                bad += len(rows)
                _write(folder / file_name(number), array, rows.tolist())
        return bad

    def _pixels(self, source: Source, picture: int, view: int) -> np.ndarray:
        pair = read_pair(source, picture)
        if self.config.data.views:
            counter = (picture << 128) + (view << 96)
            rng = np.random.Generator(np.random.Philox(key=self.config.seed, counter=counter))
            return self.prepare.view(pair, rng)
        with only_pair_errors("picture", pair.name):
            return self.preprocess(decode(pair.image, pair.name))


def _base(data: Data) -> Path:
    """Returns the folder of the features of all towers and sources."""
    return on_disk(data.features) if data.features else files.cache_folder("features")


def check_folder(c: Config) -> None:
    """Checks that the features of a run can be written, without touching a device.

    A folder that holds features already may be read-only: whether any are missing is known only
    once the weights are.

    Raises:
      UserError: they cannot be written.
    """
    base = _base(c.data)
    if c.data.cache_features and not (base.is_dir() and any(base.iterdir())):
        _check_room(base, 0)


def _check_room(folder: Path, size: int) -> None:
    """Raises UserError if a folder cannot be written, or has no room for `size` bytes."""
    try:
        files.try_writing(folder)
        free = shutil.disk_usage(files.nearest_folder(folder)).free
    except OSError as error:
        raise _unwritable(folder, error) from None
    if free < size:
        raise UserError(
            f"{folder} has {free / 2**30:.1f} GiB free, the features take {size / 2**30:.1f}: make "
            "room, or name another folder by config.data.features"
        )


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path} cannot be written ({error.strerror}): name another folder by config.data.features"
    )


def _facts_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _read_facts(path: Path) -> JsonObject | None:
    """Returns what was written beside a file of features; None if the file is not as it was then.

    That is its digest, and the rows of images that could not be read.
    """
    try:
        facts = files.read_json(_facts_path(path))
        return facts if facts["digest"] == files.sampled_digest(path) else None
    except (UserError, OSError, KeyError):
        return None


def _write(path: Path, array: np.ndarray, unreadable: list[int]) -> None:
    try:
        with files.atomic_write(path) as file:
            np.save(file, array.astype(np.float32), allow_pickle=False)
        facts = {"digest": files.sampled_digest(path), "unreadable": unreadable}
        with files.atomic_write(_facts_path(path)) as file:
            file.write(json.dumps(facts).encode())
    except OSError as error:
        raise _unwritable(path, error) from None
