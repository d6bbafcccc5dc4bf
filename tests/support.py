"""Small pictures and tars for tests."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clip_jax.errors import UserError
from clip_jax.tokenizers.packing import pack

TarFactory = Callable[..., Path]


def _known_flags(*flags: str) -> str:
    """Those of XLA's flags that the installed version knows: it ends a process at any other.

    Asked once: processes started by this one find the answer in the environment.
    """
    if (known := os.environ.get(_KNOWN)) is None:
        known = " ".join(flag for flag in flags if knows_flags(flag))
        os.environ[_KNOWN] = known
    return known


def knows_flags(flags: str) -> bool:
    """Whether the installed XLA starts with these flags."""
    code = "import jax; jax.config.update('jax_platforms', 'cpu'); jax.devices()"
    environment = {**os.environ, "XLA_FLAGS": flags}
    return not subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True
    ).returncode


_KNOWN = "CLIP_JAX_TEST_XLA_FLAGS"
# Compiling is most of what the tests take; what XLA's older code generator makes and LLVM leaves
# alone is as right. The notebooks are compiled as always. jax 0.12 has no older code generator.
QUICK = _known_flags("--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false")


def picture(seed: int = 0, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Image.Image:
    """A random picture of `size` (width, height)."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    """A picture as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    """A tar of these members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_pairs(path: Path, count: int) -> Path:
    """A tar of random pictures called `picture 0`, `picture 1`, …"""
    members = []
    for i in range(count):
        members.append((f"{i:03}.png", encoded(picture(i, (20, 18)))))
        members.append((f"{i:03}.json", f'{{"caption": "picture {i}"}}'.encode()))
    return write_tar(path, members)


class Letters:
    """A tokenizer whose ids are ASCII codes: picklable, and quick to load in a worker."""

    vocab_size, sot_id, eot_id, pad_id = 128, 1, 127, 0

    def __init__(self, context_length: int = 16) -> None:
        self.context_length = context_length

    def encode(self, text: str) -> list[int]:
        return list(text.encode("ascii", errors="replace"))

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(chr(i) for i in ids if self.sot_id < i < self.eot_id)

    def __call__(self, texts: str | Sequence[str], truncate: bool = False) -> np.ndarray:
        return pack(self, texts, truncate)


def says(error: BaseException, *words: object) -> bool:
    """Whether an error is one line, not too long to read, that names all of `words`."""
    line = str(error)
    return "\n" not in line and len(line) < 500 and all(str(word) in line for word in words)


def refused(act: Callable[[], object], *words: object) -> None:
    """Asserts that `act` ends with such an error, see `says`."""
    with pytest.raises(UserError) as error:
        act()
    assert says(error.value, *words)


def clusters(
    n: int, classes: int = 4, d: int = 12, spread: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Unit-norm features of overlapping classes around a common mean, axes of unlike scales."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(99)
    scale = (1 + np.arange(d)) ** -0.7
    centres, mean = fixed.normal(size=(classes, d)) * scale, fixed.normal(size=d)
    target = np.arange(n) % classes
    features = mean + centres[target] + spread * scale * rng.normal(size=(n, d))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features.astype(np.float32), target
