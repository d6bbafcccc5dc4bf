"""Training goes on from the weights of other libraries, for every kind of model."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from towerfiles import LITE, MINI, write_bert, write_lite

import clip_jax
import runs
from clip_jax import main
from clip_jax.config import load
from clip_jax.errors import UserError
from clip_jax.inference.towers import open_towers
from clip_jax.models.clip import CLIP, variables
from clip_jax.models.model_config import (
    BertConfig,
    CLIPConfig,
    EfficientNetConfig,
    ResNetConfig,
    TextConfig,
    VisionConfig,
)
from clip_jax.training import checkpointing
from clip_jax.training.run import prepare
from clip_jax.training.trainer import Trainer
from clip_jax.weights import arrays, export
from support import encoded, picture, says, write_tar

CONFIG = '''"""A run of seconds from the weights of another library."""
import json
import shutil
from configs import common
from ml_collections import ConfigDict

def get_config():
    c = common.get_config()
    c.model = ConfigDict(json.loads({model!r}))
    c.weights.path = {weights!r}
    c.batch_size = 8
    c.steps = 3
    c.dtype = "float32"
    c.remat = "none"
    c.tokenizer = {tokenizer!r}
    c.data.train = {train!r}
    c.optimizer.warmup_steps = 1
    c.optimizer.learning_rate = 1e-3
    c.log.every = 1
    c.log.tensorboard = False
    return c
'''
SMALL = dict(width=16, layers=1, heads=2)
WORDS = TextConfig(vocab_size=2100, context_length=8, **SMALL)
IMAGE = VisionConfig(image_size=16, patch_size=8, **SMALL)
SIGLIP_IMAGE = dataclasses.replace(
    IMAGE, pool="map", ln_pre=False, patch_bias=True, projection=False, eps=1e-6, mean=(0.5,) * 3
)
MODELS = {
    "clip": (CLIPConfig(12, vision=IMAGE, text=WORDS), "hugging_face"),
    "resnet": (
        CLIPConfig(12, vision=ResNetConfig(32, 4, (1, 1, 1, 2), 2), text=WORDS),
        "open_clip",
    ),
    "siglip": (
        CLIPConfig(
            16,
            "gelu_tanh",
            temperature=0.1,
            max_logit_scale=0.0,
            logit_bias=-10.0,
            vision=dataclasses.replace(SIGLIP_IMAGE, std=(0.5,) * 3),
            text=TextConfig(
                vocab_size=64,
                context_length=8,
                causal=False,
                pool="last",
                projection_bias=True,
                eps=1e-6,
                **SMALL,
            ),
        ),
        "hugging_face",
    ),
    "align": (
        CLIPConfig(
            8,
            "gelu",
            temperature=1.0,
            log_scale=False,
            max_logit_scale=0.0,
            vision=EfficientNetConfig(
                image_size=24,
                width=0.5,
                depth=1.0,
                divisor=4,
                stages=((3, 1, 1, 32, 16, 1), (5, 2, 4, 16, 16, 2)),
            ),
            text=BertConfig(vocab_size=50, context_length=8, positions=12, **SMALL),
        ),
        "hugging_face",
    ),
}


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    members = []
    for i in range(8):
        members.append((f"{i:03}.png", encoded(picture(i, (40, 36)))))
        members.append((f"{i:03}.json", json.dumps({"caption": f"picture {i}"}).encode()))
    return write_tar(tmp_path / "pairs.tar", members)


def tokenizer_for(config: CLIPConfig, folder: Path) -> str:
    if isinstance(config.text, BertConfig):
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "picture", *map(str, range(10))]
        (folder / "vocab.txt").write_text("\n".join(words) + "\n")
        return f"wordpiece:{folder / 'vocab.txt'}"
    if config.text.pool == "last":
        return f"siglip:{Path(__file__).parent / 'golden' / 'siglip.model'}"
    return "sentencepiece:embedded:emoji/emoji.model"


def write_config(folder: Path, weights: Path, tar: Path, config: CLIPConfig) -> Path:
    path = folder / "config.py"
    path.write_text(
        CONFIG.format(
            model=json.dumps(config.to_dict()),
            weights=str(weights),
            train=str(tar),
            tokenizer=tokenizer_for(config, folder),
        )
    )
    return path


@pytest.mark.slow
@pytest.mark.parametrize("family", MODELS)
def test_a_run_starts_from_a_file_and_is_loaded(family, tar, tmp_path):
    config, kind = MODELS[family]
    weights = variables(CLIP(config, rngs=nnx.Rngs(3)))
    export.write(tmp_path / "weights", weights, config, kind)
    path = write_config(tmp_path, tmp_path / "weights", tar, config)
    still = runs.run(path, tmp_path / "still", "--config.optimizer.learning_rate=1e-12")
    assert still.returncode == 0, still.stderr
    losses = [line["loss"] for line in runs.lines(tmp_path / "still")]
    assert len(losses) == 3 and np.isfinite(losses).all()
    run, preprocess, tokenize = clip_jax.load(str(tmp_path / "still"))
    params = dict(jax.tree_util.tree_flatten_with_path(weights[0])[0])
    for place, value in jax.tree_util.tree_flatten_with_path(variables(run)[0])[0]:
        np.testing.assert_allclose(value, params[place], rtol=0, atol=1e-6, err_msg=str(place))
    counted = [n for n in jax.tree.leaves(variables(run)[1]) if n.dtype == np.int32]
    assert all((np.asarray(n) == 3).all() for n in counted)
    assert preprocess.size == config.vision.image_size and tokenize(["1"]).shape == (1, 8)


@pytest.mark.slow
def test_a_run_starts_from_another_run_or_a_step_of_it(tar, tmp_path):
    config, kind = MODELS["clip"]
    export.write(tmp_path / "weights", variables(CLIP(config, rngs=nnx.Rngs(3))), config, kind)
    path = write_config(tmp_path, tmp_path / "weights", tar, config)
    first = runs.run(path, tmp_path / "first", "--config.optimizer.learning_rate=0.1")
    assert first.returncode == 0, first.stderr
    weights = variables(clip_jax.load(str(tmp_path / "first"))[0])
    for source in (tmp_path / "first", tmp_path / "first" / "checkpoints" / "3"):
        still = ("--config.optimizer.learning_rate=1e-12", f"--config.weights.path={source}")
        done = runs.run(path, tmp_path / f"from {source.name}", *still)
        assert done.returncode == 0 and f"starting from {source}" in done.stderr, done.stderr
        again = variables(clip_jax.load(str(tmp_path / f"from {source.name}"))[0])
        for one, other in zip(jax.tree.leaves(weights[0]), jax.tree.leaves(again[0]), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    other = ("--config.model.vision.layers=2", f"--config.weights.path={tmp_path / 'first'}")
    done = runs.run(path, tmp_path / "other", *other)
    assert done.returncode == 2 and "vision.layers=1, not 2" in done.stderr


@pytest.mark.slow
def test_other_sizes_are_resized_by_choice_only(tar, tmp_path):
    config, kind = MODELS["clip"]
    weights = variables(CLIP(config, rngs=nnx.Rngs(3)))
    export.write(tmp_path / "weights", weights, config, kind)
    larger = dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, image_size=32),
        text=dataclasses.replace(config.text, context_length=12),
    )
    path = write_config(tmp_path, tmp_path / "weights", tar, larger)
    flags = ["--config", str(path), "--workdir", str(tmp_path / "run")]
    with pytest.raises(UserError) as caught:
        main.run(flags)
    assert says(caught.value, "context_length=8", "not 12", "--config.weights.resize=True")
    assert not (tmp_path / "run").exists()
    done = runs.run(path, tmp_path / "run", "--config.weights.resize=True")
    assert done.returncode == 0, done.stderr
    losses = [line["loss"] for line in runs.lines(tmp_path / "run")]
    assert losses[2] < losses[0]
    output = done.stdout + done.stderr
    assert "resized: 16 pixels and 8 tokens to 32 pixels and 12 tokens" in output
    shutil.rmtree(tmp_path / "weights")  # a run that has begun needs them no more
    again = runs.run(path, tmp_path / "run", "--config.weights.resize=True")
    assert again.returncode == 0 and "nothing to train" in again.stdout + again.stderr
    model, _, _ = clip_jax.load(str(tmp_path / "run"))
    assert model.vision.positional_embedding.shape == (17, 16)
    assert model.text.positional_embedding.shape == (12, 16)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(activation="gelu"), ["model.activation='quick_gelu'", "not 'gelu'"]),
        (dict(embed_dim=16), ["model.embed_dim=12", "not 16"]),
        (dict(vision=MODELS["resnet"][0].vision), ["model.vision"]),
    ],
)
def test_weights_of_another_model_are_refused(change, words, tar, tmp_path):
    config, kind = MODELS["clip"]
    weights = variables(CLIP(config, rngs=nnx.Rngs(3)))
    export.write(tmp_path / "weights", weights, config, kind)
    path = write_config(tmp_path, tmp_path / "weights", tar, dataclasses.replace(config, **change))
    with pytest.raises(UserError) as caught:
        main.run(["--config", str(path), "--workdir", str(tmp_path / "run")])
    assert says(caught.value, "weights", *words)


@pytest.mark.parametrize(
    ("family", "tokenizer", "words"),
    [
        ("clip", "align", ["largest id"]),
        ("clip", "siglip", ["largest id"]),
        ("align", "siglip", ["pad_id"]),
    ],
)
def test_a_tokenizer_that_the_tower_cannot_read_is_refused(family, tokenizer, words, tar, tmp_path):
    config = MODELS[family][0]
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=100))
    path = write_config(tmp_path, Path(), tar, config)
    other = tokenizer_for(MODELS[tokenizer][0], tmp_path)
    with pytest.raises(UserError) as caught:
        main.run(
            [
                *("--config", str(path), "--workdir", str(tmp_path / "run")),
                *(f"--config.tokenizer={other}", "--config.weights.path="),
            ]
        )
    assert says(caught.value, "tokenizer", *words)


@pytest.mark.slow
def test_a_new_run_goes_on_with_the_optimizers_state_of_another(tar, tmp_path):
    config, kind = MODELS["clip"]
    export.write(tmp_path / "weights", variables(CLIP(config, rngs=nnx.Rngs(3))), config, kind)
    path = write_config(tmp_path, tmp_path / "weights", tar, config)
    first = tmp_path / "first"
    assert main.run(["--config", str(path), "--workdir", str(first)]) == 0

    def fresh(*overrides):
        start = f"weights.path={first / 'checkpoints' / '3'}"
        folder = f"workdir={tmp_path / 'new'}"
        c, _ = load(str(path), [folder, start, "weights.optimizer=True", *overrides])
        trainer = Trainer(prepare(c))
        return trainer, trainer.fresh()

    trainer, state = fresh()
    like = trainer.state_like
    old = checkpointing.Checkpoints(first).restore(3, like)[0]
    assert (int(state.step), int(old.step)) == (0, 3)
    for new_part, old_part in zip(state.opt_state, old.opt_state, strict=True):
        if isinstance(old_part, optax.ScaleByScheduleState):
            assert (int(new_part.count), int(old_part.count)) == (0, 3)
            continue
        for one, other in zip(jax.tree.leaves(new_part), jax.tree.leaves(old_part), strict=True):
            np.testing.assert_array_equal(one, other)
    adam_state = old.opt_state[0]
    assert int(adam_state.count) == 3 and any(np.any(x) for x in jax.tree.leaves(adam_state.mu))
    with pytest.raises(UserError) as error:
        fresh("optimizer.freeze=text")
    assert says(error.value, "config.weights.optimizer=True needs the optimizer that")
    with pytest.raises(UserError) as error:
        fresh(f"weights.path={tmp_path / 'weights'}")
    assert says(error.value, "is no run, and has no optimizer's state")


@pytest.mark.slow
def test_a_run_starts_from_a_file_for_each_tower(tar, tmp_path):
    (tmp_path / "bert").mkdir()
    lite, bert = write_lite(tmp_path / "lite.safetensors"), write_bert(tmp_path / "bert")
    config = CLIPConfig(24, vision=LITE, text=MINI)
    path = write_config(tmp_path, Path(), tar, config)
    towers = (f"--config.weights.vision={lite}", "--config.optimizer.freeze=vision")
    cached = ("--config.data.cache_features=True", f"--config.data.features={tmp_path / 'kept'}")
    flags = ("--config.weights.path=", *towers, *cached)
    done = runs.run(path, tmp_path / "run", *flags, f"--config.weights.text={bert}")
    assert done.returncode == 0, done.stderr
    assert f"starting from {lite} (image tower), {bert} (text tower)" in done.stderr
    assert "projection from 16 to 24 features starts at random" in done.stderr
    losses = [line["loss"] for line in runs.lines(tmp_path / "run")]
    assert len(losses) == 3 and np.isfinite(losses).all()
    trained = dict(arrays.flat(*variables(clip_jax.load(str(tmp_path / "run"))[0])))
    given = open_towers({"vision": str(lite), "text": str(bert)}, config, 0).read("float32")
    changed = {name for name, x in arrays.flat(*given) if not np.array_equal(x, trained[name])}
    assert "text/projection/kernel" in changed
    assert not any(name.startswith("vision/") for name in changed)
    bert.rename(tmp_path / "moved")  # a resumed run knows it by its content
    again = runs.run(path, tmp_path / "run", *flags, f"--config.weights.text={tmp_path / 'moved'}")
    assert again.returncode == 0 and "nothing to train" in again.stderr, again.stderr
    both = runs.run(path, tmp_path / "both", *towers)
    assert both.returncode == 2 and "has no place beside config.weights.path" in both.stderr
