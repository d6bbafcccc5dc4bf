"""The best checkpoint is kept beside the last ones, also if the run is killed; stopping early."""

import json
import signal

import jax.numpy as jnp
import pytest

import runs
from clip_jax.errors import UserError
from clip_jax.inference.model_source import find_checkpoint
from clip_jax.training import best_checkpoint, checkpointing
from clip_jax.training.best_checkpoint import BestCheckpoint
from support import says

LOSS = "validation_loss/held/loss"
FLAGS = (
    "--config.evaluate.suite=validation_loss",
    "--config.evaluate.every=3",
    "--config.evaluate.loss_batch=10",
    "--config.checkpoint.keep=1",
    "--config.log.tensorboard=False",
)


def test_the_best_is_the_first_of_equal_values_and_patience_counts_evaluations(tmp_path):
    best = BestCheckpoint("-a/b/loss", 2, tmp_path)
    values = [0.5, 0.4, 0.4, 0.3, 0.35, 0.3]
    added = [best.add(step, {"a/b/loss": value}) for step, value in enumerate(values)]
    assert added == [True, True, False, True, False, False]
    assert best.step == 3 and best.is_over
    best.write()
    assert best_checkpoint.read_best(tmp_path) == best_checkpoint.Best("-a/b/loss", 3, 0.3)
    largest = BestCheckpoint("a/b/loss", 0, tmp_path)
    assert [largest.add(i, {"a/b/loss": x}) for i, x in enumerate(values)] == [True] + [False] * 5
    assert largest.step == 0 and not largest.is_over
    with pytest.raises(UserError) as error:
        best.add(9, {"a/b/losses": 1.0})
    assert says(error.value, "config.checkpoint.best='-a/b/loss'", "step 9", "a/b/losses")


def test_a_metric_that_no_evaluation_gives_is_refused_at_the_start():
    best_checkpoint.check_metric("-validation_loss/held/loss", ["validation_loss/held/"])
    with pytest.raises(UserError) as error:
        best_checkpoint.check_metric("retrieval/held/x", ["validation_loss/held/"])
    assert says(error.value, "config.checkpoint.best='retrieval/held/x'", "validation_loss/held/…")


def test_the_last_the_best_and_every_nth_are_kept(tmp_path):
    checkpoints = checkpointing.Checkpoints(tmp_path, keep=2, keep_every=10)
    checkpoints.preserve.best = 4
    for step in range(1, 15):
        checkpoints.save(step, {"x": jnp.ones(1)}, {}, {}, force=True)
    checkpoints.close()
    assert checkpointing.steps(tmp_path) == [14, 13, 10, 4]
    everything = checkpointing.Checkpoints(tmp_path / "all", keep=0)
    for step in range(1, 5):
        everything.save(step, {"x": jnp.ones(1)}, {}, {}, force=True)
    everything.close()
    assert checkpointing.steps(tmp_path / "all") == [4, 3, 2, 1]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return runs.small_run(tmp_path_factory.mktemp("best"), 20)


def test_a_killed_run_keeps_the_same_best_checkpoint(config):
    flags = (*FLAGS, f"--config.checkpoint.best={LOSS}", "--config.checkpoint.keep_every=8")
    full, killed = config.parent / "full", config.parent / "killed"
    done = runs.run(config, full, *flags)
    assert done.returncode == 0, done.stderr
    runs.run_until(config, killed, 7, signal.SIGKILL, *flags)
    again = runs.run(config, killed, *flags)
    assert again.returncode == 0, again.stderr
    assert runs.values(killed) == runs.values(full)
    losses = {step: value for (step, name), value in runs.values(full).items() if name == LOSS}
    assert set(losses) == {3, 6, 9, 12}
    best = max(losses, key=lambda step: losses[step])
    for workdir in (full, killed):
        assert best_checkpoint.read_best(workdir) == best_checkpoint.Best(LOSS, best, losses[best])
        assert set(checkpointing.steps(workdir)) == {12, 8, best}
        assert find_checkpoint(workdir / "checkpoints" / "best", print) == (workdir, best)
    evaluation = ("--mode=evaluate", f"--checkpoint={full / 'checkpoints' / 'best'}")
    evaluated = runs.run(config, full, *evaluation, *FLAGS)
    assert evaluated.returncode == 0, evaluated.stderr
    metrics = json.loads(evaluated.stdout)
    assert metrics["step"] == best and metrics[LOSS] == pytest.approx(losses[best], abs=1e-6)


def test_a_run_stops_early_and_stays_so(config):
    workdir = config.parent / "early"
    # the loss falls, so that its first value stays the largest
    flags = (*FLAGS, f"--config.checkpoint.best={LOSS}", "--config.early_stop=2")
    flags = (*flags, "--config.optimizer.learning_rate=0.01", "--config.evaluate.every=2")
    done = runs.run(config, workdir, *flags)
    assert done.returncode == 0, done.stderr
    assert f"stopped early at step 6: {LOSS} was best at step 2" in done.stderr
    assert "done: 6 steps" in done.stdout
    assert set(checkpointing.steps(workdir)) == {6, 2}
    again = runs.run(config, workdir, *flags)
    assert again.returncode == 0 and "nothing to train" in again.stderr, again.stderr
    on = runs.run(config, workdir, *flags, "--config.early_stop=0")
    assert on.returncode == 0, on.stderr
    assert max(step for step, _ in runs.values(workdir)) == 12
