"""metrics.jsonl holds every metric of a step once, in whole lines, whatever happens."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

import steps
from clip_jax.errors import UserError
from clip_jax.training import flops as flops_lib
from clip_jax.training import loop as train
from clip_jax.training import metric_writers
from clip_jax.training.metric_writers import Progress, Unwritten, Writer, duration
from support import picture, says


def lines(folder: Path) -> list[dict[str, Any]]:
    raw = (folder / "metrics.jsonl").read_text()
    assert raw == "" or raw.endswith("\n")
    return [json.loads(line) for line in raw.splitlines()]


def writer(folder: Path, **options: Any) -> Writer:
    return Writer(folder, tensorboard=False, **options)


def test_a_line_a_step(tmp_path: Path) -> None:
    with writer(tmp_path / "new" / "run") as w:
        w.write(1, {"loss": np.float32(0.5), "count": 3})
        w.write(2, {"loss": 0.25})
        w.write(2, {})
        assert w.has_metric(2, "loss")
        assert not w.has_metric(2, "accuracy")
        assert not w.has_metric(3, "loss")
    expected = [{"step": 1, "loss": 0.5, "count": 3}, {"step": 2, "loss": 0.25}]
    assert lines(tmp_path / "new" / "run") == expected
    assert metric_writers.read_metrics(tmp_path / "new" / "run" / "metrics.jsonl") == expected
    assert metric_writers.read_metrics(tmp_path / "no such file") == []


RUNS = st.lists(
    st.lists(st.tuples(st.integers(1, 5), st.sampled_from(["a", "b", "c"])), max_size=8), max_size=4
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(RUNS, st.integers(0, 400))
def test_a_metric_of_a_step_is_never_written_twice(
    tmp_path: Path, runs: list[list[tuple[int, str]]], cut: int
) -> None:
    """Runs one after another in a folder, each killed somewhere, of which the last is whole."""
    file = tmp_path / "metrics.jsonl"
    file.unlink(missing_ok=True)
    for run in [*runs, [(s, n) for s in range(1, 6) for n in "abc"]]:
        if file.exists():
            os.truncate(file, max(0, file.stat().st_size - cut % 37))
        with writer(tmp_path) as w:
            for step, name in run:
                w.write(step, {name: step})
    written = [(line["step"], name) for line in lines(tmp_path) for name in line if name != "step"]
    assert sorted(written) == [(s, n) for s in range(1, 6) for n in "abc"]


def test_resuming_appends_new_metrics(tmp_path: Path) -> None:
    with writer(tmp_path) as w:
        for step in (1, 2, 3):
            w.write(step, {"loss": step})
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with writer(tmp_path, resume_step=1) as w:
        for step in (2, 3, 4):
            w.write(step, {"loss": -step})
        w.write(3, {"loss": 0, "accuracy": 1})
    after = (tmp_path / "metrics.jsonl").read_bytes()
    assert after.startswith(before)
    assert lines(tmp_path)[3:] == [{"step": 4, "loss": -4}, {"step": 3, "accuracy": 1}]


def test_half_a_line_is_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 1}\n{"step": 2, "lo')
    assert metric_writers.read_metrics(file) == [{"step": 1, "loss": 1}]
    with writer(tmp_path) as w:
        assert file.read_text() == '{"step": 1, "loss": 1}\n'
        w.write(2, {"loss": 2})
    assert lines(tmp_path) == [{"step": 1, "loss": 1}, {"step": 2, "loss": 2}]


@pytest.mark.parametrize("damage", ["\0\0\0\0", "{", "[1]", '{"loss": 1}', '{"step": "x"}', "3"])
def test_a_damaged_line_is_named(tmp_path: Path, damage: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{damage}\n{{"step": 2}}\n')
    with pytest.raises(UserError) as error:
        writer(tmp_path)
    assert says(error.value, tmp_path / "metrics.jsonl", "line 2")


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with writer(tmp_path) as w:
        for _ in range(2):
            with pytest.raises(OSError, match="No space") as error:
                w.write(1, {"loss": 1})
            assert error.value.errno == errno.ENOSPC
        assert not w.has_metric(1, "loss")


def test_a_disk_that_fills_within_a_line_keeps_whole_lines(tmp_path: Path) -> None:
    program = f"""
