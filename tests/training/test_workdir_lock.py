"""Two trainers never write into one folder; a killed one keeps nobody out."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

import runs
from clip_jax.errors import UserError
from clip_jax.training import workdir_lock
from support import refused, says


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(workdir_lock, "BEAT", 0.05)
    monkeypatch.setattr(workdir_lock, "STALE", 0.6)


def take(workdir, force=False, tell=lambda line: None):
    return workdir_lock.locked(workdir, force, tell)


def record_of(workdir):
    return json.loads((workdir / workdir_lock.NAME).read_text())


def put(workdir, **changes):
    """A file as another process left it."""
    record = {**workdir_lock._own_record(), "token": "other", **changes}
    (workdir / workdir_lock.NAME).write_bytes(workdir_lock._serialized(record))


def test_a_second_trainer_is_told_who_the_first_is(tmp_path):
    with take(tmp_path / "run"):
        record = record_of(tmp_path / "run")
        who = ("in use by", record["host"], f"PID {os.getpid()} since", "--force")
        refused(lambda: take(tmp_path / "run").__enter__(), tmp_path / "run", *who)
        refused(lambda: workdir_lock.refuse_in_use(tmp_path / "run", False), *who)
        workdir_lock.refuse_in_use(tmp_path / "run", True)
    assert not list((tmp_path / "run").iterdir()), "nothing is left"
    with take(tmp_path / "run"):
        pass


def test_only_one_of_many_gets_the_lock(tmp_path):
    won, lost, start = [], [], threading.Barrier(16)

    def trainer():
        start.wait()
        try:
            manager = take(tmp_path)
            won.append((manager, manager.__enter__()))
        except UserError as error:
            lost.append(error)

    threads = [threading.Thread(target=trainer) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 15)
    won[0][1].check()
    won[0][0].__exit__(None, None, None)


def test_a_killed_trainer_of_this_host_is_nobody(tmp_path):
    code = (
        "import sys, time, pathlib; from clip_jax.training import workdir_lock as w\n"
        "h = w.locked(pathlib.Path(sys.argv[1]), False, print)\n"
        "h.__enter__(); print('in', flush=True)\n"
        "time.sleep(60)"
    )
    argv = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, env=runs.environment())
    try:
        assert process.stdout.readline() == b"in\n"
        refused(lambda: take(tmp_path).__enter__(), f"PID {process.pid}")
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, but not yet buried
        messages = []
        with take(tmp_path, tell=messages.append):
            assert record_of(tmp_path)["pid"] == os.getpid() and not messages
    finally:
        process.kill()
        process.wait()


def test_another_process_of_the_same_number_is_not_the_trainer(tmp_path):
    put(tmp_path, started="1")
    with take(tmp_path):
        pass


@pytest.mark.parametrize("space", ["another host", ""])
def test_a_trainer_on_another_host_is_known_by_its_signs_of_life(tmp_path, space):
    put(tmp_path, host="elsewhere", space=space)
    messages = []
    with take(tmp_path, tell=messages.append):
        assert record_of(tmp_path)["token"] != "other"
    assert len(messages) == 1 and "elsewhere" in messages[0] and "--force" in messages[0]


def test_a_sign_of_life_of_another_host_keeps_the_folder(tmp_path):
    with take(tmp_path) as lock:
        lock._record["space"] = "another host"
        refused(lambda: take(tmp_path).__enter__(), "in use by", os.getpid())
        lock.check()


@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b"\xff" * 99, b'{"pid": []}'])
def test_a_damaged_file_keeps_nobody_out_for_long(tmp_path, raw):
    (tmp_path / workdir_lock.NAME).write_bytes(raw)
    with take(tmp_path):
        assert record_of(tmp_path)["pid"] == os.getpid()


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nothing", "link to itself"])
@pytest.mark.parametrize("force", [False, True])
def test_a_special_file_is_refused_at_once(tmp_path, kind, force):
    path = tmp_path / workdir_lock.NAME
    make = {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "link to nothing": lambda: path.symlink_to("/nonexistent/x"),
        "link to itself": lambda: path.symlink_to(path),
    }
    make[kind]()
    refused(lambda: take(tmp_path, force).__enter__(), path, "no plain file: remove it")
    refused(lambda: workdir_lock.refuse_in_use(tmp_path, False), path, "no plain file")


def test_a_disk_that_is_away_for_a_moment_ends_no_run(tmp_path, monkeypatch):
    def away(_):
        raise OSError(5, "Input/output error")

    with take(tmp_path) as lock:
        with monkeypatch.context() as patch:
            patch.setattr(workdir_lock, "_read_record", away)
            lock.check()
        lock.check()
    assert not (tmp_path / workdir_lock.NAME).exists()


def test_force_takes_it_and_the_other_learns(tmp_path):
    with take(tmp_path) as first, take(tmp_path, force=True) as second:
        second.check()
        refused(first.check, tmp_path, "taken over by", os.getpid(), "writes nothing")
        first._write_beat()
        assert record_of(tmp_path)["token"] == second._record["token"]
        first.release()
        assert (tmp_path / workdir_lock.NAME).exists(), "it is the second's"


@pytest.mark.slow
def test_a_run_in_use_refuses_another_and_force_ends_it(tmp_path):
    config = runs.small_run(tmp_path, 20)
    workdir = tmp_path / "run"
    long = runs.command(config, workdir, "--config.steps=100000", "--config.evaluate.every=100000")
    first = subprocess.Popen(
        long, env=runs.environment(), cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    try:
        runs.once_logged(workdir, 3, lambda _: None)([first])
        flags = ("--config.steps=100000", "--config.evaluate.every=100000")
        second = runs.run(config, workdir, *flags)
        (line,) = [line for line in second.stderr.splitlines() if line.startswith("error: ")]
        assert second.returncode == 2
        assert says(ValueError(line), "in use by", f"PID {first.pid} since", "--force")
        evaluated = runs.run(config, workdir, "--mode=evaluate", "--force")
        assert evaluated.returncode == 2 and "--mode=train" in evaluated.stderr
        third = subprocess.Popen(
            [*long, "--force"], env=runs.environment(), cwd=tmp_path, stderr=subprocess.DEVNULL
        )
        try:
            _, stderr = first.communicate(timeout=120)
            assert first.returncode == 2 and "taken over by" in stderr, stderr
            assert "Traceback" not in stderr
        finally:
            third.send_signal(signal.SIGKILL)
            third.wait()
    finally:
        first.kill()
        first.wait()
