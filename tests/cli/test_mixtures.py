"""Interpolation of two models and soups of several: the ends to the bit, the curve, the choice."""

import json

import numpy as np
import pytest
from flax import nnx
from recipes import flat

import clip_jax
import runs
from clip_jax.__main__ import run as command
from clip_jax.cli.interpolate import parse_alphas
from clip_jax.errors import UserError
from clip_jax.inference import mixtures
from clip_jax.models.clip import CLIP, variables
from clip_jax.models.model_config import CLIPConfig, ResNetConfig, TextConfig, VisionConfig
from clip_jax.weights import export

SMALL = dict(width=16, layers=1, heads=2)
TEXT = TextConfig(context_length=12, **SMALL)
CONFIG = CLIPConfig(12, vision=VisionConfig(image_size=16, patch_size=8, **SMALL), text=TEXT)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed in range(3):
        variables_ = variables(CLIP(CONFIG, rngs=nnx.Rngs(seed)))
        export.write(folder / f"m{seed}", variables_, CONFIG, "open_clip")
    return [str(folder / f"m{seed}") for seed in range(3)]


def parameters(folder):
    return flat(variables(clip_jax.load(str(folder))[0])[0])


def mixed(models, alpha, out):
    a, b = models[:2]
    assert command(["interpolate", a, b, "--alpha", alpha, "--out", str(out)]) == 0
    return parameters(out)


def test_the_ends_are_the_models_to_the_bit_and_the_middle_is_the_mean(models, tmp_path):
    a, b = map(parameters, models[:2])
    for alpha, end in (("0", a), ("1", b)):
        ours = mixed(models, alpha, tmp_path / alpha)
        assert all(np.array_equal(value, end[name]) for name, value in ours.items())
    middle = mixed(models, "0.25", tmp_path / "middle")
    for name, value in middle.items():
        np.testing.assert_allclose(value, 0.75 * a[name] + 0.25 * b[name], rtol=1e-6, atol=1e-8)


def test_a_uniform_soup_is_the_mean(models, tmp_path):
    assert command(["soup", *models, "--out", str(tmp_path)]) == 0
    members = [parameters(model) for model in models]
    for name, value in parameters(tmp_path).items():
        np.testing.assert_allclose(
            value, sum(m[name] for m in members) / 3, rtol=1e-6, atol=1e-8, err_msg=name
        )


def test_integers_are_those_of_the_nearer_end():
    tree = {"x": np.float32([1, 3]), "n": np.int32(4)}, {}
    other = {"x": np.float32([3, 5]), "n": np.int32(8)}, {}
    params, _ = mixtures.interpolate(tree, other, 0.75)
    assert params["n"] == 8 and params["x"].tolist() == [2.5, 4.5]
    average = mixtures.Average(tree).with_one_more(other)
    assert average.variables()[0]["x"].tolist() == [2, 4] and average.variables()[0]["n"] == 4


def test_all_mixtures_are_evaluated_and_drawn(models, tmp_path, capsys):
    config = runs.small_run(tmp_path, 6)
    text = config.read_text().replace(
        "    return c", "    c.evaluate.sets.other = c.evaluate.sets.held\n    return c"
    )
    config.write_text(text)
    flags = ["--alpha", "0:1:0.5", "--config", str(config), "--out", str(tmp_path / "out")]
    assert command(["interpolate", *models[:2], *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "alpha  zero_shot/held/top1  zero_shot/other/top1" and len(lines) == 4
    document = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [point["alpha"] for point in document["mixtures"]] == [0, 0.5, 1]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") == 2 and "Own task against others" in page
    with pytest.raises(UserError, match="no metric 'zero_shot/none/top1'"):
        command(["interpolate", *models[:2], *flags, "--own", "none"])


def test_a_greedy_soup_keeps_what_does_not_lower_the_metric(models, tmp_path, capsys, monkeypatch):
    from clip_jax.evaluation.mixtures import MixtureEvaluation

    members = [parameters(model) for model in models]
    name = "vision/positional_embedding"
    values = {0: 0.5, 1: 0.7, 2: 0.6}  # alone

    def metrics(self, source):
        value = source.read("keep")[0]["vision"]["positional_embedding"]
        for i, member in enumerate(members):
            if np.array_equal(value, member[name]):
                return {"score": values[i]}
        pair = np.allclose(value, (members[1][name] + members[2][name]) / 2)
        return {"score": 0.8 if pair else 0.75}

    monkeypatch.setattr(MixtureEvaluation, "metrics", metrics)
    config = runs.small_run(tmp_path, 4)
    flags = ["--greedy", "--metric", "score", "--config", str(config), "--out", str(tmp_path / "s")]
    assert command(["soup", *models, *flags]) == 0
    out = capsys.readouterr().out
    assert "m1: score 0.7, the best alone" in out
    assert "m2: 0.8 with it, added" in out and "m0: 0.75 with it, left out" in out
    expected = (np.float64(members[1][name]) + members[2][name]) / 2
    np.testing.assert_allclose(parameters(tmp_path / "s")[name], expected, rtol=1e-6)


def test_ranges_of_alpha():
    assert parse_alphas("0:1:0.1") == [round(0.1 * i, 9) for i in range(11)]
    assert parse_alphas("0.5") == [0.5] and parse_alphas("0,1") == [0, 1]
    for wrong in ("x", "0:1", "0:1:0", "1:0:0.1", "0:1:1e-9", "", "nan:1:0.1"):
        with pytest.raises(UserError, match="must be a number"):
            parse_alphas(wrong)
    with pytest.raises(UserError, match="from 0 to 1"):
        parse_alphas("1.5")


def test_wrong_input_is_one_line(models, tmp_path):
    other = CLIPConfig(16, vision=ResNetConfig(32, 8, (1, 1, 1, 1), 4), text=TEXT)
    export.write(tmp_path / "x", variables(CLIP(other, rngs=nnx.Rngs(0))), other, "open_clip")
    out = ["--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match=r"is another architecture than .*model\.embed_dim=16"):
        command(["interpolate", models[0], str(tmp_path / "x"), "--alpha", "0", *out])
    with pytest.raises(UserError, match="two models or more"):
        command(["soup", models[0], *out])
    with pytest.raises(UserError, match="belong together"):
        command(["soup", *models, "--greedy", *out])
    with pytest.raises(UserError, match="nothing to evaluate on"):
        command(["interpolate", *models[:2], "--alpha", "0,1", *out])
