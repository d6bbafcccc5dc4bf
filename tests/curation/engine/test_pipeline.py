"""The whole pipeline: each rule on counted examples, exact balance, workers, and interruptions."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_jax.cli.curate import run
from clip_jax.curation import rules
from clip_jax.curation.facts import query_table
from clip_jax.curation.scores.annotations import AnnotationWriter
from clip_jax.data.mixture import open_mixture
from clip_jax.data.selection import Selection
from clip_jax.errors import UserError
from clip_jax.training import workdir_lock
from curation.pools import curate, picture, write_tar

pytest.importorskip("apache_beam")

GOOD = "a plain red wall"


def test_each_rule_of_align_on_counted_examples(tmp_path: Path) -> None:
    good = [(picture(i), {"caption": f"{GOOD} {i % 5}"}) for i in range(20)]
    bad = {
        "side": [(picture(100 + i, (400, 200)), {"caption": GOOD}) for i in range(2)],
        "aspect": [(picture(110 + i, (603, 201)), {"caption": GOOD}) for i in range(3)],
        "words": [
            *((picture(120 + i), {"caption": "red wall"}) for i in range(2)),
            *((picture(130 + i), {"caption": "wall " * 21}) for i in range(2)),
        ],
        # 22 words and pairs of words occur, two of them once
        "rare_words": [(picture(140), {"caption": "a plain red zyzzyva"})],
        # one image with five texts, of which four are allowed
        "many_texts": [(picture(150), {"caption": f"{GOOD} {i}"}) for i in range(5)],
        # a text with seven images, of which six are allowed
        "shared_text": [(picture(160 + i), {"caption": f"{GOOD} shared"}) for i in range(7)],
        "picture": [(b"no image", {"caption": GOOD})],
        "caption": [(picture(180), {"caption": " "})],
    }
    pairs = good + [pair for some in bad.values() for pair in some]
    write_tar(tmp_path / "0.tar", pairs[::2])
    write_tar(tmp_path / "1.tar", pairs[1::2])
    counts = curate(
        tmp_path / "*.tar",
        tmp_path / "out",
        *("--align", "--texts-per-image=4", "--images-per-text=6", "--frequent-words=20"),
        *("--chunk=7", "--max-bad-fraction=0"),
    )
    assert counts == {"kept": 20, **{reason: len(some) for reason, some in bad.items()}}
    # training reads exactly these
    folder = str(tmp_path / "out")
    data = {"train": str(tmp_path / "*.tar"), "selection": folder}
    source = open_mixture(data).parts[0].source
    kept = {source[i].image for i in range(len(source))}
    assert len(source) == 20
    assert kept == {image for image, _ in good}


def test_duplicates_of_pairs_and_of_images(tmp_path: Path) -> None:
    pairs = [
        (picture(1), {"caption": "a"}),
        (picture(1), {"caption": "b"}),
        (picture(2), {"caption": "a"}),
        (picture(1), {"caption": "a"}),
    ]
    write_tar(tmp_path / "0.tar", pairs)
    write_tar(tmp_path / "1.tar", pairs)
    data = tmp_path / "*.tar"
    assert curate(data, tmp_path / "p", "--duplicates=pair") == {"kept": 3, "duplicate": 5}
    assert curate(data, tmp_path / "i", "--duplicates=image") == {"kept": 2, "duplicate": 6}
    # the images are of one colour each, which a perceptual hash does not see
    near = curate(data, tmp_path / "n", "--near-duplicates=0")
    assert near == {"kept": 1, "near_duplicate": 7}


def test_images_of_a_test_set_are_left_out(tmp_path: Path) -> None:
    from clip_jax.data.sources import open_source

    emoji = open_source("embedded:emoji/train-000.tar")
    own = [(emoji[i * 7].image, {"caption": f"{i}"}) for i in range(12)]
    write_tar(tmp_path / "pool.tar", own)
    write_tar(tmp_path / "test.tar", own[3:5])
    flags = ("--test-sets", str(tmp_path / "test.tar"))
    assert curate(tmp_path / "pool.tar", tmp_path / "out", *flags) == {"kept": 10, "test_image": 2}


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tables of 6,000 captions, and 40 queries."""
    folder = tmp_path_factory.mktemp("captions")
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(60)]
    share = 1 / np.arange(1, 61)
    for table in range(3):
        drawn = rng.choice(60, (2000, 3), p=share / share.sum())
        rows = {
            "url": [f"https://example.com/{table}/{i}" for i in range(2000)],
            "caption": [" ".join(words[k] for k in row) for row in drawn],
            "lang": ["en" if i % 3 else "de" for i in range(2000)],
        }
        pq.write_table(pa.table(rows), folder / f"{table}.parquet")
    (folder / "queries.txt").write_text("\n".join(words[:40]) + "\n")
    return folder


