"""Many processes are one machine: the same batches, losses and checkpoints, and one end."""

import json
import signal
import socket
import sys

import pytest

import runs
from clip_jax.distributed import multihost
from clip_jax.training import best_checkpoint, checkpointing
from support import encoded, picture, write_tar

PAIRS, STEPS = 20, 60


def test_alone_nothing_is_started_or_changed():
    with multihost.process_group(None):
        assert not multihost.is_multi_process() and multihost.is_first()
        assert multihost.broadcast_from_first(lambda: "x") == "x"
    import jax

    assert not jax.distributed.is_initialized()


# What each of two processes with two devices checks; process 0 ends with a word on stdout.
PEER = """
import sys, time
from clip_jax import main
from clip_jax.distributed import cluster_env, multihost
args = main.make_parser().parse_args(sys.argv[1:])
place = cluster_env.detect_process(args.coordinator, args.processes, args.process, {})
with multihost.process_group(place, 60, 60):
    import jax, numpy as np
    from jax.experimental import multihost_utils
    from clip_jax.distributed import global_batch, sharding
    i = jax.process_index()
    assert multihost.is_multi_process() and multihost.is_first() == (i == 0)
    assert jax.device_count() == 4
    a, b, c, d = jax.devices()
    meshes = [
        ({"data": 4}, [a, b, c, d], [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ({"data": 4}, [a, c, b, d], [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ({"data": 2, "tensor": 2}, [a, b, c, d], [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ({"data": 2, "tensor": 2}, [a, c, d, b], [range(8), range(8)]),
        ({"fsdp": 2, "tensor": 2}, [d, c, b, a], [[4, 5, 6, 7], [0, 1, 2, 3]]),
        ({"tensor": 4}, [a, b, c, d], [range(8), range(8)]),
    ]
    full_batch = {"image": np.arange(48, dtype=np.uint8).reshape(8, 2, 3), "tokens": np.arange(8)}
    for shape, devices, expected in meshes:
        mesh = sharding.make_mesh(shape, devices)
        own = global_batch.process_rows(mesh, 8)
        assert own.tolist() == list(expected[i]), (shape, i, own)
        batch = global_batch.global_batch({k: v[own] for k, v in full_batch.items()}, mesh)
        for name, array in batch.items():
            assert array.sharding == sharding.batch_sharding(mesh)
            gathered = multihost_utils.process_allgather(array, tiled=True)
            np.testing.assert_array_equal(gathered, full_batch[name])
    assert multihost.broadcast_from_first(lambda: {"who": i}) == {"who": 0}
    assert multihost.broadcast_from_first(lambda: [i]) == [0]
    latest = multihost.MaxOverProcesses(mesh)
    assert [int(latest(n)) for n in (0, 15 * i, 2 - i)] == [0, 15, 2]
print("checked")
multihost.exit_process(0)
"""


def test_each_process_makes_the_rows_that_its_devices_hold():
    done = runs.together([sys.executable, "-c", PEER], 2, devices=2)
    assert [(p.returncode, p.stdout.splitlines()[-1]) for p in done] == [(0, "checked")] * 2, done


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    path = runs.small_run(folder, PAIRS)
    more = {"steps": STEPS, "checkpoint.every": 20, "evaluate.every": 30}
    lines = "".join(f"    c.{key} = {value}\n" for key, value in more.items())
    path.write_text(path.read_text().replace("    return c\n", f"{lines}    return c\n"))
    return path


def train(config, name, processes, *flags, devices, **options):
    argv = runs.command(config, config.parent / name, *flags)
    return runs.together(argv, processes, devices=devices, **options)


def healthy(done):
    for process in done:
        assert process.returncode == 0 and "rror" not in process.stderr, process.stderr
    assert all(not process.stderr for process in done[1:]), "only process 0 speaks"
    return done[0]


@pytest.fixture(scope="module")
def alone(config):
    """One process with all four devices."""
    healthy(train(config, "alone", 1, devices=4))
    return runs.values(config.parent / "alone")


