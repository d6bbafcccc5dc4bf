"""Pictures in a folder, with captions beside them or in folders named by what they show.

`cats/1.jpg` is described by `cats/1.json` and `cats/1.txt`; `matching` says which files belong
together, as in a tar. Where no picture of the whole folder has such a file, the name of its own
folder says it: `golden_retriever/1.jpg` shows a golden retriever.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from clip_jax.data.example import IMAGES, MAX_MEMBER, MAX_TEXT, Pair, parse_texts, read_bytes
from clip_jax.data.opening import OpeningReport, Tally, quoted
from clip_jax.data.sources import captioned, folder_layouts, matching
from clip_jax.data.sources.endings import CAPTIONS, RECORDS, TABLES
from clip_jax.data.sources.packed import Packed
from clip_jax.data.sources.protocol import Source, SourceOptions
from clip_jax.data.sources.walk import Listing, walk
from clip_jax.errors import UserError
from clip_jax.io import remote
from clip_jax.io.paths import resolve, suffix

_FEW = 0.5  # share of pictures with a text, below which a line explains the others
_NAMED = 5  # folders in an error
_FILES = (".tar", *RECORDS, *TABLES, *CAPTIONS)  # endings of names that are no folders'


class _Described(NamedTuple):
    """A picture and the texts beside it, by their paths from the root; no texts: its folder's."""

    picture: bytes
    texts: tuple[bytes, ...] = ()


