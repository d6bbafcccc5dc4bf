"""The optimizer against the textbook."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from clip_jax import optim
from clip_jax.errors import UserError
from clip_jax.models.architectures import ARCHITECTURES
from clip_jax.models.clip import abstract_model, specs_of
from clip_jax.models.model_config import CLIPConfig
from steps import toy_specs
from support import says

CONFIG = dict(b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.2, clip_norm=0.0)


def rates(rate, *steps):
    return [float(rate(step)) for step in steps]


def test_warm_up_then_cosine():
    rate = optim.learning_rate(1e-3, 10, 110, final=1e-5)
    assert rates(rate, 0, 4, 9, 10) == pytest.approx([1e-4, 5e-4, 1e-3, 1e-3])
    assert rates(rate, 60, 110, 200) == pytest.approx([(1e-3 + 1e-5) / 2, 1e-5, 1e-5])
    assert rates(optim.learning_rate(1e-3, 0, 10), 0, 10) == pytest.approx([1e-3, 0])


def test_warm_up_then_a_line():
    rate = optim.learning_rate(1e-3, 10, 110, final=1e-4, course="linear")
    values = rates(rate, 0, 4, 9, 10, 35, 60, 110, 200)
    assert values == pytest.approx([1e-4, 5e-4, 1e-3, 1e-3, 7.75e-4, 5.5e-4, 1e-4, 1e-4])
    at_once = optim.learning_rate(1e-3, 0, 10, course="linear")
    assert rates(at_once, 0, 5, 10) == pytest.approx([1e-3, 5e-4, 0])


def const_cooldown(step, peak, warmup, steps, cooldown, end):
    """The formula of open_clip's `const_lr_cooldown`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    start = steps - cooldown
    return peak if step < start else (1 - (step - start) / cooldown) * (peak - end) + end


def test_constant_with_a_cooldown_is_open_clips():
    rate = optim.learning_rate(1e-3, 10, 110, final=1e-5, course="constant", cooldown_steps=40)
    values = [float(rate(step)) for step in range(110)]
    expected = [const_cooldown(step, 1e-3, 10, 110, 40, 1e-5) for step in range(110)]
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    longer = optim.learning_rate(1e-3, 10, 210, final=1e-5, course="constant", cooldown_steps=40)
    assert rates(longer, *range(70)) == values[:70]
    assert rates(rate, 110, 200) == pytest.approx([1e-5, 1e-5])
    plain = optim.learning_rate(1e-3, 10, 110, course="constant")
    assert rates(plain, 0, 9, 10, 109, 500) == pytest.approx([1e-4, 1e-3, 1e-3, 1e-3, 1e-3])


def test_the_inverse_square_root_is_big_visions():
    rate = optim.learning_rate(1e-3, 10, 110, course="rsqrt", cooldown_steps=20, timescale=50)
    steps = np.arange(10, 110)
    expected = 1e-3 / np.sqrt(1 + (steps - 10) / 50) * np.minimum(1, (110 - steps) / 20)
    np.testing.assert_allclose(rates(rate, *steps), expected, rtol=1e-6)
    plain = optim.learning_rate(1e-3, 10, 110, course="rsqrt", timescale=50)
    assert rates(plain, 0, 9, 60, 160) == pytest.approx([1e-4, 1e-3, 1e-3 / 2**0.5, 5e-4])


def test_a_prolonged_run_keeps_its_rates_and_goes_on_as_said():
    def make(steps):
        return optim.learning_rate(1e-3, 10, steps, final=1e-5)

    updates = np.arange(300)
    parts = {
        "continue": lambda start, end, last: make(end)(np.arange(start, end)),
        "rewarm": lambda start, end, last: make(end - start)(np.arange(end - start)),
        "constant": lambda start, end, last: np.full(end - start, last),
    }
    for then, part in parts.items():
        rate = optim.prolonged(make, 300, (100, 180), then)
        expected = [*np.asarray(make(100)(updates[:100]))]
        for start, end in ((100, 180), (180, 300)):
            expected += [*np.asarray(part(start, end, expected[-1]))]
        np.testing.assert_allclose(rates(rate, *updates), expected, rtol=1e-6, atol=1e-9)
    assert rates(optim.prolonged(make, 300, (), "rewarm"), 5, 150) == rates(make(300), 5, 150)


def test_a_restarted_state_keeps_its_moments_and_begins_the_schedule_anew():
    optimizer = optax.conditionally_mask(optax.adamw(lambda count: 0.1), lambda step: step >= 1)
    params = {"w": jnp.ones(2)}
    state = optimizer.init(params)
    for _ in range(3):
        _, state = optimizer.update({"w": jnp.ones(2)}, state, params)
    again = optim.restarted(state)
    assert (int(state.step), int(again.step)) == (3, 0)
    adam, schedule = state.inner_state[0], state.inner_state[-1]
    assert (int(schedule.count), int(again.inner_state[-1].count)) == (2, 0)
    assert int(again.inner_state[0].count) == int(adam.count) == 2
    np.testing.assert_array_equal(again.inner_state[0].mu["w"], adam.mu["w"])


