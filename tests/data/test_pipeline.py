"""The order of the data is a pure function of seed, step and global batch size."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from clip_jax import tokenizers
from clip_jax.data import pipeline
from clip_jax.data.example import REASONS, Pair
from clip_jax.data.images.augmentation import Augment
from clip_jax.data.mixture import Mixture, Part
from clip_jax.data.rows import Prepare
from clip_jax.data.sources import open_source
from clip_jax.errors import UserError
from support import Letters, TarFactory, encoded, picture, says, write_tar

PICTURE = encoded(picture(0, (6, 6)))


@dataclasses.dataclass
class Numbers:
    """Pairs whose captions are their numbers; some may have half a picture, or no caption."""

    count: int
    cut: frozenset[int] = frozenset()
    silent: frozenset[int] = frozenset()
    first: int = 0
    fingerprint: str = ""

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Pair:
        number = self.first + int(i)
        text = {"caption": str(number), "all": [f"{c}{number}" for c in "abc"]}
        text = {} if i in self.silent else text
        return Pair(PICTURE[:40] if i in self.cut else PICTURE, text, f"pair {i}")


PREPARE = Prepare(Letters(), 4, ("{caption}", "no. {caption}"), Augment(crop_scale=(0.5, 1.0)))
Batch = dict[str, np.ndarray]


def numbers(batch: Batch) -> list[int]:
    captions = (Letters().decode(row) for row in batch["tokens"])
    return [int(c.removeprefix("no. ")) for c in captions]


def same(one: Batch, two: Batch) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)


def concatenated(parts: Sequence[Batch]) -> Batch:
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


def test_a_batch_is_pixels_and_tokens(tar_factory: TarFactory) -> None:
    source = open_source(str(tar_factory(pairs=5, size=(20, 9))))
    batch = pipeline.batches(source, PREPARE, batch_size=8, seed=0)[0]
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        "source": ((8,), np.int64),
        "image": ((8, 4, 4, 3), np.uint8),
        "tokens": ((8, 16), np.int32),
        "bad": ((8, len(REASONS)), np.int32),
        "complaint": ((8,), np.dtype("<U1")),
    }
    captions = {Letters().decode(row) for row in batch["tokens"]}
    assert captions <= {f"{p}picture {i}"[:14] for p in ("", "no. ") for i in range(5)}
    assert len(captions) >= 5


class Shared:
    """Five captions a picture, three pictures, two classes; pair 14 tells none."""

    def __len__(self) -> int:
        return 15

    def __getitem__(self, i: int) -> Pair:
        label = {} if i == 14 else {"info": {"class": int(i) // 5 % 2}}
        return Pair(encoded(picture(int(i) // 5)), {"caption": str(i), **label}, f"pair {i}")


@pytest.mark.parametrize("label", ["", "info.class"])
def test_pairs_of_one_picture_or_one_label_share_a_group(label: str) -> None:
    prepare = dataclasses.replace(PREPARE, groups=True, label=label)
    batch = pipeline.batches(Shared(), prepare, batch_size=30, seed=0)[0]  # type: ignore[arg-type]
    assert batch["group"].dtype == np.uint32 and batch["group"].shape == (30, 2)
    pictures = np.array(numbers(batch)) // 5
    expected = pictures % 2 if label else pictures
    equal = (batch["group"][:, None] == batch["group"]).all(-1)
    np.testing.assert_array_equal(equal, expected[:, None] == expected)
    assert batch["bad"].sum() == (2 if label else 0)
    assert ("pair 14: it lacks the field 'info.class'" in str(batch["complaint"])) == bool(label)
    assert pipeline.pairs_per_picture(Shared()) == 5  # type: ignore[arg-type]


SETS = st.frozensets(st.integers(0, 39), max_size=12)


@settings(max_examples=25)
@given(
    st.integers(1, 40),
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))
    ),
    st.integers(0, 2**32 - 1),
    st.integers(0, 5) | st.integers(10**6, 10**9),
    SETS,
    SETS,
)
def test_the_division_of_rows_changes_no_batch(
    pairs: int,
    share: tuple[int, set[int]],
    seed: int,
    step: int,
    cut: frozenset[int],
    silent: frozenset[int],
) -> None:
    assume(len([i for i in cut | silent if i < pairs]) < 0.9 * pairs)
    batch_size, rows = share[0], sorted(share[1])
    source, options = Numbers(pairs, cut, silent), {"batch_size": batch_size, "seed": seed}
    full_batch = pipeline.batches(source, PREPARE, **options)[step]
    part = pipeline.batches(source, PREPARE, **options, rows=np.array(rows))[step]
    assert len(full_batch["image"]) == batch_size
    assert same(part, {key: value[rows] for key, value in full_batch.items()})


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), SETS, SETS)
def test_a_broken_pair_is_replaced_by_another(
    seed: int, cut: frozenset[int], silent: frozenset[int]
) -> None:
    batch = pipeline.batches(Numbers(40, cut, silent), PREPARE, batch_size=40, seed=seed)[0]
    sound = pipeline.batches(Numbers(40), PREPARE, batch_size=40, seed=seed)[0]
    broken = np.isin(numbers(sound), [*cut | silent])
    assert not set(numbers(batch)) & (cut | silent)
    assert np.array_equal(batch["bad"].any(1), broken)
    assert np.array_equal(batch["complaint"] != "", broken)
    for key in ("image", "tokens"):
        assert np.array_equal(batch[key][~broken], sound[key][~broken]), "the others as ever"
    # at first every broken pair is met once; a stand-in may be broken too
    caption, picture = (batch["bad"][:, REASONS.index(r)] for r in ("caption", "picture"))
    assert caption.sum() >= len(silent - cut) and picture.sum() >= len(cut)
    assert batch["bad"].sum() == caption.sum() + picture.sum()


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_every_epoch_has_every_pair_once(pairs: int, batch_size: int, seed: int) -> None:
    batches = pipeline.batches(Numbers(pairs), PREPARE, batch_size=batch_size, seed=seed)
    steps = -(-3 * pairs // batch_size)
    order = [n for step in range(steps) for n in numbers(batches[step])]
    for epoch in range(3):
        assert Counter(order[epoch * pairs : (epoch + 1) * pairs]) == Counter(range(pairs))


def mixed(*sources: Numbers, **options: Any) -> Mixture:
    """Of which each comes one and a half times in an epoch."""
    parts = [Part("x", source, 3 * len(source) // 2, **options) for source in sources]
    return Mixture(parts)


@st.composite
def shares(draw: st.DrawFn) -> tuple[int, int, int]:
    """A batch size and two numbers of hosts that it divides over."""
    hosts, each = draw(st.integers(1, 64)), draw(st.integers(1, 3))
    size = hosts * each
    others = [n for n in range(1, min(size, 64) + 1) if size % n == 0]
    return size, hosts, draw(st.sampled_from(others))


@settings(max_examples=12)
@given(
    st.lists(st.integers(30, 90), min_size=1, max_size=3),
    shares(),
    st.integers(0, 2**32 - 1),
    st.integers(0, 9) | st.just(10**7),
    SETS,
    st.randoms(use_true_random=False),
)
def test_any_number_of_hosts_makes_the_batches_of_one_and_goes_on_with_another(
    counts: list[int],
    share: tuple[int, int, int],
    seed: int,
    step: int,
    cut: frozenset[int],
    random: Any,
) -> None:
    source = mixed(*(Numbers(n, cut, first=100 * k) for k, n in enumerate(counts)))
    size, *hosts = share
    batches = pipeline.batches(source, PREPARE, batch_size=size, seed=seed)
    for then, count in zip((step, step + 1), hosts, strict=True):
        rows = random.sample(range(size), size)  # in whatever order the devices lie
        own = np.array(rows).reshape(count, -1)
        parts = [pipeline.batches(source, PREPARE, batch_size=size, seed=seed, rows=r) for r in own]
        expected = {key: value[rows] for key, value in batches[then].items()}
        assert same(concatenated([part[then] for part in parts]), expected)


@settings(max_examples=8)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 30),
    st.permutations([1, 2, 4]),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_a_run_that_is_killed_anywhere_goes_on_on_other_hosts(
    seed: int, killed: int, hosts: Sequence[int], threads: tuple[int, int]
) -> None:
    source = mixed(Numbers(30, frozenset({3})), Numbers(40, first=50))
    options: dict[str, Any] = {"batch_size": 4, "seed": seed}
    batches = pipeline.batches(source, PREPARE, **options)

    def readers(count: int, threads: int) -> list[Any]:
        own = (pipeline.batches(source, PREPARE, **options, rows=r)
               for r in np.arange(4).reshape(count, -1))  # fmt: skip
        iterators = (
            pipeline.iterator(d, threads=threads, workers=0, prefetch=2, max_bad_fraction=1)
            for d in own
        )
        return list(iterators)

    before = readers(hosts[0], threads[0])
    before[0].set_state({"next_index": max(0, killed - 2)})
    while before[0].get_state()["next_index"] < killed:
        next(before[0])
    state = through_json(before[0].get_state())
    after = readers(hosts[1], threads[1])
    for reader in after:
        reader.set_state(state)
    for step in range(killed, killed + 3):
        batch = concatenated([next(reader) for reader in after])
        assert same(batch, {key: batches[step][key] for key in ("image", "tokens")})
        assert np.array_equal(np.concatenate([r.source for r in after]), batches[step]["source"])
        assert np.array_equal(sum(r.bad for r in after), batches[step]["bad"].sum(0))
    for reader in (*before, *after):
        reader.close()


def test_a_broken_pair_is_replaced_by_one_of_its_own_source() -> None:
    cut = frozenset(range(0, 90, 2))
    source = mixed(Numbers(90, cut), Numbers(90, cut, first=100))
    batch = pipeline.batches(source, PREPARE, batch_size=270, seed=0)[0]
    assert np.bincount(batch["source"]).tolist() == [135, 135]
    pair_numbers = np.array(numbers(batch))
    assert np.array_equal(pair_numbers >= 100, batch["source"] == 1) and (pair_numbers % 2).all()
    assert batch["bad"].sum() > 135, "stand-ins are broken as often"


def test_a_source_may_have_templates_of_its_own() -> None:
    source = Mixture(
        [
            Part("own", Numbers(50), 50, ("{gone}", "o{caption}", "w{caption}"), (1, 3, 1)),
            Part("usual", Numbers(50, first=100), 50),
        ]
    )
    batch = pipeline.batches(source, PREPARE, batch_size=400, seed=0)[0]
    letters = np.array([Letters().decode(row)[0] for row in batch["tokens"]])
    own = Counter(letters[batch["source"] == 0])
    assert own.keys() == {"o", "w"} and 2 < own["o"] / own["w"] < 4.5
    assert not {*letters[batch["source"] == 1]} & {"o", "w"}


def test_each_of_several_captions_comes_once_in_as_many_epochs() -> None:
    prepare = dataclasses.replace(PREPARE, templates=("{all:each}",))
    source = mixed(Numbers(30), Numbers(40, first=50))
    batches = pipeline.batches(source, prepare, batch_size=len(source), seed=5)
    drawn = [batches[step] for step in range(2)]  # three epochs of each
    counts = Counter(Letters().decode(row) for batch in drawn for row in batch["tokens"])
    pairs = [*range(30), *range(50, 90)]
    assert counts == Counter(f"{c}{number}" for c in "abc" for number in pairs)
    first = [Letters().decode(row)[0] for row in batches[0]["tokens"]]
    assert len(Counter(first)) == 3, "not all pairs begin with the same"


def test_memory_does_not_grow_with_the_number_of_batches() -> None:
    numbers = Numbers(500_000, frozenset(range(0, 500_000, 50)))
    prepare = dataclasses.replace(PREPARE, templates=("{caption}", "{all}", "{all:each}"))
    dataset = pipeline.batches(mixed(numbers, numbers), prepare, batch_size=250, seed=0)
    options: dict[str, Any] = {"threads": 2, "workers": 0, "prefetch": 2, "max_bad_fraction": 1}
    with closing(pipeline.iterator(dataset, **options)) as reader:

        def blocks(batches: int) -> int:
            """Of memory, after so many batches: nothing is kept without one."""
            for _ in range(batches):
                next(reader)
            reader.set_state(reader.get_state())  # what was made ahead counts for nothing
            gc.collect()
            return sys.getallocatedblocks()

        before = blocks(8)
        # Batches made ahead, and what threads have not yet let go of, move the count by up to
        # 2,500 blocks either way; one block kept a row would be 40,000.
        assert blocks(160) - before < 10_000, "of 40,000 rows"


def test_epochs_and_seeds_differ_in_order_and_chance() -> None:
    def epoch(seed: int, number: int) -> Batch:
        batches = pipeline.batches(Numbers(50), PREPARE, batch_size=50, seed=seed)
        return batches[number]

    epochs = [epoch(seed, number) for seed in (0, 1, 2**32 - 1) for number in (0, 1, 2)]
    assert len({tuple(numbers(b)) for b in epochs}) == len(epochs)
    by_pair = [b["image"][np.argsort(numbers(b))] for b in epochs]
    for one in range(len(epochs)):
        for two in range(one):
            alike = (by_pair[one] == by_pair[two]).all(axis=(1, 2, 3))
            assert alike.mean() < 0.2
    assert not (np.sort(numbers(epochs[0])) == numbers(epochs[0])).all()


def iterate(steps: int, **options: Any) -> tuple[list[Batch], Any]:
    reader = reading(**options)
    return [next(reader) for _ in range(steps)], reader


def reading(*, threads: int = 2, workers: int = 0, prefetch: int = 3, **batches: Any) -> Any:
    dataset = pipeline.batches(Numbers(11), PREPARE, batch_size=4, seed=3, **batches)
    return pipeline.iterator(dataset, threads=threads, workers=workers, prefetch=prefetch)


def expected(step: int) -> Batch:
    batches = pipeline.batches(Numbers(11), PREPARE, batch_size=4, seed=3)[step]
    return {key: batches[key] for key in ("image", "tokens")}


def test_threads_keep_the_order() -> None:
    for threads in (1, 4):
        batches, _ = iterate(12, threads=threads)
        assert all(same(b, expected(i)) for i, b in enumerate(batches))


def through_json(state: Any) -> Any:
    return json.loads(json.dumps(state))


def test_the_state_leads_to_the_same_rest() -> None:
    _, before = iterate(5)
    state = through_json(before.get_state())
    assert same(next(before), expected(5))  # what was made ahead is not lost by asking
    for reader in (reading(), iterate(9)[1], reading(threads=1, prefetch=1)):
        reader.set_state(state)
        assert through_json(reader.get_state()) == state
        for step in (5, 6, 7):
            assert same(next(reader), expected(step))
    fresh = reading()
    assert through_json(fresh.get_state()) != state
    fresh.set_state(fresh.get_state())
    assert same(next(fresh), expected(0))


def test_a_run_goes_on_with_fewer_processes() -> None:
    halves = [iterate(5, rows=rows)[1] for rows in ([0, 1], [2, 3])]
    states = [through_json(half.get_state()) for half in halves]
    assert states[0] == states[1]
    alone = reading()
    alone.set_state(states[0])
    assert same(next(alone), expected(5))
    assert same(concatenated([next(half) for half in halves]), expected(5))


def test_workers_give_the_same_and_go_on_where_threads_stopped() -> None:
    state = through_json(iterate(3)[1].get_state())
    with closing(reading(workers=2)) as reader:
        reader.set_state(state)
        for step in (3, 4, 5, 6, 7):
            assert same(next(reader), expected(step))
        state = through_json(reader.get_state())
    threads = reading()
    threads.set_state(state)
    assert same(next(threads), expected(8))


def test_a_killed_process_leaves_no_workers_behind(tmp_path: Path) -> None:
    code = """
