"""What all tests share: eight pretended devices, a cache folder of their own, small tars."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import json
import os
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import buckets
import hypothesis
import pytest

from clip_jax.io.buckets import as_path
from support import QUICK, TarFactory, encoded, picture, write_tar

# Before any test module imports jax. The caches of other sessions must not matter.
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {QUICK}"
os.environ["JAX_PLATFORMS"] = "cpu"
_CACHE = tempfile.TemporaryDirectory(prefix="clip_jax_tests_")
os.environ["XDG_CACHE_HOME"] = _CACHE.name

hypothesis.settings.register_profile(
    "clip_jax",
    deadline=None,  # the machines that run these are shared
    max_examples=50,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("clip_jax")


@pytest.fixture(scope="module", autouse=True)
def _release_programs() -> Iterator[None]:
    """Frees the compiled programs of a module; those of all modules take 7 GiB a process."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # not glibc
            ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def stores() -> Iterator[Callable[[str], Path]]:
    """A function from `gs` or `s3` to an empty bucket of a server on this machine."""
    with contextlib.ExitStack() as stack:
        servers = functools.cache(lambda store: stack.enter_context(buckets.running(store)))
        yield lambda store: as_path(servers(store)) / uuid.uuid4().hex[:8]


@pytest.fixture(params=["gs", "s3"])
def bucket(request: pytest.FixtureRequest, stores: Callable[[str], Path]) -> Path:
    """An empty folder in a bucket."""
    return stores(request.param)


@pytest.fixture(params=["disk", "gs", "s3"])
def folder(request: pytest.FixtureRequest, stores: Callable[[str], Path], tmp_path: Path) -> Path:
    """An empty folder on disk or in a bucket."""
    return tmp_path if request.param == "disk" else stores(request.param)


@pytest.fixture
def tar_factory(tmp_path: Path) -> TarFactory:
    """`tar_factory("x.tar", pairs=3)`: a WebDataset tar of random pictures, `{"caption": …}` each.

    Arguments: `text`, "json" or "txt"; `kind`, the format of the pictures; `size` (width, height);
    `first`, the number of the first pair, which seeds its picture too; `fields`, a function from
    that number to the json.
    """

    def make(
        name: str = "pairs.tar",
        pairs: int = 3,
        *,
        first: int = 0,
        text: str = "json",
        kind: str = "png",
        size: tuple[int, int] = (12, 10),
        fields: Callable[[int], Mapping[str, Any]] = lambda i: {"caption": f"picture {i}"},
    ) -> Path:
        members = []
        for i in range(first, first + pairs):
            written = json.dumps(fields(i)) if text == "json" else f"picture {i}\n"
            members.append((f"{i:06}.{kind}", encoded(picture(i, size), kind)))
            members.append((f"{i:06}.{text}", written.encode()))
        return write_tar(tmp_path / name, members)

    return make