def bits(out: Path) -> list[bool]:
    """Which pairs are selected."""
    selection = Selection.open(str(out))
    parts = [np.unpackbits(selection.bits(x), count=x.pairs) for x in selection.files]
    return np.concatenate(parts).astype(bool).tolist()


def flags(folder: Path, *more: str) -> tuple[str, ...]:
    return ("--no-images", f"--queries={folder / 'queries.txt'}", *more)


def test_balance_by_the_pool_s_counts(captions: Path, tmp_path: Path) -> None:
    counts = curate(captions / "*.parquet", tmp_path, *flags(captions, "--limit=300"))
    assert sum(counts.values()) == 6000
    arrays = np.load(tmp_path / "queries.npz")
    before, after = arrays["counts"], arrays["kept"]
    texts = [
        text.split()
        for i in range(3)
        for text in pq.read_table(captions / f"{i}.parquet")["caption"].to_pylist()
    ]
    expected = [sum(f"w{k}" in text for text in texts) for k in range(40)]
    assert before.tolist() == expected
    assert counts["no_query"] == sum(not {f"w{k}" for k in range(40)} & set(t) for t in texts)
    rare = before < 300
    np.testing.assert_array_equal(after[rare], before[rare])
    assert (after < before)[~rare].all()
    # the curve of the report knows other limits without another run
    curve = json.loads((tmp_path / "curation.json").read_text())["curve"]
    assert curve[-1][1] == 6000 - counts["no_query"]


def test_the_limit_that_keeps_a_number_of_pairs(captions: Path, tmp_path: Path) -> None:
    data = captions / "*.parquet"
    counts = curate(data, tmp_path, *flags(captions, "--pairs=2500"))
    t = json.loads((tmp_path / "curation.json").read_text())["limits"][""]
    assert counts["kept"] <= 2500
    more = curate(data, tmp_path, *flags(captions, f"--limit={t + 1}"))
    assert more["kept"] > 2500
    assert curate(data, tmp_path, *flags(captions, f"--limit={t}")) == counts


def test_results_do_not_depend_on_chunks_or_on_files_added_later(
    captions: Path, tmp_path: Path
) -> None:
    own = flags(captions, "--no-balance", "--duplicates=pair")[1:]
    images = ("--image=url",)
    with pytest.raises(UserError, match="web addresses"):
        curate(captions / "*.parquet", tmp_path / "a", *own, *images)
    balanced = flags(captions, "--limit=200")
    whole, small = tmp_path / "whole", tmp_path / "small"
    assert curate(captions / "*.parquet", whole, *balanced) == curate(
        captions / "*.parquet", small, *balanced, "--chunk=333"
    )
    assert bits(whole) == bits(small)
    # a rare query's draws are the same when the pool grows, so its pairs stay
    part = tmp_path / "part"
    curate(captions / "{0,1}.parquet", part, *flags(captions, "--limit=10000"))
    assert bits(part) == [x or y for x, y in zip(bits(part), bits(whole)[:4000], strict=True)]


