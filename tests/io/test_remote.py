"""Remote files are read like local ones: the right bytes, or one line that says why not."""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip_jax.data.example import PairError
from clip_jax.data.sources import open_source, tar_catalogue, tar_index, tars
from clip_jax.data.sources.tars import TarSource
from clip_jax.errors import UserError
from clip_jax.io import remote, retries
from servers import PASSING, Server, serving
from support import TarFactory, refused, says, write_tar

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

DATA = np.random.default_rng(0).bytes(5000)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pauses of a millisecond, and a cache of one's own."""
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "data").write_bytes(DATA)
    with serving(tmp_path) as instance:
        yield instance


@pytest.fixture
def memory() -> Iterator[None]:
    """An empty file system of fsspec's own, in memory."""
    fsspec.filesystem("memory").store.clear()
    yield
    fsspec.filesystem("memory").store.clear()


def put(path: str, content: bytes) -> str:
    fsspec.filesystem("memory").pipe_file(path, content)
    return path


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from([f for f in PASSING if f != "late"]), max_size=retries.ATTEMPTS - 1),
    st.integers(0, 4999),
    st.integers(2, 5000),
)
def test_answers_that_fail_are_asked_for_again(
    server: Server, faults: list[str], at: int, size: int
) -> None:
    size = max(2, min(size, len(DATA) - at))
    at = min(at, len(DATA) - size)
    server.asked.clear()
    server.faults.extend(faults)
    assert remote.read_range(f"{server.url}/data", at, size) == DATA[at : at + size]
    assert server.asked["/data"] == len(faults) + 1


def test_an_answer_that_is_late_is_asked_for_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "LATE", 0.2)
    server.faults.append("late")
    assert remote.read_range(f"{server.url}/data", 0, 10) == DATA[:10]
    server.always = "late"
    monkeypatch.setattr(retries, "PATIENCE", 0.0)
    refused(lambda: remote.read_range(f"{server.url}/data", 0, 10), "/data", "no answer in time")


@pytest.mark.parametrize("fault", [f for f in PASSING if f != "late"])
def test_retries_end(server: Server, fault: str) -> None:
    server.always = fault
    refused(
        lambda: remote.read_range(f"{server.url}/data", 0, 10), f"{server.url}/data", "attempt 6"
    )
    # the client asks twice by itself where a connection that was open before is gone
    assert server.asked["/data"] in (retries.ATTEMPTS, 2 * retries.ATTEMPTS)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("404", "no file"),
        ("410", "no file"),
        ("403", "HTTP 403"),
        ("416", "HTTP 416"),
        ("ignores ranges", "gives no parts of files"),
    ],
)
def test_permanent_failures_are_not_retried(server: Server, fault: str, message: str) -> None:
    server.always = fault
    for ask in (lambda url: remote.read_range(url, 5, 10), remote.state, remote.open_file):
        server.asked.clear()
        refused(lambda ask=ask: ask(f"{server.url}/data?key=secret"), f"{server.url}/data", message)
        assert sum(server.asked.values()) == 1
    with pytest.raises(UserError) as error:
        remote.state(f"{server.url}/data?key=secret")
    assert "secret" not in str(error.value)


def test_a_server_that_is_not_there(server: Server) -> None:
    refused(lambda: remote.state("http://127.0.0.1:1/data"), "127.0.0.1:1/data", "the last")


def test_whole_files_need_no_ranges(server: Server) -> None:
    for fault in ("", "503", "drop", "ignores ranges"):
        server.faults.append(fault)
        assert remote.read_whole(f"{server.url}/data", 5000) == DATA
    refused(lambda: remote.read_whole(f"{server.url}/data", 4999), "/data", "is over")


def test_a_file_read_in_order_is_fetched_in_few_pieces(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "AHEAD", 1000)
    server.faults.extend(["", "", "503", "", "drop"])
    with remote.open_file(f"{server.url}/data") as file:
        parts = [file.read(7) for _ in range(100)]
        assert b"".join(parts) == DATA[:700]
        assert file.seek(-100, 2) == 4900 and file.read() == DATA[4900:]
        assert file.seek(10) == 10 and file.read(3) == DATA[10:13]
    assert server.asked["/data"] < 10
    with remote.open_file(str(tmp_path / "data")) as file:
        assert file.read() == DATA


