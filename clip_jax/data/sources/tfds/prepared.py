"""Finding, opening and preparing data sets of TensorFlow Datasets on this machine."""

from __future__ import annotations

import difflib
import fnmatch
import os
import re
from typing import Any, NamedTuple

from clip_jax.data.sources.tfds import emoji
from clip_jax.data.sources.tfds.library import epath, tfds
from clip_jax.data.sources.tfds.location import COMMAND
from clip_jax.errors import UserError, is_disk_full

__all__ = ["emoji", "one_line", "open_prepared", "prepare"]  # importing emoji registers it

FORMAT = "array_record"
_NAME = re.compile(
    r"(?P<dataset>[a-zA-Z]\w*)(?:/(?P<config>[\w+.-]+))?(?::(?P<version>[\d*]+\.[\d*]+\.[\d*]+))?"
)
_VERSION = re.compile(r"\d+\.\d+\.\d+")


class _Prepared(NamedTuple):
    """A prepared data set: its configuration (empty for none), version and folder."""

    config: str
    version: str
    path: epath.Path


def one_line(error: BaseException) -> str:
    """Returns the type and message of an exception as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _parse(name: str) -> re.Match[str]:
    if not (match := _NAME.fullmatch(name)):
        raise UserError(
            f"{name!r} names no data set: NAME, NAME/CONFIG or NAME/CONFIG:1.0.0 is expected"
        )
    return match


def _check_known(dataset: str, folder: str) -> None:
    known = tfds.list_builders(with_community_datasets=False)
    if dataset not in known:
        near = difflib.get_close_matches(dataset, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(
            f"TensorFlow Datasets has no {dataset!r}, and none is prepared in {folder}{hint}"
        )


def _prepared(dataset: str, folder: str) -> list[_Prepared]:
    """Returns all configurations and versions of a data set that are prepared in a folder."""
    root = epath.Path(folder) / dataset
    paths = [path.parent for depth in ("*", "*/*") for path in root.glob(f"{depth}/features.json")]
    return [
        _Prepared("" if path.parent == root else path.parent.name, path.name, path)
        for path in sorted(paths)
        if _VERSION.fullmatch(path.name)
    ]


def _latest(name: str, folder: str) -> epath.Path:
    """Returns the folder of the latest prepared version of a data set.

    Raises:
      UserError: it is not prepared, there is no such data set, or several configurations fit.
    """
    dataset, config, version = _parse(name).group("dataset", "config", "version")
    prepared = _prepared(dataset, folder)
    matches = [
        item
        for item in prepared
        if config in (None, item.config) and fnmatch.fnmatch(item.version, version or "*")
    ]
    if not matches:
        if not prepared:
            _check_known(dataset, folder)
        others = ", ".join(f"{dataset}/{c}:{v}" if c else f"{dataset}:{v}" for c, v, _ in prepared)
        available = f" ({others} is)" if others else ""
        raise UserError(
            f"{name} is not prepared in {folder}{available}: "
            f"run {COMMAND} {name} --data-dir {folder}, or set TFDS_DATA_DIR to where it is"
        )
    if len(configs := sorted({item.config for item in matches})) > 1:
        raise UserError(
            f"{name} is prepared in several configurations; name one: "
            f"{', '.join(f'{dataset}/{c}' if c else dataset for c in configs)}"
        )
    return max(matches, key=lambda item: [int(part) for part in item.version.split(".")]).path


def open_prepared(name: str, folder: str) -> Any:
    """Returns the builder of a prepared data set, made from its files without the data set's code.

    Args:
      name: NAME, NAME/CONFIG or NAME/CONFIG:VERSION.
      folder: where the data set is prepared.

    Raises:
      UserError: it is not prepared, cannot be read, or is in a format that needs TensorFlow.
    """
    path = _latest(name, folder)
    try:
        builder = tfds.builder_from_directory(os.fspath(path))
        formats = sorted(format.value for format in builder.info.available_file_formats())
        if FORMAT in formats:
            builder.info.set_file_format(FORMAT, override=True, override_if_initialized=True)
    except Exception as error:
        raise UserError(
            f"{path} cannot be read as a prepared data set ({one_line(error)})"
        ) from error
    if FORMAT not in formats:
        raise UserError(
            f"{path} is prepared as {' and '.join(formats)}, which needs TensorFlow to read: "
            f"remove it, or choose another folder, and run {COMMAND} {name} --data-dir FOLDER, "
            f"which prepares with file_format='{FORMAT}'"
        )
    return builder


def prepare(name: str, folder: str) -> Any:
    """Prepares a data set as ArrayRecord files unless that is done, and returns its builder.

    Raises:
      UserError: there is no such data set, or its preparation fails.
    """
    dataset = _parse(name)["dataset"]
    if not _prepared(dataset, folder):
        _check_known(dataset, folder)
    try:
        builder = tfds.builder(name, data_dir=folder)
        if not builder.data_path.exists():
            builder.download_and_prepare(file_format=FORMAT)
    except Exception as error:
        if is_disk_full(error):
            raise
        if isinstance(error, ImportError) and "tensorflow" in str(error):
            raise UserError(
                f"{name} is among those whose own code needs TensorFlow to prepare (not to read): "
                f"run the same command once where TensorFlow is installed, then copy the folder"
            ) from error
        raise UserError(f"{name} cannot be prepared ({one_line(error)})") from error
    return open_prepared(name, folder)
