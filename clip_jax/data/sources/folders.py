"""Images in a folder, with text files beside them or in folders named after what they show.

`cats/1.json` and `cats/1.txt` describe `cats/1.jpg`; `matching` decides which files belong
together, as in a tar. If no image of the whole folder has a text file, the name of an image's
folder is its caption: `golden_retriever/1.jpg` shows a golden retriever.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np

from clip_jax.data.example import (
    IMAGES,
    MAX_MEMBER,
    MAX_TEXT,
    Fields,
    Pair,
    parse_texts,
    read_bytes,
)
from clip_jax.data.opening import OpeningReport, Tally, quoted
from clip_jax.data.sources import captioned, folder_layouts, matching
from clip_jax.data.sources.endings import CAPTIONS, RECORDS, TABLES
from clip_jax.data.sources.packed import Packed
from clip_jax.data.sources.protocol import Source, SourceOptions
from clip_jax.data.sources.walk import Listing, walk
from clip_jax.errors import UserError
from clip_jax.io import remote
from clip_jax.io.paths import resolve, suffix

_FEW = 0.5  # share of images with a text, below which a note explains the others
_MAX_NAMED = 5  # folders in an error
_FILES = (".tar", *RECORDS, *TABLES, *CAPTIONS)  # endings of names that are no folders'


class _Example(NamedTuple):
    """An image and its text files.

    Attributes:
      image: the path of the image, relative to the root.
      texts: the paths of the text files; if empty, the name of the folder is the text.
    """

    image: bytes
    texts: tuple[bytes, ...] = ()


class FolderSource:
    """The pairs of a folder; `source[i]` reads the i-th, in the order of their paths.

    The folder can be remote if its protocol lists files.

    Args:
      folder: the path of the folder.
      image: which images of an example are used, see `matching.match`; empty for the plain one.
      listing: the files of the folder, if they are known.
      classes: whether every folder name is a class, as in a test set.

    Raises:
      UserError: the folder cannot be read, or no image in it has a text.
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
            self.fingerprint = self._with_rules(
                remote.identity([folder, *listing.states], [*listing.states.values()])
            )
        tally = Tally()
        tally.merge(listing.tally.report(0), "")
        examples = sorted(
            self._with_texts(listing, tally) or self._classes(listing, tally, classes)
        )
        self._paths = Packed(example.image for example in examples)
        texts = [text for example in examples for text in example.texts]
        self._texts = Packed(texts)
        self._last_text = np.cumsum([0, *(len(example.texts) for example in examples)])
        self._report = tally.report(
            len(examples) + len({*texts}), notes=self._notes(tally, examples)
        )

    @staticmethod
    def matches(spec: str) -> bool:
        """Returns whether `spec` is a folder.

        A remote file system is asked only if the name does not end like that of a file.
        """
        path = resolve(spec)
        if not remote.is_remote(path):
            return Path(path).is_dir()
        return suffix(spec) not in _FILES and remote.is_folder(path)

    @staticmethod
    def open(spec: str, options: SourceOptions) -> Source:
        """Opens a folder of images: by the table of captions in it, or by texts and folder names.

        With `options.classes`, folder names that are classes win over a table. If the table cannot
        be used, texts beside the images are used.
        """
        path = resolve(spec)
        listing = walk(path)
        if options.classes and folder_layouts.has_classes(listing):
            return FolderSource(path, options.image, listing, options.classes)
        table = captioned.find_table(listing)
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

    def _with_texts(self, listing: Listing, tally: Tally) -> list[_Example]:
        """Returns the images with text files beside them; if there are any, counts other files."""
        examples, others = list[_Example](), Tally()
        for path, names in listing.folders:
            decoded = [os.fsdecode(name) for name in names]
            matches, left_out = matching.match(decoded, self._image)
            for image, texts in matches:
                examples.append(
                    _Example(path + names[image], tuple(path + names[i] for i in texts))
                )
            for i, reason in left_out.items():
                others.add(reason, os.fsdecode(path) + decoded[i])
        if examples:
            tally.merge(others.report(0), "")
        return examples

    def _classes(self, listing: Listing, tally: Tally, any_name: bool) -> list[_Example]:
        """Returns the images in folders that are named after what they show.

        Raises:
          UserError: there are none, or the names are no captions.
        """
        images = dict[bytes, list[bytes]]()  # by the path of their folder
        for path, names in listing.folders:
            decoded = [os.fsdecode(name) for name in names]
            chosen, left_out = matching.match_without_texts(decoded, self._image)
            if chosen:
                images[path] = [names[i] for i in chosen]
            for i, reason in left_out.items():
                tally.add(reason, os.fsdecode(path) + decoded[i])
        if not images:
            raise UserError(self._no_image(listing))
        labels = {folder_layouts.label(path) for path in images if path}
        captions = labels if any_name else folder_layouts.caption_labels(labels)
        if not captions or not any_name:
            self._check_captions(listing, images, labels, captions)
        examples = []
        for path, names in images.items():
            if path and folder_layouts.label(path) in captions:
                examples += [_Example(path + name) for name in names]
            else:
                tally.add("no_text", os.fsdecode(path + names[0]), len(names))
        return examples

    def _check_captions(
        self,
        listing: Listing,
        images: dict[bytes, list[bytes]],
        labels: set[str],
        captions: set[str],
    ) -> None:
        """Checks that folder names are meant to be captions.

        Raises:
          UserError: a table has other captions, or fewer than two folder names are captions.
        """
        if table := folder_layouts.captioning_table(listing, images.values()):
            raise UserError(
                f"{self.folder} holds images without texts beside them, and {quoted(table)}, "
                "which says something about images: give that table as the data if its captions "
                "are meant, or move it out of the folder if the names of folders are"
            )
        if len(captions) < 2:
            named = ", ".join(quoted(label) for label in sorted(labels)[:_MAX_NAMED])
            why = f": the names of their folders ({named}) are no captions" if labels else ""
            if len(labels) == len(captions) == 1:
                why = f": all are in folders called {named}, and one name for all is no caption"
            raise UserError(
                f"{self.folder} holds images of which nothing is said{why}: put 1.txt or 1.json "
                "beside 1.jpg, a metadata.csv of file_name and caption above them, or the images "
                f"into folders named by what they show{folder_layouts.hint(listing)}"
            )

    def _no_image(self, listing: Listing) -> str:
        chosen = f" that is chosen by config.data.image={self._image!r}" if self._image else ""
        expected = f": expected files such as cats/1.jpg ({', '.join(IMAGES)})"
        return f"{self.folder} holds no image{chosen}{folder_layouts.hint(listing) or expected}"

    def _notes(self, tally: Tally, examples: list[_Example]) -> tuple[str, ...]:
        without, used = tally.left_out().get("no_text"), len(examples)
        if not without or not examples[0].texts or used >= _FEW * (used + without.count):
            return ()
        return (
            f"{self.folder}: only {used:,} of {used + without.count:,} images have a "
            "text beside them; the names of folders are captions only where none has",
        )

    @property
    def has_texts(self) -> bool:
        """Whether text files describe the images, and not the names of their folders."""
        return len(self._texts) > 0

    def __len__(self) -> int:
        return len(self._paths)

    def opening_report(self) -> OpeningReport:
        """Returns what opening the folder saw, used and left out, and why."""
        return self._report

    def __repr__(self) -> str:
        return f"FolderSource({self.folder!r}, {len(self):,} pairs)"

    def __getitem__(self, i: int) -> Pair:
        name = self.name(i)
        return Pair(read_bytes(name, MAX_MEMBER), *self.text(i))

    def name(self, i: int) -> str:
        """Returns the path of the i-th image."""
        return self._full_path(self._paths[i])

    def text(self, i: int) -> tuple[Fields, str]:
        """Returns the text fields of the i-th pair and its name, without reading the image."""
        name = self.name(i)
        texts = [self._full_path(text) for text in self._texts_of(i)]
        if not texts:
            label = PurePath(name).parent.name
            return {"caption": label.replace("_", " "), "label": label}, name
        contents = [
            (read_bytes(text, MAX_TEXT), os.path.splitext(text)[1].lower()) for text in texts
        ]
        return parse_texts(contents, texts[0]), name

    def _texts_of(self, i: int) -> Iterator[bytes]:
        for number in range(self._last_text[i], self._last_text[i + 1]):
            yield self._texts[number]

    @functools.cached_property
    def fingerprint(self) -> str:
        """A text that changes when one of the files does. The first use looks at all files."""
        paths = []
        for i in range(len(self)):
            paths += [self._paths[i], *self._texts_of(i)]
        names = [self._full_path(path) for path in paths]
        return self._with_rules(remote.identity(names, remote.states(names)))

    def layout(self) -> Iterator[bytes]:
        """Yields the paths below the folder, then the files' sizes unless there are very many."""
        yield from folder_layouts.file_layout(self.folder, [*self._paths, *self._texts])

    def _with_rules(self, identity: str) -> str:
        return " ".join(filter(None, (identity, str(matching.RULES), self._image)))

    def _full_path(self, path: bytes) -> str:
        return os.path.join(self.folder, os.fsdecode(path))
