"""launch/slurm.sh: what is submitted, and what it does on a cluster that is played."""

import re
import shlex
import subprocess
import sysconfig
from pathlib import Path

import pytest

from launchers import HARD_WORDS, environment

FLAGS = ["--", "--config", "configs/vit_b16.py"]


@pytest.fixture
def script(launch):
    def render(*args: str) -> str:
        done = launch("slurm.sh", *args)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return render


def directives(script: str) -> dict[str, str]:
    lines = re.findall(r"^#SBATCH --(.*)$", script, re.MULTILINE)
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def step(script: str) -> str:
    (line,) = re.findall(r"^  (srun .*) &$", script, re.MULTILINE)
    return line


def test_a_process_for_each_gpu(script):
    text = script("--nodes=4", "--gpus", "8", "--time=1-12:00:00", "--dry-run", *FLAGS)
    assert text.startswith("#!/usr/bin/env bash\n#SBATCH ")
    options = directives(text)
    assert (options["nodes"], options["ntasks-per-node"], options["gpus-per-node"]) == (
        "4",
        "8",
        "8",
    )
    assert (options["time"], options["signal"]) == ("1-12:00:00", "B:USR1@300")
    assert "requeue" in options and options["open-mode"] == "append"
    # each process picks its GPU by its rank on the node, so it must see them all
    assert "--gpu-bind=none" in shlex.split(step(text))
    assert "gpus-per-node" not in directives(script("--gpus=0", "--dry-run", *FLAGS))


def test_more_options_an_environment_and_a_container(script, tmp_path):
    (tmp_path / "my venv/bin").mkdir(parents=True)
    (tmp_path / "my venv/bin/activate").touch()
    (tmp_path / "clip jax.sif").touch()
    text = script(
        *("--gpus=1", "--venv=my venv", "--container=clip jax.sif", "--sbatch=--account=a b"),
        *("--sbatch=--partition=p", "--srun", "--mpi=none", "--dry-run", *FLAGS),
    )
    assert directives(text)["account"] == "a b" and directives(text)["partition"] == "p"
    assert "source my\\ venv/bin/activate\n" in text
    words = shlex.split(step(text))
    assert words[words.index("--mpi=none") + 1 :][:4] == [
        *("apptainer", "exec", "--nv", "clip jax.sif"),
    ]


def test_rendered_scripts_are_linted(script, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/activate").touch()
    shellcheck = Path(sysconfig.get_path("scripts")) / "shellcheck"
    for args in (["--gpus=0"], ["--gpus=8", "--venv=."]):
        text = script(*args, "--dry-run", "--", "--config", *HARD_WORDS)
        done = subprocess.run(
            [shellcheck, "--exclude=SC1091", "-"], input=text, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout


def test_sbatch_reads_the_printed_script(launch, tools):
    tools.add("sbatch", "cat")
    args = ["--gpus=8", "--nodes=2"]
    done = launch("slurm.sh", *args, *FLAGS, PATH=tools.path)
    assert done.stdout == launch("slurm.sh", *args, "--dry-run", *FLAGS).stdout
    assert tools.calls() == [["sbatch"]]


@pytest.fixture
def play(script, tools, tmp_path):
    """Runs the script as job 7 with an srun that does `body`, and a sleep that takes no time."""

    def run(body: str, *args: str, flags: list[str] = FLAGS, preempted: str = "N/A"):
        tools.add("srun", body)
        tools.add("sleep")
        tools.add("squeue", f"echo '{preempted}'")
        tools.add("scontrol")
        tools.add("scancel", 'kill -TERM "$(cat step)"')
        (tmp_path / "job").write_text(script("--gpus=0", *args, "--dry-run", *flags))
        return subprocess.run(
            ["bash", "job"],
            cwd=tmp_path,
            env=environment(PATH=tools.path, SLURM_JOB_ID="7"),
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def test_words_reach_the_processes_unchanged(play, tools):
    assert play("", flags=["--", "train", *HARD_WORDS]).returncode == 0
    (call,) = tools.calls("srun")
    assert call[call.index("train") :] == ["train", *HARD_WORDS]


@pytest.mark.parametrize(("code", "runs"), [(0, 1), (2, 1), (1, 3), (137, 3)])
def test_a_failure_is_started_again_and_a_mistake_is_not(play, tools, code, runs):
    done = play(f"exit {code}", "--restarts=2")
    assert done.returncode == code
    assert len(tools.calls("srun")) == runs
    assert done.stderr.count("starting again") == runs - 1
    assert not tools.calls("scontrol")


def test_before_the_time_is_over_the_processes_save_and_the_job_is_queued_again(play, tools):
    # saves on SIGTERM, as clip_jax.main does, and ends well
    body = (
        "trap 'echo saved; exit 0' TERM; echo $$ > step; kill -USR1 $PPID\n"
        "for ((i = 0; i < 300; i++)); do read -rt 0.1 <> <(:); done"
    )
    done = play(body)
    assert done.stdout == "saved\n"
    assert [call[1:] for call in tools.calls("scancel")] == [["--signal=TERM", "7"]]
    assert [call[1:] for call in tools.calls("scontrol")] == [["requeue", "7"]]
    assert len(tools.calls("srun")) == 1


@pytest.mark.parametrize("code", [0, 143])
def test_a_preempted_job_is_queued_again(play, tools, code):
    done = play(f"exit {code}", preempted="2026-11-22T11:22:07")
    assert done.returncode == 0
    assert [call[1:] for call in tools.calls("scontrol")] == [["requeue", "7"]]
    assert len(tools.calls("srun")) == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "how many GPUs has a node?"),
        (["--gpus=8", "--nodes=0"], "--nodes 0"),
        (["--gpus=8", "--time=soon"], "--time soon"),
        (["--gpus=8", "--name=a b"], "--name a b"),
        (["--gpus=8", "--venv=nowhere"], "--venv nowhere: there is no bin/activate in it"),
        (["--gpus=8", "--container=no.sif"], "--container no.sif: no such file"),
        (["--gpus=8", "--sbatch=partition=p"], "partition=p is no option"),
        (["--gpus=8", "--sbatch=--a\n#SBATCH --b"], "is no option"),
        (["--gpus=8", "runs/x"], "unknown option runs/x"),
    ],
)
def test_wrong_arguments_are_named(launch, args, words):
    done = launch("slurm.sh", *args, "--dry-run", *FLAGS)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and words in done.stderr
