"""Tests the command line: a mistake is one line, before anything is written."""

import json
import os
import subprocess
import sys

import pytest

import runs
from clip_jax import main
from clip_jax.cli import allocator
from clip_jax.errors import UserError
from clip_jax.models.reference import key_docs
from support import says, write_tar


@pytest.fixture
def config(tmp_path, tar_factory):
    return runs.write_config(tmp_path, tar_factory(pairs=20, size=(20, 18)), 20)


def error_of(argv):
    """The one line of the UserError that the command raises."""
    with pytest.raises(UserError) as error:
        main.run(argv)
    assert "\n" not in str(error.value)
    return str(error.value)


def flags(config, *more):
    return ["--config", str(config), "--workdir", str(config.parent / "run"), *more]


def assert_failed(process, *words):
    """Asserts that a process failed with one line that contains all of `words`."""
    assert process.returncode not in (0, None), process.stderr
    assert "Traceback" not in process.stderr
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and process.stderr.splitlines()[-1] == errors[0], process.stderr
    for word in words:
        assert str(word) in errors[0], errors[0]


@pytest.mark.parametrize("argv", [["--help"], ["--confg", "x"], []])
def test_help_and_a_wrong_flag_import_nothing_heavy(argv):
    code = (
        "import sys; from clip_jax import main\n"
        f"try: main.run({argv!r})\nexcept main.UserError as e: print(e)\n"
        "heavy = {'jax', 'flax', 'orbax', 'grain', 'optax', 'numpy', 'PIL', 'tensorflow'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], env=runs.environment(), capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert "--conf" in process.stdout


def test_help_with_a_config_shows_its_keys(config, capsys):
    assert main.run(["--config", str(config), "--help"]) == 0
    output = capsys.readouterr().out
    assert "A run of seconds." in output
    assert "--config.batch_size=8" in output and "--config.optimizer.learning_rate" in output


def test_help_with_a_config_explains_the_keys_of_its_towers(config, capsys):
    assert main.run(["--config", str(config), "--help"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "--config.model.vision.patch_size=8 the side of a patch in pixels" in output
    docs = key_docs({"vision": {"kind": "my_towers:Mine"}, "text": {"kind": "bert"}})
    assert "segments" in docs["model.text.token_types"]
    assert not any(name.startswith("model.vision.") for name in docs)


@pytest.mark.parametrize(
    ("mode", "shown", "hidden"),
    [
        ("plan", ["--topology", "--config.remat=", "compile"], ["--suite", "--force", "log.every"]),
        ("evaluate", ["--suite", "--config.evaluate.sets"], ["--topology", "--config.remat="]),
        ("train", ["--force", "--config.remat="], ["--topology", "--suite", "write a report"]),
    ],
)
def test_help_with_a_mode_shows_what_that_mode_reads(config, capsys, mode, shown, hidden):
    assert main.run(["--config", str(config), f"--mode={mode}", "--help"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert all(words in output for words in shown)
    assert not any(words in output for words in hidden)


def test_the_error_for_a_wrong_flag_or_mode_names_it():
    assert "--confg" in error_of(["--confg=x"])
    assert "evaluate" in error_of(["--config", "x", "--mode=tran"])
    assert "configs/quickstart.py" in error_of([])


def test_the_error_for_an_unknown_key_names_the_closest_known_one(config):
    assert says(
        UserError(error_of(flags(config, "--config.batchsize=8"))), "batchsize", "config.batch_size"
    )
    assert "config.optimizer.learning_rate" in error_of(
        flags(config, "--config.optimizer.lr_rate", "1")
    )
    assert not (config.parent / "run").exists()


def test_a_batch_size_that_the_devices_do_not_divide_is_a_user_error(config):
    line = error_of(flags(config, "--config.batch_size=12"))
    assert "config.batch_size=12" in line and "8 devices" in line and "such as" in line
    assert not (config.parent / "run").exists()


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.steps=0", ["config.steps=0"]),
        ("--config.steps=abc", ["config.steps", "whole number"]),
        ("--config.dtype=float8", ["config.dtype", "bfloat16"]),
        ("--config.remat=some", ["remat", "full"]),
        ("--config.tokenizer=words", ["words", "sentencepiece:"]),
        ("--config.mesh.tensor=3", ["config.mesh", "8 devices"]),
        ("--config.model.text.vocab_size=10", ["vocab_size"]),
        ("--config.model.vision.patch_size=7", ["patch_size"]),
        ("--config.data.train=", ["config.data.train"]),
        ("--config.data.train=/nowhere/{00..01}.tar", ["/nowhere/00.tar"]),
        ("--config.data.captions=('{title}',)", ["title", "caption"]),
        ("--config.workdir=", ["--workdir"]),
    ],
)
def test_wrong_values_are_one_line_and_leave_no_folder(config, flag, words):
    argv = flags(config, flag)
    if flag == "--config.workdir=":
        argv = ["--config", str(config), flag]
    line = error_of(argv)
    for word in words:
        assert word in line
    assert not (config.parent / "run").exists()


def test_the_error_for_a_truncated_tar_names_it(config, tar_factory):
    path = tar_factory("cut.tar", pairs=9)
    path.write_bytes(path.read_bytes()[:600])
    assert "cut.tar" in error_of(flags(config, f"--config.data.train={path}"))
    assert not (config.parent / "run").exists()


def test_the_error_for_a_corrupt_image_names_it(config, tmp_path):
    members = [("7.png", b"\x89PNG not really"), ("7.json", b'{"caption": "x"}')]
    path = write_tar(tmp_path / "bad.tar", members)
    process = runs.run(config, tmp_path / "run", f"--config.data.train={path}")
    assert_failed(process, "bad.tar", "7.png")


def test_the_error_of_a_worker_process_names_the_corrupt_image(config, tmp_path):
    members = [("7.png", b"\x89PNG not really"), ("7.json", b'{"caption": "x"}')]
    path = write_tar(tmp_path / "bad.tar", members)
    process = runs.run(
        config, tmp_path / "run", f"--config.data.train={path}", "--config.data.workers=1"
    )
    assert_failed(process, "bad.tar", "7.png")


def test_the_folder_of_another_run_is_refused_and_unchanged(config):
    workdir = config.parent / "run"
    workdir.mkdir()
    from clip_jax import config as config_lib

    old, _ = config_lib.load(str(config), ["seed=7"])
    text = config_lib.to_json(old)
    (workdir / "config.json").write_text(text)
    line = error_of(flags(config))
    assert "seed: 7 → 0" in line and str(workdir) in line
    assert [p.name for p in workdir.iterdir()] == ["config.json"]
    assert (workdir / "config.json").read_text() == text


def test_a_run_can_be_resumed_with_other_intervals(config):
    from clip_jax import config as config_lib

    old, _ = config_lib.load(str(config), ["checkpoint.every=2", "log.every=7", "data.threads=1"])
    new, _ = config_lib.load(str(config))
    assert config_lib.differences(old.to_dict(), new.to_dict()) == []


@pytest.mark.slow
def test_a_full_disk_while_logging(config, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "metrics.jsonl").symlink_to("/dev/full")
    process = runs.run(config, workdir, "--config.log.tensorboard=false")
    assert_failed(process, "disk is full", "resumes")


@pytest.mark.slow
def test_a_full_disk_while_saving_leaves_no_half_checkpoint(config, tmp_path):
    """A limit on file sizes simulates a full disk: the write fails in the same place."""
    workdir = tmp_path / "run"
    limit = (
        "import os, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    argv = runs.command(config, workdir, "--config.log.tensorboard=false")
    process = subprocess.run(
        [sys.executable, "-c", limit, *argv],
        env=runs.environment(JAX_ENABLE_COMPILATION_CACHE="false"),
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert_failed(process, "disk is full")
    from clip_jax.training import checkpointing

    assert checkpointing.steps(workdir) == []
    assert all(json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines())
    resumed = runs.run(config, workdir)
    assert resumed.returncode == 0, resumed.stderr
    assert runs.values(workdir)[12, "loss"] > 0


def test_nothing_is_printed_after_the_error_of_a_failed_save():
    """Writes that are pending when one fails end with the process, early or late."""
    code = (
        "import errno\n"
        "from clip_jax.cli import common\n"
        "async def write_fragment(): pass\n"
        "def save(argv):\n"
        "    global queued\n"
        "    common._silence_reported_errors()\n"
        "    queued = write_fragment()\n"
        "    write_fragment()\n"
        "    raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "common.run_and_exit(save, [])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], env=runs.environment(), capture_output=True, text=True
    )
    assert_failed(process, "disk is full")
    assert process.stderr.count("\n") == 1


def test_a_disk_too_small_for_checkpoints_is_a_user_error_before_training(config, monkeypatch):
    real_statvfs = os.statvfs

    def almost_full(path):
        fields = list(real_statvfs(path))
        fields[4] = 1  # f_bavail
        return os.statvfs_result(fields)

    monkeypatch.setattr(os, "statvfs", almost_full)
    assert "GiB free" in error_of(flags(config))


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run(config, tmp_path):
    process = runs.run(config, tmp_path / "run", "--config.optimizer.learning_rate=1e30")
    assert_failed(process, "loss is", "learning_rate")


def test_the_error_for_an_unwritable_folder_names_it(config, tmp_path):
    (tmp_path / "file").write_text("")
    process = runs.run(config, tmp_path / "file" / "run")
    assert_failed(process, tmp_path / "file")


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
@pytest.mark.parametrize("own", [None, "glibc.malloc.check=0"])
def test_the_command_restarts_with_its_heap_settings_unless_the_user_has_set_them(own):
    code = (
        "import os; from clip_jax.cli import allocator; allocator.tune_allocator()\n"
        "print(os.environ['GLIBC_TUNABLES'], sorted(k for k in os.environ if 'TUNABLES' in k))"
    )
    env = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    env |= {"GLIBC_TUNABLES": own} if own else {}
    process = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == f"{own or allocator.heap_settings()} ['GLIBC_TUNABLES']"
    assert "hugetlb=1" in allocator.heap_settings()


@pytest.mark.slow
def test_a_config_that_lacks_keys_trains_with_their_defaults(config, tmp_path):
    """Such as one that was written before `data.redirects` existed."""
    older = tmp_path / "older.py"
    older.write_text(
        config.read_text().replace("    return c\n", "    del c.data.redirects\n    return c\n")
    )
    done = runs.run(older, tmp_path / "run", "--config.steps=3")
    assert done.returncode == 0, done.stderr