class FolderSource:
    """The pairs of a folder; `source[i]` reads the i-th, in the order of their paths.

    The folder may be far away, where its protocol lists files.

    Args:
      folder: its path.
      image: which pictures of an example are used, see `matching.match`; empty: the plain one.
      listing: of the folder, where it is known.
      classes: whether any name of a folder is a class, such as in a test set.

    Raises:
      UserError: the folder cannot be read, or nothing in it is described.
    """

    def __init__(
        self,
        folder: str,
        image: str = "",
        listing: Listing | None = None,
        classes: bool = False,
    ) -> None:
        self.folder, self._image = folder, image
        listing = listing or walk(folder)
        if listing.states:
            self.fingerprint = self._marked(
                remote.identity([folder, *listing.states], [*listing.states.values()])
            )
        tally = Tally()
        tally.merge(listing.tally.report(0), "")
        found = sorted(self._beside(listing, tally) or self._classes(listing, tally, classes))
        self._paths = Packed(one.picture for one in found)
        texts = [text for one in found for text in one.texts]
        self._texts = Packed(texts)
        self._last_text = np.cumsum([0, *(len(one.texts) for one in found)])
        self._report = tally.report(len(found) + len({*texts}), notes=self._notes(tally, found))

    @staticmethod
    def matches(spec: str) -> bool:
        """Whether it is a folder; a remote one is asked for only if its name is no file's."""
        path = resolve(spec)
        if not remote.is_remote(path):
            return Path(path).is_dir()
        return suffix(spec) not in _FILES and remote.is_folder(path)

    @staticmethod
    def open(spec: str, options: SourceOptions) -> Source:
        """Opens a folder of images: by the table of captions in it, or by texts and folder names.

        Where folder names are classes they win; where the table cannot be used, texts beside the
        images do.
        """
        path = resolve(spec)
        listing = walk(path)
        if options.classes and folder_layouts.has_classes(listing):
            return FolderSource(path, options.image, listing, options.classes)
        table = captioned.find(listing)
        if not table:
            return FolderSource(path, options.image, listing, options.classes)
        try:
            return captioned.CaptionedSource(
                os.path.join(path, table), listing, options.table.encoding
            )
        except UserError as error:
            with contextlib.suppress(UserError):
                if (source := FolderSource(path, options.image, listing)).has_texts:
                    return source
            raise error

    def _beside(self, listing: Listing, tally: Tally) -> list[_Described]:
        """Pictures with texts beside them; counts all others where there is one."""
        found, others = list[_Described](), Tally()
        for path, names in listing.folders:
            decoded = [os.fsdecode(name) for name in names]
            examples, left_out = matching.match(decoded, self._image)
            for picture, texts in examples:
                found.append(
                    _Described(path + names[picture], tuple(path + names[i] for i in texts))
                )
            for i, reason in left_out.items():
                others.add(reason, os.fsdecode(path) + decoded[i])
        if found:
            tally.merge(others.report(0), "")
        return found

    def _classes(self, listing: Listing, tally: Tally, any_name: bool) -> list[_Described]:
        """Pictures in folders that are named by what they show.

        Raises:
          UserError: there are none, or the names say nothing.
        """
        pictures = dict[bytes, list[bytes]]()  # by the path of their folder
        for path, names in listing.folders:
            decoded = [os.fsdecode(name) for name in names]
            chosen, left_out = matching.alone(decoded, self._image)
            if chosen:
                pictures[path] = [names[i] for i in chosen]
            for i, reason in left_out.items():
                tally.add(reason, os.fsdecode(path) + decoded[i])
        if not pictures:
            raise UserError(self._without_pictures(listing))
        labels = {folder_layouts.label(path) for path in pictures if path}
        told = labels if any_name else folder_layouts.telling(labels)
        if not told or not any_name:
            self._check_captions(listing, pictures, labels, told)
        found = []
        for path, names in pictures.items():
            if path and folder_layouts.label(path) in told:
                found += [_Described(path + name) for name in names]
            else:
                tally.add("no_text", os.fsdecode(path + names[0]), len(names))
        return found

    def _check_captions(
        self,
        listing: Listing,
        pictures: dict[bytes, list[bytes]],
        labels: set[str],
        told: set[str],
    ) -> None:
        """Whether names of folders are the captions that are meant.

        Raises:
          UserError: a table holds others, or fewer than two names are captions.
        """
        if table := folder_layouts.captioning_table(listing, pictures.values()):
            raise UserError(
                f"{self.folder} holds pictures without texts beside them, and {quoted(table)}, "
                "which says something about pictures: give that table as the data if its captions "
                "are meant, or move it out of the folder if the names of folders are"
            )
        if len(told) < 2:
            named = ", ".join(quoted(label) for label in sorted(labels)[:_NAMED])
            why = f": the names of their folders ({named}) are no captions" if labels else ""
            if len(labels) == len(told) == 1:
                why = f": all are in folders called {named}, and one name for all is no caption"
            raise UserError(
                f"{self.folder} holds pictures of which nothing is said{why}: put 1.txt or 1.json "
                "beside 1.jpg, a metadata.csv of file_name and caption above them, or the pictures "
                f"into folders named by what they show{folder_layouts.hint(listing)}"
            )

    def _without_pictures(self, listing: Listing) -> str:
        chosen = f" that is chosen by config.data.image={self._image!r}" if self._image else ""
        expected = f": expected files such as cats/1.jpg ({', '.join(IMAGES)})"
        return f"{self.folder} holds no picture{chosen}{folder_layouts.hint(listing) or expected}"

    def _notes(self, tally: Tally, found: list[_Described]) -> tuple[str, ...]:
        alone = tally.left_out().get("no_text")
        if not alone or not found[0].texts or len(found) >= _FEW * (len(found) + alone.count):
            return ()
        return (
            f"{self.folder}: only {len(found):,} of {len(found) + alone.count:,} pictures have a "
            "text beside them; the names of folders are captions only where none has",
        )

    @property
    def has_texts(self) -> bool:
        """Whether texts beside the pictures describe them, not the names of their folders."""
        return len(self._texts) > 0

    def __len__(self) -> int:
        return len(self._paths)

    def opening_report(self) -> OpeningReport:
        """What opening the folder saw, used and left out, and why."""
        return self._report

    def __repr__(self) -> str:
        return f"FolderSource({self.folder!r}, {len(self):,} pairs)"

    def __getitem__(self, i: int) -> Pair:
        name = self.name(i)
        return Pair(read_bytes(name, MAX_MEMBER), *self.text(i))

    def name(self, i: int) -> str:
        """The path of the i-th picture."""
        return self._whole(self._paths[i])

    def text(self, i: int) -> tuple[dict[str, Any], str]:
        """What is said of the i-th picture, and its name: the picture is not read."""
        name = self.name(i)
        texts = [self._whole(text) for text in self._texts_of(i)]
        if not texts:
            label = PurePath(name).parent.name
            return {"caption": label.replace("_", " "), "label": label}, name
        read = [(read_bytes(text, MAX_TEXT), os.path.splitext(text)[1].lower()) for text in texts]
        return parse_texts(read, texts[0]), name

    def _texts_of(self, i: int) -> Iterator[bytes]:
        for number in range(self._last_text[i], self._last_text[i + 1]):
            yield self._texts[number]

    @functools.cached_property
    def fingerprint(self) -> str:
        """What changes when one of the files does: all are looked at, the first time."""
        paths = []
        for i in range(len(self)):
            paths += [self._paths[i], *self._texts_of(i)]
        names = [self._whole(path) for path in paths]
        return self._marked(remote.identity(names, remote.states(names)))

    def layout(self) -> Iterator[bytes]:
        """The paths below the folder, and the sizes of files unless they are very many."""
        yield from folder_layouts.of_files(self.folder, [*self._paths, *self._texts])

    def _marked(self, identity: str) -> str:
        return " ".join(filter(None, (identity, str(matching.RULES), self._image)))

    def _whole(self, path: bytes) -> str:
        return os.path.join(self.folder, os.fsdecode(path))