import multiprocessing, os, signal, sys
from test_pipeline import reading
if __name__ == "__main__":
    reader = reading(workers=1)
    next(reader)
    print(*[p.pid for p in multiprocessing.active_children()], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "script.py").write_text(code)
    here = Path(__file__).parent
    path = os.pathsep.join(map(str, (here, here.parent, here.parent.parent)))
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    (worker,) = map(int, done.stdout.split())
    deadline = time.monotonic() + 20
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(worker, 0)
            time.sleep(0.05)
        os.kill(worker, signal.SIGKILL)
        pytest.fail("the worker is still there")


@pytest.fixture
def broken(tar_factory: TarFactory, tmp_path: Path) -> str:
    tar_factory("good.tar", pairs=3)
    bad = [("0007.png", PICTURE[:40]), ("0007.json", b'{"caption": "bad"}')]
    write_tar(tmp_path / "bad.tar", bad)
    return f"{tmp_path}/{{good,bad}}.tar"


def drain(reader: Any) -> Iterator[Batch]:
    for _ in range(5):
        yield next(reader)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_named(broken: str, workers: int) -> None:
    dataset = pipeline.batches(open_source(broken), PREPARE, batch_size=4, seed=0)
    with (
        closing(pipeline.iterator(dataset, threads=2, workers=workers, prefetch=2)) as reader,
        pytest.raises(UserError) as error,
    ):
        list(drain(reader))
    words = ("1 of 5 pairs", "picture 1", "max_bad_fraction=0", "bad.tar:0007.png")
    assert says(error.value, *words)


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_pairs_are_left_out_and_counted(workers: int) -> None:
    source = Numbers(50, frozenset({3, 4}), frozenset({7}))
    dataset = pipeline.batches(source, PREPARE, batch_size=10, seed=0)
    counts = np.zeros(len(REASONS), int)
    with closing(
        pipeline.iterator(dataset, threads=2, workers=workers, prefetch=2, max_bad_fraction=0.05)
    ) as reader:
        for step in range(10):
            batch = next(reader)
            assert batch.keys() == {"image", "tokens"}
            assert np.array_equal(reader.bad, dataset[step]["bad"].sum(0))
            counts += reader.bad
        assert counts[REASONS.index("picture")] >= 4 and counts[REASONS.index("caption")] >= 2
        assert reader.complaint.startswith("pair ")
        with pytest.raises(UserError) as error:  # 6 % are bad
            for _ in range(1000):
                next(reader)
    assert says(error.value, "cannot be used (picture", "caption", "max_bad_fraction=0.05", "pair ")


