"""The whole pipeline against a plain one, on small random pools: every pair has the same reason."""

import itertools
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip_jax.curation.curated.reader import Curated
from clip_jax.curation.hashing import bytes_hash, combine, text_hash
from curation.pools import curate, picture, write_tar

pytest.importorskip("apache_beam")

QUERIES = ["w0", "w1 w2", "w2", "w3", "never"]
SIZES = [(40, 40), (64, 20), (12, 30)]

Pair = tuple[int, str]  # the number of an image, -1 for a broken one, and the caption


def expected(pairs: list[Pair], rules: dict[str, int | str]) -> list[str]:
    """The reason of each pair, by loops over pairs."""
    number = {key: int(value) for key, value in rules.items() if key != "duplicates"}
    pixels = [picture(image, SIZES[image % 3]) for image, _ in pairs]
    # a caption is looked for first, then the image is read
    reasons = ["caption" if not text.strip() else "picture" * (x < 0) for x, text in pairs]
    usable = [i for i, reason in enumerate(reasons) if not reason]
    texts, images, grams = defaultdict(set), defaultdict(set), {}
    for i in usable:
        image, text = pairs[i]
        texts[image].add(text)
        images[text].add(image)
        words = text.lower().split()
        grams[i] = [*words, *itertools.pairwise(words)]
    seen: set[Pair | int] = set()
    counts = Counter(g for i in usable for g in grams[i])
    least = _least(counts, number.get("frequent-words", 0))
    for i in usable:
        image, text = pairs[i]
        key = pairs[i] if rules.get("duplicates") == "pair" else image
        tests = {
            "side": min(SIZES[image % 3]) < number.get("min-side", 0),
            "words": len(text.split()) > number.get("max-words", 99),
            "rare_words": any(counts[g] < least for g in grams[i]),
            "many_texts": len(texts[image]) > number.get("texts-per-image", 99),
            "shared_text": len(images[text]) > number.get("images-per-text", 99),
            "duplicate": "duplicates" in rules and key in seen,
            "no_query": not _matches(text),
        }
        reasons[i] = next((name for name, holds in tests.items() if holds), "")
        if reasons[i] in ("", "no_query"):
            seen.add(key)
    kept = [i for i in usable if not reasons[i]]
    total = Counter(query for i in kept for query in _matches(pairs[i][1]))
    thresholds = {
        i: min(_draw(pixels[i], pairs[i][1], q) * total[q] for q in _matches(pairs[i][1]))
        for i in kept
    }
    t = number.get("limit", 20_000)
    if "pairs" in number:
        fits = [x for x in range(1, 200) if _below(thresholds, x) <= number["pairs"]]
        t = max(fits, default=1)
    return [
        "balance" if i in thresholds and thresholds[i] >= t << 32 else reason or "kept"
        for i, reason in enumerate(reasons)
    ]


def _least(counts: Counter, most: int) -> int:
    """The least count of what is frequent: all that occur as often are, or none of them."""
    return min(c for c in range(1, 10_000) if not most or _at_least(counts, c) <= most)


def _at_least(counts: Counter, least: int) -> int:
    return sum(count >= least for count in counts.values())


def _matches(text: str) -> list[str]:
    for mark in ",.;:?!`":
        text = text.replace(mark, f" {mark} ")
    return [query for query in QUERIES if f" {query} " in f" {text} "]


def _draw(image: bytes, text: str, query: str) -> int:
    key = combine(np.uint64(bytes_hash(image)), np.uint64(text_hash(text)))
    return int(combine(np.uint64(0), np.uint64(text_hash(query)), key)[0]) >> 32


def _below(thresholds: dict[int, int], t: int) -> int:
    return sum(value < t << 32 for value in thresholds.values())


WORDS = st.lists(st.sampled_from(["w0", "w1", "w2", "W3", "w3,", "x"]), min_size=1, max_size=4)
CAPTIONS = st.one_of(WORDS.map(" ".join), st.just(" "))
PAIRS = st.lists(st.tuples(st.integers(-1, 6), CAPTIONS), min_size=1, max_size=30)
RULES = st.fixed_dictionaries(
    {},
    optional={
        **{"min-side": st.sampled_from([15, 21]), "max-words": st.integers(1, 4)},
        **{"frequent-words": st.integers(1, 12), "duplicates": st.sampled_from(["pair", "image"])},
        **{"texts-per-image": st.integers(1, 4), "images-per-text": st.integers(1, 3)},
    },
)
BALANCE = st.one_of(
    st.just({}),
    st.builds(lambda t: {"limit": t}, st.integers(1, 5)),
    st.builds(lambda n: {"pairs": n}, st.integers(1, 30)),
)


@pytest.mark.slow
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(PAIRS, min_size=1, max_size=3), RULES, BALANCE, st.sampled_from([1, 7, 1000]))
def test_every_pair_has_the_reason_of_a_plain_pipeline(
    files: list[list[Pair]], rules: dict, balance: dict, chunk: int
) -> None:
    files[0].append((1, "w0"))  # a pool without any caption is refused
    rules |= balance
    flags = [f"--{name}={value}" for name, value in rules.items()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for n, pairs in enumerate(files):
            content = [
                (picture(x, SIZES[x % 3]) if x >= 0 else b"junk", {"caption": text})
                for x, text in pairs
            ]
            write_tar(folder / f"{n}.tar", content)
        (folder / "q.txt").write_text("\n".join(QUERIES))
        own = (f"--queries={folder / 'q.txt'}", f"--chunk={chunk}", "--no-page")
        curate(folder / "*.tar", folder / "out", *own, *flags)
        curated = Curated.open(str(folder / "out"))
        found = [curated.reason(int(x)) for part in curated.chunks() for x in part.reasons]
    assert found == expected([pair for pairs in files for pair in pairs], rules)