@pytest.mark.slow
def test_workers_and_a_killed_run_change_nothing(captions: Path, tmp_path: Path) -> None:
    """Runs of 1, 2 and 4 processes, the last killed and started again, give the same files."""
    data, rule = str(captions / "*.parquet"), flags(captions, "--limit=200", "--chunk=400")

    def command(out: Path, workers: int) -> list[str]:
        start = [sys.executable, "-m", "clip_jax", "curate", data, "--out", str(out)]
        return [*start, f"--workers={workers}", *rule]

    def written(out: Path) -> dict[str, bytes]:
        files = (path for path in sorted(out.rglob("*")) if path.is_file())
        files = (path for path in files if path.suffix != ".tmp")  # of the killed process
        return {str(path.relative_to(out)): path.read_bytes() for path in files}

    outs = [tmp_path / str(workers) for workers in (1, 2, 4)]
    for workers, out in zip((1, 2), outs, strict=False):
        subprocess.run(command(out, workers), check=True, capture_output=True)
    killed = subprocess.Popen(command(outs[2], 4), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(outs[2].rglob("facts/*/*.npz")) and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    mark = f"engine.worker {killed.pid}"
    while mark in subprocess.run(["ps", "-A", "-o", "args"], capture_output=True, text=True).stdout:
        assert time.monotonic() < deadline, "its workers go on"
        time.sleep(0.1)
    subprocess.run(command(outs[2], 4), check=True, capture_output=True)
    first = written(outs[0])
    assert len(first) > 20
    assert written(outs[1]) == first
    assert written(outs[2]) == first


@pytest.mark.slow
def test_a_worker_that_dies_at_its_start_ends_the_run(captions: Path, tmp_path: Path) -> None:
    """Beam alone waits for ever for a process that dies before it connects."""
    start = [sys.executable, "-m", "clip_jax", "curate", str(captions / "*.parquet")]
    command = [*start, "--out", str(tmp_path), "--workers=2", *flags(captions)]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    children = ["ps", "-o", "pid=", "--ppid", str(run.pid)]
    deadline = time.monotonic() + 60
    while run.poll() is None and time.monotonic() < deadline:
        if own := subprocess.run(children, capture_output=True, text=True).stdout.split():
            os.kill(int(own[0]), signal.SIGKILL)
            break
        time.sleep(0.02)
    try:
        _, errors = run.communicate(timeout=60)
    finally:
        run.kill()
    assert "a process that curates died" in errors
    assert run.returncode == 2


def test_languages_have_limits_with_the_same_tail(captions: Path, tmp_path: Path) -> None:
    folder = tmp_path / "queries"
    folder.mkdir()
    for language, numbers in (("en", range(40)), ("de", range(20, 60))):
        (folder / f"{language}.txt").write_text("".join(f"w{k}\n" for k in numbers))
    data, out = captions / "*.parquet", tmp_path / "out"
    own = ("--no-images", f"--queries={folder}", "--language=lang")
    counts = curate(data, out, *own, "--tail-share=0.2")
    limits = json.loads((out / "curation.json").read_text())["limits"]
    assert list(limits) == ["en", "de"]
    arrays = np.load(out / "queries.npz")
    for i, t in enumerate(limits.values()):
        before = arrays["counts"][40 * i : 40 * i + 40]
        assert before[before < t].sum() <= 0.2 * before.sum() < before[before <= t].sum()
    assert counts["kept"] < 6000
    (folder / "de.txt").unlink()
    assert curate(data, out, *own)["language"] == 2001


def test_limits_on_annotations(captions: Path, tmp_path: Path) -> None:
    files = [str(captions / f"{i}.parquet") for i in range(3)]
    data = str(captions / "*.parquet")
    rng = np.random.default_rng(1)
    scores = rng.permutation(6000).astype(np.float32).reshape(3, 2000)
    scores[0, :10] = np.nan
    writer = AnnotationWriter(tmp_path / "scores", data, {"score": "a number"}, files, {})
    from clip_jax.curation.pool import Pool
    from clip_jax.data.sources import SourceOptions

    pool = Pool(data, options=SourceOptions(addresses=True))
    for file, values in zip(files, scores, strict=True):
        writer.write(file, pool.open(file).fingerprint, {"score": values})
    assert writer.finish()
    own = ("--no-images", f"--annotations={tmp_path / 'scores'}")
    assert curate(data, tmp_path / "out", *own, "--top-share=score=0.3") == {
        "kept": 1797,  # of the 5,990 pairs with a score
        "score": 4203,
    }
    expected = scores.ravel() >= np.sort(scores[~np.isnan(scores)])[-1797]
    assert bits(tmp_path / "out") == expected.tolist()
    limits = ("--least=score=1000", "--most=score=1999")
    kept = np.count_nonzero((scores >= 1000) & (scores <= 1999))
    assert curate(data, tmp_path / "out", *own, *limits)["kept"] == kept
    with pytest.raises(UserError, match="no annotations have 'clip': there are score"):
        curate(data, tmp_path / "out", *own, "--least=clip=1")
    (captions / "3.parquet").write_bytes((captions / "0.parquet").read_bytes())
    try:
        with pytest.raises(UserError, match=r"has no annotations of .*3\.parquet"):
            curate(data, tmp_path / "out", *own, "--least=score=1")
    finally:
        (captions / "3.parquet").unlink()


def test_a_share_is_of_the_pool_that_is_curated(captions: Path, tmp_path: Path) -> None:
    """Annotations may be about more files; a column may have the name of a rule."""
    files = [str(captions / f"{i}.parquet") for i in range(3)]
    writer = AnnotationWriter(tmp_path / "a", "d", {"side": "s", "kept": "k"}, files, {})
    for number, file in enumerate(files):
        values = np.arange(2000, dtype=np.float32) + 2000 * number
        writer.write(file, "", {"side": values, "kept": values})
    assert writer.finish()
    own = ("--no-images", f"--annotations={tmp_path / 'a'}", "--no-page")
    out = tmp_path / "out"
    counts = curate(files[0], out, *own, "--least=side=1700", "--top-share=kept=0.05")
    assert counts == {"kept": 100, "column side": 1700, "column kept": 200}
    samples = json.loads((out / "curation.json").read_text())["samples"]
    assert {name: len(places) for name, places in samples.items()} == {
        **{"kept": 12, "column side": 12, "column kept": 12}
    }
    writer.write(files[0], "", {"side": np.zeros(2001), "kept": np.zeros(2001)})
    assert writer.finish()
    rules.open_annotations.cache_clear()
    with pytest.raises(UserError, match=r"2,001 rows about .*0\.parquet, which has 2,000 pairs"):
        curate(files[0], out, *own, "--least=side=0")


def test_captions_that_are_no_unicode(tmp_path: Path) -> None:
    """JSON may hold half a surrogate pair; such a caption is matched as others are."""
    texts = ["\ud800 red wall", "red\udfff wall", "\ud83d\ude00 red", "... ! ?", "a\0b red"]
    write_tar(tmp_path / "0.tar", [(picture(i), {"caption": t}) for i, t in enumerate(texts)])
    (tmp_path / "q.txt").write_text("red\n")
    own = (f"--queries={tmp_path / 'q.txt'}", "--frequent-words=99")
    for more in ((), ("--without-spaces",)):
        assert curate(tmp_path / "0.tar", tmp_path / "out", *own, *more) == {
            **{"kept": 3, "no_query": 2}
        }


def test_a_number_of_pairs_that_cannot_be_met_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "0.tar", [(picture(i), {"caption": f"w{i}"}) for i in range(4)])
    (tmp_path / "q.txt").write_text("w0\nw1\nw2\n")
    own = (f"--queries={tmp_path / 'q.txt'}", "--no-page")
    assert curate(tmp_path / "0.tar", tmp_path / "out", *own, "--pairs=2")["kept"] == 3
    assert "--pairs=2 cannot be met: even t = 1 keeps 3 pairs" in capsys.readouterr().out
    (tmp_path / "q.txt").write_text("none\n")
    query_table.cache_clear()
    assert curate(tmp_path / "0.tar", tmp_path / "out", *own)["kept"] == 0
    assert "train on them" not in capsys.readouterr().out


