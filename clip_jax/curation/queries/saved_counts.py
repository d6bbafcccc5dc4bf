"""The counts of a corpus's files on disk, so that a file is counted once and a killed run goes on.

A folder for each file holds `words.txt` (a word a line), `counts.npy` (int64 [words]) and
`bigrams-*.npy` (uint64 [2, bigrams]: numbers of the first word · 2^32 + of the second; counts).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path, PurePath

import numpy as np

from clip_jax.curation.queries.ngram_counts import NgramCounter
from clip_jax.errors import UserError
from clip_jax.io import remote
from clip_jax.io.files import sampled_digest

_VERSION = "1"  # of what a word is: other words, other folders


def counts_folder(root: Path, path: str, segmenter: str) -> Path:
    """Returns the folder of a file's counts, whose name depends on its content.

    Args:
      root: the folder of all counts.
      path: the file of the corpus.
      segmenter: the name of the segmenter.

    Raises:
      UserError: the file cannot be read.
    """
    try:
        is_remote = remote.is_remote(path)
        content = remote.identity([path], [remote.state(path)]) if is_remote else ""
        content = content or sampled_digest(Path(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    digest = hashlib.sha256("\0".join((_VERSION, segmenter, content)).encode()).hexdigest()
    return root / f"{PurePath(remote.redact(path)).name[:60]}-{digest[:16]}"


def save_counts(counter: NgramCounter, folder: Path) -> None:
    """Writes the counts of one file, completely or not at all.

    Raises:
      OSError: they cannot be written.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        words, counts = counter.numbered_words()
        (temporary / "words.txt").write_bytes("".join(f"{w}\n" for w in words).encode())
        np.save(temporary / "counts.npy", counts)
        for i, (keys, bigram_counts) in enumerate(counter.bigrams()):
            block = np.stack([keys, bigram_counts.astype(np.uint64)])
            np.save(temporary / f"bigrams-{i:05}.npy", block)
        if not folder.exists():  # another process may have been faster
            temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def add_saved_counts(counter: NgramCounter, folder: Path) -> None:
    """Adds the counts of one file to a counter.

    Raises:
      UserError: the folder is damaged.
    """
    try:
        words = (folder / "words.txt").read_bytes().decode().split("\n")[:-1]
        numbers = counter.add_words(words, np.load(folder / "counts.npy"))
        for path in sorted(folder.glob("bigrams-*.npy")):
            keys, counts = np.load(path, mmap_mode="r")
            counter.add_keys(keys, counts, numbers)
    except (OSError, ValueError, IndexError, TypeError) as error:
        line = " ".join(str(error).split())
        raise UserError(f"{folder} is damaged ({line:.200}): delete it") from None
