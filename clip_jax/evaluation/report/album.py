"""The images of a page: each once, as many as fit."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping

from PIL import Image

from clip_jax.data.example import PairError
from clip_jax.data.images.decoding import decode
from clip_jax.evaluation.report.markup import Markup, cut, tag

_LARGE = 16_384  # bytes: larger images are reduced to thumbnails
_NO_THUMBNAIL = 4 << 20  # bytes: larger files are not opened


def thumbnail(image: Image.Image, side: int = 112) -> bytes:
    """Encodes an image, reduced to fit into `side` × `side` pixels, as WebP of a few kilobytes.

    Transparent images get a white background.
    """
    if image.mode not in ("RGB", "L"):
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, "white")
        image.paste(rgba, mask=rgba.getchannel("A"))
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=62, method=4)
    return file.getvalue()


def _kind(content: bytes) -> str | None:
    if content.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    return "webp" if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else None


class Album:
    """The images of a page, which are stored in its style sheet.

    An image that is shown several times, or under several names, is stored once. If not all fit,
    the first of each list stay.

    Args:
      pictures: encoded images by name.
    """

    def __init__(self, pictures: Mapping[str, bytes]) -> None:
        self._pictures = pictures
        self._numbers: dict[str, int | None] = {}  # by id
        self._by_content: dict[bytes, int] = {}
        self._stored: list[tuple[str, bytes]] = []
        self._rank: list[int] = []

    def _number(self, name: str) -> int | None:
        if name not in self._numbers:
            self._numbers[name] = self._add(self._pictures.get(name), name)
        return self._numbers[name]

    def _add(self, content: bytes | None, name: str) -> int | None:
        if not content or len(content) > _NO_THUMBNAIL:
            return None
        key = hashlib.sha256(content).digest()
        if key not in self._by_content:
            if len(content) > _LARGE:
                try:
                    content = thumbnail(decode(content, name))
                except PairError:
                    return None
            kind = _kind(content)
            if kind is None:
                return None
            self._by_content[key] = len(self._stored)
            self._stored.append((kind, content))
            self._rank.append(1 << 30)
        return self._by_content[key]

    def show(self, name: object, words: object, rank: int = 0) -> Markup:
        """Returns the element that shows an image.

        Args:
          name: the name of the image.
          words: its description for screen readers.
          rank: its position in its list; later images are left out first.
        """
        number = self._number(str(name))
        alt = cut(words, 120) or "picture"
        if number is None:
            return tag("i", class_="p none", role="img", aria_label=f"{alt} (no image)")
        self._rank[number] = min(self._rank[number], rank)
        return tag("i", class_=f"p p{number}", role="img", aria_label=alt)

    def style(self, room: int) -> tuple[Markup, int]:
        """Returns CSS rules for the images that fit into `room` bytes.

        Returns:
          The rules, and the number of images that do not fit.
        """
        rules: dict[int, str] = {}
        for i in sorted(range(len(self._stored)), key=lambda i: (self._rank[i], i)):
            kind, content = self._stored[i]
            data = base64.b64encode(content).decode()
            rule = f".p{i}{{background-image:url(data:image/{kind};base64,{data})}}\n"
            if len(rule) <= room:
                rules[i] = rule
                room -= len(rule)
        return Markup("".join(rules[i] for i in sorted(rules))), len(self._stored) - len(rules)

    def __len__(self) -> int:
        return len(self._stored)
