"""Retrying remote requests: which errors are final, and how long to wait."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from clip_jax.errors import UserError, redacted

ATTEMPTS = 6
PATIENCE = 120.0  # seconds, after which nothing is retried
FIRST_PAUSE = 0.5  # seconds; each pause is up to twice the one before

T = TypeVar("T")
_jitter = random.Random()


class MissingError(UserError):
    """An error for a file that does not exist."""


class RequestError(UserError):
    """An error for a request that failed for good.

    Attributes:
      reason: why, in a few words.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{redacted(path)} cannot be read{reason}")
        self.reason = reason.removeprefix(": ").removeprefix(" (").removesuffix(")")


def reason(error: BaseException) -> str:
    """Describes in a few words why a request failed."""
    if isinstance(status := _status(error), int):
        return f"HTTP {status}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _status(error: BaseException) -> int | None:
    status = getattr(error, "status", None) or getattr(error, "code", None)
    return status if isinstance(status, int) else None


def _is_final(error: BaseException) -> bool:
    """Returns whether a retry would fail in the same way."""
    status = _status(error)
    if status is not None:
        return 400 <= status < 500 and status not in (408, 425, 429)
    final = (PermissionError, IsADirectoryError, NotADirectoryError)
    is_refused = "credential" in type(error).__name__.lower() or str(error).startswith("Forbidden")
    return is_refused or isinstance(error, (*final, NotImplementedError, ValueError, TypeError))


def retry(path: str, request: Callable[[], T]) -> T:
    """Makes a request and returns its result; retries after growing pauses while they may help.

    Args:
      path: the remote path, for errors.
      request: makes the request.

    Raises:
      MissingError: there is no such file.
      RequestError: it fails with an error that a retry would repeat, or too often.
      UserError, FileExistsError: the request itself raised one.
    """
    end = time.monotonic() + PATIENCE
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return request()
        except (UserError, FileExistsError):
            raise
        except Exception as error:
            if isinstance(error, FileNotFoundError) or _status(error) in (404, 410):
                raise MissingError(f"no file {redacted(path)}") from None
            pause = FIRST_PAUSE * 2 ** (attempt - 1) * _jitter.uniform(0.5, 1)
            if _is_final(error):
                raise RequestError(path, f" ({reason(error)})") from None
            if attempt == ATTEMPTS or time.monotonic() + pause > end:
                raise RequestError(
                    path, f": {reason(error)} at attempt {attempt}, the last"
                ) from None
        time.sleep(pause)
    raise AssertionError
