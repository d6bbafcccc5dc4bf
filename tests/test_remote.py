"""A run on tars far away, whose server fails now and then, is the run on the same tars here."""

import signal

import numpy as np
import pytest

import runs
from servers import serving

pytest.importorskip("aiohttp")
PAIRS = 20


@pytest.mark.slow
def test_a_killed_run_over_http_is_the_run_on_files_here(tmp_path):
    config = runs.small_run(tmp_path, PAIRS)
    here = tmp_path / "here"
    done = runs.run(config, here)
    assert done.returncode == 0, done.stderr

    faults = [*([""] * 30), "503", "drop", "less", *([""] * 60), "500", "drop at once"] * 2
    with serving(tmp_path, faults) as server:
        far = tmp_path / "far"
        flags = (f"--config.data.train={server.url}/pairs.tar", "--config.data.threads=1")
        process, _ = runs.run_until(config, far, 5, signal.SIGKILL, *flags)
        assert process.returncode == -signal.SIGKILL
        done = runs.run(config, far, *flags, "--config.data.workers=1")
        assert done.returncode == 0, done.stderr
        assert server.asked["/pairs.tar"] > 12 * 8
    assert runs.values(far) == runs.values(here)
    ours, theirs = runs.parameters(far), runs.parameters(here)
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def test_a_server_that_is_gone_ends_the_run_with_a_line(tmp_path):
    config = runs.small_run(tmp_path, PAIRS)
    with serving(tmp_path) as server:
        server.always = "403"
        flag = f"--config.data.train={server.url}/pairs.tar"
        done = runs.run(config, tmp_path / "run", flag)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and f"{server.url}/pairs.tar cannot be read (HTTP 403)" in line
    assert "Traceback" not in done.stderr