def test_tars_far_away_are_the_tars(server: Server, tar_factory: TarFactory) -> None:
    for i in range(3):
        tar_factory(f"{i}.tar", pairs=4, first=4 * i)
    here = open_source(str(tar_factory("0.tar", pairs=4).parent / "{0..2}.tar"))
    server.faults.extend(["", "503", "", "drop"] * 3)
    far = open_source(f"{server.url}/{{0..2}}.tar")
    assert isinstance(far, TarSource) and len(far) == 12
    server.asked.clear()
    for source in (far, pickle.loads(pickle.dumps(far))):
        for i in range(12):
            assert source[i][:2] == here[i][:2]
            assert source[i].name == f"{server.url}/{i // 4}.tar:{i:06}.png"
    assert sum(server.asked.values()) == 48, "a question a pair"
    server.asked.clear()
    assert open_source(f"{server.url}/[0-2].tar").fingerprint == far.fingerprint
    server.asked.clear()
    again = open_source(f"{server.url}/{{0..2}}.tar")
    assert sum(server.asked.values()) == 3, "of a warm index, one of each tar"
    assert again.fingerprint == far.fingerprint != here.fingerprint


def test_many_threads_read_at_once(server: Server, tar_factory: TarFactory) -> None:
    path = tar_factory(pairs=20)
    here, far = TarSource(str(path)), TarSource(f"{server.url}/{path.name}")
    server.faults.extend(["503", "", "drop", "", "less", "", "500", "", "drop at once"])
    with ThreadPoolExecutor(8) as pool:
        for i, pair in enumerate(pool.map(lambda i: far[i % 20], range(200))):
            assert pair[:2] == here[i % 20][:2]


def test_a_pair_that_cannot_be_had_is_one_that_is_left_out(
    server: Server, tar_factory: TarFactory
) -> None:
    path = tar_factory(pairs=3)
    source = TarSource(f"{server.url}/{path.name}")
    for fault in ("503", "drop", "404", "403", "ignores ranges"):
        server.always = fault
        with pytest.raises(PairError) as error:
            source[1]
        assert error.value.reason == "unreadable"
        assert says(error.value, f"{server.url}/{path.name}:000001.png")
    server.always = ""
    assert source[1].text == {"caption": "picture 1"}


def test_a_tar_that_changes_is_noticed(server: Server, tmp_path: Path) -> None:
    def write(sizes: tuple[int, ...]) -> None:
        members = [(f"{i}.{e}", b"x" * n) for i, n in enumerate(sizes) for e in ("png", "txt")]
        write_tar(tmp_path / "x.tar", members)

    write((2000, 100, 900))
    source = TarSource(f"{server.url}/x.tar")
    write((100, 2000, 900))
    with pytest.raises(PairError) as error:
        source[1]
    assert error.value.reason == "unreadable" and says(error.value, "x.tar:1.png", "changed since")
    assert len(TarSource(f"{server.url}/x.tar")[1].image) == 2000


def test_folders_and_tables_by_http(server: Server, tmp_path: Path) -> None:
    (tmp_path / "in" / "cats").mkdir(parents=True)
    (tmp_path / "in" / "cats" / "1.jpg").write_bytes(b"1")
    (tmp_path / "in" / "cats" / ".2.jpg").write_bytes(b"2")
    (tmp_path / "in" / "dogs").mkdir()
    (tmp_path / "in" / "dogs" / "3.jpg").write_bytes(b"3")
    source = open_source(f"{server.url}/in/")
    assert [source[i] for i in range(len(source))] == [
        (b"1", {"caption": "cats", "label": "cats"}, f"{server.url}/in/cats/1.jpg"),
        (b"3", {"caption": "dogs", "label": "dogs"}, f"{server.url}/in/dogs/3.jpg"),
    ]
    pytest.importorskip("pyarrow")
    for value, image in {
        "cats/1.jpg": b"1",
        f"{server.url}/in/cats/1.jpg": b"1",
        "../data.jpg": None,
        "cats/%2e%2e/%2e%2e/data.jpg": None,
        "//cats/1.jpg": None,
    }.items():
        (tmp_path / "in" / "x.csv").write_text(f"path,caption\n{value},x\n")
        table = open_source(f"{server.url}/in/x.csv?key=secret")
        if image:
            assert table[0] == (image, {"caption": "x"}, f"{server.url}/in/cats/1.jpg")
        else:
            refused(lambda table=table: table[0], f"{server.url}/in/x.csv: row 0: {value} leaves")
    (tmp_path / "in" / "x.csv").write_text(f"path,caption\n{server.url}/data.jpg,x\n")
    refused(lambda: open_source(f"{server.url}/in/x.csv"), "'path' holds web addresses")
    (tmp_path / "in" / "x.csv").write_text("path,caption\ncats/9.jpg,x\n")
    with pytest.raises(PairError) as error:
        open_source(f"{server.url}/in/x.csv")[0]
    assert error.value.reason == "unreadable" and says(error.value, "no file", "cats/9.jpg")