def test_a_dataset_without_usable_pairs_is_an_error() -> None:
    dataset = pipeline.batches(Numbers(9, frozenset(range(9))), PREPARE, batch_size=2, seed=0)
    with pytest.raises(UserError) as error:
        dataset[0]
    assert says(error.value, "100 pairs in a row cannot be used (picture 100)", "pair ")


def test_a_missing_field_is_named() -> None:
    prepare = dataclasses.replace(PREPARE, templates=("{colour}",))
    dataset = pipeline.batches(Numbers(3), prepare, batch_size=1, seed=0)
    with (
        closing(pipeline.iterator(dataset, threads=1, workers=0, prefetch=1)) as reader,
        pytest.raises(UserError) as error,
    ):
        next(reader)
    assert says(error.value, "pair ", "colour", "caption")


ERRORS = [
    ValueError("two\nlines"),
    KeyError("x"),
    TypeError("x"),
    RecursionError(),
    MemoryError(),
    OverflowError("x"),
    UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
    AssertionError("x"),
    SystemError("x"),
    ZeroDivisionError("x"),
    UserError("the tokenizer's own"),
    OSError(5, "Input/output error"),
]


class Raising:
    """Stands for a source, a decoder or a tokenizer that fails on some pairs."""

    vocab_size, sot_id, eot_id, pad_id, context_length = 128, 1, 127, 0, 16

    def __init__(self, error: Exception, stage: str) -> None:
        self.error, self.stage, self.fingerprint = error, stage, ""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> Pair:
        if i % 2 and self.stage == "unreadable":
            raise self.error
        return Pair(PICTURE, {"caption": "bad" if i % 2 else "good"}, f"{'bad' * (i % 2)} pair {i}")

    def decode(self, data: bytes, name: str) -> np.ndarray:
        if "bad" in name and self.stage == "picture":
            raise self.error
        return np.asarray(picture(0, (6, 6)))

    def __call__(self, text: str, truncate: bool = False) -> np.ndarray:
        if text == "bad":
            raise self.error
        return Letters()(text, truncate)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("stage", ["unreadable", "picture", "caption"])
