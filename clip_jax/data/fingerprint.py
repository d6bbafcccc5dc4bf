"""What data is, wherever it lies: a resumed run must go on with the pairs that it began with."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from clip_jax.data.mixture import Mixture
from clip_jax.data.pairs import PairError
from clip_jax.data.sources import Source, read_pair
from clip_jax.tokenizers import Tokenizer

_SAMPLES = 16  # pairs of a source that are read


def of_source(source: Source) -> str:
    """The number of pairs, and a hash of some of them, spread over all, without their names."""
    digest = hashlib.sha256()
    for i in np.unique(np.linspace(0, len(source) - 1, _SAMPLES).astype(int)):
        try:
            pair = read_pair(source, int(i))
            written = json.dumps(pair.text, sort_keys=True, default=str)
            for part in (bytes(pair.image), written.encode(errors="surrogatepass")):
                digest.update(hashlib.sha256(part).digest())
        except PairError as error:
            digest.update(error.reason.encode())
    return f"{len(source)} {digest.hexdigest()[:32]}"


def of_mixture(mixture: Mixture) -> dict[str, str]:
    """`of_source` by the sources' names; '' is a single one."""
    return {part.name: of_source(part.source) for part in mixture.parts}


def of_tokenizer(tokenizer: Tokenizer) -> str:
    """A hash of the vocabulary and of what comes of a few words."""
    words: list[Any] = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    words.append(tokenizer.encode("A photo of two cats, 1984: naïve façade ☃ 猫"))
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:32]
