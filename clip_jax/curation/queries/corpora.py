"""Text corpora: plain files, and dumps of Wikipedia as they are published."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree

from clip_jax.curation.queries.text_stream import BLOCK, Readable, open_stream, read_blocks
from clip_jax.curation.queries.wikitext import WikitextStripper
from clip_jax.errors import UserError
from clip_jax.io import remote

_MAX_PAGE = 64 << 20  # bytes of XML of one page; MediaWiki's own limit is 2 MiB of text
_GATHERED = 1 << 20  # characters of pages that are yielded together


def read_corpus(path: str, quiet: bool = False) -> Iterator[str]:
    """Yields the text of a corpus in blocks of whole lines; a bigram never crosses a block.

    A file that starts with `<mediawiki` is a dump (`*-pages-articles.xml.bz2`): the text of its
    articles is read, without markup, redirects and pages of other namespaces.

    Args:
      path: the file, also compressed, local or remote.
      quiet: whether to show no progress.

    Raises:
      UserError: the file cannot be read, is damaged, or is UTF-16.
    """
    with open_stream(path, quiet) as file:
        start = file.read(BLOCK)
        stream = _Prepended(start, file)
        if b"<mediawiki" in start[:4096]:
            yield from _read_dump(path, stream)
        else:
            yield from read_blocks(path, stream)


class _Prepended:
    """A stream whose first bytes were read already."""

    def __init__(self, start: bytes, stream: Readable) -> None:
        self._start, self._stream = start, stream

    def read(self, size: int = -1, /) -> bytes:
        """Reads the first bytes at once, then up to `size` bytes of the rest."""
        start, self._start = self._start, b""
        return start or self._stream.read(size)


class _DumpStream:
    """A stream that is refused when it goes on for too long without the end of a page.

    The parser of XML holds a page in memory, however long it is.

    Attributes:
      since_page: the bytes since the end of a page, set to 0 there.
    """

    def __init__(self, path: str, stream: Readable) -> None:
        self._path, self._stream = path, stream
        self.since_page = 0

    def read(self, size: int = -1, /) -> bytes:
        """Reads up to `size` bytes."""
        if self.since_page > _MAX_PAGE:
            raise UserError(
                f"{remote.redact(self._path)}: over {_MAX_PAGE >> 20} MiB without the end of a "
                "page; no wiki has such pages"
            )
        content = self._stream.read(size)
        self.since_page += len(content)
        return content


def _read_dump(path: str, stream: Readable) -> Iterator[str]:
    """Yields the text of the articles of a dump, several together."""
    texts: list[str] = []
    size = 0
    for text in _read_articles(path, _DumpStream(path, stream)):
        texts.append(text)
        size += len(text)
        if size > _GATHERED:
            yield "\n".join(texts)
            texts, size = [], 0
    yield "\n".join(texts)


def _read_articles(path: str, stream: _DumpStream) -> Iterator[str]:
    """Yields the text of each article of a dump, without markup."""
    namespaces: list[str] = []
    stripper = WikitextStripper()
    root: ElementTree.Element | None = None
    pages = 0
    try:
        for event, element in ElementTree.iterparse(stream, ("start", "end")):
            root = element if root is None else root
            if event == "start":
                continue
            name = element.tag.rpartition("}")[2]
            if name == "namespace" and element.get("key") != "0":
                namespaces.append(element.text or "")
            elif name == "siteinfo":
                stripper = WikitextStripper(namespaces)
            elif name == "page":
                if text := _article(element):
                    yield stripper.strip(text)
                root.clear()
                pages += 1
                stream.since_page = 0
    except ElementTree.ParseError as error:
        raise UserError(
            f"{remote.redact(path)} is damaged or cut off after {pages:,} pages ({error})"
        ) from None


def _article(page: ElementTree.Element) -> str:
    """Returns the wikitext of a page; empty if it is a redirect or no article."""
    text, namespace = "", "0"
    for element in page.iter():
        name = element.tag.rpartition("}")[2]
        if name == "redirect":
            return ""
        if name == "ns":
            namespace = element.text or "0"
        elif name == "text":
            text = element.text or ""
    return text if namespace.strip() == "0" else ""
