"""All launchers: linted, with a help whose example can be pasted."""

import os
import shlex
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCHERS = ["local.sh", "tpu_vm.sh", "gke.sh", "slurm.sh"]


def test_every_shell_file_is_linted():
    files = sorted(ROOT.glob("launch/*.sh"))
    assert {*LAUNCHERS, "common.sh", "tpu_worker.sh"} == {f.name for f in files}
    shellcheck = Path(sysconfig.get_path("scripts")) / "shellcheck"
    done = subprocess.run([shellcheck, *files, ROOT / ".ci/run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for file in files:
        subprocess.run(["bash", "-n", file], check=True)


def test_the_linter_finds_mistakes(tmp_path):
    bad = tmp_path / "bad.sh"
    bad.write_text("#!/usr/bin/env bash\nrm -r $1\n")
    shellcheck = Path(sysconfig.get_path("scripts")) / "shellcheck"
    done = subprocess.run([shellcheck, bad], capture_output=True, text=True)
    assert done.returncode == 1 and "SC2086" in done.stdout


@pytest.mark.parametrize("script", LAUNCHERS)
def test_the_example_in_the_help_can_be_pasted(launch, tmp_path, script):
    assert os.access(ROOT / "launch" / script, os.X_OK)
    shown = launch(script, "--help")
    assert shown.returncode == 0 and not shown.stderr
    assert all(len(line) <= 100 for line in shown.stdout.splitlines())
    usages = [
        line
        for line in shown.stdout.replace("\\\n", "").splitlines()
        if line.startswith("  launch/")
    ]
    grammar, example = usages[:2]
    assert "FLAGS" in grammar and f"launch/{script}" in grammar
    words = shlex.split(example)
    assert words.pop(0) == f"launch/{script}"
    words.insert(words.index("--"), "--dry-run")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    done = launch(script, *words)
    assert done.returncode == 0, done.stderr
    assert "configs/" in done.stdout


@pytest.mark.parametrize(
    ("script", "args"),
    [
        ("local.sh", ["2"]),
        ("tpu_vm.sh", ["train", "pod", "--type=v4-8"]),
        ("gke.sh", ["job", "--image=i", "--tpu=v5e", "--topology=4x4"]),
        ("slurm.sh", ["--gpus=8"]),
    ],
)
def test_mistakes_are_one_line_errors(fails, script, args):
    assert "after --" in fails(script, *args, "--dry-run", "--")
    assert "unknown option --dry; see" in fails(script, *args, "--dry")
    assert "--restarts -1: a whole number" in fails(script, *args, "--restarts=-1")
    assert "--restarts needs a value" in fails(script, *args, "--restarts", "--", "--config=x")


@pytest.mark.parametrize(
    ("script", "args", "tool"),
    [
        ("tpu_vm.sh", ["stop", "pod"], "gcloud"),
        (
            "gke.sh",
            ["j", "--image=i", "--tpu=v5e", "--topology=4x4", "--", "--config=x"],
            "kubectl",
        ),
        ("slurm.sh", ["--gpus=8", "--", "--config=x"], "sbatch"),
        ("local.sh", ["1", "--", "no_such_command"], "no_such_command"),
    ],
)
def test_a_missing_tool_is_named(fails, tmp_path, script, args, tool):
    for name in ("bash", "env", "dirname", "awk"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    assert f"{tool} is not installed: " in fails(script, *args, PATH=str(tmp_path))
