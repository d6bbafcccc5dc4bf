"""launch/local.sh: N processes that are told who they are, and that end together."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from launchers import HARD_WORDS, ROOT, environment

# what a process was told, for others to read
NOTE = """
import json, os, pathlib, sys
rank = os.environ.get("JAX_PROCESS_ID", "0")
names = ("JAX_", "XLA_")
settings = {k: v for k, v in os.environ.items() if k.startswith(names)}
pathlib.Path(f"told.{rank}").write_text(json.dumps([settings, sys.argv[1:]]))
"""
# waits for so many signals, as a training loop does, noting each; what it got is in got.RANK
SERVE = """
import os, pathlib, signal, sys, time
rank = os.environ.get("JAX_PROCESS_ID", "0")
got = []
for s in (signal.SIGINT, signal.SIGTERM):
    signal.signal(s, lambda number, _: got.append(signal.Signals(number).name))
noted = -1
while len(got) < int(sys.argv[1]):
    if noted < len(got):
        noted += 1
        pathlib.Path(f"signals.{noted}.{rank}").touch()
    time.sleep(0.02)
time.sleep(0.5)  # a checkpoint
pathlib.Path(f"got.{rank}").write_text(" ".join(got))
"""


def read_notes(folder: Path, rank: int = 0):
    return json.loads((folder / f"told.{rank}").read_text())


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@contextmanager
def hangup(meaning: signal.Handlers):
    """What a hangup means to processes begun meanwhile: nohup leaves it ignored to all below it."""
    before = signal.signal(signal.SIGHUP, meaning)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@contextmanager
def running(folder: Path, *args: str):
    """local.sh in the background; whatever a test does, it is gone afterwards."""
    process = subprocess.Popen(
        [ROOT / "launch/local.sh", *args],
        env=environment(),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_each_process_is_told_who_it_is_and_gets_the_words_unchanged(launch, tmp_path):
    done = launch("local.sh", "3", "--", sys.executable, "-c", NOTE, *HARD_WORDS, "two\nlines")
    assert done.returncode == 0, done.stderr
    notes = [read_notes(tmp_path, i)[0] for i in range(3)]
    assert [note["JAX_PROCESS_ID"] for note in notes] == ["0", "1", "2"]
    assert {note["JAX_NUM_PROCESSES"] for note in notes} == {"3"}
    (address,) = {note["JAX_COORDINATOR_ADDRESS"] for note in notes}
    host, port = address.split(":")
    assert host == "127.0.0.1" and 1024 <= int(port) < 65536
    assert {note["JAX_COORDINATOR_BIND_ADDRESS"] for note in notes} == {address}
    for i in range(3):
        assert read_notes(tmp_path, i)[1] == [*HARD_WORDS, "two\nlines"]


def test_flags_are_those_of_clip_jax_and_one_process_needs_no_coordinator(launch, tmp_path):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{NOTE}' \"$@\"\n")
    python.chmod(0o755)
    done = launch("local.sh", "1", "--", "--config", "a b.py", PYTHON=str(python), XLA_FLAGS="")
    assert done.returncode == 0, done.stderr
    env, argv = read_notes(tmp_path)
    assert argv == ["-m", "clip_jax.main", "--config", "a b.py"]
    assert env == {"XLA_FLAGS": ""}


def test_pretended_devices_leave_other_flags_of_xla_alone(launch, tmp_path):
    command = ["local.sh", "1", "--devices=3", "--", sys.executable, "-c", NOTE]
    assert launch(*command, XLA_FLAGS="--xla_a=1 --xla_b=2").returncode == 0
    env = read_notes(tmp_path)[0]
    assert env["JAX_PLATFORMS"] == "cpu"
    assert env["XLA_FLAGS"] == "--xla_a=1 --xla_b=2 --xla_force_host_platform_device_count=3"
    assert launch(*command, XLA_FLAGS="").returncode == 0
    assert read_notes(tmp_path)[0]["XLA_FLAGS"] == "--xla_force_host_platform_device_count=3"


def test_process_0_writes_as_if_alone_and_the_others_with_their_number(launch):
    code = (
        "import os, sys; i = os.environ['JAX_PROCESS_ID']\n"
        "print('out', i); print('err', i, file=sys.stderr)"
    )
    done = launch("local.sh", "3", "--", sys.executable, "-c", code)
    assert done.stdout == "out 0\n"
    assert sorted(done.stderr.splitlines()) == sorted(
        ["err 0", "[1] out 1", "[1] err 1", "[2] out 2", "[2] err 2"]
    )


def test_when_one_fails_the_others_are_ended_with_all_that_they_started(launch, tmp_path):
    code = """
