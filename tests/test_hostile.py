"""A set with one of every fault: trained on to the end, each fault counted as often as drawn."""

import os
import re
import signal
from collections import Counter

import pytest

import damage
import runs
from clip_jax import config as config_lib
from clip_jax import tokenizers
from clip_jax.data import pipeline
from clip_jax.data.example import MAX_TEXT, REASONS, PairError
from clip_jax.data.images import augmentation
from clip_jax.data.rows import Prepare
from clip_jax.data.sources import open_source
from clip_jax.errors import UserError
from support import encoded, picture, says

GOOD, STEPS = 40, 12
PNG = encoded(picture(0, (20, 18)))
JPEG = encoded(picture(0, (20, 18)), "jpeg")
TEXT = b'{"caption": "a picture"}'
NESTED = b'{"caption":' * 50_000

# name → what is wrong with the pair (None: it only looks so), its picture and its text
FAULTS = {
    "cut": ("picture", JPEG[:-200], TEXT),
    "cut_png": ("picture", PNG[:-200], TEXT),
    "zero_bytes": ("picture", b"", TEXT),
    "html": ("picture", b"<!DOCTYPE html><title>404</title>", TEXT),
    "tar": ("picture", damage.member(b"x", b"y"), TEXT),
    "large": ("picture", damage.frame(JPEG, 5, b"\xff" * 4), TEXT),
    "bomb": ("picture", damage.png((50_000, 50_000), b""), TEXT),
    "scans": ("picture", damage.many_scans((4_000, 4_000), 1_000), TEXT),
    "cmyk": (None, encoded(picture(1, (20, 18), "CMYK"), "jpeg"), TEXT),
    "animated": (
        None,
        encoded(picture(2, (20, 18)), "gif", save_all=True, append_images=[picture(3, (20, 18))]),
        TEXT,
    ),
    "misnamed": (None, encoded(picture(2, (20, 18)), "webp"), TEXT),
    "one_pixel": (None, encoded(picture(2, (1, 1))), TEXT),
    "a_thread": (None, encoded(picture(2, (1, 3000))), TEXT),
    "empty": ("caption", PNG, b'{"caption": ""}'),
    "spaces": ("caption", PNG, b'{"caption": " \\n "}'),
    "null": ("caption", PNG, b'{"caption": null}'),
    "not_a_number": ("caption", PNG, b'{"caption": NaN}'),
    "missing": ("caption", PNG, b'{"title": "a picture"}'),
    "an_object": ("caption", PNG, b'{"caption": {"en": "a picture"}}'),
    "long": ("caption", PNG, b'{"caption": "%s"}' % (b"x" * 1_000_001)),
    "a_megabyte": (None, PNG, b'{"caption": "%s"}' % (b"x" * 999_000)),
    "too_long": ("text", PNG, b'{"caption": "%s"}' % (b"x" * MAX_TEXT)),
    "not_utf8": ("text", PNG, b'{"caption": "\xff\xfe"}'),
    "nested": ("text", PNG, NESTED),
    "no_json": ("text", PNG, b"a picture"),
    "a_list": ("text", PNG, b"[1]"),
    "surrogate": (None, PNG, b'{"caption": "\\ud800"}'),
    "nul": (None, PNG, b'{"caption": "a\\u0000b"}'),
}
UNREADABLE = {
    "link": damage.header(b"link.png", 0, b"2", b"/etc/passwd"),
    "hard_link": damage.header(b"hard_link.png", 0, b"1", b"cut.png"),
    "device": damage.header(b"device.png", 0, b"3"),
    "sparse": damage.header(b"sparse.png", 0, b"S", magic=b"ustar  \0"),
}


def pair(name, data, text):
    return damage.member(b"%s.png" % name, data) + damage.member(b"%s.json" % name, text)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return runs.small_run(tmp_path_factory.mktemp("hostile"), 4)


@pytest.fixture(scope="module")
def tars(config):
    """Three tars: good pairs; one of each fault; and one that is cut in a member."""
    folder = config.parent
    good = [pair(b"%03d" % i, encoded(picture(i, (20, 18))), TEXT) for i in range(GOOD)]
    faults = [pair(name.encode(), *what[1:]) for name, what in FAULTS.items()]
    links = [head + damage.member(b"%s.json" % n.encode(), TEXT) for n, head in UNREADABLE.items()]
    outside = pair(b"../../evil", PNG, TEXT) + pair(b"/tmp/evil", PNG, TEXT)
    (folder / "0.tar").write_bytes(b"".join(good) + bytes(1024))
    (folder / "1.tar").write_bytes(b"".join((*faults, *links, outside)) + bytes(1024))
    (folder / "2.tar").write_bytes((pair(b"whole", PNG, TEXT) + pair(b"lost", PNG, TEXT))[:-1500])
    return f"{folder}/{{0,1,2}}.tar"


