"""Mistakes of the user and failures of the machine, told from bugs."""

from __future__ import annotations

import errno

_LONGEST = 500
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """A mistake in what the user gave: one clear line that says what to do.

    What of it stood in a file may be of any length and hold anything: the line is cut in its
    middle, and what would not print is escaped.
    """

    def __init__(self, line: str) -> None:
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