import resource, signal
from clip_jax.training.metric_writers import Writer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Writer({str(tmp_path)!r}, tensorboard=False) as w:
    w.write(1, {{"loss": 1}})
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, resource.RLIM_INFINITY))
    try:
        w.write(2, {{"loss": 2, "accuracy": 0.5}})
    except OSError as error:
        print("full")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    w.write(3, {{"loss": 3}})
    w.write(2, {{"loss": 2}})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("full\n", "")
    assert [line["step"] for line in lines(tmp_path)] == [1, 3, 2]


def test_many_threads_write_whole_lines(tmp_path: Path) -> None:
    with writer(tmp_path) as w:
        threads = [
            threading.Thread(target=lambda i=i: [w.write(i, {f"m{j}": j}) for j in range(50)])
            for i in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(lines(tmp_path)) == 200


def test_tensorboard_gets_the_same(tmp_path: Path) -> None:
    picture(0, (8, 8)).save(tmp_path / "x.png")
    with Writer(tmp_path) as w:
        w.write(1, {"loss": 0.5})
        w.picture(1, "pictures/x", tmp_path / "x.png")
    events = b"".join(p.read_bytes() for p in (tmp_path / "tensorboard").iterdir())
    assert b"loss" in events
    assert b"pictures/x" in events
    with writer(tmp_path) as w:
        w.picture(1, "pictures/x", tmp_path / "no.png")


def test_a_resumed_run_stays_whole_in_tensorboard(tmp_path: Path) -> None:
    """The steps after the checkpoint are hidden there, so they are written again."""
    with Writer(tmp_path) as w:
        for step in (1, 2, 3):
            w.write(step, {"loss": step})
    with Writer(tmp_path, resume_step=1) as w:
        for step in (2, 3):
            w.write(step, {"loss": step})
    files = sorted((tmp_path / "tensorboard").iterdir())
    assert [file.read_bytes().count(b"loss") for file in files] == [3, 2]
    assert len(lines(tmp_path)) == 3


def test_a_tensorboard_that_cannot_be_written_is_an_error_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboardX.record_writer import RecordWriter

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    errors: list[BaseException] = []

    def use() -> None:
        with Writer(tmp_path) as w:
            monkeypatch.setattr(RecordWriter, "write", full)
            for step in range(40):
                try:
                    w.write(step, {"loss": 1, "accuracy": 1})
                except OSError as error:
                    errors.append(error)

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "the run hangs"
    assert len(errors) == 40
    assert len(lines(tmp_path)) == 40


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (59.9, "0:59"),
        (75, "1:15"),
        (3599, "59:59"),
        (3700, "1:01:40"),
        (1e5, "27:46:40"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.integers(0, 10**7))
def test_duration_reads_back(seconds: int) -> None:
    parts = [int(p) for p in duration(seconds).split(":")]
    assert sum(p * 60**i for i, p in enumerate(reversed(parts))) == seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_rates_leave_out_time_not_spent_on_training(clock: list[float]) -> None:
    progress = Progress(steps=100, done=10, batch_size=32, devices=4)
    clock[0] += 2
    rates = progress.rates(20, flops=16e12)
    assert rates == pytest.approx(
        {"images_per_second": 10 * 32 / 2, "tflops_per_second": 16 / 2 / 4}
    )
    clock[0] += 1000  # an evaluation
    progress.leave_out(1000)
    clock[0] += 4
    rates = progress.rates(22, flops=8e12)
    assert rates == pytest.approx({"images_per_second": 2 * 32 / 4, "tflops_per_second": 8 / 4 / 4})
    assert progress.rates(22, 0) == {"images_per_second": 0, "tflops_per_second": 0}
    progress.close()


def test_mfu_is_a_share_of_the_peak_of_all_devices(clock: list[float]) -> None:
    progress = Progress(steps=9, done=0, batch_size=32, devices=4, peak=200e12)
    clock[0] += 2
    rates = progress.rates(1, flops=400e12)
    assert rates["tflops_per_second"] == pytest.approx(50)
    assert rates["mfu"] == pytest.approx(0.25)
    progress.close()


def test_without_a_terminal_lines_tell_the_time_left(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(steps=100, done=50, batch_size=8)
    progress.advance()
    clock[0] += 20
    progress.show(60, 1.23456, {"images_per_second": 4321.9})
    progress.show(75, 1, {"images_per_second": 4321.9, "mfu": 0.3456})
    progress.say("a line")
    progress.close()
    assert capsys.readouterr() == (
        "",
        "step 60/100: loss 1.235, 4,322 images/s, 1:20 left\n"
        "step 75/100: loss 1.000, 4,322 images/s, 34.6 % MFU, 0:20 left\n"
        "a line\n",
    )


def test_on_a_terminal_there_is_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress(steps=10, done=4, batch_size=8)
    progress.advance()
    progress.show(5, 0.5, {"images_per_second": 10, "mfu": 0.5})
    progress.say("a line")
    progress.close()
    err = capsys.readouterr().err
    assert "5/10" in err
    assert "loss 0.500, 10 images/s, 50.0 % MFU" in err
    assert "a line\n" in err


def test_other_processes_write_and_print_nothing(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Unwritten() as writer:
        writer.write(1, {"loss": 1.0})
        writer.picture(1, "sheet", Path("/nowhere.png"))
        assert not writer.has_metric(1, "loss")
    progress = Progress(steps=10, done=0, batch_size=8, mute=True)
    progress.advance()
    clock[0] += 2
    progress.show(5, 0.5, {"images_per_second": 10})
    progress.say("a line")
    assert progress.rates(5, 0)["images_per_second"] == 20
    progress.close()
    assert capsys.readouterr() == ("", "")


def test_a_line_of_the_log_counts_the_texts_as_wide_as_they_were(clock: list[float]) -> None:
    """Steps since the last line, each by its own width."""
    written: dict[int, dict[str, float]] = {}
    progress = Progress(steps=9, done=0, batch_size=4, mute=True)
    loop: Any = SimpleNamespace(
        any_stop=None,
        config=ConfigDict({"batch_size": 4, "steps": 9, "log": {"every": 2}}),
        trainer=SimpleNamespace(
            run=SimpleNamespace(model=steps.TINY, objective=steps.DENSE, data=range(8)),
            schedule=lambda step: step,
            step_flops=lambda tokens, _: flops_lib.step(steps.TINY, steps.DENSE, 4, tokens=tokens),
        ),
        flops=0,
        counts=0,
        _counted=dict,
        check_lock=lambda: None,
        progress=progress,
        writer=SimpleNamespace(write=written.__setitem__),
    )
    for step, tokens in enumerate((3, 8, 5, 5), 1):
        clock[0] += 0.5
        train.Loop._log(loop, step, (tokens, None), np.zeros(4, int), {"loss": np.float32(1)})
    for step, widths in ((2, (3, 8)), (4, (5, 5))):
        flops = sum(flops_lib.step(steps.TINY, steps.DENSE, 4, tokens=tokens) for tokens in widths)
        assert written[step]["tflops_per_second"] == pytest.approx(flops / 1e12)
        assert written[step]["images_per_second"] == pytest.approx(8)
        assert written[step]["epoch"] == step / 2
    assert written.keys() == {2, 4}


def test_the_peak_follows_from_the_devices(clock: list[float]) -> None:
    def mesh_of(devices: list[Any]) -> Any:
        return SimpleNamespace(devices=np.array(devices, object), size=len(devices))

    c = ConfigDict({"batch_size": 4, "steps": 9})
    tpu = SimpleNamespace(device_kind="TPU v5 lite", platform="tpu", num_cores=1)
    known = train._progress(mesh_of([tpu] * 4), c, 2)
    unknown = train._progress(mesh_of(jax.devices()), c, 2)
    clock[0] += 2
    assert known.rates(3, 4 * 197e12)["mfu"] == pytest.approx(0.5)
    assert unknown.rates(3, 8e12) == {"images_per_second": 2, "tflops_per_second": 0.5}
