"""Training under launch/local.sh: two processes, of which one is killed."""

import os
import signal
import subprocess
import time

import pytest

import runs
from clip_jax.training.stop_signal import StopSignal
from launchers import ROOT, environment
from support import encoded, picture, write_tar


@pytest.fixture
def config(tmp_path):
    members = []
    for i in range(20):
        members.append((f"{i:03}.png", encoded(picture(i, (20, 18)))))
        members.append((f"{i:03}.json", f'{{"caption": "picture {i}"}}'.encode()))
    path = runs.write_config(tmp_path, write_tar(tmp_path / "pairs.tar", members), 20)
    path.write_text(path.read_text().replace("c.evaluate.sets.held =", "unused ="))
    return path


@pytest.mark.slow
def test_a_run_whose_process_was_killed_resumes_to_the_same_numbers(config):
    workdir = config.parent / "run"
    noting = ["bash", "-c", 'echo $$ > process.$JAX_PROCESS_ID; exec "$@"', "-"]
    process = subprocess.Popen(
        [
            *(ROOT / "launch/local.sh", "2", "--devices=1", "--restarts=1", "--pause=0"),
            *("--grace=1", "--", *noting, *runs.command(config, workdir)),
        ],
        env=environment(PYTHONPATH=str(ROOT)),
        cwd=config.parent,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 200
    while not any(line["step"] >= 6 for line in runs.lines(workdir)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(int((config.parent / "process.1").read_text()), signal.SIGKILL)
    before = runs.values(workdir)
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    assert "process 1 ended with exit code 137" in stderr
    assert "starting again in 0 s (restart 1 of 1)" in stderr
    assert "resuming after step 4 of 12" in stderr
    after = runs.values(workdir)
    assert {step for step, name in after if name == "loss"} == set(range(1, 13))
    assert before.items() <= after.items()


def test_a_second_sigterm_is_the_same_wish_and_a_ctrl_c_after_it_is_not():
    with StopSignal().watching() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
