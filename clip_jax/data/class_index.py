"""The number of the class that a value in a pair's text names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def plain(name: str) -> str:
    """Returns a name in lower case, reduced to its letters and digits."""
    return "".join(c for c in name.lower() if c.isalnum())


class ClassIndex:
    """Finds the number of a class by its name, another name of it, or the number itself.

    A name counts if it equals that of one class, or if its letters and digits do, in any case:
    `Golden Retriever` finds `golden_retriever`. Classes whose names differ in other characters
    only, such as `C` and `C++`, are found by their exact names.

    Args:
      labels: the names of the classes.
      others: more names of each class, such as that of its folder.
    """

    def __init__(self, labels: Sequence[str], others: Sequence[Sequence[str]] = ()) -> None:
        self.labels = tuple(labels)
        exact: dict[str, set[int]] = {}
        similar: dict[str, set[int]] = {}
        for number, label in enumerate(self.labels):
            for name in (label, *(others[number] if others else ())):
                exact.setdefault(name, set()).add(number)
                similar.setdefault(plain(name), set()).add(number)
        self._exact, self._similar = (
            {name: min(numbers) for name, numbers in lookup.items() if name and len(numbers) == 1}
            for lookup in (exact, similar)
        )

    def find_name(self, name: str) -> int | None:
        """Returns the number of the class with a name; None if there is none, or several."""
        return self._exact.get(name, self._similar.get(plain(name)))

    def find(self, value: Any) -> int | None:
        """Returns the number of the class that a value names; None if it names none.

        A whole number, or one as text such as `7`, is the number of the class, unless a class has
        that name.
        """
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int | str):
            return None
        name = str(value).strip()
        number = self.find_name(name)
        if number is None and name.isascii() and name.isdecimal() and len(name) < 10:
            number = int(name) if int(name) < len(self.labels) else None
        return number