def test_two_curations_never_write_one_folder(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [(picture(1), {"caption": GOOD})])
    told = pytest.raises(UserError, match=r"is in use by .*: wait for its end, or give another")
    with workdir_lock.locked(tmp_path / "out", False, print), told:
        curate(tmp_path / "0.tar", tmp_path / "out", "--duplicates=pair")
    assert curate(tmp_path / "0.tar", tmp_path / "out", "--duplicates=pair") == {"kept": 1}
    assert not (tmp_path / "out" / workdir_lock.NAME).exists()


def test_a_file_that_is_named_twice_is_told(tmp_path: Path) -> None:
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", [(picture(1), {"caption": GOOD})])
    with pytest.raises(UserError, match=r"names .*b\.tar more than once"):
        curate(tmp_path / "{b,*}.tar", tmp_path / "out", "--duplicates=pair")


def test_files_that_cannot_be_opened_are_counted(tmp_path: Path) -> None:
    for i in range(4):
        write_tar(tmp_path / f"{i}.tar", [(picture(i), {"caption": GOOD})])
    (tmp_path / "2.tar").write_bytes(b"no tar" * 1000)
    data, out = tmp_path / "?.tar", tmp_path / "out"
    with pytest.raises(UserError, match=r"2\.tar.*1 of 4 files cannot be opened, more than"):
        curate(data, out, "--duplicates=pair")
    assert not (out / "selection.json").exists()
    counts = curate(data, out, "--duplicates=pair", "--max-bad-fraction=0.25")
    assert counts == {"kept": 3}
    report = json.loads((out / "curation.json").read_text())
    assert report["broken_files_count"] == 1
    assert Selection.open(str(out)).files[2].pairs == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "no rule is given"),
        (["--no-images", "--min-side=3"], "^--min-side cannot be decided with --no-images$"),
        (["--no-images", "--align", "--min-side=0"], "^--aspect-below .* --aspect-below=0$"),
        (["--no-images", "--duplicates=image"], "no pair of the first 1 has one of .* sha256"),
        (["--limit=3"], "--limit needs --queries"),
        (["--align", "--min-words=21"], "at least 21 words and at most 20"),
        (["--min-words=1", "--out=q.txt"], "q.txt is a file"),
        (["--queries=q.txt", "--limit=3", "--pairs=5"], "--limit and --pairs each decide on t"),
        (["--queries=nowhere.txt"], "nowhere.txt cannot be read"),
        (["--top-share=a=0.5"], "'a' needs --annotations"),
        (["--top-share=a"], "must be COLUMN=NUMBER"),
        (["--duplicates=pair", "--captions={no}"], "fills --captions '{no}'; .* are: caption$"),
        (["--queries=lists", "--language=lang"], "has the field 'lang' of --language"),
        (["--duplicates=pair", "--flink=x"], "unknown flag --flink=x"),
        (["--annotations=x", "--duplicates=pair"], "--annotations needs a limit"),
        (["--near-duplicates=32"], "32 must be a whole number, at least 0 and at most 31"),
        (["--aspect-below=nan"], "nan must be a number above 1, or 0"),
        (["--aspect-below=1"], "1 must be a number above 1, or 0"),
        (["--least=a=nan"], "a=nan must be COLUMN=NUMBER"),
        (["--queries=q.txt", "--tail-share=1"], "1 must be a number between 0 and 1"),
        (["--queries=q.txt", "--pairs=0"], "0 must be a whole number, at least 1"),
    ],
)
def test_mistakes_are_told_before_any_work(
    tmp_path: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "0.tar", [(picture(1), {"caption": GOOD})])
    Path("q.txt").write_text("wall\n")
    Path("lists").mkdir()
    Path("lists/en.txt").write_text("wall\n")
    with pytest.raises(UserError, match=message):
        run(["0.tar", "--out=out", "--workers=1", *arguments])
    assert not Path("out").exists()


