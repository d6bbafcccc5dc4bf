"""Low-rank adapters: what they compute, what learns, what they cost, what they become."""

import dataclasses
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from recipes import EIGHT, flat, recipe_of, train

import clip_jax
import runs
from clip_jax.cli import convert as convert_command
from clip_jax.config.finetune_schema import Lora
from clip_jax.errors import UserError
from clip_jax.models import lora
from clip_jax.models.clip import CLIP, abstract_model, variables
from clip_jax.models.dropout import drop, row_keys
from clip_jax.models.model_config import CLIPConfig, ResNetConfig
from clip_jax.training.checkpointing import bytes_of
from steps import TINY, batch

ADAPTED = Lora(rank=3, alpha=6.0)
KEYS = {"lora.rank": 3, "lora.alpha": 6.0}
KERNEL = "vision/transformer/blocks/mlp/fc"


def random_adapters(model, seed=0):
    """A model with adapters whose B is not zero."""
    rng = np.random.default_rng(seed)
    for _, module in nnx.iter_graph(model):
        if getattr(module, "rank", 0):
            shape = module.lora_b.shape
            module.lora_b[...] = jnp.asarray(rng.normal(0, 0.1, shape), jnp.float32)
    return model


def test_the_initial_model_is_the_base_model_and_merging_keeps_a_trained_one():
    rows = batch(6)
    base = CLIP(TINY, rngs=nnx.Rngs(0))
    model = CLIP(TINY, lora=ADAPTED, rngs=nnx.Rngs(0))
    for ours, theirs in zip(model(**rows), base(**rows), strict=True):
        np.testing.assert_array_equal(ours, theirs) if theirs is not None else None
    random_adapters(model)
    params, stats = variables(model)
    merged = lora.merge(params, 6.0 / 3)
    assert flat(merged).keys() == flat(variables(base)[0]).keys()
    factors = params["vision"]["transformer"]["blocks"]["mlp"]["fc"]
    expected = factors["kernel"] + 2 * np.einsum(
        "lir,lro->lio", factors["lora_a"], factors["lora_b"]
    )
    np.testing.assert_allclose(flat(merged)[f"{KERNEL}/kernel"], expected, rtol=1e-5, atol=1e-6)
    plain = nnx.merge(nnx.graphdef(abstract_model(TINY)), merged, stats)
    changed = float(jnp.abs(model(**rows).image_features - base(**rows).image_features).max())
    assert changed > 0.01
    for ours, theirs in zip(plain(**rows), model(**rows), strict=True):
        if theirs is not None:
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_is_uniform_within_one_over_the_root_of_its_inputs():
    model = CLIP(TINY, lora=dataclasses.replace(ADAPTED, rank=8), rngs=nnx.Rngs(0))
    a = np.asarray(model.vision.transformer.blocks.mlp.proj.lora_a[...])
    assert a.shape == (2, 128, 8) and np.abs(a).max() <= 128**-0.5
    assert a.std() == pytest.approx((128 * 3) ** -0.5, rel=0.05)
    assert not np.array_equal(a[0], a[1])


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_meshes_and_accumulation_give_the_same_losses_and_adapters(accumulate, dropout):
    keys = {**KEYS, "lora.dropout": dropout}
    _, alone, metrics = train(recipe_of(keys=keys, eps=1e-3), 3)
    recipe = recipe_of(shape=EIGHT, accumulate=accumulate, keys=keys, eps=1e-3)
    _, sharded, others = train(recipe, 3)
    assert others["loss"] == pytest.approx(metrics["loss"], rel=1e-4)
    for name, leaf in flat(alone.params).items():
        np.testing.assert_allclose(
            flat(sharded.params)[name], leaf, rtol=2e-3, atol=2e-5, err_msg=name
        )


def test_only_adapters_learn_and_have_moments_and_their_memory_is_counted_exactly():
    recipe = recipe_of(keys=KEYS, frozen_weights="bfloat16")
    before, after, metrics = train(recipe, 2)
    assert metrics["gradient_norm"] > 0
    for name, old in flat(before.params).items():
        learned = not np.array_equal(old, flat(after.params)[name])
        assert learned == (name.rpartition("/")[2] in lora.NAMES), name
    assert flat(after.params)[f"{KERNEL}/kernel"].dtype == jnp.bfloat16
    # of each tower: 2 layers with qkv, out, fc and proj
    sides = [(32, 96), (32, 32), (32, 128), (128, 32)]
    values = 2 * 2 * sum(3 * (inputs + outputs) for inputs, outputs in sides)
    state = flat(recipe.state_like.opt_state)
    moments = [leaf for name, leaf in state.items() if "mu/" in name or "nu/" in name]
    assert bytes_of(moments) == 2 * 4 * values
    counts = bytes_of(recipe.state_like.opt_state) - bytes_of(moments)
    assert counts <= 16  # step counters
    a = flat(recipe_of(shape=EIGHT, keys=KEYS).state_like.params)[f"{KERNEL}/lora_a"]
    assert a.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", None)


