"""What the names in a folder of pictures say: labels, splits, tables that hold the captions."""

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

# Splits of a data set, whose names are no captions where there are several.
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}
# Names of folders that say nothing about the pictures in them.
_GENERIC = re.compile(
    r"(?:(?:train|val|test|dev|unlabeled)\d{4}|flicke?r(?:8k|30k)[-_](?:images|dataset)"
    r"|(?:images?|imgs?|pictures?|pics?|photos?|frames?|data|dataset|files?|media|all|extra|samples"
    r"|jpe?gs?|pngs?|webps?|jpegimages|parts?|shards?|batch|chunks?|sets?|splits?|folders?|dirs?"
    r"|raw|inputs?|crops?|thumbs?|thumbnails?)(?:[-_ ]?\d+)?)"
)
_HEAD = 1 << 18  # bytes of a table that are looked at
_TABLES_READ = 20
_MOST_SIZES = 200_000  # of files in a folder: each is a question to the file system
_WORDS = 4  # for each picture that a table names, from which on it holds captions
_TEXTUAL = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt", ".token")
_PICTURE = re.compile(
    r"[^\s,;|\"'#/\\:<>]+(?:" + "|".join(map(re.escape, IMAGES)) + r")\b", re.IGNORECASE
)
_KEY = re.compile(r'"[^"\s]*"\s*:')
_WORD = re.compile(r"[^\W\d_]{2,}")
_ARCHIVES = (".tar", *TABLES, *RECORDS, ".tar.gz", ".tgz", ".zip")


def label(path: bytes) -> str:
    """The last part of a folder's path."""
    return os.fsdecode(os.path.basename(path.rstrip(b"/")))


def telling(labels: Collection[str]) -> set[str]:
    """Those names of folders that can be captions: not `train` beside `test`, nor `images`."""
    lower = {one.lower() for one in labels}
    told = {one for one in labels if not _GENERIC.fullmatch(one.lower())}
    splits = lower & _SPLITS
    if len(splits) > 1 or lower == splits or len(told) < len(labels):
        told = {one for one in told if one.lower() not in _SPLITS}
    return told


def has_classes(listing: Listing) -> bool:
    """Whether pictures are in several folders whose names can be captions."""
    labels = {
        label(path)
        for path, names in listing.folders
        if path and any(kind(os.fsdecode(name)) == "picture" for name in names)
    }
    return len(telling(labels)) > 1


def captioning_table(listing: Listing, pictures: Iterable[list[bytes]]) -> str:
    """A file of a folder that says several words about each of its pictures; '' for none.

    pictures: the names of the files, by folder.
    """
    tables = [path for path in listing.files() if path.lower().endswith((*_TEXTUAL, ".parquet"))]
    if not tables:
        return ""
    names = {os.fsdecode(name) for some in pictures for name in some}
    for path in sorted(tables, key=lambda path: (path.count("/"), path))[:_TABLES_READ]:
        if path.lower().endswith(".parquet") or _says_much(_head(listing, path), names):
            return os.path.join(listing.root, path)
    return ""


def _head(listing: Listing, path: str) -> str:
    whole = os.path.join(listing.root, path)
    try:
        with remote.open_file(whole) as file:
            return file.read(_HEAD).decode(errors="replace")
    except OSError:
        return ""


def _says_much(text: str, names: Collection[str]) -> bool:
    if not any(name in names for name in _PICTURE.findall(text)):
        return False
    plain, count = _PICTURE.subn(" ", re.sub(r"\S*[/\\]", "", _KEY.sub(" ", text)))
    return len(_WORD.findall(plain)) >= _WORDS * count


def hint(listing: Listing) -> str:
    """What else a folder holds that could be meant, as the end of an error; '' for nothing."""
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


def of_files(root: str, paths: Iterable[bytes]) -> Iterator[bytes]:
    """Paths below a folder as they are, then the files' sizes unless there are very many."""
    paths = list(paths)
    yield b"\0".join(paths)
    if len(paths) <= _MOST_SIZES:
        states = remote.states([os.path.join(root, os.fsdecode(path)) for path in paths])
        yield repr([one.size for one in states]).encode()
