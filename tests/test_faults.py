"""What cannot be used is left out of training and counted, exactly, whatever ends the run."""

import signal
from collections import Counter

import numpy as np
import pytest

import runs
from clip_jax import config as config_lib
from clip_jax import tokenizers
from clip_jax.data import mixture, pipeline
from clip_jax.data.example import REASONS
from clip_jax.data.images import augmentation
from clip_jax.data.rows import Prepare
from support import encoded, picture, says, write_tar

PAIRS, STEPS = 20, 12
MOST = "--config.data.max_bad_fraction=0.3"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return runs.small_run(tmp_path_factory.mktemp("faults"), PAIRS)


@pytest.fixture(scope="module")
def broken(config):
    """The 20 pairs of the config in another tar, four of them spoilt."""
    members = []
    for i in range(PAIRS):
        data, text = encoded(picture(i)), b'{"caption": "picture %d"}' % i
        if i in (3, 11):
            data = data[:60]
        if i == 7:
            text = b'{"caption": "never ends'
        if i == 16:
            text = b'{"caption": " "}'
        members += [(f"{i:06}.png", data), (f"{i:06}.json", text)]
    return write_tar(config.parent / "broken.tar", members)


@pytest.fixture(scope="module")
def mix(config, broken):
    """The broken pairs and sound ones, of which a filter leaves two out, as flags."""
    members = []
    for i, (seed, size) in enumerate([(50, (9, 9)), (51, (9, 3)), (50, (9, 9)), (52, (9, 9))]):
        members += [(f"{i}.png", encoded(picture(seed, size))), (f"{i}.json", b'{"name": "x y"}')]
    members += [("x.png", b""), ("y.json", b"{}"), ("y.heic", b""), ("0.seg.png", b"mask")]
    sound = write_tar(config.parent / "sound.tar", members)
    entries = {
        "broken": {"data": str(broken), "weight": 2},
        "sound": {"data": str(sound), "weight": 1, "captions": ("{name}", "{name:each}")},
    }
    entries["sound"]["filter"] = {"min_side": 5, "duplicates": -1}
    return "--config.data.train=", f"--config.data.mix={entries}", "--config.log.every=5", MOST


@pytest.fixture(scope="module")
def expected(config, mix):
    """By the definition of the order, all that goes by in the run's steps."""
    c, _ = config_lib.load(str(config), [flag.removeprefix("--config.") for flag in mix])
    prepare = Prepare(
        tokenizers.load(c.tokenizer, c.model.text.context_length),
        c.model.vision.image_size,
        tuple(c.data.captions),
        augmentation.Augment.from_dict(c.data.augment.to_dict()),
    )
    batches = pipeline.batches(
        mixture.open_mixture(c.data.to_dict()), prepare, batch_size=c.batch_size, seed=c.seed
    )
    bad = sum(batches[step]["bad"].sum(0) for step in range(STEPS))
    counts = {f"data/skipped/{r}": int(n) for r, n in zip(REASONS, bad, strict=True) if n}
    rows_by_source = sum(np.bincount(batches[step]["source"]) for step in range(STEPS))
    counts |= {
        f"data/source/{name}": int(n) for name, n in zip(c.data.mix, rows_by_source, strict=True)
    }
    left_out = dict.fromkeys(("no_text", "no_picture", "extra_picture", "unknown_ending"), 1)
    counts |= {f"data/left_out/sound/{reason}": n for reason, n in left_out.items()}
    return {**counts, "data/filtered/sound/size": 1, "data/filtered/sound/duplicate": 1}


def counted(workdir):
    counts = Counter()
    for (_, name), value in runs.values(workdir).items():
        if name.startswith("data/"):
            counts[name] += value
    return dict(counts)


def flags(broken, *more):
    return (f"--config.data.train={broken}", "--config.log.every=5", MOST, *more)


@pytest.fixture(scope="module")
def full_run(config, mix):
    workdir = config.parent / "whole"
    done = runs.run(config, workdir, *mix)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("a pair is left out") == 1 and "data/skipped/" in done.stderr
    assert "22 pairs" in done.stderr and "broken: 20 pairs, 15 rows an epoch" in done.stderr
    assert done.stderr.count("sound.tar: 4 of 12 members are left out at opening:") == 1
    assert "  no_text 1: images without a text, such as " in done.stderr
    assert "sound: the filter left out 2 of 4: size 1, duplicate 1" in done.stderr
    return workdir


def test_all_used_and_left_out_pairs_are_counted(full_run, expected):
    assert {f"data/skipped/{r}" for r in ("picture", "text", "caption")} < expected.keys()
    assert expected["data/source/broken"] + expected["data/source/sound"] == 8 * STEPS
    assert counted(full_run) == expected
    epochs = {step: v for (step, name), v in runs.values(full_run).items() if name == "epoch"}
    assert epochs[STEPS] == 8 * STEPS / 22


def test_a_killed_run_counts_them_once(config, mix, full_run, expected):
    workdir = config.parent / "killed"
    process, _ = runs.run_until(config, workdir, 5, signal.SIGKILL, *mix)
    assert process.returncode == -signal.SIGKILL
    again = runs.run(config, workdir, *mix, "--config.data.workers=1")
    assert again.returncode == 0, again.stderr
    assert counted(workdir) == expected
    assert runs.values(workdir) == runs.values(full_run)
    ours, theirs = runs.parameters(workdir), runs.parameters(full_run)
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def test_too_many_end_the_run(config, broken):
    workdir = config.parent / "strict"
    done = runs.run(config, workdir, *flags(broken), "--config.data.max_bad_fraction=0")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert says(
        ValueError(line),
        "pairs that were read cannot be used",
        "max_bad_fraction=0",
        "broken.tar:0000",
    )


def test_a_broken_first_pair_ends_nothing(config, tmp_path):
    members = [("0.png", b"no"), ("0.json", b"{")]
    for i in range(1, 9):
        members += [(f"{i}.png", encoded(picture(i))), (f"{i}.json", b'{"caption": "x"}')]
    path = write_tar(tmp_path / "first.tar", members)
    done = runs.run(config, tmp_path / "run", *flags(path, "--config.steps=3"))
    assert done.returncode == 0, done.stderr
    assert set(counted(tmp_path / "run")) <= {"data/skipped/text"}
