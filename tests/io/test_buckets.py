"""Paths in buckets do what paths on disk do."""

import pickle
import threading
from pathlib import Path

import pytest

from clip_jax.errors import UserError
from clip_jax.io import buckets, file_systems, files
from support import refused


@pytest.mark.parametrize("address", ["gs://bucket/some/run", "s3://bucket/run"])
def test_an_address_is_a_path_and_is_printed_as_typed(address):
    path = buckets.as_path(address)
    assert isinstance(path, Path) and str(path) == f"{path}" == address
    assert str(buckets.as_path(f"{address}/")) == address
    assert str(path / "a" / "b.json") == f"{address}/a/b.json"
    assert (path / "a.json").with_name("b") == path / "b" and (path / "b").parent == path
    assert path.name == "run" and (path / "x.tar").suffix == ".tar"
    assert path.absolute() == path.expanduser() == path.resolve() == path
    assert pickle.loads(pickle.dumps(path)) == path and hash(path) == hash(buckets.as_path(path))


def test_other_addresses_are_refused():
    for address in ("http://host/x", "az://container/x", "gs://", "memory://x"):
        refused(lambda address=address: buckets.as_path(address), address, "gs://BUCKET/FOLDER")
    refused(lambda: buckets.on_disk("gs://bucket/x"), "give a path on disk")
    assert buckets.as_path("runs/x") == buckets.on_disk("runs/x") == Path("runs/x")


def test_objects_are_files_and_their_prefixes_folders(bucket):
    assert not bucket.exists() and not list(bucket.glob("*"))
    with pytest.raises(FileNotFoundError):
        list(bucket.iterdir())
    (bucket / "a" / "b.json").write_text("{}")
    (bucket / "c.png").write_bytes(b"123")
    assert bucket.is_dir() and not bucket.is_file() and not (bucket / "d").exists()
    assert (bucket / "c.png").is_file() and (bucket / "c.png").stat().st_size == 3
    assert list(bucket.iterdir()) == [bucket / "a", bucket / "c.png"]
    assert list(bucket.glob("*.png")) == [bucket / "c.png"]
    assert list(bucket.glob("*/b.json")) == list(bucket.glob("a/*")) == [bucket / "a" / "b.json"]
    assert bucket.files_below() == {"a/b.json": 2, "c.png": 3}
    assert files.read_json(bucket / "a" / "b.json") == {}
    (bucket / "a").rename(bucket / "moved")
    assert bucket.files_below() == {"c.png": 3, "moved/b.json": 2}
    (bucket / "c.png").unlink()
    (bucket / "c.png").unlink(missing_ok=True)
    bucket.remove_tree()
    assert not bucket.exists()


def test_reading_in_parts(bucket):
    content = bytes(range(256)) * 40_000
    with files.atomic_write(bucket / "large") as file:
        file.write(content)
    with (bucket / "large").open("rb") as file:
        assert file.read(5) == content[:5]
        file.seek(-7, 2)
        assert file.read() == content[-7:]
    with pytest.raises(FileNotFoundError, match="missing"):
        (bucket / "missing").open("rb")
    (bucket / "empty").write_bytes(b"")
    assert (bucket / "empty").open("rb").read() == (bucket / "empty").read_bytes() == b""


def test_a_write_that_fails_leaves_the_old_object(bucket):
    (bucket / "x").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), files.atomic_write(bucket / "x") as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert (bucket / "x").read_bytes() == b"old"


def test_one_of_many_writers_creates_an_object(bucket):
    created = []

    def create(i):
        try:
            (bucket / "x").create(str(i).encode())
            created.append(i)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=create, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(created) == 1 and (bucket / "x").read_bytes() == str(created[0]).encode()


def test_what_is_wrong_with_a_bucket_is_said_in_one_line(bucket, monkeypatch):
    buckets.check_writable(bucket)
    assert not bucket.exists(), "nothing is left"
    missing = buckets.as_path(str(bucket).replace("runs", "missing"))
    refused(lambda: buckets.check_writable(missing), missing, "there is no bucket")

    def absent(protocol):
        raise ImportError(f"install the package of {protocol}")

    monkeypatch.setattr(file_systems.load_fsspec(), "get_filesystem_class", absent)
    refused(lambda: buckets.check_writable(bucket), bucket, "pip install 'clip_jax[remote]'")


def test_a_store_that_refuses_is_named_with_how_to_log_in(bucket, monkeypatch):
    def forbidden(self, request):
        raise OSError(5, "HTTP 403", str(self))

    monkeypatch.setattr(buckets.BucketPath, "_request", forbidden)
    with pytest.raises(UserError, match=r"HTTP 403.*log in"):
        buckets.check_writable(bucket)


def test_a_mirror_uploads_what_has_grown(folder):
    mirror = buckets.Mirror(folder / "events")
    (mirror.path / "a").write_bytes(b"1")
    mirror.upload()
    assert (folder / "events" / "a").read_bytes() == b"1"
    (mirror.path / "a").write_bytes(b"12")
    mirror.close()
    assert (folder / "events" / "a").read_bytes() == b"12"
    assert mirror.path.exists() != mirror.is_copy
