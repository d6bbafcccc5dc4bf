"""What a data source is to the rest of the package, and what a config may ask of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

from clip_jax.data.example import Fields, Pair, only_pair_errors
from clip_jax.data.opening import OpeningReport
from clip_jax.data.sources.table_options import TableOptions

BESIDE = "beside"  # of `SourceOptions.index`: next to each tar


class Source(Protocol):
    """A sequence of image–text pairs with random access.

    Worker processes receive a source by pickle, and threads read it at the same time.
    """

    @property
    def fingerprint(self) -> str:
        """A text that changes when any pair does. It is the key of everything that is cached."""
        ...

    def opening_report(self) -> OpeningReport:
        """Returns what opening the source saw, used and left out, and why."""
        ...

    def __len__(self) -> int:
        """Returns the number of pairs."""
        ...

    def __getitem__(self, i: int) -> Pair:
        """Reads the i-th pair, 0 <= i < len.

        Raises:
          PairError: the pair cannot be used. Any other exception counts as one.
        """
        ...


class SourceKind(Protocol):
    """One way to store pairs: an entry of `SOURCES`, usually the source's own class."""

    def matches(self, spec: str) -> bool:
        """Returns whether `spec` looks like this kind.

        Only entries of the registry are asked; a kind that the config names is not.
        """
        ...

    def open(self, spec: str, options: SourceOptions) -> Source:
        """Opens the pairs that `spec` names.

        Raises:
          UserError: nothing is there, or it cannot be read.
        """
        ...


@dataclasses.dataclass(frozen=True)
class SourceOptions:
    """Options for opening a source. Every kind reads the options that concern it.

    Attributes:
      image: for tables and records, the column of the images; empty for the one that looks like it.
        For tars and folders, which images of an example are used, by what follows the stem
        (`seg.png`); empty for the plain one.
      root: the folder that paths in a table start at and do not leave; empty for the table's own,
        or the one above `annotations/`.
      index: where tar indices are kept: empty for the user's cache folder, `beside` for next to
        each tar, or a folder, local or remote.
      max_bad_fraction: the share of many tars that may be unreadable, and of table rows that may be
        damaged.
      table: how CSV and TSV files are written.
      columns: the table columns that are needed beside the images; None for all.
      classes: whether folder names are classes, as in a test set. Then any name is one.
      tfds_folder: where TensorFlow Datasets prepared its data; empty for TFDS_DATA_DIR.
      addresses: whether the images of a table may be web addresses. They are then among the text
        fields, and no image can be read.
    """

    image: str = ""
    root: str = ""
    index: str = ""
    max_bad_fraction: float = 0.01
    table: TableOptions = dataclasses.field(default_factory=TableOptions)
    columns: frozenset[str] | None = None
    classes: bool = False
    tfds_folder: str = ""
    addresses: bool = False


@runtime_checkable
class KnowsLayout(Protocol):
    """A source that can tell changed data from moved data without reading it."""

    def layout(self) -> Iterator[bytes]:
        """Yields what is known of the files except place and time, such as sizes and names."""
        ...


@runtime_checkable
class KnowsText(Protocol):
    """A source that can read a pair's text without its image."""

    def text(self, i: int) -> tuple[Fields, str]:
        """Returns the text fields of the i-th pair and its name, without reading the image."""
        ...


class Members(NamedTuple):
    """The files of a pair.

    Attributes:
      image: the bytes of the image.
      texts: the bytes of each text file, and the ending of its name, one of `example.TEXTS`.
      name: where the pair is stored; it ends like the name of the image.
    """

    image: bytes
    texts: list[tuple[bytes, str]]
    name: str


@runtime_checkable
class KnowsMembers(Protocol):
    """A source whose pairs are files, which can be copied without reading their meaning."""

    def members(self, i: int) -> Members:
        """Returns the files of the i-th pair.

        Raises:
          PairError: they cannot be read.
        """
        ...


@runtime_checkable
class KnowsFiles(Protocol):
    """A source whose pairs are those of several files, one file after the other."""

    def files(self) -> list[tuple[str, int]]:
        """Returns the path of each file and the number of its pairs."""
        ...


def layout(source: Source) -> Iterator[bytes]:
    """Yields the `KnowsLayout.layout` of a source, or nothing for a source that has none."""
    if isinstance(source, KnowsLayout):
        yield from source.layout()


def read_pair(source: Source, i: int) -> Pair:
    """Reads the i-th pair of a source.

    Raises:
      PairError: the pair cannot be used, for whatever reason.
    """
    with only_pair_errors("unreadable", lambda: f"{source!r}: pair {i:,}"):
        return source[i]


def read_text(source: Source, i: int) -> tuple[Fields, str]:
    """Reads the text of the i-th pair, without the image where possible.

    Returns:
      The text fields of the pair, and its name.

    Raises:
      PairError: the pair cannot be used, for whatever reason.
    """
    if isinstance(source, KnowsText):
        with only_pair_errors("text", lambda: f"{source!r}: pair {i:,}"):
            return source.text(i)
    pair = read_pair(source, i)
    return pair.text, pair.name