import os, pathlib, signal, subprocess, sys, time
rank = os.environ["JAX_PROCESS_ID"]
signal.signal(signal.SIGTERM, lambda *_: pathlib.Path("asked." + rank).touch())
child = subprocess.Popen(["sleep", "300"])
pathlib.Path("child." + rank).write_text(str(child.pid))
while len(list(pathlib.Path().glob("child.?"))) < 3:
    time.sleep(0.02)
if rank == "1":
    print("a line of its own", flush=True)
    os._exit(7)
while True:  # hangs in a collective, say
    time.sleep(1)
"""
    began = time.monotonic()
    done = launch("local.sh", "3", "--grace", "1", "--", sys.executable, "-c", code)
    assert time.monotonic() - began < 20
    assert done.returncode == 7
    assert done.stderr.splitlines()[:2] == [
        "[1] a line of its own",
        "launch: process 1 ended with exit code 7",
    ] or done.stderr.splitlines()[:2] == [
        "launch: process 1 ended with exit code 7",
        "[1] a line of its own",
    ]
    assert {p.name for p in tmp_path.glob("asked.?")} == {"asked.0", "asked.2"}
    assert not any(alive(int(p.read_text())) for p in tmp_path.glob("child.?"))


@pytest.mark.parametrize("how", ["exit 137", "kill -9 $$"])
def test_a_process_that_was_killed_is_a_failure(launch, how):
    done = launch("local.sh", "1", "--", "bash", "-c", how)
    assert done.returncode == 137
    assert done.stderr == "launch: process 0 ended with exit code 137\n"


def test_a_failure_is_started_again_on_another_port(launch, tmp_path):
    code = (
        'echo "$JAX_COORDINATOR_ADDRESS" >> ports.$JAX_PROCESS_ID\n'
        "[[ $JAX_PROCESS_ID != 1 || $(wc -l < ports.1) == 3 ]] || exit 9\n"
        "until [[ $(wc -l < ports.1) == 3 ]]; do sleep 0.05; done"
    )
    command = ["--pause", "0", "--", "bash", "-c", code]
    done = launch("local.sh", "2", "--restarts", "2", *command)
    assert done.returncode == 0, done.stderr
    messages = [line for line in done.stderr.splitlines() if "restart" in line]
    assert messages == [f"launch: starting again in 0 s (restart {i} of 2)" for i in (1, 2)]
    ports = (tmp_path / "ports.0").read_text().split()
    assert ports == (tmp_path / "ports.1").read_text().split()
    assert len(set(ports)) == 3
    (tmp_path / "ports.1").unlink()
    done = launch("local.sh", "2", "--restarts", "1", *command)
    assert done.returncode == 9
    assert len((tmp_path / "ports.1").read_text().split()) == 2


def test_a_mistake_in_the_flags_is_not_started_again(launch, tmp_path):
    code = (
        "echo x >> tries\n"
        "until [[ $(wc -l < tries) -ge 2 ]]; do sleep 0.02; done\n"
        "[[ $JAX_PROCESS_ID == 1 ]] && exit 2; sleep 0.5; exit 1"
    )
    done = launch("local.sh", "2", "--restarts", "3", "--pause", "0", "--", "bash", "-c", code)
    assert done.returncode == 2
    assert len((tmp_path / "tries").read_text().split()) == 2


@pytest.mark.parametrize(
    ("sent", "arrives"), [("SIGTERM", "SIGTERM"), ("SIGINT", "SIGINT"), ("SIGHUP", "SIGTERM")]
)
def test_a_signal_is_passed_on_once_waited_for_and_the_end(tmp_path, sent, arrives):
    command = ["--restarts=3", "--pause=0", "--", sys.executable, "-c", SERVE, "1"]
    with hangup(signal.SIG_DFL), running(tmp_path, "2", *command) as process:
        until(lambda: len(list(tmp_path.glob("signals.0.?"))) == 2)
        # a terminal's Ctrl-C goes to all of the launcher's group
        os.killpg(process.pid, getattr(signal, sent))
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + getattr(signal, arrives), stderr
    assert [(tmp_path / f"got.{i}").read_text() for i in (0, 1)] == [arrives] * 2
    assert stderr == f"launch: stopped by {arrives}: the same command goes on\n"


def test_nohup_is_kept(tmp_path):
    code = "touch begun; until [[ -e go ]]; do sleep 0.02; done"
    with hangup(signal.SIG_IGN), running(tmp_path, "1", "--", "bash", "-c", code) as process:
        until((tmp_path / "begun").exists)
        os.killpg(process.pid, signal.SIGHUP)
        (tmp_path / "go").touch()
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_the_third_signal_kills(tmp_path):
    with running(tmp_path, "2", "--", sys.executable, "-c", SERVE, "99") as process:
        for count in range(3):
            until(lambda count=count: len(list(tmp_path.glob(f"signals.{count}.?"))) == 2)
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 137
    assert not list(tmp_path.glob("got.?"))


def test_a_signal_in_the_pause_before_a_restart_ends_it(tmp_path):
    with running(tmp_path, "1", "--restarts=3", "--pause=60", "--", "false") as process:
        assert process.stderr
        lines = [process.stderr.readline() for _ in range(2)]
        assert "starting again in 60 s" in lines[1]
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 1


def test_nothing_outlives_a_launcher_that_was_killed(tmp_path):
    code = f"import os, pathlib; pathlib.Path(f'pid.{{os.getpid()}}').touch()\n{SERVE}"
    with running(tmp_path, "2", "--", sys.executable, "-c", code, "1") as process:
        until(lambda: len(list(tmp_path.glob("signals.0.?"))) == 2)
        pids = [int(p.name.split(".")[1]) for p in tmp_path.glob("pid.*")]
        assert len(pids) == 2 and all(alive(pid) for pid in pids)
        process.kill()
        until(lambda: not any(alive(pid) for pid in pids))
    assert not list(tmp_path.glob("got.?"))


def test_a_dry_run_prints_commands_that_can_be_pasted(launch, tmp_path, read_shell):
    done = launch("local.sh", "2", "--dry-run", "--", "touch", "made", *HARD_WORDS)
    assert done.returncode == 0 and not list(tmp_path.iterdir())
    lines = [read_shell(line) for line in done.stdout.splitlines()]
    assert [line[-len(HARD_WORDS) - 2 :] for line in lines] == [["touch", "made", *HARD_WORDS]] * 2
    assert [[w for w in line if w.startswith("JAX_PROCESS_ID")] for line in lines] == [
        ["JAX_PROCESS_ID=0"],
        ["JAX_PROCESS_ID=1"],
    ]
    assert lines[0][0] == "env"
    done = launch("local.sh", "1", "--dry-run", "--", "--config", "x")
    env = [word for word in shlex.split(done.stdout) if "=" in word]
    assert env == ["PYTHONUNBUFFERED=1"]
    assert done.stdout.endswith(f"{sys.executable} -m clip_jax.main --config x\n")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "how many processes?"),
        (["0", "--", "true"], "N 0: a whole number of at least 1"),
        (["two", "--", "true"], "N two: a whole number"),
        (["2", "3", "--", "true"], "unexpected 3"),
        (["2", "--devices=0", "--", "true"], "--devices 0"),
        (["2", "--grace", "1.5", "--", "true"], "--grace 1.5: a whole number"),
        (["2", "--grace=99999999999999999999", "--", "true"], "--grace 9999"),
    ],
)
def test_wrong_arguments_are_named(fails, args, words):
    assert words in fails("local.sh", *args)
