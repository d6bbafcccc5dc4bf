"""Which class a picture is said to show: by name, by the name of its folder, by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from clip_jax.errors import UserError


def plain(name: str) -> str:
    """A name without case and without all but letters and digits."""
    return "".join(c for c in name.lower() if c.isalnum())


def natural(name: str) -> tuple[int, str]:
    """A key that sorts numbers as numbers: 2 before 10."""
    return (int(name), "") if name.isdecimal() else (0, name)


def _lookup(*lists: Sequence[str], more: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The class of each plain name; a name of two classes is none of one."""
    found: dict[str, set[int]] = {}
    for names in lists:
        for i, name in enumerate(names):
            for one in (name, *more.get(name, ())):
                found.setdefault(plain(one), set()).add(i)
    return {name: min(of) for name, of in found.items() if len(of) == 1}


class Said(NamedTuple):
    """What is said of a picture: a name or number of a class, or a list of these; and where."""

    value: Any
    where: str


class Classes:
    """The classes of a set, and how its files name them.

    Args:
      labels: names for prompts.
      folders: other names, class by class.
      synonyms: more names of a label.
      numbered: names in the order that numbers of the files count, where they have one of
        their own; one that is no permutation of the labels takes their place.
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
        """The label that each name is; None where they are not the same."""
        labels = [plain(label) for label in self.labels]
        if [plain(name) for name in names] == labels:  # two classes may have one name
            return list(range(len(names)))
        order = [lookup.get(plain(name), -1) for name in names]
        return order if sorted(order) == list(range(len(self.labels))) else None

    def knows(self, value: Any) -> bool:
        """Whether a number or name is one of a class."""
        return isinstance(value, int) or plain(str(value)) in self._lookup

    def targets(self, said: Sequence[Said]) -> np.ndarray:
        """The class of each picture: int64 [n]; bool [n, classes] where several are told.

        Raises:
          UserError: a name is none of a class, a number out of range.
        """
        if any(isinstance(value, list) for value, _ in said):
            return self._several(said)
        if self._order is not None and all(isinstance(value, int) for value, _ in said):
            return np.array([self._numbered(one) for one in said], np.int64)
        known = self._named({str(value): where for value, where in said})
        return np.array([known[str(value)] for value, _ in said], np.int64)

    def _numbered(self, said: Said) -> int:
        if not 0 <= said.value < len(self._order or self.labels):
            last = len(self._order or self.labels) - 1
            raise UserError(f"{said.where} is of class {said.value}: there are 0…{last:,}")
        return self._order[said.value] if self._order else said.value

    def _named(self, names: Mapping[str, str]) -> dict[str, int]:
        """The class of each name; the values say where one stands."""
        found = {name: self._lookup.get(plain(name)) for name in names}
        known = {name: i for name, i in found.items() if i is not None}
        if len(known) == len(names):
            return known
        if not known and len(names) == len(self.labels):
            if not all(name.isdecimal() for name in names):
                self.note = "classes by the order of their folders' names"
            return {name: i for i, name in enumerate(sorted(names, key=natural))}
        if not known and all(name.isdecimal() for name in names):
            return {name: self._numbered(Said(int(name), where)) for name, where in names.items()}
        wrong = next(name for name in names if found[name] is None)
        raise UserError(
            f"{wrong!r} of {names[wrong]} is none of the {len(self.labels):,} classes "
            f"({', '.join(self.labels[:3])}, …)"
        )

    def _several(self, said: Sequence[Said]) -> np.ndarray:
        target = np.zeros((len(said), len(self.labels)), bool)
        for row, (values, where) in zip(target, said, strict=True):
            if not isinstance(values, list):
                values = [values]
            if len(values) == len(row) and all(value in (0, 1) for value in values):
                order = self._order or range(len(row))
                row[[order[i] for i, value in enumerate(values) if value]] = True
                continue
            for value in values:
                if isinstance(value, int):
                    row[self._numbered(Said(value, where))] = True
                else:
                    row[self._named({str(value): where})[str(value)]] = True
        return target
