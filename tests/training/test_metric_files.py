"""The lines of metrics, on disk and in pieces in a bucket."""

import contextlib
import json
import shutil

import pytest

from clip_jax.io.buckets import BucketPath
from clip_jax.training import metric_files
from clip_jax.training.metric_files import open_metrics, read_metrics


def line(step):
    return json.dumps({"step": step, "loss": step / 7}).encode() + b"\n"


def append(folder, steps, every=1):
    file = open_metrics(folder / metric_files.NAME)
    for step in steps:
        file.append(line(step))
        if step % every == 0:
            file.flush()
    file.close()


def steps_of(folder):
    return [values["step"] for values in read_metrics(folder / metric_files.NAME)]


def test_lines_are_read_back_in_order(folder):
    assert steps_of(folder) == []
    append(folder, range(5), every=2)
    append(folder, range(5, 9))
    assert steps_of(folder) == list(range(9))


def test_pieces_are_merged(bucket, monkeypatch):
    monkeypatch.setattr(metric_files, "_MERGED", 3)
    append(bucket, range(14))
    names = sorted(path.name for path in (bucket / "metrics").iterdir())
    assert names == [
        *("00000000-00000008.jsonl", "00000009-00000011.jsonl"),
        *("00000012-00000012.jsonl", "00000013-00000013.jsonl"),
    ]
    assert steps_of(bucket) == list(range(14))


@pytest.mark.parametrize("requests", range(8))
def test_a_kill_in_a_merge_loses_no_line_and_repeats_none(bucket, monkeypatch, requests):
    monkeypatch.setattr(metric_files, "_MERGED", 3)
    append(bucket, range(2))

    class Killed(BaseException):
        pass

    left, request = requests, BucketPath._request

    def killed(self, *args):
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return request(self, *args)

    file = open_metrics(bucket / metric_files.NAME)
    file.append(line(2))
    with monkeypatch.context() as patch:
        patch.setattr(BucketPath, "_request", killed)
        with contextlib.suppress(Killed):
            file.flush()
    written = steps_of(bucket)
    assert written in ([0, 1], [0, 1, 2]) and (requests == 0) == (written == [0, 1])
    append(bucket, range(len(written), 7))
    assert steps_of(bucket) == list(range(7))


def test_a_run_that_was_copied_from_a_bucket_is_read_on_disk(bucket, tmp_path):
    append(bucket, range(3))
    (tmp_path / "metrics").mkdir()
    for path in (bucket / "metrics").iterdir():
        with path.open("rb") as source, open(tmp_path / "metrics" / path.name, "wb") as copy:
            shutil.copyfileobj(source, copy)
    append(tmp_path, range(3, 5))
    assert sorted(steps_of(tmp_path)) == list(range(5))
