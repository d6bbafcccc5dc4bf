"""Errors that are not bugs: mistakes of the user and failures of the machine."""

from __future__ import annotations

import contextlib
import errno
import re
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

_LIBRARIES = (Path(__file__).parent, Path(sysconfig.get_path("stdlib")))
_MAX_LENGTH = 500
_USERINFO = re.compile(r"(?<=://)[^\s/?#'\"]*@")
_LOOSE_PASSWORD = re.compile(r"(?<=://)[^\s/@:]+:(?!\d{1,5}(?:[/?#\s]|$))[^\s'\"]*@")
_QUERY = re.compile(r"(https?://[^\s?#'\"]*)[?#][^\s'\"]*", re.IGNORECASE)
_SECRET = re.compile(
    r"([?&;](?:[\w-]*(?:signature|token|secret|password|passwd|credential|api[_-]?key)|sig|key|pwd)=)"
    r"[^&;\s'\"]+",
    re.IGNORECASE,
)
_DISK_FULL_CODES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DISK_FULL_TEXTS = ("No space left", "File too large", "Disk quota")


def redacted(text: str) -> str:
    """Removes the passwords and signatures of URLs from a text.

    `https://` URLs lose their user and their query, because either may be a secret. Other URLs lose
    a user that has a password (`s3://KEY:SECRET@bucket`).
    """
    if "://" not in text and "=" not in text:
        return text
    text = _LOOSE_PASSWORD.sub("", text)
    text = _USERINFO.sub(lambda match: match[0] if _is_container(text, match) else "", text)
    return _SECRET.sub(r"\1…", _QUERY.sub(r"\1", text))


def counted(count: int, noun: str, plural: str = "") -> str:
    """Returns a count with its noun: `1 file`, `2,000 files`.

    Args:
      count: the number.
      noun: the noun in the singular.
      plural: the plural of an irregular noun; empty: the singular with an s.
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def _is_container(text: str, userinfo: re.Match[str]) -> bool:
    """Returns whether the part before `@` is a container, as in `abfs://container@account`."""
    scheme = text[: userinfo.start() - 3].lower()
    return ":" not in userinfo[0] and scheme.endswith(("abfs", "abfss", "wasb", "wasbs"))


class UserError(Exception):
    """A mistake in the user's input, reported in one line that says what to do.

    Messages can quote untrusted file content, so a long line is cut in the middle and unprintable
    characters are escaped. Passwords and signatures of URLs are removed.
    """

    def __init__(self, line: str) -> None:
        line = redacted(line)
        if len(line) > _MAX_LENGTH:
            line = f"{line[: _MAX_LENGTH // 2]} … {line[-_MAX_LENGTH // 3 :]}"
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in line))


class GuessedWarning(UserWarning):
    """A warning that something was guessed, or that a result means less than it seems to."""


class DamageWarning(UserWarning):
    """A warning that a damaged checkpoint was skipped, or that damage cannot be checked for."""


def is_disk_full(error: BaseException | None) -> bool:
    """Returns whether an error or one of its causes means that the disk is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_FULL_CODES:
            return True
        if any(text in str(error) for text in _DISK_FULL_TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def only_user_errors(what: str) -> Iterator[None]:
    """Turns every exception of a block that runs code of the user into one line.

    The line ends with the place in the user's code. A full disk is not the fault of that code, so
    this exception stays.

    Args:
      what: the subject of the line, such as "config.tokenizer=my_package:Mine: open".

    Raises:
      UserError: the block failed.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise
        line = " ".join(str(error).split())
        where = _place_in_users_code(error)
        raise UserError(f"{what} fails: {type(error).__name__}: {line}{where}") from error


def _place_in_users_code(error: Exception) -> str:
    """Returns the last place of a traceback that is in no library, in brackets; empty if none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        is_library = any(map(path.is_relative_to, _LIBRARIES)) or "site-packages" in path.parts
        if not is_library and path.is_file():
            return f" ({path.name}, line {frame.lineno})"
    return ""


def megabytes(size: int) -> str:
    """Formats a size in bytes for people, such as `577.1 MB` or `60.9 kB`."""
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size / 1e3:,.1f} kB"