def test_file_systems_that_can_list_files(memory: None, tar_factory: TarFactory) -> None:
    path = tar_factory(pairs=3)
    for i in range(20):
        put(f"memory://tars/{i:02}.tar", path.read_bytes())
    source = open_source("memory://tars/*.tar")
    assert len(source) == 60 and source[59].name == "memory://tars/19.tar:000002.png"
    assert source.fingerprint == open_source("memory://tars/{00..19}.tar").fingerprint
    refused(lambda: open_source("memory://tars/x*.tar"), "no file memory://tars/x*.tar")
    refused(lambda: open_source("memory://tars/{00..20}.tar"), "no file memory://tars/20.tar")

    put("memory://pictures/a/1.jpg", b"1")
    put("memory://pictures/a/1.txt", b"one")
    put("memory://pictures/2.x.png", b"2")
    put("memory://pictures/2.json", b'{"caption": "two"}')
    put("memory://pictures/.hidden/3.jpg", b"3")
    folder = open_source("memory://pictures")
    assert [folder[i] for i in range(len(folder))] == [
        (b"2", {"caption": "two"}, "memory://pictures/2.x.png"),
        (b"1", {"caption": "one", "txt": "one"}, "memory://pictures/a/1.jpg"),
    ]
    assert folder.opening_report().left_out["hidden"].count == 1
    put("memory://captioned/metadata.csv", b"file_name,text\nimages/1.jpg,one\n")
    put("memory://captioned/images/1.jpg", b"1")
    captioned = open_source("memory://captioned")
    assert captioned[0].text["caption"] == "one" and not captioned.opening_report().left_out
    before = folder.fingerprint
    put("memory://pictures/a/1.jpg", b"another")
    assert open_source("memory://pictures").fingerprint != before


