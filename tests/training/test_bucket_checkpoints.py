"""Checkpoints in buckets: complete or not there, checked before they are read."""

import re

import jax
import numpy as np
import pytest

from checkpoints import NEW, OLD, TINY, numbers, write_run
from clip_jax.inference.model_source import open_run
from clip_jax.io.buckets import as_path
from clip_jax.training import checkpointing, digests, orbax_buckets
from support import refused

COMMITTED = orbax_buckets.COMMITTED


@pytest.fixture
def run(bucket):
    """A run in a bucket with two checkpoints."""
    return write_run(bucket)


def check_parameters(source, step):
    assert (source.config, source.step) == (TINY, step)
    params, _ = source.read("float32")
    for ours, theirs in zip(
        jax.tree.leaves(params), jax.tree.leaves(numbers(step)[0]), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_checkpoints_are_read_where_they_are_and_where_they_are_copied_to(run, tmp_path):
    assert checkpointing.steps(run) == [NEW, OLD]
    source = open_run(str(run))
    check_parameters(source, NEW)
    assert not source.remarks and str(source.path) == str(run)
    check_parameters(open_run(f"{run}/checkpoints/{OLD}"), OLD)
    for name in run.files_below():
        copy = tmp_path / "copy" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((run / name).read_bytes())
    check_parameters(open_run(tmp_path / "copy"), NEW)


def test_an_unfinished_checkpoint_is_not_there_and_is_removed(run):
    (run / "checkpoints" / str(NEW) / COMMITTED).unlink()
    assert checkpointing.steps(run) == [OLD]
    check_parameters(open_run(run), OLD)
    checkpointing.Checkpoints(run).close()
    assert [path.name for path in (run / "checkpoints").iterdir()] == [str(OLD)]


def test_damage_is_found_and_moved_aside(run):
    folder = run / "checkpoints" / str(NEW)
    name = max(folder.files_below(), key=folder.files_below().get)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    assert digests.find_damage(folder, NEW) == f"{name} holds other bytes than were written"
    refused(lambda: open_run(folder), folder, "is damaged")
    source = open_run(run)
    assert re.search(f"{NEW} is damaged.*passed over.*step {OLD}", source.remarks[0])
    checkpointing.set_aside(run, after=OLD)
    assert checkpointing.steps(run) == [OLD]
    assert set((run / "damaged" / str(NEW)).files_below()) >= {digests.NAME, COMMITTED, name}
    (run / "checkpoints" / str(OLD) / digests.NAME).unlink()
    refused(lambda: open_run(run), "holds no whole checkpoint", f"{digests.NAME} is missing")


def test_a_removed_checkpoint_loses_its_mark_first(run, monkeypatch):
    removed = []
    unlink = type(run).unlink

    def noted(self, missing_ok=False):
        removed.append(self.name)
        unlink(self, missing_ok)

    monkeypatch.setattr(type(run), "unlink", noted)
    orbax_buckets.support_buckets()
    orbax_buckets.gcs_utils.rmtree(as_path(run) / "checkpoints" / str(OLD))
    assert removed[0] == COMMITTED and checkpointing.steps(run) == [NEW]


def test_settings_of_the_environment_reach_tensorstore(monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    spec = orbax_buckets.store_spec("s3://bucket/run/1")
    assert spec == {"driver": "s3", "bucket": "bucket", "path": "run/1"}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000")
    spec = orbax_buckets.store_spec("s3://bucket/run")
    assert (spec["endpoint"], spec["aws_region"]) == ("http://minio:9000", "us-east-1")
    spec = orbax_buckets.store_spec("gs://bucket/run")
    assert spec == {"driver": "gcs", "bucket": "bucket", "path": "run"}
