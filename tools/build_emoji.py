"""Builds the embedded data set: emoji in nine families of drawings, as WebDataset tars.

    python tools/build_emoji.py --out clip_jax/data/emoji [--npm FOLDER] [--limit N]

Needs Pillow 13.0.0, resvg-py 0.5.0 and sentencepiece 0.2.3: with these, two builds give the same
bytes. Without --npm, `npm install` fetches the packages of PACKAGES into a folder that is removed
afterwards. The output folder is replaced as a whole, or not changed.

docs/emoji.md describes the contents, the reasons and the licences.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageOps, ImageStat

SIZE = 64
RENDER_SIZE = 256
SEED = "clip_jax emoji 1"
TRAIN_SHARDS = 4
HELD_OUT = 0.1
LARGEST_HELD_OUT_FAMILY = 6
VOCABULARY = 2000
TRIAL_VOCABULARY = 400
BLOCK = 512  # a tar pads its members to a multiple of this
BUDGET = 19_500_000
SECOND_BLOCKS = 0.27  # share of images; as many as the budget allows
QUALITIES = (90, 84, 78, 72, 66, 60, 55, 50, 45, 40, 36, 32, 28, 20, 10, 1)
GOOD_QUALITY = 60

PACKAGES = {
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/noto-v1": "1.2.5",
    "@iconify-json/twemoji": "1.2.5",
    "@iconify-json/openmoji": "1.2.29",
    "@iconify-json/emojione": "1.2.3",
    "@iconify-json/emojione-v1": "1.2.3",
    "@iconify-json/fxemoji": "1.2.2",
    "@iconify-json/fluent-emoji-flat": "1.2.6",
    "@lobehub/fluent-emoji-3d": "1.1.0",
    "emojibase-data": "17.0.0",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """One family of drawings, with its origin and its owner."""

    name: str
    package: str
    title: str
    author: str
    licence: str
    url: str


FAMILIES = (
    Family("noto", "@iconify-json/noto", "Noto Emoji", "Google Inc", "Apache-2.0",
           "https://github.com/googlefonts/noto-emoji"),
    Family("noto-v1", "@iconify-json/noto-v1", "Noto Emoji (version 1)", "Google Inc",
           "Apache-2.0", "https://github.com/googlefonts/noto-emoji"),
    Family("twemoji", "@iconify-json/twemoji", "Twemoji", "Twitter, Inc and other contributors",
           "CC-BY-4.0", "https://github.com/jdecked/twemoji"),
    Family("openmoji", "@iconify-json/openmoji", "OpenMoji", "the OpenMoji project",
           "CC-BY-SA-4.0", "https://openmoji.org"),
    Family("emojione", "@iconify-json/emojione", "Emoji One 2 (EmojiTwo)",
           "Emoji One and the EmojiTwo contributors", "CC-BY-4.0",
           "https://github.com/EmojiTwo/emojitwo"),
    Family("emojione-v1", "@iconify-json/emojione-v1", "Emoji One 1", "Emoji One",
           "CC-BY-SA-4.0", "https://github.com/joypixels/emojione-legacy"),
    Family("fxemoji", "@iconify-json/fxemoji", "Firefox OS Emoji", "Mozilla Foundation",
           "Apache-2.0", "https://github.com/mozilla/fxemoji"),
    Family("fluent-flat", "@iconify-json/fluent-emoji-flat", "Fluent Emoji, flat",
           "Microsoft Corporation", "MIT", "https://github.com/microsoft/fluentui-emoji"),
    Family("fluent-3d", "@lobehub/fluent-emoji-3d", "Fluent Emoji, 3D",
           "Microsoft Corporation (packaged by LobeHub)", "MIT",
           "https://github.com/microsoft/fluentui-emoji"),
)  # fmt: skip
UNSEEN_FAMILIES = ("fluent-flat", "fluent-3d")


# --- Emoji ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Emoji:
    """One base emoji: no skin tone, no component."""

    label: str
    hexcode: str
    tags: tuple[str, ...]
    group: int
    order: int

    @property
    def key(self) -> str:
        """The code points as the data set spells them."""
        return self.hexcode.lower()

    @property
    def bare(self) -> str:
        """The code points without the variation selector, which sets use differently."""
        return self.key.replace("-fe0f", "")

    @property
    def name(self) -> str:
        """The label in lower case, with plain quotes."""
        return self.label.lower().replace("’", "'").replace("“", '"').replace("”", '"')


def load_emoji(npm: Path) -> tuple[list[Emoji], dict[int, str]]:
    """Reads the base emoji in Unicode order and the names of their groups."""
    folder = npm / "emojibase-data" / "en"
    groups = {
        group["order"]: group["message"]
        for group in json.loads((folder / "messages.json").read_text("utf-8"))["groups"]
    }
    component = next(order for order, name in groups.items() if name.startswith("component"))
    emoji = [
        Emoji(
            label=entry["label"],
            hexcode=entry["hexcode"],
            tags=tuple(entry.get("tags", ())),
            group=entry["group"],
            order=entry["order"],
        )
        for entry in json.loads((folder / "data.json").read_text("utf-8"))
        if entry.get("group") not in (None, component)
    ]
    emoji.sort(key=lambda item: item.order)
    names = Counter(item.name for item in emoji)
    if repeated := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"emoji that share a name: {repeated}")
    return emoji, groups


# --- Joining drawings to emoji --------------------------------------------------------------------

_NAMES = json.loads(Path(__file__).with_name("emoji_names.json").read_text("utf-8"))
# Emoji were renamed over the years; the older sets keep the older names.
OLDER_NAMES: dict[str, str] = _NAMES["older_names"]
# Firefox OS has its own names, and foxes where Unicode has cats (left out).
FXEMOJI_NAMES: dict[str, str] = _NAMES["fxemoji_names"]
# Drawings that do not show what their name says, or that are broken.
NOT_DRAWN_SO: dict[str, list[str]] = _NAMES["not_drawn_so"]


def kebab(text: str) -> str:
    """'Flag: Åland Islands' → 'flag-aland-islands', the way icon sets spell names."""
    text = unicodedata.normalize("NFKD", text.lower())
    text = "".join(letter for letter in text if not unicodedata.combining(letter))
    text = re.sub(r"[’'“”]", "", text).replace("&", " and ")
    text = text.replace("#", "hash").replace("*", "asterisk")
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def squash(text: str) -> str:
    """'Flag: Åland Islands' → 'flagalandislands', the way Firefox OS spelt names."""
    return kebab(text).replace("-", "")


def icon_names(emoji: Emoji, family: str) -> Iterator[str]:
    """The names under which a set without code points may draw an emoji, best first."""
    if family == "fxemoji":
        if emoji.label in FXEMOJI_NAMES:
            yield FXEMOJI_NAMES[emoji.label]
            return
        yield squash(emoji.label)
        if "-" not in emoji.bare:
            unicode_name = unicodedata.name(chr(int(emoji.bare, 16)), "")
            yield squash(unicode_name)
            yield squash(re.sub(r"\b(FACE|SIGN|SYMBOL|WITH)\b", "", unicode_name))
        return
    name = kebab(emoji.label)
    yield name
    yield name.replace("-and-", "-")
    if name.startswith("flag-"):
        yield f"flag-for-{name}"
        yield name.replace("flag-", "flag-for-", 1)
    if emoji.label in OLDER_NAMES:
        yield OLDER_NAMES[emoji.label]


@dataclasses.dataclass(frozen=True)
class Icon:
    """A drawing of an Iconify set: SVG body, view box and orientation."""

    root: str
    body: str
    left: float
    top: float
    width: float
    height: float
    flip_x: bool
    flip_y: bool
    quarter_turns: int

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for two icons that are the same image."""
        return self.root, self.flip_x, self.flip_y, self.quarter_turns