COURSES = ["cosine", "linear", "constant", "rsqrt"]


@given(st.integers(0, 30), st.integers(1, 40), st.sampled_from(COURSES))
def test_no_update_of_a_run_is_wasted_on_a_rate_of_zero(warmup, rest, course):
    values = rates(
        optim.learning_rate(
            1e-3,
            warmup,
            warmup + rest,
            course=course,
            cooldown_steps=rest if course in ("constant", "rsqrt") else 0,
        ),
        *range(warmup + rest),
    )
    assert all(0 < rate <= 1.001e-3 for rate in values)
    assert max(values) == pytest.approx(1e-3)


def test_a_rate_that_ends_where_it_peaks_is_constant():
    rate = optim.learning_rate(1e-3, 4, 20, final=1e-3)
    assert rates(rate, 0, 3, 4, 12, 20, 30) == pytest.approx([2.5e-4, *[1e-3] * 5])


def test_gains_and_biases_do_not_decay_and_all_the_rest_does():
    model = abstract_model(ARCHITECTURES["ViT-B/32"], "float32", "none")
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    mask = optim.decay_mask(params, specs_of(ARCHITECTURES["ViT-B/32"]))
    decays = {
        "/".join(str(k.key) for k in path): value
        for path, value in jax.tree_util.tree_flatten_with_path(mask)[0]
    }
    undecayed = {name for name, value in decays.items() if not value}
    assert undecayed == {
        name
        for name in decays
        if name.rsplit("/", 1)[-1] in ("bias", "scale")
        or name in ("logit_scale", "vision/class_embedding")
    }
    assert decays["text/token_embedding/embedding"]
    assert decays["vision/transformer/blocks/attention/qkv/kernel"]
    assert not decays["vision/transformer/blocks/ln_1/scale"]


def test_adamw_is_the_textbooks():
    params = {"kernel": jnp.asarray([1.0, -2.0]), "bias": jnp.asarray([3.0])}
    optimizer = optim.make_optimizer(CONFIG, lambda _: 0.01, toy_specs(params))
    grads = [
        {"kernel": jnp.asarray([0.1, 0.2]), "bias": jnp.asarray([-0.3])},
        {"kernel": jnp.asarray([-0.4, 0.1]), "bias": jnp.asarray([0.2])},
    ]
    state = optimizer.init(params)
    want = {k: np.asarray(v, np.float64) for k, v in params.items()}
    m = dict.fromkeys(want, 0.0)
    v = dict.fromkeys(want, 0.0)
    for t, grad in enumerate(grads, 1):
        updates, state = optimizer.update(grad, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        for k in want:
            g = np.asarray(grad[k], np.float64)
            m[k] = 0.9 * m[k] + 0.1 * g
            v[k] = 0.98 * v[k] + 0.02 * g * g
            adam = (m[k] / (1 - 0.9**t)) / (np.sqrt(v[k] / (1 - 0.98**t)) + 1e-6)
            decay = 0.2 * want[k] if k == "kernel" else 0.0
            want[k] = want[k] - 0.01 * (adam + decay)
    for k in want:
        np.testing.assert_allclose(params[k], want[k], rtol=1e-5)


def test_sgd_is_torchs():
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(3, 2)), rng.normal(size=2)
    params = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    optimizer = optim.make_optimizer(
        {**CONFIG, "name": "sgd"}, lambda step: 0.1 / (step + 1), toy_specs(params)
    )
    state = optimizer.init(params)
    momenta = [np.zeros_like(kernel), np.zeros_like(bias)]
    for step in range(3):
        grads = [rng.normal(size=kernel.shape), rng.normal(size=bias.shape)]
        updates, state = optimizer.update(
            dict(zip(("kernel", "bias"), map(jnp.asarray, grads), strict=True)), state, params
        )
        params = optax.apply_updates(params, updates)
        decayed = [grads[0] + 0.2 * kernel, grads[1]]
        momenta = [0.9 * m + g for m, g in zip(momenta, decayed, strict=True)]
        kernel, bias = kernel - 0.1 / (step + 1) * momenta[0], bias - 0.1 / (step + 1) * momenta[1]
        np.testing.assert_allclose(params["kernel"], kernel, rtol=1e-5)
        np.testing.assert_allclose(params["bias"], bias, rtol=1e-5)


def test_clipping_bounds_the_gradient():
    params = {"bias": jnp.zeros(2)}
    optimizer = optim.make_optimizer(
        {**CONFIG, "clip_norm": 1.0, "b1": 0.0, "b2": 0.0}, lambda _: 1.0, toy_specs(params)
    )
    state = optimizer.init(params)
    _, after = optimizer.update({"bias": jnp.asarray([30.0, 40.0])}, state, params)
    first_moment = next(x for x in jax.tree.leaves(after) if x.shape == (2,))
    np.testing.assert_allclose(first_moment, [0.6, 0.8], rtol=1e-5)