class Recording:
    """A source that remembers what was drawn of it."""

    def __init__(self, source):
        self.source, self.drawn = source, []
        self.fingerprint = getattr(source, "fingerprint", "")

    def __len__(self):
        return len(self.source)

    def __getitem__(self, i):
        self.drawn.append(int(i))
        return self.source[i]


def reason(source, i):
    """By the table above, what is wrong with the i-th pair."""
    try:
        where = source[i].name
    except PairError as error:
        where = str(error)
    name = re.search(r"tar:(\S+?)\.(png|json)", where)[1]
    return "unreadable" if name in UNREADABLE else FAULTS.get(name, (None,))[0]


@pytest.fixture(scope="module")
def source(tars):
    return Recording(open_source(tars))


@pytest.fixture(scope="module")
def dataset(config, source):
    """What the run draws its batches from."""
    c, _ = config_lib.load(str(config))
    prepare = Prepare(
        tokenizers.load(c.tokenizer, c.model.text.context_length),
        c.model.vision.image_size,
        tuple(c.data.captions),
        augmentation.Augment.from_dict(c.data.augment.to_dict()),
    )
    return pipeline.batches(source, prepare, batch_size=c.batch_size, seed=c.seed)


@pytest.fixture(scope="module")
def expected(source, dataset):
    """How often the run's steps draw a pair of each fault."""
    source.drawn.clear()
    for step in range(STEPS):
        dataset[step]
    drawn = list(source.drawn)
    assert {*drawn} == {*range(len(source))}, "every fault is drawn"
    counts = Counter(reason(source, i) for i in drawn)
    assert {*counts} == {None, *REASONS}
    return {f"data/skipped/{r}": n for r, n in counts.items() if r}


def skipped(workdir):
    counts = Counter()
    for (_, name), value in runs.values(workdir).items():
        if name.startswith("data/skipped/"):
            counts[name] += value
    return dict(counts)


def losses(workdir):
    return {step: v for (step, name), v in runs.values(workdir).items() if name == "loss"}


def flags(tars, *more):
    return (f"--config.data.train={tars}", "--config.data.max_bad_fraction=0.5", *more)


@pytest.fixture(scope="module")
def full_run(config, tars):
    before = set(config.parent.rglob("*"))
    done = runs.run(config, config.parent / "whole", *flags(tars))
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "Warning" not in done.stderr
    new = set(config.parent.rglob("*")) - before
    assert all(
        p.is_relative_to(config.parent / "whole") for p in new if "__pycache__" not in p.parts
    )
    assert not os.path.lexists("/tmp/evil.png") and not (config.parent / "../../evil.png").exists()
    return config.parent / "whole"


def test_each_fault_is_survived_and_counted_as_often_as_it_is_drawn(full_run, expected):
    assert skipped(full_run) == expected
    assert len(losses(full_run)) == STEPS


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_counts_and_losses(config, tars, full_run, expected):
    workdir = config.parent / "killed"
    process, _ = runs.run_until(config, workdir, 5, signal.SIGKILL, *flags(tars))
    assert process.returncode == -signal.SIGKILL
    again = runs.run(config, workdir, *flags(tars, "--config.data.workers=1"))
    assert again.returncode == 0, again.stderr
    assert skipped(workdir) == expected
    assert losses(workdir) == losses(full_run)


def test_too_many_end_it_by_a_line(dataset, expected):
    most = sum(expected.values()) - 1
    reader = pipeline.iterator(
        dataset, threads=1, workers=0, prefetch=1, max_bad_fraction=most / 1000
    )
    try:
        with pytest.raises(UserError) as error:
            for _ in range(STEPS):
                next(reader)
        counts = [f"{name.rpartition('/')[2]} {n}" for name, n in expected.items()]
        assert says(error.value, f"max_bad_fraction={most / 1000:g}", ".tar:", *counts)
    finally:
        reader.close()