class IconSet:
    """An Iconify package: names, aliases and, in some, code points."""

    def __init__(self, folder: Path) -> None:
        data = json.loads((folder / "icons.json").read_text("utf-8"))
        self._icons: dict[str, dict[str, Any]] = data["icons"]
        self._aliases: dict[str, dict[str, Any]] = data.get("aliases", {})
        self._default = {"width": data.get("width", 16), "height": data.get("height", 16)}
        chars = json.loads((folder / "chars.json").read_text("utf-8"))
        self.chars = {code.lower().replace("-fe0f", ""): name for code, name in chars.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._icons or name in self._aliases

    def is_alias(self, name: str) -> bool:
        """Whether a name is a second name of a drawing."""
        return name in self._aliases

    def __getitem__(self, name: str) -> Icon:
        flip_x = flip_y = False
        turns = 0
        fields: dict[str, Any] = {}
        while name not in self._icons:
            alias = self._aliases[name]
            flip_x ^= alias.get("hFlip", False)
            flip_y ^= alias.get("vFlip", False)
            turns += alias.get("rotate", 0)
            fields = alias | fields
            name = alias["parent"]
        icon = self._icons[name]
        fields = self._default | icon | fields
        return Icon(
            root=name,
            body=icon["body"],
            left=fields.get("left", 0),
            top=fields.get("top", 0),
            width=fields["width"],
            height=fields["height"],
            flip_x=flip_x ^ icon.get("hFlip", False),
            flip_y=flip_y ^ icon.get("vFlip", False),
            quarter_turns=(turns + icon.get("rotate", 0)) % 4,
        )


def join_icons(icons: IconSet, emoji: Sequence[Emoji], family: str) -> dict[str, Icon]:
    """Finds the icon of each emoji; no icon serves two emoji."""
    skipped = NOT_DRAWN_SO.get(family, [])
    icon_of: dict[str, Icon] = {}
    used: set[tuple[Any, ...]] = set()

    def take(item: Emoji, name: str) -> None:
        icon = icons[name]
        if item.key not in icon_of and icon.identity not in used:
            icon_of[item.key] = icon
            used.add(icon.identity)

    drawn_emoji = [item for item in emoji if item.label not in skipped]
    for item in drawn_emoji:
        if item.bare in icons.chars:
            take(item, icons.chars[item.bare])
    candidates = [(item, [name for name in icon_names(item, family) if name in icons])
                  for item in drawn_emoji]  # fmt: skip
    rank = 0
    while any(len(names) > rank for _, names in candidates):
        for alias in (False, True):
            for item, names in candidates:
                if len(names) > rank and icons.is_alias(names[rank]) == alias:
                    take(item, names[rank])
        rank += 1
    return icon_of


# --- Pictures -------------------------------------------------------------------------------------


def flatten(image: Image.Image) -> Image.Image:
    """Composites an image on white, centred in a square, at the size of the data set."""
    image = image.convert("RGBA")
    side = max(image.size)
    canvas = Image.new("RGBA", (side, side), "white")
    corner = ((side - image.width) // 2, (side - image.height) // 2)
    canvas.alpha_composite(image, corner)
    return canvas.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def render_icon(icon: Icon) -> Image.Image:
    """Draws an icon, centred in a square."""
    import resvg_py

    side = max(icon.width, icon.height)
    left = icon.left - (side - icon.width) / 2
    top = icon.top - (side - icon.height) / 2
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left:g} {top:g} {side:g} {side:g}">{icon.body}</svg>'
    )
    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=RENDER_SIZE, height=RENDER_SIZE, skip_system_fonts=True
    )
    image = Image.open(io.BytesIO(bytes(png)))
    if icon.flip_x:
        image = ImageOps.mirror(image)
    if icon.flip_y:
        image = ImageOps.flip(image)
    if icon.quarter_turns:
        image = image.rotate(-90 * icon.quarter_turns)
    return flatten(image)


