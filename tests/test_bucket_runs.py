"""A run in a bucket is a run on disk: killed, resumed, evaluated, used."""

import json

import pytest

import kills
import runs


def printed(done):
    """The metrics that an evaluation prints last."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_killed_run_ends_as_one_on_disk_and_is_evaluated_where_it_is(bucket, tmp_path):
    kills.kill(tmp_path, 2, 1, seed=22, place=bucket)
    config, run = tmp_path / "config.py", bucket / "run1"
    names = {name.partition("/")[0] for name in run.files_below()}
    assert names == {
        *("checkpoints", "config.json", "fingerprints.json", "metrics", "pictures"),
        *("report.html", "report.json", "tensorboard"),
    }
    cache = {
        "JAX_COMPILATION_CACHE_DIR": f"{bucket}/programs",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    first = runs.run(config, run, "--mode=evaluate", **cache)
    logged = {name: value for (step, name), value in runs.values(run).items() if step == 12}
    metrics = printed(first)
    assert metrics["zero_shot/held/top5"] == logged["zero_shot/held/top5"]
    assert (bucket / "programs").exists()
    second = runs.run(config, run, "--mode=evaluate", **cache)
    assert printed(second) == metrics and "was done before" in second.stderr