def test_whatever_one_pair_raises_is_a_counted_skip(error: Exception, stage: str) -> None:
    failing = Raising(error, stage)
    prepare = Prepare(
        failing if stage == "caption" else Letters(),  # type: ignore[arg-type]
        4,
        ("{caption}",),
        Augment(),
        failing.decode,  # type: ignore[arg-type]
    )
    dataset = pipeline.batches(failing, prepare, batch_size=10, seed=0)
    batch = dataset[0]
    assert set(map(Letters().decode, batch["tokens"])) == {"good"}
    assert batch["bad"].sum(0)[REASONS.index(stage)] >= 5 == np.count_nonzero(batch["complaint"])
    for line in batch["complaint"][batch["complaint"] != ""]:
        assert "\n" not in line and "pair" in line and len(line) <= 500


@pytest.mark.parametrize("name", ["clip", "sentencepiece:embedded:emoji/emoji.model"])
@pytest.mark.parametrize(
    "caption",
    [
        "&#" + "1" * 4301 + ";",
        "&#" + "0" * 5000 + "65;",
        "a &#x" + "f" * 5000,
        "&" * 5000,
        "\ud800 lone",
        "\x00\ufffe\uffff",
        "e" + "\u0301" * 10_000,
        "\U000e0001" * 1000,
        "ﷺ" * 3000,
        "a" * 999_999,
    ],
    ids=lambda text: f"{text[:8]!a}x{len(text)}",
)
def test_no_caption_ends_a_run(name: str, caption: str) -> None:
    class One(Numbers):
        def __getitem__(self, i: int) -> Pair:
            words = caption if i else "a plain one"
            return Pair(PICTURE, {"caption": words}, f"pair {i}")

    prepare = Prepare(tokenizers.load(name, 8), 4, ("{caption}",), Augment())
    batch = pipeline.batches(One(2), prepare, batch_size=2, seed=0)[0]
    assert batch["tokens"].shape == (2, 8)
    assert batch["bad"].sum() in (0, batch["bad"][:, REASONS.index("caption")].sum())


def test_the_tokens_that_stay_of_long_captions_depend_on_seed_and_step_only() -> None:
    class Long(Numbers):
        def __getitem__(self, i: int) -> Pair:
            return Pair(
                PICTURE, {"caption": "a red bus on a wet street at night in London"}, str(i)
            )

    def rows(step: int, way: str) -> np.ndarray:
        prepare = Prepare(
            tokenizers.load("clip", 6), 4, ("{caption}",), Augment(), long_captions=way
        )
        return pipeline.batches(Long(8), prepare, batch_size=8, seed=0)[step]["tokens"]

    first = rows(0, "random")
    assert np.array_equal(first, rows(0, "random"))
    assert not np.array_equal(first, rows(1, "random"))
    assert len(np.unique(first, axis=0)) > 1
    assert len(np.unique(rows(0, "truncate"), axis=0)) == 1
