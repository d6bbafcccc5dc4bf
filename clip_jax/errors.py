"""Mistakes of the user and failures of the machine, told from bugs."""

from __future__ import annotations

import errno
import re

_LONGEST = 500
_USER = re.compile(r"(?<=://)[^\s/?#'\"]*@")
_LOOSE_PASSWORD = re.compile(r"(?<=://)[^\s/@:]+:(?!\d{1,5}(?:[/?#\s]|$))[^\s'\"]*@")
_QUERY = re.compile(r"(https?://[^\s?#'\"]*)[?#][^\s'\"]*", re.IGNORECASE)
_SECRET = re.compile(
    r"([?&;](?:[\w-]*(?:signature|token|secret|password|passwd|credential|api[_-]?key)|sig|key|pwd)=)"
    r"[^&;\s'\"]+",
    re.IGNORECASE,
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def redacted(text: str) -> str:
    """A text without the passwords and signatures of URLs in it.

    Of `https://` URLs neither user nor query is left, as either may be the key; of others
    (`s3://KEY:SECRET@bucket`) no user with a password.
    """
    if "://" not in text and "=" not in text:
        return text
    text = _LOOSE_PASSWORD.sub("", text)
    text = _USER.sub(lambda found: found[0] if _is_container(text, found) else "", text)
    return _SECRET.sub(r"\1…", _QUERY.sub(r"\1", text))


def counted(count: int, noun: str, plural: str = "") -> str:
    """A count with its noun: `1 file`, `2,000 files`; `plural` where an s does not make it."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def _is_container(text: str, found: re.Match[str]) -> bool:
    """`abfs://container@account` names a place by what others put a user."""
    scheme = text[: found.start() - 3].lower()
    return ":" not in found[0] and scheme.endswith(("abfs", "abfss", "wasb", "wasbs"))


class UserError(Exception):
    """A mistake in what the user gave: one clear line that says what to do.

    What of it stood in a file may be of any length and hold anything: the line is cut in its
    middle, and what would not print is escaped. Passwords and signatures are left out.
    """

    def __init__(self, line: str) -> None:
        line = redacted(line)
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 3 :]}"
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in line))


class GuessedWarning(UserWarning):
    """Something was taken for granted that was not said, or an answer says less than it seems."""


class DamageWarning(UserWarning):
    """A damaged checkpoint was passed over, or one cannot be checked for damage."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that the disk has no room."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(text in str(error) for text in ("No space left", "File too large", "Disk quota")):
            return True
        error = error.__cause__ or error.__context__
    return False