def test_the_first_loss_is_that_of_the_base_model():
    recipe, base = recipe_of(keys={**KEYS, "lora.dropout": 0.5}), recipe_of()
    assert train(recipe, 1)[2]["loss"] == train(base, 1)[2]["loss"]


def test_dropout_belongs_to_rows_and_layers():
    keys = jax.random.split(jax.random.key(0), 4)
    x = jnp.ones((4, 5, 64))
    with row_keys(keys):
        one, again, other = drop(x, 0.25, 1), drop(x, 0.25, 1), drop(x, 0.25, 2)
    with row_keys(keys[::-1]):
        reverse = drop(x, 0.25, 1)
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(one, reverse[::-1])
    assert not np.array_equal(one, other) and not np.array_equal(one[0], one[1])
    assert float(one.mean()) == pytest.approx(1, abs=0.05)
    assert set(np.unique(one)) == {0.0, np.float32(1 / 0.75)}
    np.testing.assert_array_equal(drop(x, 0.25, 1), x)


def test_layers_of_a_stack_drop_different_values_and_keys_matter():
    config = dataclasses.replace(ADAPTED, dropout=0.5)
    model = random_adapters(CLIP(TINY, lora=config, rngs=nnx.Rngs(0)))
    rows = batch(4)
    first, second = (model(**rows, key=jax.random.key(i)) for i in (0, 1))
    plain = model(**rows)
    for features in ("image_features", "text_features"):
        dropped, other, all_of_it = (getattr(o, features) for o in (first, second, plain))
        assert not np.allclose(dropped, other, atol=1e-4), features
        assert not np.allclose(dropped, all_of_it, atol=1e-4), features


@pytest.mark.slow
def test_layers_without_stack_can_be_adapted_by_pattern():
    config = CLIPConfig(16, vision=ResNetConfig(32, 8, (1, 1, 1, 1), 4), text=TINY.text)
    pattern = r"vision/.*/conv1/kernel|text/projection/kernel"
    recipe = recipe_of(config, keys={"lora.rank": 2, "lora.targets": pattern})
    before, after, _ = train(recipe, 1, config)
    adapted = [name for name in flat(after.params) if name.endswith("lora_b")]
    assert "text/projection/lora_b" in adapted and len(adapted) == 5
    for name, old in flat(before.stats).items():
        np.testing.assert_array_equal(flat(after.stats)[name], old)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"lora.rank": 3, "lora.targets": "vision.*qvk/kernel"},
            "matches no .*vision/.*/kernel",
        ),
        ({"lora.rank": 3, "lora.targets": "("}, "is no regular expression"),
        ({"lora.rank": 33}, "config.lora.rank=33 is above the sides of .*, 32 × "),
        ({"lora.alpha": 3.0}, "has keys but no rank"),
        ({"lora.rank": 2, "lora.dropout": 0.1, "chunk.image": 2}, "needs all rows"),
        ({"lora.rank": 2, "lora.dropout": 1.0}, "config.lora.dropout=1"),
    ],
)
def test_nonsense_is_refused(keys, message):
    with pytest.raises(UserError, match=message):
        recipe_of(keys=keys)


FLAGS = ("--config.lora.rank=2", "--config.lora.dropout=0.25", "--config.ema.decay=0.5")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    config = runs.small_run(tmp_path_factory.mktemp("lora"), 20)
    done = runs.run(config, config.parent / "base", "--config.steps=3")
    assert done.returncode == 0, done.stderr
    return config.parent / "base"


@pytest.fixture(scope="module")
def run(base):
    workdir = base.parent / "whole"
    done = runs.run(base.parent / "config.py", workdir, *FLAGS, f"--config.weights.path={base}")
    assert done.returncode == 0, done.stderr
    assert "frozen (base weights)" in done.stderr
    return workdir


