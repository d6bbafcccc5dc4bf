"""Remote data is followed to its own site only; a killed worker ends a run in one line."""

import http.server
import json
import os
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

import runs
from clip_jax.cli import inspect, mixing
from clip_jax.io import redirects, remote
from servers import serving
from support import refused, write_pairs

pytest.importorskip("aiohttp")


@contextmanager
def redirecting(target):
    """A server that sends all questions on."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(302)
            self.send_header("Location", target + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_redirect_to_another_site_is_refused_unless_allowed(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_JAX_REDIRECTS", "")
    (tmp_path / "x.bin").write_bytes(b"abc")
    with serving(tmp_path) as server, redirecting(server.url) as url:
        asks = (
            lambda: remote.state(f"{url}/x.bin"),
            lambda: remote.read_range(f"{url}/x.bin", 0, 3),
            lambda: remote.read_whole(f"{url}/x.bin", 9),
        )
        for ask in asks:
            refused(ask, f"{url}/x.bin redirects", server.url, "config.data.redirects")
        assert not server.asked
        for sites in (["127.0.0.1"], ["any"]):
            redirects.allow_redirects(sites)
            assert remote.read_range(f"{url}/x.bin", 0, 3) == b"abc"
        redirects.allow_redirects(["example.org"])
        refused(asks[0], "redirects")


def test_every_command_that_reads_a_config_allows_its_redirects(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CLIP_JAX_REDIRECTS", "")
    write_pairs(tmp_path / "pairs.tar", 3)
    allowed = "data.redirects=('127.0.0.1',)"
    with serving(tmp_path) as server, redirecting(server.url) as url:
        flags = [f"--config.data.train={url}/pairs.tar", "--seconds=0", "--picture=", "--json"]
        flags.append("--config.data.captions=('{caption}',)")
        refused(lambda: inspect.run(["quickstart", *flags]), "redirects to another site")
        assert inspect.run(["quickstart", f"--config.{allowed}", *flags]) == 0
        assert json.loads(capsys.readouterr().out)["pairs"] == 3
    mixing.open_config("common", ["data.redirects=('example.org',)"])
    assert os.environ["CLIP_JAX_REDIRECTS"] == "example.org"


def children(pid):
    """The processes that a process started."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            pids.append(int(path.parent.name))
    return pids


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers by /proc")
def test_a_killed_data_worker_ends_the_run_in_a_line(tmp_path):
    config = runs.small_run(tmp_path, 20)
    workdir = tmp_path / "run"
    flags = ("--config.steps=100000", "--config.evaluate.every=100000", "--config.data.workers=2")

    def kill_one(started):
        for child in children(started[0].pid):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(child, signal.SIGKILL)
                return

    argv = runs.command(config, workdir, *flags)
    (done,) = runs.together(argv, 1, meanwhile=runs.once_logged(workdir, 3, kill_one))
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and "one of 2 processes that read pairs died" in line
    assert "Traceback" not in done.stderr, done.stderr
