"""The exponential moving average of the weights: computed, saved, resumed, evaluated, loaded."""

import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import EIGHT, flat, recipe_of, trajectory

import clip_jax
import runs
from clip_jax.config import load
from clip_jax.errors import UserError
from clip_jax.models.clip import variables
from clip_jax.training import train_step as step_lib
from clip_jax.training.run import prepare
from clip_jax.training.trainer import Trainer

DECAY = 0.75
AVERAGE = {"ema.decay": DECAY}


def expected(states, start=0):
    """Σ (1 - d) d^(n-i) p_i, beginning with d^(n-start) p_start."""
    began, *rest = [flat(s.params) for s in states[start:]]
    n = len(rest)
    return {
        name: DECAY**n * began[name]
        + sum((1 - DECAY) * DECAY ** (n - 1 - i) * p[name] for i, p in enumerate(rest))
        for name in began
    }


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("shape", [dict(data=1), EIGHT], ids=str)
def test_three_steps_give_the_closed_formula(shape, start):
    recipe = recipe_of(shape=shape, keys={**AVERAGE, "ema.start": start})
    *states, _ = trajectory(recipe, 3)
    average, formula = flat(states[-1].ema), expected(states, start)
    assert average.keys() == formula.keys()
    for name, value in formula.items():
        np.testing.assert_allclose(average[name], value, rtol=2e-6, atol=1e-8, err_msg=name)
        assert average[name].dtype == np.float32
    for path, leaf in flat(recipe.state_like.ema).items():
        assert leaf.sharding == flat(recipe.state_like.params)[path].sharding, path


def test_only_what_learns_is_averaged_and_bfloat16_weights_in_float32():
    recipe = recipe_of(
        keys=AVERAGE, freeze="vision.blocks[:1],text.token_embedding", text_weights="bfloat16"
    )
    *states, _ = trajectory(recipe, 2)
    state, shapes = states[-1], flat(states[-1].params)
    average = flat(state.ema)
    assert "text/token_embedding/embedding" not in average
    kernel = "vision/transformer/blocks/mlp/fc/kernel"
    assert len(average[kernel]) == 1 and len(shapes[kernel]) == 2
    assert all(leaf.dtype == np.float32 for leaf in average.values())
    params, _ = step_lib.averaged_variables(jax.tree.map(jnp.asarray, state), recipe.groups)
    np.testing.assert_array_equal(flat(params)[kernel][1], average[kernel][0])
    np.testing.assert_array_equal(flat(params)[kernel][0], shapes[kernel][0])


def test_without_an_average_the_state_and_the_step_are_as_they_were():
    recipe = recipe_of()
    assert {path.partition("/")[0] for path in flat(recipe.state_like)} == {
        "step",
        "params",
        "opt_state",
    }
    names = [name for name, _ in recipe.state_like.children()]
    assert names == ["step", "params", "stats", "opt_state"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ema.decay": 1.0}, "config.ema.decay=1"),
        ({"ema.start": 3}, "config.ema.start=3 needs config.ema.decay"),
        ({"ema.decay": 0.9, "ema.start": 200}, "must be below config.steps=200"),
    ],
)
def test_nonsense_is_refused(keys, message):
    with pytest.raises(UserError, match=message):
        recipe_of(keys=keys)


FLAGS = ("--config.ema.decay=0.75", "--config.optimizer.freeze=text")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = runs.small_run(tmp_path_factory.mktemp("ema"), 20)
    done = runs.run(config, config.parent / "whole", *FLAGS)
    assert done.returncode == 0, done.stderr
    return config.parent / "whole"


def averages(workdir):
    model, *_ = clip_jax.load(str(workdir), ema=True)
    return flat(variables(model)[0])


def test_killed_and_resumed_it_ends_the_same_to_the_bit(run):
    config, workdir = run.parent / "config.py", run.parent / "killed"
    process, _ = runs.run_until(config, workdir, 6, signal.SIGKILL, *FLAGS)
    assert process.returncode == -signal.SIGKILL
    again = runs.run(config, workdir, *FLAGS)
    assert again.returncode == 0, again.stderr
    assert runs.values(workdir) == runs.values(run)
    ours, theirs = averages(workdir), averages(run)
    assert all(np.array_equal(value, theirs[name]) for name, value in ours.items())


def test_it_is_evaluated_beside_the_live_weights(run):
    values = runs.values(run)
    live = {name for step, name in values if step == 12 and name.startswith("zero_shot/")}
    assert live and {f"ema/{name}" for name in live} <= {name for _, name in values}
    assert (run / "ema" / "pictures" / "step_12" / "held.png").exists()
    document = json.loads((run / "ema" / "report.json").read_text())
    curve = document["curves"]["zero_shot/held/top1"]
    assert curve == [[step, values[step, "ema/zero_shot/held/top1"]] for step in (6, 12)]
    done = runs.run(run.parent / "config.py", run, "--mode=evaluate", "--ema")
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout.splitlines()[-1])
    assert metrics.pop("step") == 12
    assert all(value == values[12, f"ema/{name}"] for name, value in metrics.items())


def test_it_can_be_loaded_and_converted(run, tmp_path):
    live = flat(variables(clip_jax.load(str(run))[0])[0])
    average = averages(run)
    changed = {name for name, value in live.items() if not np.array_equal(value, average[name])}
    assert changed and not any(name.startswith("text/") for name in changed)
    from clip_jax.inference.conversion import convert

    convert(run, tmp_path / "out", "open_clip", ema=True)
    model, *_ = clip_jax.load(str(tmp_path / "out"))
    for name, value in flat(variables(model)[0]).items():
        np.testing.assert_array_equal(value, average[name], err_msg=name)
    with pytest.raises(UserError, match="is no run: only a run with config"):
        clip_jax.load(str(tmp_path / "out"), ema=True)


def test_a_new_run_starts_from_the_average(run, tmp_path):
    def fresh(*overrides):
        keys = (f"workdir={tmp_path / 'new'}", *overrides)
        c, _ = load(str(run.parent / "config.py"), keys)
        return flat(Trainer(prepare(c)).fresh().params)

    start = f"weights.path={run}"
    params = fresh(start, "weights.ema=True")
    average = averages(run)
    assert params.keys() == average.keys()
    for name, value in params.items():
        np.testing.assert_array_equal(value, average[name], err_msg=name)
    live = fresh(start)
    assert any(not np.array_equal(value, average[name]) for name, value in live.items())
    with pytest.raises(UserError, match=r"config.weights.ema=True needs config.weights.path"):
        fresh("weights.ema=True")
    other = tmp_path / "other"
    shutil.copytree(run, other)
    values = json.loads((run / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**values, "ema": {"decay": 0.0, "start": 0}}))
    with pytest.raises(UserError, match="has no averaged weights"):
        fresh(f"weights.path={other}", "weights.ema=True")
