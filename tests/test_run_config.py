"""A stranger's run folder: whatever its config.json says, it is used or refused in one line."""

import copy
import json
import warnings

import jax
import numpy as np
import pytest

import damage
from checkpoints import NEW, write_run
from clip_jax import config as config_lib
from clip_jax.errors import UserError
from clip_jax.evaluation import evaluate
from clip_jax.inference import model_source, pretrained
from clip_jax.models.architectures import ARCHITECTURES
from clip_jax.models.clip import abstract_model, variables
from clip_jax.models.model_config import CLIPConfig
from clip_jax.training import checkpointing
from support import refused, says


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with two checkpoints."""
    return write_run(tmp_path_factory.mktemp("run"))


VALUES = [
    *(None, True, False, 0, -1, 1, 2, 7, 17, 1 << 20, 1 << 40, 10**30, 0.0, -0.5, 1e-300, 1e300),
    *(float("nan"), float("inf"), "", "a", "\x00", "é\ud800", "x" * 5000, "1", [], [0], [[]], {}),
    *(
        {"a": 1},
        [1, 2, 3, 4],
        [1.0, "a", None],
        [float("nan")] * 3,
        [[1, 2, 3, 4, 5, 6]],
        [10**6] * 4,
    ),
]


def places(values, path=()):
    """The paths of all values below."""
    for key, value in values.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


def mutated(values, rng):
    """One to three values replaced, left out, renamed or added."""
    values = copy.deepcopy(values)
    for _ in range(int(rng.integers(1, 4))):
        paths = list(places(values))
        if not paths:
            break
        weight = np.array([3.0 if p[0] in ("model", "dtype", "tokenizer") else 1.0 for p in paths])
        *path, key = paths[int(rng.choice(len(paths), p=weight / weight.sum()))]
        node = values
        for name in path:
            node = node[name]
        value = copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])
        match int(rng.integers(6)):
            case 0:
                del node[key]
            case 1:
                node[f"{key}x"] = node.pop(key)
            case 2:
                node[f"extra{int(rng.integers(9))}"] = value
            case _:
                node[key] = value
    return values


def used(folder):
    """The run by each of its readers."""
    pretrained.load(folder)
    model_source.open_model_source(folder)
    c, _ = config_lib.load(str(config_lib.ROOT / "configs" / "quickstart.py"))
    evaluate.find_model(c, str(folder), "")
    config_lib.differences(checkpointing.read_config(folder), c.to_dict())


@pytest.fixture
def folder(run, tmp_path):
    """The run's checkpoint beside a config that may be changed."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(run / "checkpoints")
    (tmp_path / "run" / "config.json").write_bytes((run / "config.json").read_bytes())
    return tmp_path / "run"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["values", "bytes"])
def test_500_mutated_configs_end_in_a_line_or_are_used(folder, kind):
    config, count = folder / "config.json", 0
    c, _ = config_lib.load(str(config_lib.ROOT / "configs" / "quickstart.py"))
    raw = config.read_bytes()
    document = {**json.loads(config_lib.to_json(c)), **json.loads(raw)}
    for seed in range(250):
        rng = np.random.default_rng(seed)
        if kind == "bytes":
            config.write_bytes(damage.mutated(json.dumps(document).encode(), rng, raw))
        else:
            config.write_text(json.dumps(mutated(document, rng)))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                used(folder)
        except UserError as error:
            assert says(error), (seed, str(error))
            count += 1
    assert count > 100


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model", None, ["model", "object"]),
        ("model", [], ["model", "object"]),
        ("dtype", "float8", ["dtype='float8'", "mixed"]),
        ("tokenizer", 3, ["tokenizer=3"]),
        ("model.vision", "vit", ["model.vision"]),
        ("model.vision.width", 0, ["model.vision.width=0", "from 1"]),
        ("model.vision.width", 24, ["model.vision.width=24", "written with 16"]),
        ("model.vision.heads", 1, ["model.vision.heads=1", "written with 2"]),
        ("model.vision.image_size", 10**9, ["image_size=1000000000", "8192"]),
        ("model.vision.layers", "2", ["layers='2'", "whole number"]),
        ("model.vision.std", [0, 1, 1], ["std", "number from"]),
        ("model.vision.mean", [0.5], ["mean", "three"]),
        ("model.text.vocab_size", True, ["vocab_size=True"]),
        ("model.text.eps", float("nan"), ["eps=nan"]),
        ("model.activation", "relu", ["activation='relu'", "gelu_tanh"]),
        ("model.strange", 1, ["model.strange", "known: "]),
    ],
)
def test_a_wrong_value_is_named(folder, key, value, words):
    values = json.loads((folder / "config.json").read_text())
    *path, last = key.split(".")
    node = values
    for name in path:
        node = node[name]
    node[last] = value
    (folder / "config.json").write_text(json.dumps(values))
    for act in (pretrained.load, model_source.open_model_source):
        refused(lambda act=act: act(folder), folder / "config.json", *words)


@pytest.mark.parametrize("key", ["model", "dtype", "tokenizer", "model.text", "model.vision"])
def test_a_missing_key_is_named(folder, key):
    values = json.loads((folder / "config.json").read_text())
    *path, last = key.split(".")
    del (values[path[0]] if path else values)[last]
    (folder / "config.json").write_text(json.dumps(values))
    refused(lambda: pretrained.load(folder), folder / "config.json", f"{key} is missing")


@pytest.mark.parametrize("name", ["ViT-B/32", "RN50"])
def test_whole_numbers_stand_for_fractions(name):
    values = json.loads(json.dumps(ARCHITECTURES[name].to_dict()))
    values["max_logit_scale"] = 100
    assert CLIPConfig.from_dict(values) == ARCHITECTURES[name]


def test_weights_of_another_shape_are_refused(folder, run):
    """Where the checkpoint holds no config of its own, its arrays tell."""
    (folder / "checkpoints").unlink()
    checkpoints = checkpointing.Checkpoints(folder)
    values = json.loads((folder / "config.json").read_text())
    state = {"params": {"log_logit_scale": jax.numpy.zeros(3)}}
    checkpoints.save(NEW, state, {}, {}, force=True)
    checkpoints.close()
    assert values["model"]
    refused(lambda: pretrained.load(folder), f"checkpoints/{NEW} cannot be restored")


def test_layers_that_the_config_leaves_out_are_missed(folder, run):
    """Arrays that a model has no place for are refused, not ignored, before anything is read."""
    values = json.loads((folder / "config.json").read_text())
    values["model"]["text"]["layers"] = 0
    shapes = CLIPConfig.from_dict(values["model"])
    with pytest.raises(UserError, match=r"text.* of shape .*, the model has none"):
        params, stats = variables(abstract_model(shapes))
        checkpointing.read_parts(folder, NEW, {"params": params, "stats": stats})
