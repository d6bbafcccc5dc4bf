"""How text tables are written, where that cannot be seen or is guessed wrongly."""

from __future__ import annotations

import dataclasses

from clip_jax.errors import UserError

QUOTING = ("", "double", "none")
_NAMED = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "space": " "}


@dataclasses.dataclass(frozen=True)
class TableOptions:
    """How CSV and TSV files are written. Empty values are detected.

    Attributes:
      separator: the character between cells.
      quoting: `double` or empty if cells may be in double quotation marks; `none` if a quotation
        mark is an ordinary character.
      encoding: as Python names it, such as `utf-8`, `utf-16` or `cp1252`.
    """

    separator: str = ""
    quoting: str = ""
    encoding: str = ""

    @classmethod
    def from_config(
        cls, separator: str = "", quoting: str = "", encoding: str = "", key: str = "config.data"
    ) -> TableOptions:
        """Checks the values of a config and makes options of them.

        Args:
          separator: a character, or a word such as `tab`.
          quoting, encoding: see `TableOptions`.
          key: the group of config keys, for errors, which name `key.separator` and so on.

        Raises:
          UserError: a value is unknown.
        """
        separator = _NAMED.get(separator, separator)
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