@pytest.mark.slow
def test_killed_and_resumed_it_ends_the_same_to_the_bit(run, base):
    flags = (*FLAGS, f"--config.weights.path={base}")
    config, workdir = base.parent / "config.py", base.parent / "killed"
    process, _ = runs.run_until(config, workdir, 6, signal.SIGKILL, *flags)
    assert process.returncode == -signal.SIGKILL
    again = runs.run(config, workdir, *flags)
    assert again.returncode == 0, again.stderr
    assert runs.values(workdir) == runs.values(run)
    ours, theirs = runs.parameters(workdir), runs.parameters(run)
    assert all(np.array_equal(value, theirs[name]) for name, value in ours.items())


def test_a_run_is_evaluated_and_loaded_with_its_adapters_merged(run, base):
    done = runs.run(base.parent / "config.py", run, "--mode=evaluate", *FLAGS)
    assert done.returncode == 0, done.stderr
    trained = runs.values(run)
    metrics = json.loads(done.stdout.splitlines()[-1])
    for name, value in metrics.items():
        if name != "step":
            assert value == pytest.approx(trained[12, name], abs=1e-6), name
    start, ours = (flat(variables(clip_jax.load(str(w))[0])[0]) for w in (base, run))
    average = flat(variables(clip_jax.load(str(run), ema=True)[0])[0])
    assert ours.keys() == start.keys()
    for name, value in ours.items():
        adapted = "/attention/" in name or "/mlp/" in name
        adapted &= name.endswith("kernel")
        assert np.array_equal(value, start[name]) != adapted, name
        assert np.array_equal(average[name], value) != adapted, name


@pytest.mark.parametrize("library", ["open_clip", "hugging_face"])
def test_convert_merges_and_adapters_alone_come_back(run, base, tmp_path, library):
    expected = variables(clip_jax.load(str(run))[0])[0]
    assert convert_command.run([str(run), str(tmp_path / "out"), "--to", library]) == 0
    converted = variables(clip_jax.load(str(tmp_path / "out"))[0])[0]
    assert convert_command.run([str(run), str(tmp_path / "small"), "--to", "lora"]) == 0
    file = tmp_path / "small" / "adapters.safetensors"
    assert file.stat().st_size < 20_000
    restored = variables(clip_jax.load(str(base), adapters=file)[0])[0]
    for name, value in flat(expected).items():
        np.testing.assert_array_equal(flat(converted)[name], value, err_msg=name)
        np.testing.assert_allclose(flat(restored)[name], value, atol=1e-6, err_msg=name)
    flags = [str(base), str(tmp_path / "more"), "--to", library, "--adapters", str(file)]
    assert convert_command.run(flags) == 0
    with pytest.raises(UserError, match="has no adapters"):
        convert_command.run([str(base), str(tmp_path / "none"), "--to", "lora"])
    with pytest.raises(UserError, match="exists: give --overwrite"):
        convert_command.run([str(run), str(file), "--to", "lora"])


def test_adapters_of_another_model_are_refused(tmp_path):
    from clip_jax.inference import adapters
    from clip_jax.weights.tensor_writing import write_safetensors

    metadata = {"format": adapters.FORMAT, "rank": "2", "alpha": "4.0"}
    a, b = np.zeros((2, 32, 2), np.float32), np.zeros((2, 2, 128), np.float32)
    cases = [
        ({"x/lora_a": a, "x/lora_b": b}, metadata, "no place for x/lora_"),
        ({f"{KERNEL}/lora_a": a}, metadata, "no place for"),
        ({f"{KERNEL}/lora_a": a, f"{KERNEL}/lora_b": b[:1]}, metadata, "has the shape"),
        ({f"{KERNEL}/lora_a": a, f"{KERNEL}/lora_b": b}, {"format": "pt"}, "holds no adapters"),
    ]
    for i, (tensors, facts, message) in enumerate(cases):
        write_safetensors(tmp_path / f"{i}.safetensors", tensors, facts)
        with pytest.raises(UserError, match=message):
            adapters.read_adapters(tmp_path / f"{i}.safetensors", TINY)
    with pytest.raises(UserError, match="does not exist"):
        adapters.read_adapters(tmp_path / "none.safetensors", TINY)


def test_bfloat16_and_chunks_train():
    recipe = recipe_of(keys={**KEYS, "remat": "full", "chunk.image": 4}, dtype="bfloat16")
    assert recipe.chunks == (4, 0)
    _, _, metrics = train(recipe, 2)
    _, _, plain = train(recipe_of(keys=KEYS), 2)
    assert metrics["loss"] == pytest.approx(plain["loss"], abs=0.1)