def encode_webp(image: Image.Image, quality: int) -> bytes:
    """A lossy WebP file."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=6)
    return buffer.getvalue()


def fit_webp(image: Image.Image, size: int) -> tuple[bytes, int]:
    """The best encoding of at most `size` bytes, and its quality."""
    low, high = 0, len(QUALITIES) - 1
    while low < high:
        middle = (low + high) // 2
        if len(encode_webp(image, QUALITIES[middle])) <= size:
            high = middle
        else:
            low = middle + 1
    return encode_webp(image, QUALITIES[low]), QUALITIES[low]


def squared_error(image: Image.Image, data: bytes) -> float:
    """The squared error between an encoded image and the image."""
    with Image.open(io.BytesIO(data)) as decoded:
        difference = ImageChops.difference(image, decoded.convert("RGB"))
    return sum(band**2 for band in ImageStat.Stat(difference).rms)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """An image in one block of a tar and in two, and the gain of the second block."""

    one: bytes
    two: bytes
    gain: float


def draw(source: Icon | Path) -> Encoded:
    """The image of an icon, or of an image file."""
    if isinstance(source, Icon):
        image = render_icon(source)
    else:
        with Image.open(source) as file:
            image = flatten(file)
    one, quality = fit_webp(image, BLOCK)
    if quality >= GOOD_QUALITY:
        return Encoded(one, one, 0.0)
    two, _ = fit_webp(image, 2 * BLOCK)
    return Encoded(one, two, squared_error(image, one) - squared_error(image, two))


def spend(encoded: Sequence[Encoded]) -> list[bytes]:
    """Gives second blocks to the images that gain most from them, as far as the budget goes."""
    by_gain = sorted(range(len(encoded)), key=lambda index: (-encoded[index].gain, index))
    second = set(by_gain[: round(SECOND_BLOCKS * len(encoded))])
    return [one.two if index in second else one.one for index, one in enumerate(encoded)]


def find_drawings(npm: Path, emoji: Sequence[Emoji]) -> dict[str, dict[str, Icon | Path]]:
    """{family: {emoji key: drawing}}."""
    drawings: dict[str, dict[str, Icon | Path]] = {}
    for family in FAMILIES:
        folder = npm / family.package
        if family.name != "fluent-3d":
            drawings[family.name] = dict(join_icons(IconSet(folder), emoji, family.name))
            continue
        files = {
            path.stem.lower().replace("-fe0f", ""): path
            for path in sorted((folder / "assets").glob("*.webp"))
        }
        skipped = NOT_DRAWN_SO[family.name]
        drawings[family.name] = {
            item.key: files[item.bare]
            for item in emoji
            if item.bare in files
            and item.label not in skipped
            and item.key in drawings["fluent-flat"]  # published by Microsoft: see docs/emoji.md
        }
    return drawings


# --- Variants -------------------------------------------------------------------------------------

PERSONS = dict.fromkeys(("1f468", "1f469", "1f9d1"), "1f9d1")
CHILDREN = dict.fromkeys(("1f466", "1f467", "1f9d2"), "1f9d2")
VARIANT_SIGNS = {"200d", "fe0f", "2640", "2642", "27a1", "1f9b0", "1f9b1", "1f9b2", "1f9b3"}

VARIANT_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        man men woman women person people boy girl male female adult child and
        left right up down leftwards rightwards upwards downwards upward downward
        facing front pointing pointed tilted oncoming forward reverse next last first
        vertical horizontal vertically horizontally clockwise counterclockwise
        increasing decreasing waxing waning
        beard bald
        """,
    )
)

