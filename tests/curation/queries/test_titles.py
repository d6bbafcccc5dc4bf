"""Titles and their views, in both formats of Wikimedia's dumps."""

import bz2
import gzip

import pytest

from clip_jax.curation.queries.build import title_candidates
from clip_jax.curation.queries.titles import read_titles, read_views
from clip_jax.errors import UserError

HOUR = """\
"" - 5 0
de Rotfuchs 400 0
en - 900 0
en Main_Page 80000 0
en Red_fox 40 0
en Special:Search 700 0
en Star_Wars:_Episode_IV 75 0
en Vixen 3 0
en.b Red_fox 999 0
en.m Red_fox 25 0
en.m.b Red_fox 999 0
en-x Red_fox 999 0
zh-yue 狐 80 0
"""
DAY = """\
de.wikipedia Rotfuchs 1 desktop 400 A400
en.wikipedia Red_fox 26242 desktop 3 A1B2
en.wikipedia Red_fox 26242 mobile-web 4 C4
en.wikipedia Vixen null desktop 66 A66
en.wikibooks Red_fox 1 desktop 999 A999
en.wikipedia Fox_(old_format) desktop 71 A71
"""


@pytest.fixture
def files(tmp_path):
    hour, day = tmp_path / "pageviews-20200101-000000.gz", tmp_path / "pageviews-2020-user.bz2"
    hour.write_bytes(gzip.compress(HOUR.encode()))
    day.write_bytes(bz2.compress(DAY.encode()))
    return [str(hour), str(day)]


def test_views_are_summed_over_files_and_devices(files):
    views, left_out = read_views(files, "en", quiet=True)
    assert views == {b"Red_fox": 40 + 25 + 3 + 4, b"Vixen": 3 + 66, b"Fox_(old_format)": 71}
    assert left_out == {"a main page or unknown": 2, "of another namespace (with a colon)": 2}
    assert read_views(files, "zh-yue", quiet=True)[0] == {"狐".encode(): 80}
    assert read_views(files, "de", quiet=True)[0] == {b"Rotfuchs": 800}
    views, left_out = read_views(files, "en", min_line_views=50, quiet=True)
    assert views == {b"Vixen": 66, b"Fox_(old_format)": 71}
    assert left_out["under 50 views in a line"] == 5


def test_candidates_are_the_viewed_titles_of_the_list(files, tmp_path):
    titles = tmp_path / "enwiki-latest-all-titles-in-ns0.gz"
    titles.write_bytes(
        gzip.compress(b"page_title\nRed_fox\nStar_Wars:_Episode_IV\nUnseen\nVixen\n")
    )
    assert len(read_titles(str(titles), quiet=True)) == 4
    found = title_candidates(str(titles), files, "en", 70, 1, quiet=True)
    assert found.rows == [("Star Wars: Episode IV", 75), ("Red fox", 72)]
    assert found.left_out["under 70 views"] == 1 and found.left_out["never viewed"] == 1
    found = title_candidates("", files, "en", 70, 1, quiet=True)
    assert found.rows == [("Red fox", 72), ("Fox (old format)", 71)]
    found = title_candidates(str(titles), [], "en", 0, 1, quiet=True)
    assert [row[0] for row in found.rows][:2] == ["Red fox", "Star Wars: Episode IV"]


def test_wrong_files_are_one_line(files, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("This is a text, of many more than the six words\n" * 2000)
    with pytest.raises(UserError, match=r"2,000 of the first 2,000 lines are no page views: give"):
        read_views([str(path)], "en", quiet=True)
    path.write_text("en Fox x 0\n" * 3)
    with pytest.raises(UserError, match="3 of the first 3 lines are no page views"):
        read_views([str(path)], "en", quiet=True)
    path.write_text("en Fox 3 0\r\n" * 40 + "en Fox -3 0\n" * 4 + "en.m Fox " + "9" * 5000 + " 0")
    views, left_out = read_views([str(path)], "en", quiet=True)
    assert views == {b"Fox": 120} and left_out == {"of another form": 5}
    path.write_text("en Fox 3 0\n" * 10 + "en " + "x" * 70_000 + " 3 0\n")
    with pytest.raises(UserError, match="line 11: over 65,536 bytes"):
        read_titles(str(path), quiet=True)
    path.write_text("")
    with pytest.raises(UserError, match=r"notes\.txt is empty"):
        read_views([str(path)], "en", quiet=True)
    with pytest.raises(UserError, match="has no titles"):
        read_titles(str(path), quiet=True)
    with pytest.raises(UserError, match=r"no title of the fr Wikipedia is in .*: see --language"):
        title_candidates("", files, "fr", 70, 1, quiet=True)