def test_addresses_are_compared_without_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"URL": f"http://a.b/{i}.jpg", "TEXT": text}
        for i, text in [(1, None), (1, "a"), (1, "a"), (1, "b"), (2, "a"), (3, "c")]
    ]
    data = tmp_path / "urls.parquet"
    pq.write_table(pa.Table.from_pylist(rows), data)
    own = ("--no-images", "--captions={TEXT}")
    pairs = curate(data, tmp_path / "pairs", *own, "--duplicates=pair")
    assert pairs == {"kept": 4, "caption": 1, "duplicate": 1}
    images = curate(data, tmp_path / "images", *own, "--duplicates=image")
    assert images == {"kept": 3, "caption": 1, "duplicate": 2}
    shared = curate(data, tmp_path / "shared", *own, "--images-per-text=1")
    assert shared == {"kept": 2, "caption": 1, "shared_text": 3}
    assert "--format parquet --no-images" in capsys.readouterr().out


def test_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "0.tar"
    write_tar(data, [(picture(i), {"name": GOOD}) for i in range(2)])
    own = ("--captions={name}", "--captions=a {name}", "--no-page")
    curate(data, tmp_path / "out", *own, "--min-side=100")
    captured = capsys.readouterr()
    assert captured.out.endswith("--config.data.captions=\"('{name}', 'a {name}')\"\n")
    assert "read 2 pairs" in captured.err
    assert curate(data, tmp_path / "out", *own, "--min-side=900") == {"kept": 0, "side": 2}
    captured = capsys.readouterr()
    assert "train on them" not in captured.out
    assert "no pair is read again" in captured.err