# Variants that names and code points do not reveal, and flags that are the same drawing.
IRREGULAR_VARIANTS = (
    ("person with crown", "prince", "princess"),
    ("Santa Claus", "Mrs. Claus", "Mx Claus"),
    ("breast-feeding", "person feeding baby"),
    ("ballet dancer", "woman dancing", "man dancing"),
    ("person", "old man", "old woman", "older person"),
    ("female sign", "male sign", "transgender symbol"),
    ("people holding hands", "men holding hands", "women holding hands"),
    ("kiss", "kiss: woman, man"),
    ("ram", "ewe"),
    ("rooster", "chicken"),
    ("play button", "reverse button"),
    ("sun", "sun with face"),
    ("new moon", "black circle"),
    ("full moon", "yellow circle"),
    ("baby chick", "hatching chick"),
    ("speech balloon", "left speech bubble"),
    ("right anger bubble", "thought balloon"),
    ("index pointing up", "backhand index pointing up", "index pointing at the viewer"),
    ("flag: Norway", "flag: Bouvet Island", "flag: Svalbard & Jan Mayen"),
    ("flag: United States", "flag: U.S. Outlying Islands"),
    ("flag: France", "flag: Clipperton Island", "flag: St. Martin", "flag: Wallis & Futuna"),
    ("flag: Australia", "flag: Heard & McDonald Islands"),
    ("flag: United Kingdom", "flag: Diego Garcia", "flag: British Indian Ocean Territory"),
    ("flag: Spain", "flag: Ceuta & Melilla"),
    ("flag: Chad", "flag: Romania"),
    ("flag: Indonesia", "flag: Monaco"),
)


