"""The schema: every key once, with all that others derive from it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from clip_jax import config as config_lib
from clip_jax.config import ROOT, typed
from clip_jax.config.hints import _ELSEWHERE
from clip_jax.config.schema import DTYPES, KEYS, Config, walk
from clip_jax.errors import UserError
from clip_jax.models import model_config
from configs import common
from support import says


def test_every_key_says_what_it_means_and_has_a_default_within_its_bounds():
    for name, facts, default in walk():
        assert facts.doc.strip() and "\n" not in facts.doc, name
        if isinstance(default, (int, float)) and not isinstance(default, bool):
            assert facts.at_least <= default <= facts.at_most, name
        if facts.choices:
            assert default in facts.choices, name


def test_the_defaults_are_those_of_the_common_config():
    config = common.get_config("ViT-B/16").to_dict()
    assert {k: v for k, v in config.items() if k != "model"} == {
        k: v for k, v in Config().to_dict().items() if k != "model"
    }
    assert typed(config).to_dict() == config


def test_the_dtypes_are_those_of_the_models():
    assert tuple(model_config.DTYPES) == DTYPES


def test_typed_configs_are_frozen():
    config = typed(common.get_config())
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.optimizer.learning_rate = 1.0  # type: ignore[misc]


def test_the_config_of_an_older_run_has_the_defaults_of_new_keys():
    values = json.loads(config_lib.to_json(common.get_config()))
    del values["objective"], values["chunk"], values["optimizer"]["schedule"]
    assert config_lib.to_json(typed(values)) == config_lib.to_json(common.get_config())


@pytest.mark.parametrize(
    ("group", "key", "value", "words"),
    [
        ("", "batchsize", 3, ["unknown config key config.batchsize", "config.batch_size"]),
        ("optimizer", "lr", 1e-3, ["config.optimizer.lr", "config.optimizer.learning_rate"]),
        ("optimizer", "learning_rate", "fast", ["config.optimizer.learning_rate='fast'", "number"]),
        ("optimizer", "sharded", 1, ["config.optimizer.sharded=1", "true or false"]),
        ("", "steps", True, ["config.steps=True", "a whole number"]),
        ("", "steps", 1.5, ["config.steps=1.5", "a whole number"]),
        ("", "steps", float("nan"), ["config.steps=nan", "a whole number"]),
        ("optimizer", "eps", float("nan"), ["config.optimizer.eps=nan"]),
        ("", "data", 3, ["config.data=3", "group of keys"]),
        ("data", "captions", "{caption}", ["config.data.captions='{caption}'", "a tuple"]),
        ("data", "mix", 3, ["config.data.mix=3", "group of keys"]),
    ],
)
def test_a_wrong_value_in_a_config_file_is_a_one_line_error(group, key, value, words):
    values = common.get_config().to_dict()
    (values[group] if group else values)[key] = value
    with pytest.raises(UserError) as error:
        typed(values)
    assert says(error.value, *words)


def test_whole_numbers_may_be_written_as_floats_and_numbers_as_integers():
    values = common.get_config().to_dict()
    values["steps"], values["optimizer"]["weight_decay"] = 2e3, 1
    config = typed(values)
    assert (config.steps, config.optimizer.weight_decay) == (2000, 1.0)
    assert type(config.steps) is int and type(config.optimizer.weight_decay) is float


def test_the_names_of_others_point_to_keys_that_exist():
    assert set(_ELSEWHERE.values()) <= KEYS.keys()
    assert not set(_ELSEWHERE) & KEYS.keys()


def test_the_help_explains_every_key_of_the_schema():
    text = config_lib.describe(common.get_config(), docs=config_lib.key_docs())
    words = " ".join(text.split())
    for name, facts in KEYS.items():
        if name.split(".")[0] != "model" and f"--config.{name}=" in words:
            assert " ".join(facts.doc.split()) in words, name


def test_shipped_configs_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "quickstart.py", "configs/quickstart.py"):
        assert config_lib.load(name)[0].workdir == "runs/quickstart"
    (tmp_path / "quickstart.py").write_text((ROOT / "configs" / "rn50.py").read_text())
    assert config_lib.load("quickstart.py")[0].model.vision.kind == "resnet"
    for name in ("no_such", "elsewhere/quickstart", "__init__", ""):
        with pytest.raises(UserError) as error:
            config_lib.load(name)
        assert says(error.value, f"no config {name}", "vit_b16")
