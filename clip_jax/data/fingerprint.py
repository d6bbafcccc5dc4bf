"""Fingerprints of data that do not depend on its place: a resumed run must get the same pairs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.data.example import PairError
from clip_jax.data.mixture import Mixture
from clip_jax.data.sources import Source, layout, read_pair
from clip_jax.tokenizers import Tokenizer

VERSION = 2  # of the hashed content
_SAMPLES = 16  # pairs of a source that are read
_ENDS = 1 << 20  # bytes read at the start and at the end of a weight file
_MAX_FILES = 1000  # of a folder of weights


def of_source(source: Source) -> str:
    """Returns the number of pairs and a hash of the source's layout and of a sample of its pairs.

    The sampled pairs are spread evenly over the source. Their names are not hashed, because they
    depend on where the data is stored.
    """
    digest = hashlib.sha256()
    for part in layout(source):
        digest.update(hashlib.sha256(part).digest())
    for i in np.unique(np.linspace(0, len(source) - 1, _SAMPLES).astype(int)):
        try:
            pair = read_pair(source, int(i))
            fields = json.dumps(pair.text, sort_keys=True, default=str)
            for part in (bytes(pair.image), fields.encode(errors="surrogatepass")):
                digest.update(hashlib.sha256(part).digest())
        except PairError as error:
            digest.update(error.reason.encode())
    return f"{len(source)} {digest.hexdigest()[:32]}"


def of_mixture(mixture: Mixture) -> dict[str, str]:
    """Returns the fingerprint of each source by its name; the name of a single source is empty."""
    return {part.name: of_source(part.source) for part in mixture.parts}


def of_tokenizer(tokenizer: Tokenizer) -> str:
    """Returns a hash of a tokenizer's vocabulary and of the ids that it gives a fixed sentence."""
    words: list[Any] = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    words.append(tokenizer.encode("A photo of two cats, 1984: naïve façade ☃ 猫"))
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:32]


def of_weights(path: str) -> str | None:
    """Returns a hash of the size, start and end of a file, or of each file below a folder.

    Returns None if there is no file, or one cannot be read.
    """
    root, digest = Path(path).expanduser(), hashlib.sha256()
    try:
        paths = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
        for file in paths[:_MAX_FILES]:
            digest.update(f"{file.relative_to(root)} {file.stat().st_size} ".encode())
            with open(file, "rb") as content:
                digest.update(content.read(_ENDS))
                content.seek(max(0, file.stat().st_size - _ENDS))
                digest.update(content.read(_ENDS))
    except (OSError, ValueError):
        return None
    return digest.hexdigest()[:32] if paths else None
