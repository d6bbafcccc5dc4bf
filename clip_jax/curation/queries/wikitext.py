"""The plain text of MediaWiki's markup, in time linear in the page.

What WikiExtractor leaves out is left out: templates, tables, pictures with their captions,
categories, references, formulas and code. A parser of the whole grammar (mwparserfromhell) reads
1 MB/s; these few expressions read over twenty times as much, which is hours of the English dump.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

# Canonical names of namespaces are understood in every language beside its own names.
_NAMESPACES = (
    *("file", "image", "category", "media", "special", "talk", "user", "user talk", "wikipedia"),
    *("template", "help", "portal", "draft", "module", "mediawiki", "timedtext", "wikt", "commons"),
    *("wiktionary", "wikisource", "wikiquote", "wikibooks", "wikinews", "wikidata", "wikispecies"),
)
_INTERLANGUAGE = re.compile(r"[a-z]{2,3}(?:-[a-z-]{2,12})?", re.ASCII)
_HIDDEN = r"ref|math|chem|ce|gallery|timeline|score|syntaxhighlight|source|code|graph|mapframe"
# An open comment or element that is never closed extends to the end, as in MediaWiki.
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_EMPTY_ELEMENT = re.compile(rf"<(?:{_HIDDEN}|maplink|templatestyles)\b[^<>]*/>", re.IGNORECASE)
_HIDDEN_ELEMENT = re.compile(rf"<({_HIDDEN})\b[^<>]*>.*?(?:</\1\s*>|\Z)", re.DOTALL | re.IGNORECASE)
_BRACES = re.compile(r"\{\{|\{\||\}\}|\|\}(?!\}(?!\}))")  # of |}} the last two are a pair
_CLOSING = {"{{": "}}", "{|": "|}"}
_LINK = re.compile(r"\[\[([^\[\]|]*)([^\[\]]*)\]\]")
_LINK_DEPTH = 6  # links in captions of pictures, in captions of pictures, …
_EXTERNAL_LINK = re.compile(r"\[(?:https?:|ftp:|mailto:)?//[^\s\]]*([^\[\]]*)\]")
_URL = re.compile(r"\b(?:https?|ftp)://[^\s<>\[\]|]+")
_EMPHASIS = re.compile(r"'{2,5}")
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)\b[^<>]{0,500}>")
_BLOCK_TAGS = frozenset(("br", "p", "div", "li", "ul", "ol", "blockquote", "tr", "td", "hr", "h2"))
_LINE_START = re.compile(r"^(?:[*#:;]+|=+|----+)", re.MULTILINE)
_LINE_END = re.compile(r"=+[ \t]*$", re.MULTILINE)
_SWITCH = re.compile(r"__[A-Z]{3,20}__")


class WikitextStripper:
    """Strips markup.

    Args:
      namespaces: names of namespaces in the wiki's language, such as Datei or Kategorie.
    """

    def __init__(self, namespaces: Iterable[str] = ()) -> None:
        self._namespaces = frozenset(
            name.strip().lower() for name in (*_NAMESPACES, *namespaces) if name.strip()
        )

    def strip(self, page: str) -> str:
        """Returns the text of a page, a paragraph a line."""
        text = _COMMENT.sub("", page)
        if "<" in text:
            text = _EMPTY_ELEMENT.sub("", text)
            text = _HIDDEN_ELEMENT.sub(" ", text)
        text = _without_braces(text)
        for _ in range(_LINK_DEPTH):
            text, changes = _LINK.subn(self._label, text)
            if not changes:
                break
        text = _EXTERNAL_LINK.sub(r"\1", text)
        text = _URL.sub(" ", text)
        text = _EMPHASIS.sub("", text)
        if "<" in text:
            text = _TAG.sub(_tag_text, text)
        text = _SWITCH.sub("", text)
        text = _LINE_END.sub("", _LINE_START.sub("", text))
        return html.unescape(text)

    def _label(self, link: re.Match[str]) -> str:
        """Returns the text that a link shows; nothing for a picture or a category."""
        target, label = link[1], link[2]
        prefix, colon, _ = target.partition(":")
        prefix = prefix.strip().replace("_", " ").lower()
        if colon and (prefix in self._namespaces or _INTERLANGUAGE.fullmatch(prefix)):
            return ""
        if label.strip("| "):
            return label[label.rindex("|") + 1 :]
        return target.removeprefix(":")


def _without_braces(text: str) -> str:
    """Returns a text without its templates and tables, also nested ones.

    What is opened and never closed stays, without its braces.
    """
    kept: list[str] = []
    open_: list[str] = []
    start = 0
    for match in _BRACES.finditer(text):
        brace = match[0]
        if brace in _CLOSING:
            if not open_:
                kept.append(text[start : match.start()])
                start = match.start()
            open_.append(_CLOSING[brace])
        elif brace in open_:
            while open_.pop() != brace:  # an inner one that is not closed
                pass
            if not open_:
                start = match.end()
    rest = text[start:]
    kept.append(_BRACES.sub(" ", rest) if open_ else rest)
    return "".join(kept)


def _tag_text(tag: re.Match[str]) -> str:
    return "\n" if tag[2].lower() in _BLOCK_TAGS else ""