def same(values, expected):
    """The same numbers but for rounding, of which a rank of features as near may turn."""
    assert values.keys() == expected.keys()
    for (step, name), value in values.items():
        if "/" not in name:
            near = pytest.approx(expected[step, name], rel=2e-3, abs=1e-5)
            assert value == near, f"{name} of step {step}"


def test_two_processes_train_and_evaluate_as_one(config, alone):
    done = healthy(train(config, "two", 2, devices=2))
    assert "4 cpu devices of 2 processes" in done.stderr
    workdir = config.parent / "two"
    same(runs.values(workdir), alone)
    assert {step for step, name in alone if name == "loss"} == set(range(1, STEPS + 1))
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    assert len(list((workdir / "tensorboard").iterdir())) == 1
    assert (workdir / "pictures" / f"step_{STEPS}" / "held.png").exists()
    assert not [p for p in workdir.rglob("*") if "tmp" in p.name]


LOSS = "validation_loss/held/loss"
EARLY = (  # the loss falls, so its first value stays the largest
    f"--config.checkpoint.best={LOSS}",
    "--config.early_stop=2",
    "--config.evaluate.every=2",
    "--config.evaluate.suite=validation_loss",
    "--config.evaluate.loss_batch=8",
    "--config.optimizer.learning_rate=0.01",
    "--config.checkpoint.keep=1",
    "--config.log.tensorboard=False",
)


def test_two_processes_group_pairs_and_keep_the_best_checkpoint_as_one(config):
    members = []
    for i in range(PAIRS):  # four pairs of each picture, over the rows of both processes
        members.append((f"{i:03}.png", encoded(picture(i % 5, (20, 18)))))
        members.append((f"{i:03}.json", f'{{"caption": "picture {i}"}}'.encode()))
    data = write_tar(config.parent / "groups.tar", members)
    flags = (f"--config.data.train={data}", *EARLY, "--config.loss.multi_positive=True")
    one, two = (config.parent / name for name in ("one_group", "two_groups"))
    healthy(train(config, one.name, 1, *flags, devices=4))
    done = healthy(train(config, two.name, 2, *flags, devices=2))
    assert f"stopped early at step 6: {LOSS} was best at step 2" in done.stderr
    expected, values = runs.values(one), runs.values(two)
    same(values, expected)
    assert {step for step, name in values if name == LOSS} == {2, 4, 6}
    for step in (2, 4, 6):
        assert values[step, LOSS] == pytest.approx(expected[step, LOSS], rel=1e-4)
    best = best_checkpoint.read_best(two)
    assert best == best_checkpoint.Best(LOSS, 2, values[2, LOSS])
    assert checkpointing.steps(one) == checkpointing.steps(two) == [6, 2]
    again = healthy(train(config, two.name, 2, *flags, devices=2))
    assert "nothing to train" in again.stderr


def failed(process, *words):
    assert process.returncode not in (0, None)
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and process.stderr.splitlines()[-1] == errors[0], process.stderr
    assert "Traceback" not in process.stderr
    for word in words:
        assert word in errors[0], errors[0]


def test_unreadable_data_on_one_process_ends_all(config, alone):
    """Of 8 rows in a batch the second process holds the last four; only it decodes picture 5."""
    members = []
    for i in range(8):
        content = encoded(picture(i, (20, 18)))
        members.append((f"{i:03}.png", content[:60] if i == 5 else content))
        members.append((f"{i:03}.json", f'{{"caption": "picture {i}"}}'.encode()))
    bad = write_tar(config.parent / "bad.tar", members)
    rows = "--config.evaluate.batch_size=2"
    flags = ("--mode=evaluate", f"--config.evaluate.sets.held.data={bad}", rows)
    done = train(config, "alone", 2, *flags, devices=2)
    failed(done[1], "bad.tar", "005.png")
    failed(done[0], "process 1 of 2 failed", "bad.tar", "005.png")
    assert done[0].stdout.count("{") == 0


