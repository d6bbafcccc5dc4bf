"""The fsspec file systems behind remote paths."""

from __future__ import annotations

import asyncio
import functools
import os
import re
from collections.abc import Coroutine
from typing import Any, TypeVar

from clip_jax.errors import UserError, redacted
from clip_jax.io import redirects, retries

T = TypeVar("T")
_REMOTE = re.compile(r"([a-z][a-z0-9+.-]+)://")
_EXTRAS = ("http", "https", "s3", "s3a", "gs", "gcs")  # protocols of the extra `remote`
_systems: dict[tuple[int, str, str], Any] = {}


def is_remote(path: str) -> bool:
    """Returns whether a path, such as `gs://bucket/x`, is outside this machine's file system."""
    return bool(_REMOTE.match(path))


def is_http(path: str) -> bool:
    """Returns whether a path is read from a web server."""
    return path.startswith(("http://", "https://"))


@functools.cache
def load_fsspec() -> Any:
    """Imports fsspec, makes it safe for forks, and returns it."""
    import fsspec
    import fsspec.asyn

    # a lock that another thread holds during a fork would stay locked in the child
    os.register_at_fork(after_in_child=fsspec.asyn.reset_lock)
    return fsspec


def system_of(path: str) -> Any:
    """Returns the fsspec file system of a remote path.

    Threads share it if it is asynchronous. Processes never do, because the thread that answers
    requests does not survive a fork.

    Raises:
      UserError: a package is missing, or the options in the path are wrong.
    """
    fsspec = load_fsspec()
    protocol = _REMOTE.match(path)[1]  # type: ignore[index]  # only remote paths come here
    try:
        kind = fsspec.get_filesystem_class(protocol)
        options = kind._get_kwargs_from_urls(path)
        if protocol in ("http", "https"):
            options |= {"client_kwargs": {"trace_configs": [redirects.trace_config()]}}
        if not kind.async_impl:
            return fsspec.filesystem(protocol, **options)
        shown_options = {k: v for k, v in options.items() if k != "client_kwargs"}
        key = (os.getpid(), protocol, repr(shown_options))
        if key not in _systems:
            _systems.setdefault(key, kind(**options, skip_instance_cache=True))
        return _systems[key]
    except ImportError as error:
        how = "pip install 'clip_jax[remote]'" if protocol in _EXTRAS else "pip install it"
        why = " ".join(str(error).split())
        raise UserError(
            f"{redacted(path)} needs a package that is missing ({why}): {how}"
        ) from None
    except Exception as error:  # any file system may be installed
        raise UserError(f"{redacted(path)} cannot be reached ({retries.reason(error)})") from error


def run(system: Any, job: Coroutine[Any, Any, T], seconds: float) -> T:
    """Runs a coroutine of a file system and waits for its result in the calling thread.

    Args:
      system: the file system.
      job: the coroutine.
      seconds: the maximum time to wait.
    """

    async def timed() -> T:
        return await asyncio.wait_for(job, seconds)

    result: T = load_fsspec().asyn.sync(system.loop, timed)
    return result
