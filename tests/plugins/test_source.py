"""A user's file adds a data source by its dotted path: no file of the package is touched."""

from __future__ import annotations

import json
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

import runs
from clip_jax import config as config_lib
from clip_jax.cli import inspect
from clip_jax.config.checks import check
from clip_jax.data import mixture
from clip_jax.data.sources import SourceOptions, open_source
from support import encoded, picture, refused

PLUGIN = '''\
"""Pairs from a SQLite database."""
import hashlib, sqlite3
from pathlib import Path
from clip_jax.data.example import Pair
from clip_jax.data.opening import Tally
from clip_jax.errors import UserError


class SQLiteSource:
    @classmethod
    def open(cls, spec, options):
        if not Path(spec).is_file():
            raise UserError(f"no database {spec}")
        return cls(spec)

    def __init__(self, path):
        self.path, self.ids, tally = path, [], Tally()
        for number, caption in self.rows("SELECT id, caption FROM pairs ORDER BY id"):
            if caption:
                self.ids.append(number)
            else:
                tally.add("no_text", f"row {number}")
        self.report = tally.report(len(self.ids), "rows")
        self.fingerprint = hashlib.sha256(Path(path).read_bytes()).hexdigest()

    def rows(self, query, *values):
        return sqlite3.connect(self.path).execute(query, values).fetchall()

    def opening_report(self):
        return self.report

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        query = "SELECT image, caption FROM pairs WHERE id = ?"
        image, caption = self.rows(query, self.ids[i])[0]
        return Pair(image, {"caption": caption}, f"{self.path}: row {self.ids[i]}")
'''
PAIRS = 20
SOURCE = "my_pairs:SQLiteSource"


def write_database(path: Path, pairs: int) -> Path:
    """Random pairs; every fifth row has no caption besides."""
    path.unlink(missing_ok=True)
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE pairs (id INTEGER, image BLOB, caption TEXT)")
        rows: list[tuple[int, bytes, str | None]] = []
        for i in range(pairs):
            rows.append((len(rows), encoded(picture(i)), f"picture {i}"))
            if i % 5 == 4:
                rows.append((len(rows), encoded(picture(i)), None))
        database.executemany("INSERT INTO pairs VALUES (?, ?, ?)", rows)
    database.close()
    return path


def write_plugin(folder: Path) -> Path:
    """A config that trains and evaluates on a database, and the user's file beside it."""
    (folder / "my_pairs.py").write_text(PLUGIN)
    config = runs.write_config(folder, write_database(folder / "pairs.db", PAIRS), PAIRS)
    text = config.read_text().replace("dict(data=", f"dict(source={SOURCE!r}, data=")
    train = f"    c.data.source = {SOURCE!r}\n    c.steps = 6\n    c.evaluate.every = 3\n"
    config.write_text(text.replace("    return c\n", f"{train}    return c\n"))
    return config


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plugin(tmp_path_factory.mktemp("plugin"))


@pytest.fixture(scope="module")
def workdir(config: Path) -> Path:
    """A run that was killed, and went on with a worker process to its end."""
    folder = config.parent / "run"
    process, _ = runs.run_until(config, folder, 3, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    done = runs.run(config, folder, "--config.data.workers=1")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def here(config: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, from which modules can be imported."""
    monkeypatch.syspath_prepend(str(config.parent))
    return config.parent


def test_it_takes_at_most_forty_lines() -> None:
    assert len(PLUGIN.splitlines()) <= 40


@pytest.mark.slow
def test_a_run_trains_resumes_and_evaluates_on_it(workdir: Path) -> None:
    values = runs.values(workdir)
    assert {step for step, name in values if name == "loss"} == {1, 2, 3, 4, 5, 6}
    assert values[0, "data/left_out/no_text"] == 4
    assert (6, "zero_shot/held/top1") in values
    assert (6, "retrieval/held/image_to_text/r1") in values


def test_a_run_says_what_the_source_left_out(config: Path, workdir: Path) -> None:
    done = runs.run(config, workdir)
    assert done.returncode == 0, done.stderr
    assert f"{config.parent}/pairs.db: 4 of 24 rows are left out at opening:" in done.stderr
    assert "no_text 4: images without a text, such as row 5" in done.stderr


def test_other_pairs_are_no_resumption(config: Path, workdir: Path) -> None:
    database = config.parent / "pairs.db"
    before = database.read_bytes()
    write_database(database, 15)
    try:
        done = runs.run(config, workdir)
    finally:
        database.write_bytes(before)
    message = "holds a run on other pairs than config.data.train gives (20 then, 15 now)"
    assert done.returncode and message in done.stderr
    assert "Traceback" not in done.stderr


def test_inspect_reads_it(config: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--pairs=0", "--seconds=0", "--picture=", "--json"]
    assert inspect.run([str(config), *flags]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["pairs"] == summary["looked_at"] == PAIRS and summary["broken"] == {}
    (source,) = summary["sources"]
    assert source["opening"]["left_out"] == {"no_text": {"count": 4, "example": "row 5"}}


def test_a_mixture_has_it_beside_others(here: Path) -> None:
    data: dict[str, Any] = config_lib.load("configs/common.py")[0].data.to_dict()
    database = {"data": str(here / "pairs.db"), "source": SOURCE}
    data["mix"] = {"emoji": {"data": "embedded:emoji/train-000.tar"}, "mine": database}
    data["captions"] = ("{caption}", "{name}")
    emoji, mine = mixture.open_mixture(data).parts
    assert len(mine.source) == PAIRS and len(emoji.source) > PAIRS
    assert repr(emoji.source).startswith("TarSource")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my_pairs:NoSource", "my_pairs has no NoSource"),
        ("no_such_module:Source", "cannot import no_such_module; install it or put its folder on"),
        ("tarz", "no data source has this name; did you mean tars?"),
        ("my_pairs:hashlib", "it needs a class method open(spec, options)"),
    ],
)
@pytest.mark.parametrize("key", ["source", "mix.x.source"])
def test_a_wrong_path_is_one_line_before_any_device_is_touched(
    here: Path, name: str, words: str, key: str
) -> None:
    overrides = [f"data.{key}={name}"]
    overrides += ["data.train=x.db"] if key == "source" else ["data.mix.x.data=x.db"]
    config, _ = config_lib.load("configs/common.py", overrides)
    refused(lambda: check(config), f"config.data.{key}={name}", words)


def test_a_class_that_is_not_a_source_is_refused_with_what_it_lacks(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Half:
        fingerprint = ""

        @classmethod
        def open(cls, spec: str, options: SourceOptions) -> Half:
            return cls()

        def __len__(self) -> int:
            return 0

    module = type(sys)("half")
    module.Half = Half  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "half", module)
    refused(
        lambda: open_source("x", kind="half:Half"),
        "config.data.source=half:Half opens a Half without opening_report, __getitem__",
    )


def test_no_pair_and_the_users_own_errors_are_lines(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = write_database(here / "empty.db", 0)
    refused(lambda: open_source(str(empty), kind=SOURCE), f"{SOURCE} finds no pair in {empty}")
    refused(lambda: open_source("none.db", kind=SOURCE), "no database none.db")
    monkeypatch.setattr(sys.modules["my_pairs"].SQLiteSource, "__len__", lambda _: 1 // 0)
    line = f"{SOURCE}: what it says of {empty} fails: ZeroDivisionError"
    refused(lambda: open_source(str(empty), kind=SOURCE), line, "(test_source.py, line ")


def test_a_short_name_beats_what_the_data_looks_like(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("image,caption\na.jpg,a cat\n")
    refused(lambda: open_source(str(path), kind="tars"), "neither a tar nor a table")