def variant_code(emoji: Emoji) -> str:
    """The code points without skin tone, gender, hair and direction."""
    codes = [PERSONS.get(code, CHILDREN.get(code, code)) for code in emoji.key.split("-")]
    plain = [code for code in codes if code not in VARIANT_SIGNS]
    return "-".join(plain) or emoji.bare


def variant_name(emoji: Emoji) -> str:
    """The name without its words of gender, hair and direction."""
    name = emoji.name
    if name.endswith(("o'clock", "-thirty")):
        return "clock face"
    if name.startswith(("flag:", "keycap:")):
        return name
    name = re.sub(r"'s?\b", "", name)
    name = re.sub(r"\b(red|curly|white|blond) hair\b", "", name)
    words = [word for word in re.findall(r"\w+", name) if word not in VARIANT_WORDS]
    return " ".join(words) or ("arrow" if "arrow" in name else "person")


def variant_families(emoji: Sequence[Emoji]) -> dict[str, str]:
    """{key of an emoji: key of the first emoji of its variants}."""
    parent = {item.key: item.key for item in emoji}
    order = {item.key: index for index, item in enumerate(emoji)}
    by_label = {item.label: item.key for item in emoji}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    def unite(keys: Iterable[str]) -> None:
        roots = sorted({root(key) for key in keys}, key=order.__getitem__)
        for other in roots[1:]:
            parent[other] = roots[0]

    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    for item in emoji:
        alike["code", variant_code(item)].append(item.key)
        alike["name", variant_name(item)].append(item.key)
        if (shorter := item.label.removesuffix(" face")) in by_label:
            alike["face", shorter] += [item.key, by_label[shorter]]
    for keys in alike.values():
        unite(keys)
    for labels in IRREGULAR_VARIANTS:
        unite(by_label[label] for label in labels if label in by_label)
    return {key: root(key) for key in parent}


def digest(text: str) -> str:
    """A hash for choices and orders that are the same in every build."""
    return hashlib.sha256(f"{SEED} {text}".encode()).hexdigest()


def hold_out(emoji: Sequence[Emoji], families: Mapping[str, str], share: float) -> set[str]:
    """The keys of about this share of the emoji: whole families of variants, from every group."""
    members: dict[str, list[Emoji]] = defaultdict(list)
    for item in emoji:
        members[families[item.key]].append(item)
    by_key = {item.key: item for item in emoji}
    sizes = Counter(item.group for item in emoji)
    held_out: set[str] = set()
    for group, size in sorted(sizes.items()):
        room = round(share * size)
        small = [
            family
            for family, relatives in members.items()
            if by_key[family].group == group and len(relatives) <= LARGEST_HELD_OUT_FAMILY
        ]
        for family in sorted(small, key=lambda key: digest(f"held out {key}")):
            if len(members[family]) <= room:
                room -= len(members[family])
                held_out |= {item.key for item in members[family]}
    return held_out


