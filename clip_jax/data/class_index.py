"""The number of the class that a value in a pair's text names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def plain(name: str) -> str:
    """Returns a name in lower case, reduced to its letters and digits."""
    return "".join(c for c in name.lower() if c.isalnum())


def label_name(value: str | int | float) -> str:
    """Returns the name of the class that a value stands for: 2.0 and 2 are "2", 1.5 is "1.5"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _is_number(name: str) -> bool:
    return name[:1] in tuple("0123456789+-.") and name.strip("0123456789+-.eE") == ""


class ClassIndex:
    """Finds the number of a class by its name, or another name of it.

    A name counts if it equals that of one class, or if its letters and digits do, in any case:
    `Golden Retriever` finds `golden_retriever`. Classes whose names differ in other characters
    only, such as `C` and `C++`, are found by their exact names, and so are numbers.

    Args:
      labels: the names of the classes.
      others: more names of each class, such as that of its folder.
      numbered: whether a whole number that is no name is the number of a class, counted from 0.
    """

    def __init__(
        self,
        labels: Sequence[str],
        others: Sequence[Sequence[str]] = (),
        *,
        numbered: bool = True,
    ) -> None:
        self.labels, self._numbered = tuple(labels), numbered
        exact: dict[str, set[int]] = {}
        similar: dict[str, set[int]] = {}
        for number, label in enumerate(self.labels):
            for name in (label, *(others[number] if others else ())):
                exact.setdefault(name, set()).add(number)
                if not _is_number(name):
                    similar.setdefault(plain(name), set()).add(number)
        self._exact, self._similar = (
            {name: min(numbers) for name, numbers in lookup.items() if name and len(numbers) == 1}
            for lookup in (exact, similar)
        )

    def find_name(self, name: str) -> int | None:
        """Returns the number of the class with a name; None if there is none, or several."""
        number = self._exact.get(name)
        if number is None and not _is_number(name):
            number = self._similar.get(plain(name))
        return number

    def find(self, value: Any) -> int | None:
        """Returns the number of the class that a value names; None if it names none."""
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            return None
        name = label_name(value)
        number = self.find_name(name)
        if number is None and self._numbered and name.isascii() and name.isdecimal():
            number = int(name) if len(name) < 10 and int(name) < len(self.labels) else None
        return number
