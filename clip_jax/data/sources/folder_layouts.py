"""What the names in a folder of images mean: labels, splits, and tables of captions."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from clip_jax.data.example import IMAGES
from clip_jax.data.sources.endings import RECORDS, TABLES
from clip_jax.data.sources.matching import kind
from clip_jax.data.sources.walk import Listing
from clip_jax.io import remote

# Names of splits, which are no captions where several of them are side by side.
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}
# Names of folders that say nothing about the images in them.
_GENERIC = re.compile(
    r"(?:(?:train|val|test|dev|unlabeled)\d{4}|flicke?r(?:8k|30k)[-_](?:images|dataset)"
    r"|(?:images?|imgs?|pictures?|pics?|photos?|frames?|data|dataset|files?|media|all|extra|samples"
    r"|jpe?gs?|pngs?|webps?|jpegimages|parts?|shards?|batch|chunks?|sets?|splits?|folders?|dirs?"
    r"|raw|inputs?|crops?|thumbs?|thumbnails?)(?:[-_ ]?\d+)?)"
)
_HEAD = 1 << 18  # bytes of a table that are read
_MAX_TABLES = 20
_MAX_SIZES = 200_000  # files whose size is asked for: each is a system call
_MIN_WORDS = 4  # for each image that a table names, if it holds captions
_TEXTUAL = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt", ".token")
_IN_NAME = r"""[^\s,;|"'#/\\:<>]"""
# Each begins where a name begins: a search that also begins inside of names takes quadratic time.
_IMAGE_NAME = re.compile(
    rf"(?<!{_IN_NAME}){_IN_NAME}+(?:{'|'.join(map(re.escape, IMAGES))})\b", re.IGNORECASE
)
_FOLDERS = re.compile(r"(?<!\S)\S*[/\\]")
_KEY = re.compile(r'"[^"\s]*"\s*:')
_WORD = re.compile(r"[^\W\d_]{2,}")
_ARCHIVES = (".tar", *TABLES, *RECORDS, ".tar.gz", ".tgz", ".zip")


def label(path: bytes) -> str:
    """Returns the last part of a folder's path."""
    return os.fsdecode(os.path.basename(path.rstrip(b"/")))


def caption_labels(labels: Collection[str]) -> set[str]:
    """Returns the folder names that can be captions: not `train` beside `test`, nor `images`."""
    lower = {label.lower() for label in labels}
    captions = {label for label in labels if not _GENERIC.fullmatch(label.lower())}
    splits = lower & _SPLITS
    if len(splits) > 1 or lower == splits or len(captions) < len(labels):
        captions = {label for label in captions if label.lower() not in _SPLITS}
    return captions


def has_classes(listing: Listing) -> bool:
    """Returns whether images are in several folders whose names can be captions."""
    labels = {
        label(path)
        for path, names in listing.folders
        if path and any(kind(os.fsdecode(name)) == "picture" for name in names)
    }
    return len(caption_labels(labels)) > 1


def captioning_table(listing: Listing, images: Iterable[list[bytes]]) -> str:
    """Returns the path of a file in the folder that has captions of its images, or an empty text.

    Args:
      listing: the files of the folder.
      images: the names of the image files, by folder.
    """
    tables = [path for path in listing.files() if path.lower().endswith((*_TEXTUAL, ".parquet"))]
    if not tables:
        return ""
    names = {os.fsdecode(name) for folder in images for name in folder}
    for path in sorted(tables, key=lambda path: (path.count("/"), path))[:_MAX_TABLES]:
        if path.lower().endswith(".parquet") or _has_captions(_head(listing, path), names):
            return os.path.join(listing.root, path)
    return ""


def _head(listing: Listing, path: str) -> str:
    try:
        with remote.open_file(os.path.join(listing.root, path)) as file:
            return file.read(_HEAD).decode(errors="replace")
    except OSError:
        return ""


def _has_captions(text: str, names: Collection[str]) -> bool:
    if not any(name in names for name in _IMAGE_NAME.findall(text)):
        return False
    plain, count = _IMAGE_NAME.subn(" ", _FOLDERS.sub("", _KEY.sub(" ", text)))
    return len(_WORD.findall(plain)) >= _MIN_WORDS * count


def hint(listing: Listing) -> str:
    """Returns the end of an error that names other data in a folder; empty if there is none."""
    folders = dict[int, Counter[str]]()
    for path in listing.files():
        folder, name = os.path.split(path)
        for rank, end in enumerate(_ARCHIVES):
            if name.lower().endswith(end):
                folders.setdefault(rank, Counter())[folder] += 1
    if not folders:
        return ""
    rank, counts = min(folders.items())
    end, count = _ARCHIVES[rank], counts.total()
    below = next(iter(counts)) if len(counts) == 1 else "**"
    pattern = os.path.join(listing.root, below, f"*{end}")
    how = "unpack them and use the folder" if end.endswith(("gz", "zip")) else f"use {pattern}"
    return f"; it holds {count:,} {end} files: {how}"


def file_layout(root: str, paths: Iterable[bytes]) -> Iterator[bytes]:
    """Yields the paths below a folder, then the sizes of the files unless there are very many."""
    paths = list(paths)
    yield b"\0".join(paths)
    if len(paths) <= _MAX_SIZES:
        states = remote.states([os.path.join(root, os.fsdecode(path)) for path in paths])
        yield repr([state.size for state in states]).encode()
