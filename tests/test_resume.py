"""A run that is stopped, however, ends as one that was left alone."""

import json
import shutil
import signal

import numpy as np
import pytest

import runs
from clip_jax.losses.contrastive.objective import Contrastive
from clip_jax.models.model_config import CLIPConfig
from clip_jax.training import flops

PAIRS = 20


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return runs.small_run(tmp_path_factory.mktemp("resume"), PAIRS)


@pytest.fixture(scope="module")
def full_run(config):
    """The run that nobody stopped."""
    workdir = config.parent / "whole"
    done = runs.run(config, workdir)
    assert done.returncode == 0, done.stderr
    return workdir


def same(first, second):
    assert runs.values(first) == runs.values(second)
    ours, theirs = runs.parameters(first), runs.parameters(second)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def nearly_same(first, second):
    """Another program may round otherwise: one with a schedule that goes on differently."""
    ours, theirs = runs.values(first), runs.values(second)
    assert ours.keys() == theirs.keys()
    for (step, name), value in ours.items():
        if name in ("loss", "learning_rate"):
            assert value == pytest.approx(theirs[step, name], rel=1e-4), (step, name)


def test_a_run_logs_every_step_and_its_evaluations(full_run):
    values = runs.values(full_run)
    assert {step for step, name in values if name == "loss"} == set(range(1, 13))
    names = {name for step, name in values if step == 12}
    assert {"zero_shot/held/top1", "zero_shot/held/top5"} <= names
    assert {f"retrieval/held/{way}/r{k}" for way in ("image_to_text", "text_to_image")
            for k in (1, 5, 10)} <= names  # fmt: skip
    model = CLIPConfig.from_dict(json.loads((full_run / "config.json").read_text())["model"])
    for line in runs.lines(full_run):
        if "loss" in line:
            a_pair = 1e12 * line["tflops_per_second"] / line["images_per_second"]
            assert (
                a_pair == pytest.approx(flops.step(model, Contrastive(), 8) / 8)
                and "mfu" not in line
            )
    assert (full_run / "pictures" / "step_12" / "held.png").exists()
    assert list((full_run / "tensorboard").iterdir())


@pytest.mark.parametrize("step", [1, 5, 7, 11])
def test_killed_and_started_again_it_ends_the_same_to_the_bit(config, full_run, step):
    workdir = config.parent / f"killed_{step}"
    process, _ = runs.run_until(config, workdir, step, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    again = runs.run(config, workdir)
    assert again.returncode == 0, again.stderr
    same(workdir, full_run)


def test_epochs_in_place_of_steps_are_the_same_run(config, full_run):
    workdir = config.parent / "epochs"
    flags = ("--config.steps=0", "--config.epochs=4.8")  # of 20 pairs, in batches of 8
    process, stderr = runs.run_until(config, workdir, 5, signal.SIGKILL, *flags)
    assert process.returncode == -signal.SIGKILL
    assert f"4.8 epochs of {PAIRS} pairs are 12 steps" in stderr
    again = runs.run(config, workdir, *flags)
    assert again.returncode == 0, again.stderr
    same(workdir, full_run)
    saved = json.loads((workdir / "config.json").read_text())
    assert (saved["steps"], saved["epochs"]) == (12, 4.8)


def test_a_finished_run_is_given_more_steps(config, full_run):
    longer, at_once = config.parent / "longer", config.parent / "at once"
    shutil.copytree(full_run, longer)
    refused = runs.run(config, longer, "--config.steps=18")
    assert refused.returncode == 2
    assert (
        "steps: 12 → 18" in refused.stderr and "--config.optimizer.ends='(12,)'" in refused.stderr
    )
    flags = ("--config.steps=18", "--config.optimizer.ends=(12,)", "--config.optimizer.then=rewarm")
    again = runs.run(config, longer, *flags)
    assert again.returncode == 0, again.stderr
    assert "resuming after step 12 of 18, at a learning rate of 0.00025" in again.stderr
    whole = runs.run(config, at_once, *flags)
    assert whole.returncode == 0, whole.stderr
    nearly_same(longer, at_once)
    assert json.loads((longer / "config.json").read_text())["steps"] == 18
    rates = [value for (_, name), value in runs.values(longer).items() if name == "learning_rate"]
    assert rates[12:14] == pytest.approx([2.5e-4, 5e-4]) and rates[:2] == rates[12:14]


def test_a_constant_run_is_given_more_steps_and_a_cooldown(config):
    longer, at_once = config.parent / "constant", config.parent / "constant at once"
    constant = "--config.optimizer.schedule=constant"
    done = runs.run(config, longer, constant, "--config.steps=6")
    assert done.returncode == 0, done.stderr
    flags = (constant, "--config.steps=10", "--config.optimizer.cooldown_steps=4")
    again = runs.run(config, longer, *flags)
    assert again.returncode == 0, again.stderr
    whole = runs.run(config, at_once, *flags)
    assert whole.returncode == 0, whole.stderr
    nearly_same(longer, at_once)
    late = runs.run(config, longer, *flags, "--config.optimizer.cooldown_steps=5")
    assert late.returncode == 2 and "optimizer.cooldown_steps: 4 → 5" in late.stderr


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_cleanly(config, full_run, how):
    workdir = config.parent / how.name
    process, stderr = runs.run_until(config, workdir, 6, how)
    assert process.returncode == 0, stderr
    assert f"stopped by {how.name}, saved at step" in stderr and "Traceback" not in stderr
    assert not [p for p in workdir.rglob("*") if "tmp" in p.name], "nothing half-written is left"
    last = max(line["step"] for line in runs.lines(workdir))
    assert 6 <= last < 12
    again = runs.run(config, workdir)
    assert again.returncode == 0, again.stderr
    assert f"resuming after step {last}" in again.stderr
    same(workdir, full_run)


def test_a_finished_run_has_nothing_to_do(config, full_run):
    before = (full_run / "metrics.jsonl").read_bytes()
    again = runs.run(config, full_run)
    assert again.returncode == 0, again.stderr
    assert "nothing to train" in again.stderr
    assert (full_run / "metrics.jsonl").read_bytes() == before


def test_worker_processes_give_the_same_batches(config, full_run):
    workdir = config.parent / "workers"
    done = runs.run(config, workdir, "--config.data.workers=2")
    assert done.returncode == 0, done.stderr
    ours = {k: v for k, v in runs.values(workdir).items() if k[1] == "loss"}
    assert ours == {k: v for k, v in runs.values(full_run).items() if k[1] == "loss"}


def test_evaluate_gives_the_numbers_of_training(config, full_run):
    import json

    done = runs.run(config, full_run, "--mode=evaluate")
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout.splitlines()[-1])
    assert metrics.pop("step") == 12
    trained = runs.values(full_run)
    assert metrics and all(value == trained[12, name] for name, value in metrics.items())
