"""A run's folder with two checkpoints of random numbers, made without training."""

import json

import jax
import numpy as np

from clip_jax.models.clip import abstract_model, variables
from clip_jax.models.model_config import CLIPConfig, TextConfig, VisionConfig
from clip_jax.training import checkpointing

TINY = CLIPConfig(
    8,
    vision=VisionConfig(image_size=16, patch_size=8, width=16, layers=1, heads=2),
    text=TextConfig(vocab_size=50, context_length=8, width=16, layers=1, heads=2),
)
OLD, NEW = 4, 8


def numbers(seed):
    """Random variables of the tiny model."""
    rng = np.random.default_rng(seed)
    like = variables(abstract_model(TINY))
    return jax.tree.map(lambda x: jax.numpy.asarray(rng.normal(size=x.shape), x.dtype), like)


def write_run(folder):
    """Makes a run's folder with two checkpoints."""
    values = {"model": TINY.to_dict(), "tokenizer": "clip", "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(values))
    checkpoints = checkpointing.Checkpoints(folder, keep=2)
    for step in (OLD, NEW):
        params, _ = numbers(step)
        checkpoints.save(step, {"params": params}, {"next_index": step}, values, force=True)
    checkpoints.close()
    return folder