def test_evaluate_gives_the_same_numbers_on_two_processes(config, alone):
    done = healthy(train(config, "alone", 2, "--mode=evaluate", devices=2))
    metrics = json.loads(done.stdout.splitlines()[-1])
    assert metrics.pop("step") == STEPS
    assert metrics == {n: v for (step, n), v in alone.items() if step == STEPS and "/" in n}


def test_a_folder_of_another_run_is_refused_by_all(config, alone):
    done = train(config, "alone", 2, "--config.seed=7", devices=1)
    failed(done[0], "seed: 0 → 7")
    failed(done[1], "process 0 of 2 failed", "seed: 0 → 7")
    assert [process.returncode for process in done] == [2, 2]  # no restart mends it


def test_a_process_that_cannot_connect_reports_it(config):
    """Two processes that look for each other in different places, then a port that is taken."""
    with socket.socket() as one, socket.socket() as two, socket.socket() as taken:
        for port in (one, two, taken):
            port.bind(("127.0.0.1", 0))
        ports = [s.getsockname()[1] for s in (one, two)]
        one.close()
        two.close()
        taken.listen()

        def each(i):
            return [f"--coordinator=127.0.0.1:{ports[i]}", "--connect-timeout=4"]

        done = train(config, "never", 2, devices=1, each=each)
        failed(done[0], "waited 4 s", f"127.0.0.1:{ports[0]}", "not all of the 2 processes came")
        failed(done[1], "waited 4 s", f"127.0.0.1:{ports[1]}", "process 0 does not answer")
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        argv = runs.command(config, config.parent / "never")
        flags = (f"--coordinator={where}", "--processes=2", "--process=0")
        (done,) = runs.together([*argv, *flags], 1)
        failed(done, where, "in use", "another port")
    assert not (config.parent / "never").exists()


def train_until(config, name, step, who, how, processes, *flags, devices):
    """Trains `step` steps on, then sends one of the processes a signal."""
    workdir = config.parent / name
    step += max((line["step"] for line in runs.lines(workdir)), default=0)
    act = runs.once_logged(workdir, step, lambda started: started[who].send_signal(how))
    done = train(config, name, processes, *flags, devices=devices, meanwhile=act)
    last = max(line["step"] for line in runs.lines(workdir))
    assert step <= last < STEPS
    if how == signal.SIGTERM:
        assert f"stopped by SIGTERM, saved at step {last}:" in healthy(done).stderr
        assert (workdir / "checkpoints" / str(last)).exists()
    return done


@pytest.mark.slow
def test_a_run_goes_on_after_every_end_with_any_number_of_processes(config, alone):
    """Saved on 2 and resumed on 4, saved on 4 and resumed on 1, on 1 and on 4, on 4 and on 2.

    One process is killed, or told to stop. At last a tensor axis spans both processes.
    """
    name, soon = "moved", ("--heartbeat-timeout=8", "--config.checkpoint.every=2")
    done = train_until(config, name, 6, 1, signal.SIGKILL, 2, *soon, devices=2)
    assert done[1].returncode == -signal.SIGKILL
    failed(done[0], "process 1 of 2", "died", "same command again", "resumes")

    train_until(config, name, 3, 2, signal.SIGTERM, 4, devices=1)
    train_until(config, name, 3, 0, signal.SIGTERM, 1, devices=4)

    done = train_until(config, name, 6, 0, signal.SIGKILL, 4, *soon, devices=1)
    assert done[0].returncode == -signal.SIGKILL
    for process in done[1:]:
        last = process.stderr.splitlines()[-1]
        assert process.returncode == 1 and last.startswith("error: process 0"), process.stderr
        assert "resumes" in last

    spanning = ("--config.mesh.data=1", "--config.mesh.tensor=4")
    done = healthy(train(config, name, 2, *spanning, devices=2))
    assert "resuming after step" in done.stderr
    same(runs.values(config.parent / name), alone)
