"""The class of an image: by name, by the name of its folder, or by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from clip_jax.data.class_index import plain
from clip_jax.errors import UserError


def natural_order(name: str) -> tuple[int, str, str]:
    """Returns a sort key that puts 2 before 10, and other names before 1."""
    digits = name.lstrip("0") if name.isdecimal() else ""
    return len(digits), digits, name


def _lookup(*lists: Sequence[str], more: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Returns the class of each plain name; names of several classes are left out."""
    classes: dict[str, set[int]] = {}
    for names in lists:
        for i, name in enumerate(names):
            for synonym in (name, *more.get(name, ())):
                classes.setdefault(plain(synonym), set()).add(i)
    return {name: min(numbers) for name, numbers in classes.items() if len(numbers) == 1}


class ClassName(NamedTuple):
    """The class of an image as its file names it.

    Attributes:
      value: a name or number of a class, or a list of these.
      where: where it is written, for messages.
    """

    value: Any
    where: str


class Classes:
    """The classes of a dataset, and the names that its files give them.

    Args:
      labels: the names for prompts.
      folders: other names, class by class.
      synonyms: more names of a label.
      numbered: names in the order in which numbers in the files count, if the files have such a
        list. A list that is not a permutation of the labels replaces them.
    """

    def __init__(
        self,
        labels: Sequence[str],
        folders: Sequence[str] = (),
        synonyms: Mapping[str, Sequence[str]] | None = None,
        numbered: Sequence[str] = (),
    ) -> None:
        self.labels, self.note = list(labels), ""
        lookup = _lookup(labels, folders, more=synonyms or {})
        self._order: list[int] | None = None
        if numbered:
            self._order = self._permutation(list(numbered), lookup)
            if self._order is None:
                self.note = f"its own {len(numbered):,} class names, not the {len(labels):,} known"
                self.labels, self._order = list(numbered), list(range(len(numbered)))
                lookup = _lookup(self.labels, more={})
        self._lookup = lookup

    def _permutation(self, names: list[str], lookup: Mapping[str, int]) -> list[int] | None:
        """Returns the label of each name; None if they are not the same classes."""
        labels = [plain(label) for label in self.labels]
        if [plain(name) for name in names] == labels:  # two classes may have one name
            return list(range(len(names)))
        order = [lookup.get(plain(name), -1) for name in names]
        return order if sorted(order) == list(range(len(self.labels))) else None

    def knows(self, value: Any) -> bool:
        """Returns whether a value is a number, or a name of a class."""
        return isinstance(value, int) or plain(str(value)) in self._lookup

    def targets(self, names: Sequence[ClassName]) -> np.ndarray:
        """Returns the class of each image.

        They are int64 [n], or bool [n, classes] if an image has a list of classes.

        Raises:
          UserError: a name is that of no class, or a number is out of range.
        """
        if any(isinstance(value, list) for value, _ in names):
            return self._multi_label(names)
        if self._order is not None and all(isinstance(value, int) for value, _ in names):
            return np.array([self._by_number(name) for name in names], np.int64)
        classes = self._by_name({str(value): where for value, where in names})
        return np.array([classes[str(value)] for value, _ in names], np.int64)

    def _by_number(self, name: ClassName) -> int:
        count = len(self._order or self.labels)
        if not 0 <= name.value < count:
            raise UserError(f"{name.where} is of class {name.value}: there are 0…{count - 1:,}")
        return self._order[name.value] if self._order else name.value

    def _by_name(self, names: Mapping[str, str]) -> dict[str, int]:
        """Returns the class of each name; the values of `names` tell where it is written."""
        known = {name: self._lookup[plain(name)] for name in names if plain(name) in self._lookup}
        if len(known) == len(names):
            return known
        if not known and len(names) == len(self.labels):
            if not all(name.isdecimal() for name in names):
                self.note = "classes by the order of their folders' names"
            return {name: i for i, name in enumerate(sorted(names, key=natural_order))}
        if not known and all(name.isdecimal() for name in names):
            numbers = {name: ClassName(int(name), where) for name, where in names.items()}
            return {name: self._by_number(number) for name, number in numbers.items()}
        wrong = next(name for name in names if name not in known)
        raise UserError(
            f"{wrong!r} of {names[wrong]} is none of the {len(self.labels):,} classes "
            f"({', '.join(self.labels[:3])}, …)"
        )

    def _multi_label(self, names: Sequence[ClassName]) -> np.ndarray:
        target = np.zeros((len(names), len(self.labels)), bool)
        for row, (values, where) in zip(target, names, strict=True):
            if not isinstance(values, list):
                values = [values]
            if len(values) == len(row) and all(value in (0, 1) for value in values):
                order = self._order or range(len(row))
                row[[order[i] for i, value in enumerate(values) if value]] = True
                continue
            for value in values:
                if isinstance(value, int):
                    row[self._by_number(ClassName(value, where))] = True
                else:
                    row[self._by_name({str(value): where})[str(value)]] = True
        return target
