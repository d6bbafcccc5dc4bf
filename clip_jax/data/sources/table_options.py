"""How text tables are written, where it cannot be seen or is seen wrongly."""

from __future__ import annotations

import dataclasses

from clip_jax.errors import UserError

QUOTING = ("", "double", "none")
_WORDS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "space": " "}


@dataclasses.dataclass(frozen=True)
class TableOptions:
    """How CSV and TSV files are written; empty: as is found.

    separator: one character between cells, or a word such as `tab`.
    quoting: `double`: cells may stand in double quotation marks (as when empty); `none`: a
      quotation mark is a character like others.
    encoding: as Python calls it, such as `utf-8`, `utf-16` or `cp1252`.
    """

    separator: str = ""
    quoting: str = ""
    encoding: str = ""

    @classmethod
    def of(
        cls, separator: str = "", quoting: str = "", encoding: str = "", key: str = "config.data"
    ) -> TableOptions:
        """Checked; errors call the keys `key.separator` and so on.

        Raises:
          UserError: a value is none that is known.
        """
        separator = _WORDS.get(separator, separator)
        if len(separator) > 1 or separator in ('"', "\n", "\r"):
            raise UserError(
                f"{key}.separator={separator!r:.60} must be one character between cells, such as "
                "';', or tab"
            )
        if quoting not in QUOTING:
            raise UserError(f"{key}.quoting={quoting!r:.60} must be empty, double or none")
        try:
            "".encode(encoding or "utf-8")
        except (LookupError, ValueError):
            raise UserError(
                f"{key}.encoding={encoding!r:.60} is no encoding: give one such as utf-8, utf-16 "
                "or cp1252"
            ) from None
        return cls(separator, quoting, encoding)
