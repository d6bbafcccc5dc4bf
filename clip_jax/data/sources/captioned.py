"""Images in a folder whose captions are in one table, in a format of `caption_tables`."""

from __future__ import annotations

import functools
import json
import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from clip_jax.data.captions import Alternatives
from clip_jax.data.example import MAX_MEMBER, Fields, Pair, is_blank, read_bytes
from clip_jax.data.opening import OpeningReport, Tally, quoted
from clip_jax.data.sources import caption_tables, folder_layouts, matching
from clip_jax.data.sources.endings import CAPTIONS
from clip_jax.data.sources.packed import Packed
from clip_jax.data.sources.protocol import SourceOptions
from clip_jax.data.sources.walk import Listing, walk
from clip_jax.errors import UserError
from clip_jax.io import remote
from clip_jax.io.paths import expand, resolve, suffix

# Names of caption tables in common data sets.
_NAMES = re.compile(
    r"metadata\.(?:csv|tsv|jsonl|parquet)|captions\.(?:txt|csv|tsv|jsonl|json)|results\.csv"
    r"|captions_\w+\.json|(?:flickr\w*|results_\d+)\.token(?:\.txt)?"
)
_MAX_NAMED = 4  # tables in an error


def find_table(listing: Listing) -> str:
    """Returns the caption table in a folder, relative to its root; empty if there is none.

    Raises:
      UserError: there are several tables.
    """
    tables = [
        path for path in listing.files() if _NAMES.fullmatch(posixpath.basename(path).lower())
    ]
    if len(tables) < 2:
        return tables[0] if tables else ""
    named = ", ".join(quoted(path) for path in tables[:_MAX_NAMED]) + ", …" * (
        len(tables) > _MAX_NAMED
    )
    example = os.path.join(listing.root, tables[0])
    raise UserError(
        f"{listing.root} holds several tables of captions ({named}): give the one of the split "
        f"that is meant, such as {example}, or the folder that holds it alone"
    )


