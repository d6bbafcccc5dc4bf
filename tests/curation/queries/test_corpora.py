"""Corpora: plain and compressed text, dumps of Wikipedia, their markup, and damage."""

import bz2
import gzip
import lzma
from xml.sax.saxutils import escape

import pytest

from clip_jax.curation.queries import corpora
from clip_jax.curation.queries.corpora import read_corpus
from clip_jax.curation.queries.wikitext import WikitextStripper
from clip_jax.errors import UserError


def read(path):
    return "".join(read_corpus(str(path), quiet=True))


def dump(*pages):
    texts = (
        f"<page><title>{title}</title><ns>{ns}</ns><id>1</id>{extra}<revision><id>2</id>"
        f'<text xml:space="preserve">{escape(text)}</text></revision></page>'
        for title, ns, extra, text in pages
    )
    return (
        '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xml:lang="de"><siteinfo>'
        '<namespaces><namespace key="0"/><namespace key="6">Datei</namespace></namespaces>'
        f"</siteinfo>{''.join(texts)}</mediawiki>"
    ).encode()


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_text_is_read_whole_and_in_whole_lines(tmp_path, compress):
    text = "".join(f"line {i} straße\n" for i in range(200_000))
    path = tmp_path / "corpus"
    path.write_bytes(compress(text.encode()))
    blocks = list(read_corpus(str(path), quiet=True))
    assert "".join(blocks) == text and len(blocks) > 2
    assert all(block.endswith("\n") for block in blocks)


def test_endless_lines_and_broken_text(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"\xef\xbb\xbf" + b"word " * 600_000 + b"\xff\xe4\xb8")
    blocks = list(read_corpus(str(path), quiet=True))
    assert "".join(blocks) == "word " * 600_000 + "\ufffd\ufffd"
    assert max(map(len, blocks)) < 3 << 20 and all(b.endswith(" ") for b in blocks[:-1])
    path.write_bytes("text".encode("utf-16"))
    with pytest.raises(UserError, match="is UTF-16: save it as UTF-8"):
        read(path)
    path.write_bytes("Füchse, Dächse und Wölfe\n".encode("latin1") * 99)
    with pytest.raises(UserError, match=r"is not UTF-8 \(297 of 2,475 characters\): convert it"):
        read(path)
    path.write_bytes(b"header" + b"\0" * 500)
    with pytest.raises(UserError, match="is no text: it contains zero bytes"):
        read(path)


def test_damaged_compression_is_one_line(tmp_path):
    path = tmp_path / "corpus.gz"
    for compress in (gzip.compress, bz2.compress, lzma.compress):
        content = compress(b"".join(b"%x\n" % (i * i) for i in range(99_999)))
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError, match=r"corpus\.gz is damaged or cut off|corpus\.gz is dam"):
            read(path)
        path.write_bytes(content[:9_000] + b"\0" * 40 + content[9_040:])
        with pytest.raises(UserError, match=r"corpus\.gz is damaged"):
            read(path)
    with pytest.raises(UserError, match=r"none cannot be read"):
        read(tmp_path / "none")


def test_a_dump_gives_the_text_of_its_articles(tmp_path):
    path = tmp_path / "dewiki-latest-pages-articles.xml.bz2"
    pages = [
        ("Fuchs", 0, "", "Der '''Fuchs''' [[Datei:F.jpg|mini|ein [[Bild]]]] & [[Tier|Tiere]]"),
        ("Rotfuchs", 0, '<redirect title="Fuchs"/>', "#WEITERLEITUNG [[Fuchs]]"),
        ("Diskussion:Fuchs", 1, "", "no article"),
        ("Leer", 0, "", ""),
        ("Dachs", 0, "", "Ein Dachs."),
    ]  # fmt: skip
    path.write_bytes(bz2.compress(dump(*pages)))
    lines = [" ".join(line.split()) for line in read(path).splitlines()]
    assert lines == ["Der Fuchs & Tiere", "Ein Dachs."]


def test_damaged_dumps_are_one_line(tmp_path, monkeypatch):
    path = tmp_path / "dump.xml"
    page = ("Fuchs", 0, "", "x" * 50_000)
    path.write_bytes(dump(page, page)[:-60_000])
    with pytest.raises(UserError, match=r"dump\.xml is damaged or cut off after \d pages"):
        read(path)
    bomb = b'<!DOCTYPE m [<!ENTITY a "aaaaaaaaaa">'
    for i in range(1, 12):
        bomb += b'<!ENTITY %s "%s">' % (b"a" * (i + 1), b"&%s;" % (b"a" * i) * 10)
    path.write_bytes(bomb + b"]><mediawiki><page><text>&aaaaaaaaaaaa;</text></page></mediawiki>")
    with pytest.raises(UserError, match="is damaged"):
        read(path)
    monkeypatch.setattr(corpora, "_MAX_PAGE", 100_000)
    path.write_bytes(dump(("Fuchs", 0, "", "x" * 3_000_000)))
    with pytest.raises(UserError, match="without the end of a page"):
        read(path)


@pytest.mark.parametrize(
    "markup, text",
    [
        ("{{Infobox|a={{b|c}}|d}}The fox.", "The fox."),
        ("a {| class=x\n! h\n|-\n| {{t}} {| inner |} c |} b", "a  b"),
        ("{{a|{|b|}}} c", " c"),
        ("open {{never closed [[fox]]", "open  never closed fox"),
        ("stray }} and |} end", "stray }} and |} end"),
        ("{{a {| b }} c", " c"),
        ("[[fox]], [[Red fox|foxes]] [[File:F.jpg|thumb|a [[den]]]]", "fox, foxes "),
        ("[[Kategorie:Tier]][[de:Fuchs]][[:Category:Foxes|the list]]", "the list"),
        ("[[Mission: Impossible]] [[Star Wars: A|A]]", "Mission: Impossible A"),
        ("[http://x.org/a?b the site] http://y.org/z end", " the site   end"),
        ("a<ref name=x/> b<ref>{{cite}} [[c]]</ref> c<ref>never", "a b  c "),
        ("x<br/>y <small>z</small> 1 < 2 <!-- hidden\n--> w<!-- open", "x\ny z 1 < 2  w"),
        ("<math>\\frac{{a}}{b}</math>f", " f"),
        (
            "== Head ==\n* item\n#: ''it'' '''bold'''\n----\n__NOTOC__",
            " Head \n item\n it bold\n\n",
        ),
        ("caf&eacute;&nbsp;&amp;&#8211;", "café\xa0&–"),
    ],
)
def test_markup(markup, text):
    assert WikitextStripper(["Kategorie"]).strip(markup) == text


def test_hostile_markup_ends():
    stripper = WikitextStripper()
    for piece in (
        "{{",
        "[[",
        "<!--",
        "<ref>",
        "<ref ",
        "{|",
        "[http://a ",
        "<",
        "''",
        "[[a|",
        "]]",
    ):
        stripper.strip(piece * (1_000_000 // len(piece)))  # a square of its length takes hours
