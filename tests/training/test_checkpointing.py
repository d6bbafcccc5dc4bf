"""Whatever happens to the files of a checkpoint, none is restored that is not whole."""

import json
import re
import shutil
import threading

import jax
import numpy as np
import pytest

from checkpoints import NEW, OLD, TINY, numbers, write_run
from clip_jax.inference.model_source import open_run
from clip_jax.training import checkpointing, digests
from support import refused, says


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with two checkpoints."""
    return write_run(tmp_path_factory.mktemp("run"))


def files_of(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


def flipped(path, rng):
    raw = bytearray(path.read_bytes())
    raw[int(rng.integers(len(raw)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(raw)


def cut(path, rng):
    raw = path.read_bytes()
    path.write_bytes(raw[: int(rng.integers(len(raw)))])


def zeroed(path, rng):
    raw = bytearray(path.read_bytes())
    at = int(rng.integers(len(raw)))
    span = min(len(raw) - at, int(2 ** rng.uniform(0, 12)))
    if not any(raw[at : at + span]):
        at, span = 0, len(raw)
    raw[at : at + span] = bytes(span)
    path.write_bytes(raw)


def damaged(run, rng):
    """Does one random damage to the newest checkpoint; says which."""
    folder = run / "checkpoints" / str(NEW)
    paths = files_of(folder)
    path = paths[int(rng.integers(len(paths)))]
    name = str(path.relative_to(folder))
    match int(rng.integers(7)):
        case 0:
            flipped(path, rng)
            return f"flip in {name}"
        case 1:
            cut(path, rng)
            return f"cut of {name}"
        case 2:
            zeroed(path, rng)
            return f"zeros in {name}"
        case 3:
            path.unlink()
            return f"no {name}"
        case 4:
            others = [p for p in paths if p.read_bytes() != path.read_bytes()]
            other = others[int(rng.integers(len(others)))]
            first, second = path.read_bytes(), other.read_bytes()
            path.write_bytes(second)
            other.write_bytes(first)
            return f"{name} and {other.relative_to(folder)} swapped"
        case 5:
            older = files_of(run / "checkpoints" / str(OLD))
            older = [p for p in older if p.read_bytes() != path.read_bytes()]
            other = older[int(rng.integers(len(older)))]
            path.write_bytes(other.read_bytes())
            return f"{name} is {other.relative_to(run)}"
        case _:
            extra = path.with_name(f"{path.name}x")
            shutil.copy(path, extra)
            return f"extra {extra.name}"


def test_no_damage_is_loaded(run, tmp_path):
    old = [np.asarray(leaf) for leaf in jax.tree.leaves(numbers(OLD)[0])]
    for seed in range(200):
        folder = tmp_path / str(seed)
        shutil.copytree(run, folder)
        what = damaged(folder, np.random.default_rng(seed))
        refused(
            lambda folder=folder: open_run(folder / "checkpoints" / str(NEW)),
            f"checkpoints/{NEW} is damaged",
        )
        source = open_run(folder)
        (remark,) = source.remarks
        assert re.search(f"{NEW} is damaged.*passed over.*step {OLD}", remark), what
        assert says(remark, folder), what
        params, _ = source.read("float32")
        for ours, theirs in zip(jax.tree.leaves(params), old, strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=what)
        shutil.rmtree(folder / "checkpoints" / str(OLD))
        refused(lambda folder=folder: open_run(folder), "no whole checkpoint", f"{NEW}: ")
        shutil.rmtree(folder)


def test_whole_ones_are_loaded_without_a_word(run, tmp_path):
    shutil.copytree(run, tmp_path / "moved")
    (tmp_path / "moved" / "checkpoints" / str(NEW) / ".DS_Store").write_bytes(b"x")
    source = open_run(tmp_path / "moved")
    params, _ = source.read("float32")
    assert source.remarks == ()
    assert source.config == TINY
    new = jax.tree.leaves(numbers(NEW)[0])
    for ours, theirs in zip(jax.tree.leaves(params), new, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_whole_checkpoint_under_another_step_s_name_is_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    (folder / str(OLD)).rename(folder / "9")
    source = open_run(tmp_path / "run")
    assert source.step == NEW
    (remark,) = source.remarks
    assert re.search("9 is damaged.*that of step 4", remark)


def test_remains_of_a_killed_save_are_removed_before_the_run_resumes(tmp_path):
    left = tmp_path / checkpointing.FOLDER / "7.orbax-checkpoint-tmp"
    left.mkdir(parents=True)
    (left / "half").write_text("")
    before = threading.active_count()
    checkpoints = checkpointing.Checkpoints(tmp_path)
    assert not left.exists() and left.parent.exists()
    # a thread that still works on it when the process ends, at a wrong config, prints a traceback
    assert threading.active_count() == before
    checkpoints.close()


def test_links_and_pipes_are_no_files_of_a_checkpoint(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / str(NEW)
    shutil.move(folder / "data" / "metadata", tmp_path / "elsewhere")
    (folder / "data" / "metadata").symlink_to(tmp_path / "elsewhere")
    assert "plain file" in checkpointing.find_damage(tmp_path / "run", NEW)


def without_digests(folder):
    """A checkpoint as older versions wrote it."""
    (folder / digests.NAME).unlink()
    path = folder / "_CHECKPOINT_METADATA"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "custom_metadata": {}}))


def test_one_of_before_there_were_digests_is_loaded_with_a_line(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    without_digests(tmp_path / "run" / "checkpoints" / str(NEW))
    source = open_run(tmp_path / "run")
    (remark,) = source.remarks
    assert "older version, without digests" in remark
    params, _ = source.read("float32")
    np.testing.assert_array_equal(jax.tree.leaves(params)[0], jax.tree.leaves(numbers(NEW)[0])[0])


def test_an_unreadable_older_checkpoint_is_a_one_line_error(run, tmp_path):
    """Nothing shows its damages but that orbax fails."""
    shutil.copytree(run, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / str(NEW)
    without_digests(folder)
    for name in ("state/manifest.ocdbt", "state/_METADATA"):
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw[: len(raw) // 2])
        source = open_run(tmp_path / "run")
        assert len(source.remarks) == 1
        refused(lambda source=source: source.read("float32"), str(folder), "restored")
        (folder / name).write_bytes(raw)


def test_digests_are_of_every_byte_and_of_the_list_itself(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(bytes(5 << 20))
    digests.write(tmp_path, 3)
    assert digests.find_damage(tmp_path, 3) == ""
    assert "step 3" in digests.find_damage(tmp_path, 4)
    for path in files_of(tmp_path):
        raw = path.read_bytes()
        for at in {0, len(raw) // 2, len(raw) - 1}:
            for bit in range(8):
                path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :])
                assert digests.find_damage(tmp_path, 3), (path, at, bit)
        path.write_bytes(raw)
    assert digests.find_damage(tmp_path, 3) == ""
