"""Settings of glibc's allocator for training on a CPU."""

from __future__ import annotations

import os
import sys


def heap_settings() -> str:
    """What glibc is told of the heap: huge pages, and nothing given back between steps.

    The arenas of threads are given back whatever one sets, so on few cores there is only one;
    on many, threads that decode pictures would wait for each other in it.
    """
    settings = {
        "hugetlb": 1,
        "mmap_threshold": 1 << 32,
        "trim_threshold": 1 << 33,
        **({"arena_max": 1} if (os.cpu_count() or 1) <= 8 else {}),
    }
    return ":".join(f"glibc.malloc.{key}={value}" for key, value in settings.items())


def tune_allocator() -> None:
    """Starts this command again with `heap_settings`.

    On a CPU a step allocates its activations anew, and without this the kernel zeroes them page
    by page (docs/benchmarks.md). glibc reads the setting only when a process starts; one
    that the user made is kept.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = heap_settings()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
