"""Which parameters learn, and how."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax import config as config_lib
from clip_jax.config.optimizer_schema import Optimizer
from clip_jax.config.schema import Config
from clip_jax.distributed.param_spec import path_name
from clip_jax.errors import UserError
from clip_jax.models.clip import abstract_model, specs_of, variables
from clip_jax.models.model_config import CLIPConfig, ResNetConfig, TextConfig, VisionConfig
from clip_jax.optim import make_optimizer
from clip_jax.optim.group_patterns import resolve
from clip_jax.optim.param_groups import ALL, ParamGroup, ParamGroups
from support import says

MODEL = CLIPConfig(
    8,
    vision=VisionConfig(image_size=8, patch_size=4, width=8, layers=4, heads=2),
    text=TextConfig(vocab_size=20, context_length=4, width=8, layers=3, heads=2),
)
SPECS = specs_of(MODEL)
SHAPES = variables(abstract_model(MODEL))[0]
RESNET = dataclasses.replace(MODEL, vision=ResNetConfig(32, 8, (2, 1, 1, 1), 4))


def optimizer_config(**values):
    return config_lib.typed({"optimizer": values}).optimizer


def groups_of(model=MODEL, **values) -> ParamGroups:
    shapes = variables(abstract_model(model))[0]
    return resolve(optimizer_config(**values), specs_of(model), shapes)


def flat(tree):
    return {path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def random_params(seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), SHAPES)


def learning_layers(groups, name):
    return [int(i) in groups.learning for i in np.ravel(groups.assignment[name])]


def test_without_the_keys_everything_learns_alike():
    groups = groups_of()
    assert groups.everything_alike
    assert [group.name for group in groups.groups] == [ALL]


def test_a_frozen_tower_is_not_in_the_trainable_tree():
    groups = groups_of(freeze="vision")
    trainable = flat(groups.trainable(SHAPES))
    assert trainable.keys() == {name for name in SPECS if not name.startswith("vision/")}
    assert not groups.everything_alike


@pytest.mark.parametrize(
    ("part", "layers"),
    [
        ("vision.blocks[:2]", [False, False, True, True]),
        ("vision.transformer.blocks[:2]", [False, False, True, True]),
        ("vision/transformer/blocks[:2]", [False, False, True, True]),
        ("vision.blocks[-1]", [True, True, True, False]),
        ("vision.blocks[1]", [True, False, True, True]),
        ("vision.blocks[1:3]", [True, False, False, True]),
        ("vision.blocks[2:]", [True, True, False, False]),
        ("vision.blocks", [False] * 4),
        ("vision.blocks,vision.blocks[:2]", [False] * 4),
        ("vision", [False] * 4),
        ("vision.blocks[0], vision.blocks[3]", [False, True, True, False]),
        ("text", [True] * 4),
    ],
)
def test_layers_are_frozen_by_slices(part, layers):
    groups = groups_of(freeze=part)
    for name in ("attention/qkv/kernel", "ln_1/scale", "mlp/fc/bias"):
        assert learning_layers(groups, f"vision/transformer/blocks/{name}") == layers
    whole = part == "vision"
    assert groups.is_frozen("vision/patch_embedding/kernel") == whole


def test_a_part_that_is_not_stacked_is_frozen_by_its_name():
    groups = groups_of(freeze="logit_scale,text.token_embedding,vision.ln_pre.scale")
    frozen = {name for name in SPECS if groups.is_frozen(name)}
    assert frozen == {"logit_scale", "text/token_embedding/embedding", "vision/ln_pre/scale"}


def test_the_first_pattern_that_matches_counts():
    groups = groups_of(
        groups=(
            {"pattern": "text/.*/1/.*", "learning_rate": 0.5},
            {"pattern": "text/.*bias", "weight_decay": 0.0},
            {"pattern": "text/.*", "frozen": True},
        )
    )
    assert groups.assignment["text/transformer/blocks/mlp/fc/bias"].tolist() == [1, 0, 1]
    assert groups.assignment["text/transformer/blocks/mlp/fc/kernel"].tolist() == [2, 0, 2]
    assert groups.assignment["vision/ln_post/bias"] == 3
    names = {group.name: count for group, count in groups.counts(SHAPES)}
    assert sum(names.values()) == sum(leaf.size for leaf in jax.tree.leaves(SHAPES))
    inside_layer_one = 8 * 24 + 24 + 8 * 8 + 8 + 4 * 8 + 8 * 32 + 32 + 32 * 8 + 8
    assert names["text/.*/1/.*"] == inside_layer_one


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (dict(freeze="vison"), ["config.optimizer.freeze", "'vison'", "vision/"]),
        (dict(freeze="vision.blocks[9:]"), ["'vision.blocks[9:]'", "matches no parameter"]),
        (dict(freeze="vision.ln_post[0]"), ["'vision.ln_post[0]'", "matches no parameter"]),
        (dict(freeze="vision.blocks[a]"), ["'vision.blocks[a]'", "vision.blocks[:8]"]),
        (dict(freeze="vision.blocks[]"), ["'vision.blocks[]'", "vision.blocks[:8]"]),
        (dict(groups=({"pattern": "text/.*", "start": 1e400},)), ["start=inf", "whole number"]),
        (dict(groups=({"pattern": "text/.*", "learning_rate": 1e400},)), ["learning_rate=inf"]),
        (dict(learning_rate=1e400), ["config.optimizer.learning_rate=inf", "finite"]),
        (dict(freeze="vision,text,logit_scale"), ["freezes every parameter"]),
        (dict(groups=({"pattern": "img/.*"},)), ["groups", "'img/.*'", "matches no parameter"]),
        (dict(groups=({"pattern": "(", "frozen": True},)), ["groups[0]", "regular expression"]),
        (dict(groups=("text",)), ["groups[0]", "'pattern'"]),
        (dict(groups=({"frozen": True},)), ["groups[0]", "pattern"]),
        (dict(groups=({"pattern": "text/.*", "lr": 1},)), ["'lr'", "learning_rate"]),
        (
            dict(groups=({"pattern": "text/.*", "learning_rate": -1},)),
            ["learning_rate=-1", "at least 0"],
        ),
        (
            dict(groups=({"pattern": "text/.*", "learning_rate": float("nan")},)),
            ["learning_rate=nan", "at least 0"],
        ),
        (dict(groups=({"pattern": "text/.*", "start": 1.5},)), ["start=1.5", "whole number"]),
        (dict(groups=({"pattern": "text/.*", "frozen": 1},)), ["frozen=1", "true or false"]),
        (
            dict(groups=({"pattern": "text/.*", "frozen": True, "start": 3},)),
            ["frozen group has no other keys"],
        ),
        (
            dict(groups=({"pattern": ".*", "start": 1}, {"pattern": "text/.*"})),
            ["'text/.*'", "in groups before it"],
        ),
        (dict(layer_decay={"vision": 1.5}), ["layer_decay.vision", "at most 1"]),
        (dict(layer_decay={"image": 0.5}), ["layer_decay.image"]),
        (dict(frozen_weights="int8"), ["frozen_weights", "bfloat16"]),
    ],
    ids=str,
)
def test_nonsense_is_one_line(values, words):
    with pytest.raises(UserError) as error:
        groups_of(**values)
    assert says(error.value, *words)


INDICES = st.lists(st.integers(0, 3), min_size=4, max_size=4)


@given(INDICES, INDICES, st.integers(0, 3))
def test_merging_the_trainable_part_gives_all_parameters_back(vision, text, rest):
    kinds = (ParamGroup("a"), ParamGroup("b", frozen=True), ParamGroup("c"), ParamGroup(ALL))

    def index(name):
        if not SPECS[name].stacked:
            return np.array(rest if name.startswith("text") else 0)
        return np.array(vision if name.startswith("vision") else text[:3])

    groups = ParamGroups(kinds, {name: index(name) for name in SPECS}, {})
    old, new = random_params(0), random_params(1)
    merged = flat(groups.merge(groups.trainable(new), old))
    for name, leaf in merged.items():
        learns = np.array(learning_layers(groups, name))
        if not SPECS[name].stacked:
            learns = learns[0]
        else:
            learns = learns.reshape(-1, *(1,) * (leaf.ndim - 1))
        expected = np.where(learns, flat(new)[name], flat(old)[name])
        np.testing.assert_array_equal(leaf, expected)


def test_layer_decay_is_beits():
    groups = groups_of(layer_decay={"vision": 0.5})
    factors = groups.factors
    np.testing.assert_allclose(
        factors["vision/transformer/blocks/mlp/fc/kernel"], [0.5**4, 0.5**3, 0.5**2, 0.5]
    )
    assert factors["vision/patch_embedding/kernel"] == 0.5**5
    assert factors["vision/class_embedding"] == factors["vision/ln_pre/bias"] == 0.5**5
    assert factors["vision/projection/kernel"] == factors["vision/ln_post/scale"] == 1
    assert not any(name.startswith("text/") for name in factors)


def test_layer_decay_of_a_resnet_goes_by_its_stages():
    factors = groups_of(RESNET, layer_decay={"vision": 0.5}).factors
    assert factors["vision/stem/conv1/kernel"] == 0.5**5
    assert factors["vision/stage1/first/conv1/kernel"] == 0.5**4
    np.testing.assert_array_equal(factors["vision/stage1/rest/conv1/kernel"], [0.5**4])
    assert factors["vision/stage4/first/bn1/bias"] == 0.5
    assert factors["vision/pool/projection/kernel"] == 1


def constant(_):
    return 0.1


def updates_of(steps=1, grads=None, schedule=constant, **values):
    """Trainable parameters before and after some steps with constant gradients."""
    values = {"warmup_steps": 0, "learning_rate": 0.1, **values}
    config = optimizer_config(**values)
    groups = resolve(config, SPECS, SHAPES)
    optimizer = make_optimizer(config.to_dict(), schedule, SPECS, groups)
    params = groups.trainable(random_params())
    grads = groups.trainable(random_params(1)) if grads is None else groups.trainable(grads)
    state, path = optimizer.init(params), [params]
    for _ in range(steps):
        updates, state = optimizer.update(grads, state, path[-1])
        path.append(optax.apply_updates(path[-1], updates))
    return [flat(tree) for tree in path], state


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "lamb", "muon"])
def test_groups_that_all_say_the_same_change_nothing(name):
    options = dict(name=name, muon_learning_rate=0.1 if name == "muon" else 0.0, clip_norm=0.5)
    alike, _ = updates_of(2, **options)
    config = optimizer_config(warmup_steps=0, learning_rate=0.1, **options)
    plain = make_optimizer(config.to_dict(), constant, SPECS)
    params, grads = random_params(), random_params(1)
    state = plain.init(params)
    for _ in range(2):
        updates, state = plain.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    for key, leaf in flat(params).items():
        np.testing.assert_array_equal(leaf, alike[-1][key], err_msg=key)
    split, _ = updates_of(
        2, groups=({"pattern": "(text|vision)/.*/[12]/.*", "learning_rate": 1.0},), **options
    )
    for key, leaf in flat(params).items():
        np.testing.assert_allclose(leaf, split[-1][key], rtol=1e-6, atol=1e-7, err_msg=key)


def test_factors_and_decay_of_each_layer():
    plain, _ = updates_of(weight_decay=0.2)
    grouped, _ = updates_of(
        weight_decay=0.2,
        groups=({"pattern": "vision/.*/1/.*kernel", "learning_rate": 0.5, "weight_decay": 0.0},),
        layer_decay={"vision": 0.5},
    )
    no_decay, _ = updates_of(weight_decay=0.0)
    kernel = "vision/transformer/blocks/mlp/fc/kernel"
    change = {
        key: path[1][kernel] - path[0][kernel]
        for key, path in dict(plain=plain, grouped=grouped, no_decay=no_decay).items()
    }
    for layer, factor in enumerate((0.5**4, None, 0.5**2, 0.5)):
        if factor:
            np.testing.assert_allclose(
                change["grouped"][layer], change["plain"][layer] * factor, rtol=1e-5, atol=1e-7
            )
    np.testing.assert_allclose(
        change["grouped"][1], change["no_decay"][1] * 0.5**3 * 0.5, rtol=1e-5, atol=1e-7
    )
    np.testing.assert_array_equal(
        grouped[1]["text/projection/kernel"], plain[1]["text/projection/kernel"]
    )


def test_a_group_that_starts_later_stands_still_until_then_and_begins_like_a_new_run():
    late, _ = updates_of(5, groups=({"pattern": "text/.*", "start": 3},))
    plain, _ = updates_of(5)
    key = "text/projection/kernel"
    for step in range(1, 4):
        np.testing.assert_array_equal(late[step][key], late[0][key])
    np.testing.assert_allclose(late[4][key], plain[1][key], rtol=1e-6)
    np.testing.assert_allclose(late[5][key], plain[2][key], rtol=1e-6)
    np.testing.assert_array_equal(late[5]["vision/ln_pre/bias"], plain[5]["vision/ln_pre/bias"])


def test_a_groups_own_warm_up_and_the_course_of_the_run():
    def schedule(step):
        return 1.0 - jnp.asarray(step, jnp.float32) / 10

    group = ParamGroup(start=2, warmup_steps=4)
    rates = [float(group.schedule(schedule, 0)(count)) for count in range(6)]
    expected = [(1 - (2 + c) / 10) * min((c + 1) / 4, 1) for c in range(6)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    assert ParamGroup().schedule(schedule, 5) is schedule


def test_the_state_holds_only_what_learns():
    config = optimizer_config(freeze="vision,text.blocks[:2]", warmup_steps=0)
    groups = resolve(config, SPECS, SHAPES)
    optimizer = make_optimizer(config.to_dict(), constant, SPECS, groups)
    state = jax.eval_shape(lambda p: optimizer.init(groups.trainable(p)), SHAPES)
    learning = sum(count for group, count in groups.counts(SHAPES) if not group.frozen)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.float32]
    assert sum(leaf.size for leaf in moments) == 2 * learning
    frozen_layers = 2 * (8 * 24 + 24 + 8 * 8 + 8 + 4 * 8 + 8 * 32 + 32 + 32 * 8 + 8)
    text = sum(s.size for name, s in flat(SHAPES).items() if name.startswith("text/"))
    assert learning == text - frozen_layers + 1


def test_frozen_matrices_are_stored_in_half_the_bytes():
    groups = groups_of(freeze="vision,text.blocks[:1]")
    stored = flat(groups.stored(random_params(), SPECS, "bfloat16"))
    for name, leaf in stored.items():
        half = name.startswith("vision/") and not SPECS[name].is_vector
        assert leaf.dtype == (jnp.bfloat16 if half else jnp.float32), name


def test_the_start_of_a_run_says_how_many_parameters_learn():
    total = sum(leaf.size for leaf in jax.tree.leaves(SHAPES))
    line = groups_of(freeze="text", layer_decay={"vision": 0.5}).described(SHAPES)
    vision = sum(leaf.size for name, leaf in flat(SHAPES).items() if not name.startswith("text"))
    assert line.startswith(f"{vision:,} of {total:,} parameters learn")
    assert says(line, f"{total - vision:,} frozen (text)", "multiplies rates by 0.031 to 1")


def test_the_defaults_of_the_schema_are_no_groups():
    assert Config().optimizer == Optimizer()
    assert Optimizer().freeze == "" and Optimizer().groups == ()