def test_default_config_is_a_model_people_know():
    assert CLIPConfig() == ARCHITECTURES["ViT-B/32"]


def orthogonality(update: jax.Array) -> tuple[float, float]:
    values = np.linalg.svd(np.asarray(update, np.float64), compute_uv=False)
    return values.min(), values.max()


def test_muon_moves_matrices_alike_in_all_directions_and_adam_the_rest():
    config = {**CONFIG, "learning_rate": 0.01, "muon_learning_rate": 0.1, "weight_decay": 0.0}
    plain = optax.nadam(0.01, b1=0.9, b2=0.98, eps=1e-6)
    keys = iter(jax.random.split(jax.random.key(0), 8))
    grads = {
        "blocks": {"kernel": jax.random.normal(next(keys), (3, 8, 16))},
        "head": {"kernel": jax.random.normal(next(keys), (16, 8)), "bias": jnp.ones(8)},
        "embedding": jax.random.normal(next(keys), (20, 8)),
        "logit_scale": jnp.ones(()),
    }
    params = jax.tree.map(jnp.zeros_like, grads)
    optimizer = optim.make_optimizer(config, lambda _: 0.01, toy_specs(params))
    muon, _ = optimizer.update(grads, optimizer.init(params), params)
    adam, _ = plain.update(grads, plain.init(params), params)
    for name in ("embedding", "logit_scale"):
        np.testing.assert_allclose(muon[name], adam[name], rtol=1e-5)
    np.testing.assert_allclose(muon["head"]["bias"], adam["head"]["bias"], rtol=1e-5)
    for layer in muon["blocks"]["kernel"]:  # each layer of a stack by itself
        least, most = orthogonality(layer)
        assert least / np.sqrt(2) > 0.03 and most / np.sqrt(2) < 0.13  # ~ rate · √(out / in)
    least, most = orthogonality(muon["head"]["kernel"])
    assert least > 0.03 and most < 0.13
    gradient = np.asarray(grads["blocks"]["kernel"][0], np.float64)
    assert np.sum(gradient * np.asarray(muon["blocks"]["kernel"][0])) < 0, "downhill"


def test_muon_decays_matrices_alone():
    config = {**CONFIG, "learning_rate": 0.01, "muon_learning_rate": 0.1, "weight_decay": 0.5}
    params = {"a": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}, "embedding": jnp.ones((9, 4))}
    optimizer = optim.make_optimizer(config, lambda _: 0.01, toy_specs(params))
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"]["kernel"], -0.1 * 0.5, rtol=1e-5)
    assert not jnp.any(updates["a"]["bias"]) and not jnp.any(updates["embedding"])


def test_muon_goes_by_its_name_and_by_its_rate():
    config = {**CONFIG, "learning_rate": 0.01, "muon_learning_rate": 0.1}
    params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    grads = jax.tree.map(jnp.cos, params)
    updates = []
    for name in ("adamw", "muon"):
        options = {**config, "name": name}
        optimizer = optim.make_optimizer(options, lambda _: 0.01, toy_specs(params))
        updates.append(optimizer.update(grads, optimizer.init(params), params)[0])
    jax.tree.map(np.testing.assert_array_equal, *updates)


def my_optimizer(config, schedule, specs):
    """Of a user's own: it moves matrices alone."""
    rates = {name: float(spec.matrix) for name, spec in specs.items()}
    return optax.stateless(lambda updates, _: {k: -rates[k] * updates[k] for k in updates})


def test_an_optimizer_of_the_users_own_joins_by_dotted_path():
    params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    config = {**CONFIG, "name": f"{__name__}:my_optimizer", "clip_norm": 1.0}
    optimizer = optim.make_optimizer(config, lambda _: 0.01, toy_specs(params))
    grads = jax.tree.map(lambda p: 10 * p, params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -1 / np.sqrt(20), rtol=1e-5)
    assert not updates["bias"].any()


def test_an_unknown_optimizer_is_named_with_those_there_are():
    with pytest.raises(UserError) as error:
        optim.make_optimizer({**CONFIG, "name": "lam"}, lambda _: 0.01, {})
    assert says(error.value, "config.optimizer.name=lam", "adamw, lamb, muon")


def test_an_optimizer_of_the_users_that_fails_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "failing_optimizers.py").write_text(
        "import optax\n"
        "def update(updates, state, params):\n"
        "    return updates['x'], state\n"
        "def make(config, schedule, specs):\n"
        "    return optax.GradientTransformation(lambda params: (), update)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    config = {"name": "failing_optimizers:make"}
    optimizer = optim.make_optimizer(config, lambda step: 0.1, {})
    params = {"y": jnp.ones(2)}
    with pytest.raises(UserError) as error:
        optimizer.update(params, optimizer.init(params), params)
    where = "config.optimizer.name=failing_optimizers:make: update fails: KeyError: 'x'"
    assert says(error.value, where, "(failing_optimizers.py, line 3)")
