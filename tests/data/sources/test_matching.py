"""Which pictures and texts belong together, and that every name is accounted for."""

from __future__ import annotations

import os
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clip_jax.data.example import IMAGES, TEXTS
from clip_jax.data.opening import REASONS
from clip_jax.data.sources import tar_index
from clip_jax.data.sources.folders import FolderSource
from clip_jax.data.sources.matching import MASKS, match
from support import write_tar

Pairs = dict[str, tuple[str, ...]]


def matched(names: list[str], image: str = "") -> tuple[Pairs, dict[str, str]]:
    """Texts by picture, and reasons by what is left out, of names that differ."""
    examples, left_out = match(names, image)
    pairs = {names[pair.image]: tuple(names[i] for i in pair.texts) for pair in examples}
    return pairs, {names[i]: reason for i, reason in left_out.items()}


# Names, `picture:text+text` of the pairs, and `name:reason` of what is left out.
RULES = [
    # a picture's own stem comes first, then the longest part that a dot ends, then the short key
    ("v1.0.jpg v1.0.txt v1.txt", "v1.0.jpg:v1.0.txt", "v1.txt:no_picture"),
    ("v1.0.l.jpg v1.0.txt v1.txt", "v1.0.l.jpg:v1.0.txt", "v1.txt:no_picture"),
    ("a.x.jpg a.y.jpg a.json", "a.x.jpg:a.json a.y.jpg:a.json", ""),
    ("v1.5.jpg v1.0.txt", "", "v1.5.jpg:no_text v1.0.txt:no_picture"),
    # all texts describe it
    ("a.txt a.jpg a.json a.cls", "a.jpg:a.json+a.txt+a.cls", ""),
    # masks and other formats
    ("a.png a.seg.png a.txt", "a.png:a.txt", "a.seg.png:extra_picture"),
    ("a.png a.x.png a.txt", "a.png:a.txt", "a.x.png:extra_picture"),
    ("a.rgb.png a.Mask.png a.txt", "a.rgb.png:a.txt", "a.Mask.png:extra_picture"),
    ("a.seg.png a.txt", "", "a.seg.png:extra_picture a.txt:no_picture"),
    ("a.seg.png a.seg.txt a.jpg a.txt", "a.jpg:a.txt a.seg.png:a.seg.txt", ""),
    ("a.png a.JPG a.txt", "a.JPG:a.txt", "a.png:extra_picture"),
    ("a.b.webp a.b.gif a.txt", "a.b.webp:a.txt", "a.b.gif:extra_picture"),
    # endings and stems
    ("a.JpEg a.TXT", "a.JpEg:a.TXT", ""),
    ("a.jfif a.txt", "a.jfif:a.txt", ""),
    ("a.jpg a.txt a.TXT", "a.jpg:a.TXT", "a.txt:repeated"),
    ("A.jpg a.txt", "", "A.jpg:no_text a.txt:no_picture"),
    ("a.heic a.txt", "", "a.heic:unknown_ending a.txt:no_picture"),
    ("jpg a", "", "jpg:unknown_ending a:unknown_ending"),
    ("._a.jpg .txt .jpg a.jpg", "", "._a.jpg:hidden .txt:hidden .jpg:hidden a.jpg:no_text"),
    ("a..jpg a.txt", "a..jpg:a.txt", ""),
    ("a.jpg.txt a.jpg", "a.jpg:a.jpg.txt", ""),
    ("a.jpg.json a.jpg a.txt", "a.jpg:a.txt", "a.jpg.json:no_picture"),
    ("a.b.jpg.txt a.b.jpg a.txt a.b.png", "a.b.jpg:a.b.jpg.txt a.b.png:a.txt", ""),
    # Unicode's normal forms, where no text is written alike
    ("\xe9.jpg e\u0301.txt", "\xe9.jpg:e\u0301.txt", ""),
    ("\xe9.jpg e\u0301.txt \xe9.txt", "\xe9.jpg:\xe9.txt", "e\u0301.txt:repeated"),
]


@pytest.mark.parametrize(("given_names", "pairs", "left_out"), RULES)
def test_rules(given_names: str, pairs: str, left_out: str) -> None:
    names = given_names.split()
    expected = (
        {picture: tuple(texts.split("+")) for picture, texts in map(_halves, pairs.split())},
        dict(map(_halves, left_out.split())),
    )
    assert matched(names) == matched(names[::-1]) == expected


