"""Two trainers never write into one folder; a killed one keeps nobody out."""

import os
import signal
import subprocess
import sys
import threading

import pytest

import runs
from clip_jax.errors import UserError
from clip_jax.training import lock_files, workdir_lock
from support import refused, says


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(workdir_lock, "BEAT", 0.05)
    monkeypatch.setattr(workdir_lock, "STALE", 0.6)


def take(workdir, force=False, tell=lambda line: None):
    return workdir_lock.locked(workdir, force, tell)


def record_of(workdir):
    return lock_files.lock_file(workdir).read()


def put(workdir, **changes):
    """A file as another process left it."""
    record = {**workdir_lock._own_record(), "token": "other", **changes}
    assert lock_files.lock_file(workdir).create(record)


def test_a_second_trainer_is_told_who_the_first_is(folder):
    with take(folder / "run"):
        record = record_of(folder / "run")
        who = ("in use by", record["host"], f"PID {os.getpid()} since", "--force")
        refused(lambda: take(folder / "run").__enter__(), folder / "run", *who)
        refused(lambda: workdir_lock.refuse_in_use(folder / "run", False), *who)
        workdir_lock.refuse_in_use(folder / "run", True)
    assert not list((folder / "run").glob("*")), "nothing is left"
    with take(folder / "run"):
        pass


def test_only_one_of_many_gets_the_lock(folder):
    won, lost, start = [], [], threading.Barrier(16)

    def trainer():
        start.wait()
        try:
            manager = take(folder)
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


def test_another_process_of_the_same_number_is_not_the_trainer(folder):
    put(folder, started="1")
    with take(folder):
        pass


@pytest.mark.parametrize("space", ["another host", ""])
def test_a_trainer_on_another_host_is_known_by_its_signs_of_life(folder, space):
    put(folder, host="elsewhere", space=space)
    messages = []
    with take(folder, tell=messages.append):
        assert record_of(folder)["token"] != "other"
    assert len(messages) == 1 and "elsewhere" in messages[0] and "--force" in messages[0]


def test_a_sign_of_life_of_another_host_keeps_the_folder(folder):
    with take(folder) as lock:
        lock._record["space"] = "another host"
        refused(lambda: take(folder).__enter__(), "in use by", os.getpid())
        lock.check()


@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b"\xff" * 99, b'{"pid": []}'])
def test_a_damaged_file_keeps_nobody_out_for_long(folder, raw):
    (folder / lock_files.NAME).write_bytes(raw)
    with take(folder):
        assert record_of(folder)["pid"] == os.getpid()


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nothing", "link to itself"])
@pytest.mark.parametrize("force", [False, True])
def test_a_special_file_is_refused_at_once(tmp_path, kind, force):
    path = tmp_path / lock_files.NAME
    make = {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "link to nothing": lambda: path.symlink_to("/nonexistent/x"),
        "link to itself": lambda: path.symlink_to(path),
    }
    make[kind]()
    refused(lambda: take(tmp_path, force).__enter__(), path, "no plain file: remove it")
    refused(lambda: workdir_lock.refuse_in_use(tmp_path, False), path, "no plain file")


def test_a_disk_that_is_away_for_a_moment_ends_no_run(folder, monkeypatch):
    def away():
        raise OSError(5, "Input/output error")

    with take(folder) as lock:
        with monkeypatch.context() as patch:
            patch.setattr(lock._file, "read", away)
            lock.check()
        lock.check()
    assert not (folder / lock_files.NAME).exists()


def test_force_takes_it_and_the_other_learns(folder):
    with take(folder) as first, take(folder, force=True) as second:
        second.check()
        refused(first.check, folder, "taken over by", os.getpid(), "writes nothing")
        first._file.count(first._record, 7)
        assert record_of(folder)["token"] == second._record["token"]
        first.release()
        assert (folder / lock_files.NAME).exists(), "it is the second's"


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
