"""launch/tpu_vm.sh on a pod that is played: two workers are two home folders."""

from __future__ import annotations

import shutil
import subprocess
import time

import pytest

from launchers import HARD_WORDS, ROOT, environment

CREATE = ["--type=v5litepod-16", "--zone=z"]

# $PODS/NAME is what became of a pod, $PODS/NAME.W the home of its worker W
GCLOUD = r"""
words=("$@") zone='' command='' worker=''
for word in "${words[@]}"; do
  case $word in
    --zone=*) zone=${word#*=} ;;
    --command=*) command=${word#*=} ;;
    --worker=*) worker=${word#*=} ;;
  esac
done
homes() { [[ $worker == all ]] && echo 0 1 || echo "$worker"; }
case "$3 $4" in
  'queued-resources create')
    echo "$5 created in $zone" >&2
    for w in 0 1; do mkdir -p "$PODS/$5.$w"; done
    echo ACTIVE > "$PODS/$5"
    ;;
  'queued-resources list') cat "$PODS/pod" 2> /dev/null || : ;;
  'queued-resources delete') rm -r "$PODS/$5" "$PODS/$5".* ;;
  'tpu-vm scp') for w in $(homes); do cp "$5" "$PODS/pod.$w/${6#*:}"; done ;;
  'tpu-vm ssh')
    for w in $(homes); do
      cd "$PODS/pod.$w" && HOME=$PWD WORKER=$w bash -c "$command" || exit
    done
    ;;
esac
"""
# makes the environment whose python notes its arguments and does $TRAIN
UV = r"""
[[ $1 == venv ]] || exit 0
mkdir -p .venv/bin
cat > .venv/bin/python << 'END'
#!/usr/bin/env bash
printf '%s\0' "$@" > ~/argv
eval "$TRAIN"
END
chmod +x .venv/bin/python
"""