def _halves(text: str) -> tuple[str, str]:
    first, _, second = text.partition(":")
    return first, second


@pytest.mark.parametrize(
    ("image", "picture"),
    [
        *(("seg.png", "0.seg.png"), ("SEG", "0.seg.png"), ("b.seg.jpg", "0.b.seg.jpg")),
        *(("png", "0.png"), ("jpg;png", "0.jpg")),
    ],
)
def test_a_picture_is_chosen_by_what_follows_the_stem(image: str, picture: str) -> None:
    names = ["0.png", "0.seg.png", "0.b.seg.jpg", "0.jpg", "0.txt"]
    pairs, left_out = matched(names, image)
    assert pairs == {picture: ("0.txt",)} and set(left_out.values()) == {"extra_picture"}


STEMS = st.lists(
    st.sampled_from(["a", "b", "", "seg", "A", "\xe9", "e\u0301", "v1", "0", "\udcff"]),
    min_size=1, max_size=3,
).map(".".join)  # fmt: skip
ENDS = st.sampled_from([*IMAGES[:4], *TEXTS, ".JPG", ".TXT", ".heic", ""])
NAMES = st.lists(st.builds(str.__add__, STEMS, ENDS).filter(bool), max_size=14)


@given(NAMES, st.sampled_from(["", "seg.png", "jpg", "png;jpg"]), st.randoms())
@example(["0.jpg", "0.txt", "0.jpg", "0.txt", "0.jpg"], "", None)
def test_every_name_is_used_or_left_out_for_one_reason(names, image, random) -> None:
    examples, left_out = match(names, image)
    used = {i for pair in examples for i in (pair.image, *pair.texts)}
    assert used.isdisjoint(left_out) and used | set(left_out) == set(range(len(names)))
    assert set(left_out.values()) <= set(REASONS)
    assert len({pair.image for pair in examples}) == len(examples), "no picture is two pairs"
    for pair in examples:
        stem = names[pair.image].rpartition(".")[0]
        kinds = []
        for text in (names[i] for i in pair.texts):
            described, end = text.rpartition(".")[::2]
            forms = [(unicodedata.normalize("NFC", n) + ".") for n in (stem, described)]
            assert forms[0].startswith(forms[1])
            kinds.append(TEXTS.index(f".{end.lower()}"))
        assert kinds and kinds == sorted({*kinds})
    if len({*names}) == len(names) and random:
        shuffled = random.sample(names, len(names))
        assert matched(shuffled, image) == matched(names, image), "the order of names is nothing"


@given(st.sampled_from(sorted(MASKS)), st.sampled_from([".png", ".jpg"]))
def test_a_mask_never_takes_the_caption_of_its_picture(word: str, end: str) -> None:
    for picture in ("0.jpg", "0.rgb.jpg"):
        pairs, left_out = matched([picture, f"0.{word}{end}", "0.txt"])
        assert pairs == {picture: ("0.txt",)} and len(left_out) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(["", "d/", "d.x/"]), STEMS, ENDS), max_size=12), st.data()
)
def test_a_folder_and_a_tar_of_the_same_files_are_the_same_pairs(
    tmp_path: Path, files: list[tuple[str, str, str]], data: st.DataObject
) -> None:
    named = ((folder, "".join(parts)) for folder, *parts in files)
    names = sorted({folder + base for folder, base in named if base not in ("", ".", "..")})
    image = data.draw(st.sampled_from(["", "seg.png", "jpg"]))
    with tempfile.TemporaryDirectory(dir=tmp_path) as directory:
        members = [(name, os.fsencode(name)) for name in data.draw(st.permutations(names))]
        for name, content in members:
            path = Path(directory, "folder", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"{}" if name.endswith(".json") else content)
        tar = write_tar(Path(directory, "x.tar"), members)
        (Path(directory, "folder")).mkdir(exist_ok=True)
        from_tar = tar_index.scan(str(tar), image)
        pairs = {from_tar.name(i) for i in range(len(from_tar.ends))}
        assert from_tar.report.seen == len(names)
        if not pairs:
            return
        source = FolderSource(f"{directory}/folder", image)
        relative = {
            os.path.relpath(source.name(i), f"{directory}/folder") for i in range(len(source))
        }
        assert relative == pairs
        assert source.opening_report().metrics() == from_tar.report.metrics()
        assert source.opening_report().used == from_tar.report.used
        assert source.opening_report().seen == len(names)