def test_one_list_of_a_folder_answers_for_all_in_it(
    memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [put(f"memory://x/{i}", b"x" * i) for i in range(40)]
    system = type(fsspec.filesystem("memory"))
    monkeypatch.setattr(system, "info", lambda *_, **__: pytest.fail("asked for one"))
    assert [state.size for state in remote.states(paths)] == list(range(40))


def test_indices_may_lie_anywhere(
    memory: None, tar_factory: TarFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tar_factory(pairs=5)
    scans: list[str] = []
    scan = tar_index.scan
    monkeypatch.setattr(tar_index, "scan", lambda p, *more: scans.append(p) or scan(p, *more))

    def open_count(place: str) -> int:
        """How often the tar is scanned, on a machine that has never seen it."""
        monkeypatch.setenv(
            "XDG_CACHE_HOME", str(tmp_path / f"cache{len(list(tmp_path.iterdir()))}")
        )
        scans.clear()
        assert len(TarSource(str(path), place)) == 5
        return len(scans)

    shared = tmp_path / "shared"
    for place in (str(shared), "memory://indices"):
        assert (open_count(place), open_count(place)) == (1, 0)
    assert open_count("") == 1
    assert (open_count("beside"), open_count("")) == (1, 0), "one beside the tar is always used"
    beside = path.with_name(f"{path.name}.index")
    copied = tmp_path / "copy" / path.name
    copied.parent.mkdir()
    for old in (path, beside):
        copied.with_name(old.name).write_bytes(old.read_bytes())
    assert len(TarSource(str(copied))) == 5 and not scans, "both may be copied"
    tar_factory(pairs=6)
    beside.chmod(0o400)
    assert len(TarSource(str(path))) == 6 and scans == [str(path)]


def test_hosts_that_share_a_folder_share_the_work(
    tar_factory: TarFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(6):
        tar_factory(f"{i}.tar", pairs=1)
    pattern, scans, scan = str(tmp_path / "{0..5}.tar"), list[str](), tar_index.scan
    monkeypatch.setattr(tar_catalogue, "_READERS", 1)

    def meanwhile(path: str, *more: str) -> tar_index.Index:
        """Another host does all while the first one is at its first tar."""
        scans.append(path)
        if len(scans) == 1:
            assert len(TarSource(pattern, str(tmp_path / "shared"))) == 6
        return scan(path, *more)

    monkeypatch.setattr(tar_index, "scan", meanwhile)
    assert len(TarSource(pattern, str(tmp_path / "shared"))) == 6
    assert len(scans) == 7 and len(set(scans)) == 6


def test_a_folder_that_cannot_be_written_to_is_done_without(
    server: Server, tar_factory: TarFactory, tmp_path: Path
) -> None:
    path = tar_factory(pairs=2)
    (tmp_path / "file").touch()
    for place in (f"{server.url}/no", str(tmp_path / "file"), "beside"):
        assert len(TarSource(f"{server.url}/{path.name}", place)) == 2
    assert not server.asked["PUT"], "nothing is sent to a web server"


def test_protocols_that_are_not_installed_or_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for protocol in ("gs", "gcs"):  # another test may have imported it
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, protocol, raising=False)
    refused(lambda: open_source("gs://bucket/x.tar"), "gs://bucket/x.tar", "'clip_jax[remote]'")
    refused(lambda: open_source("nope://bucket/x.tar"), "nope://bucket/x.tar", "not known")


def read_in_child(url: str) -> bool:
    return remote.read_range(url, 100, 50) == DATA[100:150]


FORK = """
import os, sys
from clip_jax.io import file_systems, remote
url = sys.argv[1]
before = remote.read_range(url, 100, 50)
lock = file_systems.load_fsspec().asyn.get_lock()
lock.acquire()  # as another thread may at that moment
child = os.fork()
if not child:
    os._exit(0 if remote.read_range(url, 100, 50) == before else 1)
lock.release()
assert os.waitpid(child, 0)[1] == 0
assert remote.read_range(url, 100, 50) == before
"""


def test_processes_that_are_forked_or_spawned_read_on(server: Server) -> None:
    url = f"{server.url}/data"
    assert read_in_child(url)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(read_in_child, (url,))
    # from 3.12 on Python warns of every fork of a process that has threads
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_tars_and_their_indices_in_buckets(tar_factory: TarFactory, bucket: Path) -> None:
    path = tar_factory(pairs=3)
    for i in range(20):
        (bucket / f"{i:02}.tar").write_bytes(path.read_bytes())
    here, far = TarSource(str(path)), TarSource(f"{bucket}/*.tar", f"{bucket}/indices")
    assert len(far) == 60
    assert [far[i][:2] for i in (0, 4, 59)] == [here[i % 3][:2] for i in (0, 4, 59)]
    assert len((bucket / "indices").files_below()) == 20
    (bucket / "00.tar").write_bytes(path.read_bytes()[512:])
    refused(lambda: far[0], f"{bucket}/00.tar:000000.png", "changed since")
    refused(lambda: TarSource(f"{bucket}/20.tar"), f"no file {bucket}/20.tar")
    nowhere = str(bucket).replace("runs", "nowhere")
    refused(lambda: TarSource(f"{nowhere}/20.tar"), f"{nowhere}/20.tar")


def test_a_gap_between_picture_and_text_is_not_fetched(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars, "MAX_GAP", 4000)
    for gap in (100, 100_000):
        members = [("1.png", b"p" * 99), ("1.mp4", b"m" * gap), ("1.txt", b"text")]
        write_tar(tmp_path / f"{gap}.tar", members)
        source = TarSource(f"{server.url}/{gap}.tar")
        server.asked.clear(), server.ranges.clear()
        assert source[0][:2] == (b"p" * 99, {"txt": "text", "caption": "text"})
        assert sum(last + 1 - first for first, last in server.ranges) < 5000
        assert sum(server.asked.values()) == (1 if gap == 100 else 2)
