"""Which image and text files of a folder form an example, by their names alone.

Folders and tars share these rules:

- An image belongs to the texts of its own stem: `photo.v1.5.jpg` to `photo.v1.5.txt`. If there are
  none, to those of its full name (`photo.v1.5.jpg.txt`), otherwise to those of the longest part of
  its stem that ends before a dot: `photo.v1.5.large.jpg` and `photo.v1.5.jpg` share
  `photo.v1.5.txt`.
- All texts of that stem describe it together: `1.txt`, `1.json`, `1.cls`, `1.npy`.
- If a stem has an image of its own, its texts describe that image only: `0.seg.png` beside `0.png`
  and `0.txt` is left out. Otherwise every image is a pair, except masks, which are told by their
  names. `config.data.image` chooses images by what follows the stem.
- Of one stem in several formats, the first of `example.IMAGES` is used.
- A name that occurs again, as in a tar, begins another example: its second image belongs to its
  second text.
- Endings can be in upper case. Names whose accents are encoded differently (Unicode's normal
  forms) match if no other text does.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from clip_jax.data.example import IMAGES, TEXTS

RULES = 2  # their version, a part of fingerprints
# What follows the stem of an image that is derived from another image.
MASKS = frozenset(
    (
        *("alpha", "canny", "depth", "disparity", "edge", "edges", "flow", "instance", "instances"),
        *("keypoints", "label", "labels", "mask", "masks", "matte", "normal", "normals"),
        *("panoptic", "pose", "seg", "segm", "segmentation", "semantic", "trimap"),
    )
)
_PICTURES = {end: rank for rank, end in enumerate(IMAGES)}
_TEXTS = {end: kind for kind, end in enumerate(TEXTS)}


class Example(NamedTuple):
    """An image and its texts, as indices of names.

    Attributes:
      image: the index of the image.
      texts: the indices of the texts, in the order of `example.TEXTS`.
    """

    image: int
    texts: tuple[int, ...]


class _File(NamedTuple):
    """A file: the index of its name, the name, its stem, and the rank of its ending."""

    number: int
    name: str
    stem: str
    rank: int  # of its ending in `IMAGES` or `TEXTS`


class _Group(NamedTuple):
    """Files of one folder with different names that agree up to the first dot."""

    images: list[_File]
    texts: list[_File]


def is_hidden(path: str) -> bool:
    """Returns whether a part of a relative path begins with a dot, except `.` and `..`."""
    return any(part[:1] == "." and part not in (".", "..") for part in path.split("/"))


def is_mask(stem: str) -> bool:
    """Returns whether a stem is that of a mask or another derived image, such as `0.seg`."""
    return stem.rpartition(".")[2].lower() in MASKS and "." in stem


def short_key(name: str) -> str:
    """Returns the start of a name up to the first dot, which files of one example share."""
    key = name.split(".", 1)[0]
    return key if key.isascii() else unicodedata.normalize("NFC", key)


def kind(name: str) -> str:
    """Returns `picture` or `text` by the ending of a name, or an empty text for other endings."""
    end = _ending(name)
    return "picture" if end in _PICTURES else "text" if end in _TEXTS else ""


def _ending(name: str) -> str:
    stem, dot, end = name.rpartition(".")
    return dot + end.lower() if stem else ""


def match(names: Sequence[str], image: str = "") -> tuple[list[Example], dict[int, str]]:
    """Matches images with texts.

    Args:
      names: the names of the files in one folder, without the folder; equal names are different
        files.
      image: the images to use, by what follows the stem of their text, such as `seg.png`, `seg` or
        `png`; several are separated by `;`. If empty, see the rules above.

    Returns:
      The examples in the order of their images, and a dict from the index of every other name to
      one of `opening.REASONS`.
    """
    examples: list[Example] = []
    left_out: dict[int, str] = {}
    suffixes = _suffixes(image)
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        if name.startswith("."):
            left_out[i] = "hidden"
        elif not kind(name):
            left_out[i] = "unknown_ending"
        else:
            groups.setdefault(short_key(name), []).append(i)
    for numbers in groups.values():
        for again, group in enumerate(_occurrences(names, numbers)):
            examples += _examples(group, suffixes, left_out, bool(again))
    return sorted(examples), left_out


def match_without_texts(names: Sequence[str], image: str = "") -> tuple[list[int], dict[int, str]]:
    """Chooses the images of a folder without texts: all but masks, or those that `image` chooses.

    The arguments are those of `match`.

    Returns:
      The indices of the images, and a dict from the index of every other name to a reason.
    """
    suffixes, chosen = _suffixes(image), list[int]()
    left_out = {
        i: "hidden"
        if name.startswith(".")
        else "unknown_ending"
        if not kind(name)
        else "no_picture"
        for i, name in enumerate(names)
    }
    pictures = [i for i in left_out if kind(names[i]) == "picture" and left_out[i] != "hidden"]
    stems = {names[i].rpartition(".")[0] for i in pictures}
    for i in pictures:
        stem, _, end = names[i].rpartition(".")
        outer, _, last = stem.rpartition(".")
        plain = _longest_part(outer, stems)
        extra = stem[len(plain) + 1 :] if plain else last if is_mask(stem) else ""
        if _is_chosen(extra, end, suffixes) if suffixes else not (plain and is_mask(stem)):
            chosen.append(i)
            del left_out[i]
        else:
            left_out[i] = "extra_picture"
    return chosen, left_out


def _is_chosen(extra: str, end: str, suffixes: Sequence[str]) -> bool:
    """Returns whether an image is chosen by what is between its stem and its ending."""
    before, after = extra.lower(), end.lower()
    return (f"{before}.{after}" if before else after) in suffixes or before in suffixes


def _suffixes(image: str) -> tuple[str, ...]:
    return tuple(part.strip().lstrip(".").lower() for part in image.split(";") if part.strip())


def _occurrences(names: Sequence[str], numbers: Sequence[int]) -> Iterator[_Group]:
    """Returns groups of the first files of each name, of the second, and so on."""
    groups: list[_Group] = []
    counts: Counter[str] = Counter()
    for number in numbers:
        name = names[number]
        again, counts[name] = counts[name], counts[name] + 1
        if again == len(groups):
            groups.append(_Group([], []))
        end = _ending(name)
        rank = _PICTURES.get(end, -1)
        is_text = rank < 0
        file = _File(number, name, name[: -len(end)], _TEXTS[end] if is_text else rank)
        (groups[again].texts if is_text else groups[again].images).append(file)
    return iter(groups)


def _examples(
    group: _Group, suffixes: Sequence[str], left_out: dict[int, str], again: bool
) -> Iterator[Example]:
    """Yields the examples of a group; adds the reason why each other file is left out."""
    taken = set[tuple[str, int]]()
    for normal in (str, _normalized):
        images, texts = group
        by_stem: dict[str, dict[int, _File]] = {}
        for file in sorted(texts, key=lambda file: file.name):
            by_stem.setdefault(normal(file.stem), {}).setdefault(file.rank, file)
        images_of: dict[str, list[_File]] = {}
        for file in images:
            stem = _text_stem(normal(file.stem), normal(file.name), by_stem)
            if stem is not None:
                images_of.setdefault(stem, []).append(file)
        used = set[int]()
        for stem, candidates in images_of.items():
            chosen = _chosen(stem, candidates, suffixes, normal)
            described = tuple(by_stem[stem][rank].number for rank in sorted(by_stem[stem]))
            used.update(described if chosen else ())
            for file in candidates:
                used.add(file.number)
                if file in chosen:
                    yield Example(file.number, described)
                else:
                    left_out[file.number] = "extra_picture"
        taken |= {(_normalized(f.stem), f.rank) for f in texts if f.number in used}
        group = _Group(*([f for f in files if f.number not in used] for files in group))
        if not (group.images and group.texts) or all(f.name.isascii() for f in group.texts):
            break
    for file in group.images:
        left_out[file.number] = "repeated" if again else "no_text"
    for file in group.texts:
        twice = again or (_normalized(file.stem), file.rank) in taken  # 1.txt beside 1.TXT
        left_out[file.number] = "repeated" if twice else "no_picture"


def _normalized(stem: str) -> str:
    return unicodedata.normalize("NFC", stem)


def _text_stem(stem: str, name: str, text_stems: Collection[str]) -> str | None:
    """Returns the stem of an image's texts: its own, its full name, or the longest part of it."""
    use_name = stem not in text_stems and name in text_stems
    return name if use_name else _longest_part(stem, text_stems)


def _longest_part(stem: str, stems: Iterable[str]) -> str | None:
    """Returns the longest part of a stem that ends before a dot and is one of `stems`, or None."""
    while stem not in stems:
        stem, dot, _ = stem.rpartition(".")
        if not dot:
            return None
    return stem


def _chosen(
    stem: str,
    candidates: Sequence[_File],
    suffixes: Sequence[str],
    normal: Callable[[str], str],
) -> set[_File]:
    """Returns the images that the texts of a stem describe."""

    def extra(file: _File) -> str:
        return normal(file.stem)[len(stem) + 1 :]

    if suffixes:
        usable = [
            file for file in candidates if _is_chosen(extra(file), _ending(file.name)[1:], suffixes)
        ]
    else:
        plain = [file for file in candidates if not extra(file)]
        usable = plain or [file for file in candidates if not is_mask(f".{extra(file)}")]
    first: dict[str, _File] = {}
    for file in sorted(usable, key=lambda file: (file.rank, file.name, file.number)):
        first.setdefault(normal(file.stem), file)
    return set(first.values())