class CaptionedSource:
    """The images that a table names, in the order of their paths, with the captions of the table.

    If an image has several rows, `caption` is the list of its captions: `{caption}` and
    `{caption:one}` draw one of them, `{caption:each}` another one every epoch. Names in the table
    lead to files of the folder only.

    Args:
      table: the path of the table.
      listing: the files in the folder of the images.
      encoding: the encoding of the table; empty to detect it.

    Raises:
      UserError: the table cannot be read, or names no image of the folder.
    """

    def __init__(self, table: str, listing: Listing, encoding: str = "") -> None:
        self.table, self.root = table, listing.root
        rows, notes = caption_tables.read_table(table, encoding)
        notes.insert(0, f"captions are those of {remote.redact(table)}")
        tally, by_base = Tally(), dict[str, list[str]]()
        tally.merge(listing.tally.report(0), "")
        own = os.path.relpath(table, self.root) if not remote.is_remote(table) else table
        own = own.removeprefix(f"{self.root.rstrip('/')}/")
        is_inside = False  # whether the table is in the folder of the images
        for path in listing.files():
            base = posixpath.basename(path)
            if path == own:
                is_inside = True
            elif (kind := matching.kind(base)) == "picture":
                by_base.setdefault(_folded(base), []).append(path)
            else:
                tally.add("no_picture" if kind else "unknown_ending", path)
        rows_of, used = dict[str, list[Fields]](), 0
        for row in rows:
            path, why = _resolved(row.name, posixpath.dirname(own), by_base)
            if row.problem or why:
                reason = "unreadable" if row.problem else why
                tally.add(reason, f"{remote.redact(table)}, {row.where}: {row.problem or row.name}")
            elif "caption" in row.fields and is_blank(row.fields["caption"]):
                tally.add("no_text", f"{remote.redact(table)}, {row.where}")
            else:
                used += 1
                rows_of.setdefault(path, []).append(row.fields)
        if not rows_of:
            named = next((row.name for row in rows if row.name), "")
            if not named:
                why = next((f": {row.where}: {row.problem}" for row in rows if row.problem), "")
                raise UserError(f"{remote.redact(table)} names no image{why}")
            raise UserError(
                f"{remote.redact(table)} names images such as {quoted(named)}, of which "
                f"{self.root} holds none with a caption: set config.data.root to their folder"
            )
        for paths in by_base.values():
            for path in paths:
                if path not in rows_of:
                    tally.add("no_text", path)
        order = sorted(rows_of, key=os.fsencode)
        self._paths = Packed(map(os.fsencode, order))
        self._fields = Packed(
            json.dumps(_merge_rows(rows_of[path]), default=_plain).encode() for path in order
        )
        total = used + len(rows_of) + is_inside
        self._report = tally.report(total, "files and rows", tuple(notes))

    @staticmethod
    def matches(spec: str) -> bool:
        """Returns whether `spec` ends like the name of a table of captions."""
        return suffix(spec) in CAPTIONS

    @classmethod
    def open(cls, spec: str, options: SourceOptions) -> CaptionedSource:
        """Opens a table of captions that is given by itself.

        Its images are in `options.root`. If that is empty, they are in the table's own folder, or,
        if that is called `annotations`, in the folder above it.
        """
        tables = expand(spec)
        if len(tables) > 1:
            raise UserError(
                f"{spec} are {len(tables):,} tables of captions: give one of them, or several by "
                "config.data.mix"
            )
        own = posixpath.dirname(tables[0]) or "."
        above = posixpath.dirname(own) or "."
        usual = above if posixpath.basename(own) == "annotations" else own
        root = resolve(options.root) if options.root else usual
        return cls(tables[0], walk(root), options.table.encoding)

    def opening_report(self) -> OpeningReport:
        """Returns which files of the folder and rows of the table were seen, used and left out."""
        return self._report

    @functools.cached_property
    def fingerprint(self) -> str:
        """A text that changes when the table or an image does. The first use looks at all files."""
        names = [self.table, *(self._full_path(i) for i in range(len(self)))]
        return remote.identity(names, remote.states(names))

    def layout(self) -> Iterator[bytes]:
        """Yields the captions, the paths of the images and their sizes, for a fingerprint.

        Sizes are left out where there are very many files, see `folder_layouts.file_layout`.
        """
        yield from self._fields
        yield from folder_layouts.file_layout(self.root, self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __repr__(self) -> str:
        return f"CaptionedSource({remote.redact(self.table)!r}, {len(self):,} pairs)"

    def __getitem__(self, i: int) -> Pair:
        name = self._full_path(i)
        return Pair(read_bytes(name, MAX_MEMBER), *self.text(i))

    def text(self, i: int) -> tuple[Fields, str]:
        """Returns the text fields of the i-th pair and its name, without reading the image."""
        fields = json.loads(self._fields[i])
        if isinstance(fields.get("caption"), list):
            fields["caption"] = Alternatives(fields["caption"])
        return fields, self._full_path(i)

    def _full_path(self, i: int) -> str:
        return os.path.join(self.root, os.fsdecode(self._paths[i]))


def _resolved(name: str | None, folder: str, by_base: dict[str, list[str]]) -> tuple[str, str]:
    """Returns the image that a table names, and the reason if there is none; one of them is empty.

    A name is relative to the folder of the table, or the end of exactly one path of the folder. If
    no file matches it as it is written, backslashes are taken as separators, as in tables written
    by Windows, and case and Unicode's normal form are ignored, as copying can change them.
    """
    if not name:
        return "", "null_picture"
    for written in dict.fromkeys((name, name.replace("\\", "/"))):
        plain = posixpath.normpath(written)
        candidates = by_base.get(_folded(posixpath.basename(plain)), [])
        for alike in (str, _folded):
            full = alike(posixpath.normpath(posixpath.join(folder, plain)))
            if len(exact := [path for path in candidates if alike(path) == full]) == 1:
                return exact[0], ""
            end = alike(f"/{plain}")
            if len(ends := [path for path in candidates if alike(f"/{path}").endswith(end)]) == 1:
                return ends[0], ""
    return "", "no_picture"


def _folded(name: str) -> str:
    """Returns a name without differences of case and normal form."""
    return unicodedata.normalize("NFC", name).casefold()


def _plain(value: Any) -> str | None:
    """Converts a value of Parquet for which JSON has no type, such as a date; bytes become None."""
    return None if isinstance(value, bytes) else str(value)


def _merge_rows(rows: list[Fields]) -> Fields:
    """Merges the fields of all rows of an image; different values become a list."""
    if len(rows) == 1:
        return rows[0]
    joined: Fields = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        lists = (
            row[key] if isinstance(row[key], list) else [row[key]] for row in rows if key in row
        )
        values = [item for items in lists for item in items if not is_blank(item)]
        distinct = [item for i, item in enumerate(values) if item not in values[:i]]
        joined[key] = distinct if len(distinct) > 1 else distinct[0] if distinct else None
    return joined