# --- Packing --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sample:
    """One concept: its text and its encoded drawings."""

    emoji: Emoji
    group: str
    variants_of: str
    pictures: Mapping[str, bytes]

    @property
    def keywords(self) -> list[str]:
        """As many of the tags as keep the text in one block of the tar."""
        tags = [tag.lower() for tag in self.emoji.tags]
        while len(self._text(tags)) > BLOCK:
            tags.pop()
        return tags

    def _text(self, keywords: Sequence[str]) -> bytes:
        fields = {
            "name": self.emoji.name,
            "keywords": list(keywords),
            "hexcode": self.emoji.hexcode,
            "group": self.group,
            "variants_of": self.variants_of,
        }
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()

    def members(self, families: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Names and contents of the tar members, the text first."""
        yield f"{self.emoji.key}.json", self._text(self.keywords)
        for family in families:
            if family in self.pictures:
                yield f"{self.emoji.key}.{family}.webp", self.pictures[family]


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Writes a tar that depends only on its members: no times, no owners."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mode = 0o644
            tar.addfile(info, io.BytesIO(data))


def pack(samples: Sequence[Sample], held_out: set[str], folder: Path) -> dict[str, list[Sample]]:
    """Writes the tars of every split and returns the contents of each split."""
    every = [family.name for family in FAMILIES]
    seen_families = [family for family in every if family not in UNSEEN_FAMILIES]
    shuffled = sorted(samples, key=lambda sample: digest(f"order {sample.emoji.key}"))
    splits = {
        "train": [
            sample
            for sample in shuffled
            if sample.emoji.key not in held_out and set(seen_families) & set(sample.pictures)
        ],
        "unseen_drawing": [],
        "unseen_concept": [sample for sample in samples if sample.emoji.key in held_out],
    }
    trained = {sample.emoji.key for sample in splits["train"]}
    splits["unseen_drawing"] = [
        sample for sample in samples
        if sample.emoji.key in trained and set(UNSEEN_FAMILIES) & set(sample.pictures)
    ]  # fmt: skip
    drawn = {"train": seen_families, "unseen_drawing": UNSEEN_FAMILIES, "unseen_concept": every}
    for split, split_samples in splits.items():
        shards = TRAIN_SHARDS if split == "train" else 1
        for shard in range(shards):
            members = (
                member
                for sample in split_samples[shard::shards]
                for member in sample.members(drawn[split])
            )
            write_tar(folder / f"{split}-{shard:03d}.tar", members)
    return splits


def captions(samples: Iterable[Sample]) -> Iterator[str]:
    """Training texts as a trainer's templates would produce them, for the vocabulary."""
    for sample in samples:
        name = sample.emoji.name
        yield name
        yield f"an emoji of {name}"
        yield f"a drawing of {name}"
        yield f"{name}, {', '.join(sample.keywords)}"
        yield from sample.keywords


# --- Licences -------------------------------------------------------------------------------------

MIT_TERMS = """\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or
substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT
OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""


def licences() -> str:
    """The owners of drawings and words, and their terms."""
    lines = [
        "# Licences of the emoji data",
        "",
        "The pictures in these tars were made from the vector drawings (Fluent 3D: from the",
        f"pictures) below: rendered, placed on white, reduced to {SIZE}×{SIZE} pixels and stored",
        "as lossy WebP; nothing else was changed. Each picture stays under the licence of its set;",
        "a member of a tar is named KEY.SET.webp, so the set of a picture is in its name.",
        "The pictures of OpenMoji and of Emoji One 1 are adapted material under CC BY-SA 4.0",
        "and are shared under it; pictures adapted from them are to be shared under it too.",
        "",
        "| set | drawings | by | licence | source | package |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {family.name} | {family.title} | {family.author} | {family.licence} | {family.url} "
        f"| {family.package} {PACKAGES[family.package]} (npm) |"
        for family in FAMILIES
    ]
    lines += [
        "",
        f"Names and keywords: emojibase-data {PACKAGES['emojibase-data']} (npm), by Miles Johnson,",
        "MIT, https://github.com/milesj/emojibase, after Unicode CLDR (Unicode License v3,",
        "https://www.unicode.org/license.txt).",
        "",
        "- Apache-2.0: https://www.apache.org/licenses/LICENSE-2.0",
        "- CC-BY-4.0: https://creativecommons.org/licenses/by/4.0/",
        "- CC-BY-SA-4.0: https://creativecommons.org/licenses/by-sa/4.0/",
        "- MIT: as follows",
        "",
        "Copyright (c) Microsoft Corporation (Fluent Emoji)  ",
        "Copyright (c) 2017-2019 Miles Johnson (emojibase-data)",
        "",
        MIT_TERMS,
        "",
    ]
    return "\n".join(lines)


# --- The build ------------------------------------------------------------------------------------


def install(folder: Path) -> Path:
    """Fetches the pinned packages and returns the folder that holds them."""
    packages = [f"{name}@{version}" for name, version in PACKAGES.items()]
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--legacy-peer-deps"]
    subprocess.run(["npm", "install", *options, *packages], cwd=folder, check=True)
    return folder / "node_modules"


def check_versions(npm: Path) -> None:
    """Stops if a package does not have the version that the data set is built with."""
    for name, version in PACKAGES.items():
        installed = json.loads((npm / name / "package.json").read_text("utf-8"))["version"]
        if installed != version:
            raise SystemExit(
                f"{npm / name} is version {installed}; the data is built from {version}"
            )


def draw_all(drawings: Mapping[str, Mapping[str, Icon | Path]]) -> dict[str, dict[str, bytes]]:
    """{emoji key: {family: encoded picture}}, on all cores."""
    jobs = [
        (key, family, drawing)
        for family, by_emoji in drawings.items()
        for key, drawing in by_emoji.items()
    ]
    with multiprocessing.Pool() as pool:
        encoded = pool.map(draw, [drawing for _, _, drawing in jobs], chunksize=32)
    pictures: dict[str, dict[str, bytes]] = defaultdict(dict)
    for (key, family, _), data in zip(jobs, spend(encoded), strict=True):
        pictures[key][family] = data
    return pictures


def build(npm: Path, folder: Path, limit: int | None = None) -> dict[str, list[Sample]]:
    """Writes the whole data set into an empty folder and returns its splits."""
    from clip_jax.tokenizers import sentencepiece

    emoji, groups = load_emoji(npm)
    families = variant_families(emoji)
    if limit is not None:
        emoji = sorted(emoji, key=lambda item: digest(f"limit {families[item.key]}"))[:limit]
        emoji.sort(key=lambda item: item.order)
    held_out = hold_out(emoji, families, HELD_OUT)
    pictures = draw_all(find_drawings(npm, emoji))
    samples = [
        Sample(item, groups[item.group], families[item.key], pictures[item.key])
        for item in emoji
        if item.key in pictures
    ]
    splits = pack(samples, held_out, folder)
    labels = {
        "unseen_drawing": [sample.emoji.name for sample in samples],
        "unseen_concept": [sample.emoji.name for sample in splits["unseen_concept"]],
    }
    text = json.dumps(labels, ensure_ascii=False, indent=0) + "\n"
    (folder / "labels.json").write_text(text, "utf-8")
    (folder / "LICENSES.md").write_text(licences(), "utf-8")
    pieces = VOCABULARY if limit is None else TRIAL_VOCABULARY
    sentencepiece.train(captions(splits["train"]), str(folder / "emoji.model"), vocab_size=pieces)
    return splits


def replace_folder(new: Path, out: Path) -> None:
    """Replaces an older folder by a finished one."""
    if out.exists():
        old = new.with_name(new.name + "-old")
        out.rename(old)
        new.rename(out)
        shutil.rmtree(old)
    else:
        new.rename(out)


def report(splits: Mapping[str, Sequence[Sample]], folder: Path) -> None:
    """Prints concepts and images by family and split, and bytes by file."""
    names = list(splits)
    print(f"{'':12}" + "".join(f"{name:>16}" for name in names))
    print(f"{'concepts':12}" + "".join(f"{len(splits[name]):16,}" for name in names))
    for family in FAMILIES:
        unseen = family.name in UNSEEN_FAMILIES
        counts = [
            sum(family.name in sample.pictures for sample in splits[name])
            if name == "unseen_concept" or unseen == (name == "unseen_drawing")
            else 0
            for name in names
        ]
        print(f"{family.name:12}" + "".join(f"{count:16,}" for count in counts))
    files = sorted(folder.iterdir())
    for path in files:
        print(f"{path.name:24}{path.stat().st_size:12,}")
    print(f"{'all':24}{sum(path.stat().st_size for path in files):12,}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, builds, reports, and replaces the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--npm", type=Path, help="node_modules that hold the packages")
    parser.add_argument("--limit", type=int, help="build this many emoji only, as a trial")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".emoji-", dir=out.parent) as scratch:
        new = Path(scratch) / "emoji"
        new.mkdir()
        npm = options.npm or install(Path(scratch))
        check_versions(npm)
        splits = build(npm, new, options.limit)
        size = sum(path.stat().st_size for path in new.iterdir())
        if size > BUDGET:
            raise SystemExit(f"{size:,} bytes are more than the {BUDGET:,} that are allowed")
        report(splits, new)
        replace_folder(new, out)


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    main()