@pytest.fixture
def pod(tools, tmp_path):
    """`pod("create", …)`: the launcher, with the gcloud that is played."""
    tools.add("gcloud", GCLOUD)
    tools.add("uv", UV)
    tools.add("mountpoint")
    tools.add("gcsfuse")
    (tmp_path / "pods").mkdir()
    checkout = tmp_path / "checkout"  # a small one: it is packed and sent
    shutil.copytree(ROOT / "launch", checkout / "launch")
    (checkout / "runs").mkdir()
    (checkout / "runs/large").touch()

    started = []

    def start(action: str, *args: str, train: str = "") -> subprocess.Popen[str]:
        env = environment(
            PATH=tools.path, PODS=str(tmp_path / "pods"), TRAIN=train, TMPDIR=str(tmp_path)
        )
        del env["PYTHON"]
        process = subprocess.Popen(
            [checkout / "launch/tpu_vm.sh", action, "pod", *args],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        started.append(process)
        return process

    def run(*args: str, train: str = "") -> subprocess.CompletedProcess[str]:
        process = start(*args, train=train)
        stdout, stderr = process.communicate(timeout=60)
        return subprocess.CompletedProcess(args, process.returncode, stdout, stderr)

    run.start = start
    run.folder = tmp_path / "pods"
    yield run
    for process in started:
        process.kill()
        process.communicate()
    for file in run.folder.glob("pod.?/clip_jax.pid"):
        subprocess.run(["kill", "-KILL", file.read_text().strip()], stderr=subprocess.DEVNULL)


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def code_files(pod):
    return [f for f in pod.folder.glob("pod.?/clip_jax.code") if f.read_text()]


def verbs(tools):
    """What gcloud was asked to do, without the looks at the pod."""
    commands = []
    for call in tools.calls("gcloud"):
        if call[4] == "ssh":
            (command,) = [word for word in call if word.startswith("--command=")]
            call[4] = command.partition("=")[2].rpartition("tpu_worker.sh ")[2].split()[0]
        commands.append(call[4])
    return [verb for verb in commands if verb not in ("list", "progress")]


LIFE = ["create", "scp", "mkdir", "install", "start"]


def test_create_asks_for_the_pod(pod, tools):
    done = pod("create", *CREATE, "--spot", "--project=p", "--create=--network=n")
    assert done.returncode == 0, done.stderr
    created, listed = tools.calls("gcloud")
    assert created == [
        *("gcloud", "compute", "tpus", "queued-resources", "create", "pod", "--node-id=pod"),
        *("--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"),
        *("--network=n", "--zone=z", "--project=p"),
    ]
    assert listed[3:6] == ["queued-resources", "list", "--filter=name~(^|/)pod$"]


def test_create_waits_and_says_when_nothing_comes(pod, tools):
    tools.add("sleep", 'echo FAILED > "$PODS/pod"')
    tools.add("gcloud", GCLOUD.replace("echo ACTIVE", "echo WAITING_FOR_RESOURCES"))
    done = pod("create", *CREATE)
    assert done.returncode == 2
    assert "launch: pod is WAITING_FOR_RESOURCES\n" in done.stderr
    assert "error: pod is FAILED: launch/tpu_vm.sh delete pod" in done.stderr


@pytest.mark.parametrize(
    ("type_", "runtime"),
    [
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-256", "v2-alpha-tpuv6e"),
    ],
)
def test_the_software_follows_from_the_type(launch, type_, runtime):
    done = launch("tpu_vm.sh", "create", "pod", f"--type={type_}", "--dry-run")
    assert f" --runtime-version={runtime}" in done.stdout
    done = launch("tpu_vm.sh", "create", "pod", f"--type={type_}", "--runtime=r", "--dry-run")
    assert " --runtime-version=r" in done.stdout


def test_every_worker_gets_the_checkout_the_words_unchanged_and_the_bucket(pod, tools):
    pod("create", *CREATE)
    done = pod("install", "--bucket=my-bucket")
    assert done.returncode == 0, done.stderr
    assert [call[-2:] for call in tools.calls("gcsfuse")] == []  # mounted, says mountpoint
    assert tools.calls("mountpoint") == [["mountpoint", "-q", "/mnt/my-bucket"]] * 2
    assert pod("start", "--", "--config", *HARD_WORDS).returncode == 0
    until(lambda: len(code_files(pod)) == 2)
    for home in pod.folder.glob("pod.?"):
        assert [f.name for f in (home / "clip_jax").iterdir() if f.name != ".venv"] == ["launch"]
        assert (home / "argv").read_text().split("\0")[:-1] == [
            *("-m", "clip_jax.main", "--config", *HARD_WORDS)
        ]
        assert (home / "clip_jax.code").read_text() == "0\n"


def test_an_unmounted_bucket_is_mounted(pod, tools):
    tools.add("mountpoint", "exit 1")
    tools.add("sudo")
    pod("create", *CREATE)
    assert pod("install", "--bucket=my-bucket").returncode == 0
    calls = tools.calls("gcsfuse")
    assert [call[-2:] for call in calls] == [["my-bucket", "/mnt/my-bucket"]] * 2
    assert all("--rename-dir-limit=100000" in call for call in calls)


def test_a_run_is_not_started_twice_and_stops_when_it_has_saved(pod):
    train = "trap 'sleep 0.5; echo saved; exit' TERM; touch ~/ready; while :; do sleep 0.05; done"
    pod("create", *CREATE)
    pod("install")
    assert pod("start", "--", "--config=a", train=train).returncode == 0
    again = pod("start", "--", "--config=b")
    assert again.returncode == 2 and "clip_jax runs already" in again.stderr
    assert pod("status").stdout.splitlines()[-2:] == ["clip_jax: running"] * 2
    until(lambda: len(list(pod.folder.glob("pod.?/ready"))) == 2)
    assert pod("stop").returncode == 0
    until(lambda: len(code_files(pod)) == 2)
    for home in pod.folder.glob("pod.?"):
        assert "saved" in (home / "clip_jax.log").read_text()
        assert (home / "argv").read_text() == "-m\0clip_jax.main\0--config=a\0"
    assert pod("status").stdout.splitlines()[-2:] == ["clip_jax: 143"] * 2
    assert pod("stop").returncode == 0


def test_between_its_end_and_its_exit_code_a_run_is_not_none(pod, tools):
    """Else `train` would start a training again that has just ended."""
    tools.add("mv", 'sleep 1; exec /bin/mv "$@"')
    pod("create", *CREATE)
    pod("install")
    train = "touch ~/ended; exit 3"
    assert pod("start", "--restarts=0", "--", "--config=a", train=train).returncode == 0
    until(lambda: len(list(pod.folder.glob("pod.?/ended"))) == 2)
    states = [pod("status").stdout.splitlines()[-2:] for _ in range(3)]
    until(lambda: len(code_files(pod)) == 2)
    states.append(pod("status").stdout.splitlines()[-2:])
    assert states[0] == ["clip_jax: running"] * 2
    assert states[-1] == ["clip_jax: 3"] * 2
    assert all("clip_jax: none" not in lines for lines in states)


def test_train_creates_installs_starts_and_ends_with_the_training(pod, tools):
    done = pod("train", *CREATE, "--every=0", "--", "--config=x", train="sleep 0.3")
    assert done.returncode == 0, done.stderr
    assert verbs(tools) == LIFE
    assert "launch: done; launch/tpu_vm.sh delete pod gives the pod back" in done.stderr
    # the pod is there and its last command ended well: another is another
    done = pod("train", *CREATE, "--every=0", "--", "--config=y")
    assert done.returncode == 0
    assert verbs(tools) == [
        *["create", "scp", "mkdir", "install", "start"],
        *["scp", "mkdir", "install", "start"],
    ]
    assert (pod.folder / "pod.0/argv").read_text() == "-m\0clip_jax.main\0--config=y\0"


def test_a_pod_that_was_taken_away_is_created_again_and_the_command_resumes(pod, tools):
    train = (
        'echo x >> "$PODS/lives.$WORKER"; [[ $(wc -l < "$PODS/lives.$WORKER") == 2 ]] || sleep 60'
    )
    process = pod.start("train", *CREATE, "--every=0", "--", "--config=x", train=train)
    until(lambda: [f.read_text() for f in pod.folder.glob("lives.?")] == ["x\n"] * 2)
    pids = [f.read_text().strip() for f in pod.folder.glob("pod.?/clip_jax.pid")]
    subprocess.run(["kill", "-KILL", *pids], check=True)
    (pod.folder / "pod").write_text("SUSPENDED")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "launch: pod is SUSPENDED: creating it again" in stderr
    assert verbs(tools) == [*LIFE, "delete", *LIFE]


def test_train_may_be_ended_and_started_again(pod, tools):
    train = "until [[ -e ~/go ]]; do sleep 0.05; done; exit 9"
    command = ["train", *CREATE, "--every=1", "--restarts=0", "--", "--config=x"]
    first = pod.start(*command, train=train)
    until(lambda: len(list(pod.folder.glob("pod.?/argv"))) == 2)
    first.kill()
    first.communicate()
    looks = len(tools.calls("gcloud"))
    second = pod.start(*command, train="exit 0")
    until(lambda: len(tools.calls("gcloud")) >= looks + 2)
    for home in pod.folder.glob("pod.?"):
        (home / "go").touch()
    assert second.wait(timeout=60) == 9
    assert verbs(tools).count("start") == 1


@pytest.mark.parametrize(("train", "code"), [("exit 2", 2), ("exit 5", 5)])
def test_train_ends_with_the_workers_failure(pod, tools, train, code):
    done = pod("train", *CREATE, "--every=0", "--restarts=0", "--", "--config=x", train=train)
    assert done.returncode == code
    assert f"ended with exit code {code}: see launch/tpu_vm.sh log pod" in done.stderr
    assert verbs(tools).count("start") == 1


def test_train_ends_when_somebody_stops_the_run(pod):
    train = "trap 'exit' TERM; touch ~/ready; while :; do sleep 0.05; done"
    process = pod.start("train", *CREATE, "--every=1", "--", "--config=x", train=train)
    until(lambda: len(list(pod.folder.glob("pod.?/ready"))) == 2)
    assert pod("stop").returncode == 0
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143, stderr
    assert "stopped: the same command goes on" in stderr


def test_a_dry_run_prints_the_commands_of_train(pod, tools, read_shell):
    args = [*CREATE, "--bucket=my-bucket", "--", "--config", *HARD_WORDS]
    done = pod("train", "--dry-run", *args)
    assert done.returncode == 0 and not tools.calls()
    shown = [read_shell(line) for line in done.stdout.splitlines()]
    pod("train", "--every=0", *args)
    *commands, look = [words for words in shown if words[0] == "gcloud"]
    ran = [call for call in tools.calls("gcloud") if call[4] != "list"]
    assert [call for call in ran if call != look] == commands
    assert look in ran


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "unknown action '': one of train"),
        (["run"], "unknown action 'run'"),
        (["stop"], "the pod's name ''"),
        (["stop", "A"], "the pod's name 'A'"),
        (["stop", "a", "b"], "unexpected b"),
        (["stop", "a", "--", "--config=x"], "stop takes no flags of the training command"),
        (["create", "a"], "--type is missing"),
        (["create", "a", "--type=tpu9"], "--type tpu9: give its --runtime too"),
        (["start", "a"], "nothing to run"),
        (["install", "a", "--bucket=gs://b"], "without gs://"),
        (["log", "a", "--worker=x"], "--worker x: a whole number"),
    ],
)
def test_wrong_arguments_are_named(fails, args, words):
    assert words in fails("tpu_vm.sh", *args)
