"""Checks of a whole config: everything that can be known to be wrong before a device is touched."""

from __future__ import annotations

import dataclasses
import itertools
import math
from fractions import Fraction
from typing import Any

from clip_jax.config.finetune_schema import Classifier, Lora
from clip_jax.config.optimizer_schema import Optimizer
from clip_jax.config.schema import Config, Loss, Objective
from clip_jax.config.values import typed
from clip_jax.data import captions, mixture_config
from clip_jax.data.images import augmentation
from clip_jax.errors import UserError, counted
from clip_jax.losses.registry import OBJECTIVES, needs_labels, objective_names


def check(config: Any, devices: int | None = None) -> Config:
    """The config as typed dataclasses, once nothing in it is known to be wrong.

    Args:
      config: a `ConfigDict`, nested dictionaries, or a `Config`.
      devices: the number of devices that train; None if nothing is trained, or it is not known.

    Returns:
      The config; `steps` is 0 if `epochs` counts, until `with_steps` knows the data.

    Raises:
      UserError: names the key, its value and what to do.
    """
    c = _with_one_length(typed(config))
    check_schedule(c)
    _check_optimizer(c)
    _check_ema(c)
    _check_lora(c)
    for tower, rows in c.chunk.to_dict().items():
        if rows > 0 and c.remat.partition(":")[0] != "full":
            raise UserError(
                f"config.chunk.{tower}={rows} needs config.remat=full, not {c.remat!r}: the "
                "backward pass computes every chunk again"
            )
    augmentation.Augment.from_dict(c.data.augment.to_dict())
    mixture_config.entries(c.data.to_dict())
    _check_evaluations(c)
    _check_label(c)
    _check_classifier(c)
    _check_objective(c)
    _check_checkpoints(c)
    _check_weights(c)
    if devices is not None:
        check_batch_size(c, devices)
    return c


def _with_one_length(c: Config) -> Config:
    """The config with either `epochs` or `steps`."""
    if not c.epochs and not c.steps:
        raise UserError("config.steps=0 trains nothing: set it, or config.epochs, above 0")
    if not c.epochs:
        return c
    if c.steps not in (0, Config.steps):
        raise UserError(
            f"config.steps={c.steps} and config.epochs={c.epochs:g} are both given: set "
            "config.steps=0, or config.epochs=0"
        )
    return dataclasses.replace(c, steps=0)


def with_steps(c: Config, rows: int) -> Config:
    """A checked config with the updates that its `epochs` are, the last one rounded up.

    Args:
      c: the result of `check`.
      rows: the rows of an epoch.

    Raises:
      UserError: the warm-up or the cooldown is longer than that.
    """
    if c.epochs:
        steps = math.ceil(Fraction(str(c.epochs)) * rows / c.batch_size)
        c = dataclasses.replace(c, steps=steps)
        check_schedule(c)
    return c


def check_schedule(c: Config) -> None:
    """Raises UserError if warm-up and cooldown do not fit the schedule or the length of the run."""
    o = c.optimizer
    _check_ends(c)
    if o.ends:
        _check_length(o, o.ends[0], f"config.optimizer.ends={o.ends}")
    if c.steps:
        source = f", from config.epochs={c.epochs:g}" if c.epochs else ""
        starts = o.ends if o.then == "rewarm" else ()
        for start, end in itertools.pairwise((0, *starts, c.steps)):
            since = f" since {start}" if start else ""
            _check_length(o, end - start, f"config.steps={c.steps}{source}{since}")
    decays = o.schedule in ("cosine", "linear")
    if decays and o.cooldown_steps:
        raise UserError(
            f"config.optimizer.cooldown_steps={o.cooldown_steps} has no place in "
            f"config.optimizer.schedule={o.schedule}, which decays all the way: set it to 0, or "
            "the schedule to constant or rsqrt"
        )
    if not decays and o.final_learning_rate and not o.cooldown_steps:
        raise UserError(
            f"config.optimizer.final_learning_rate={o.final_learning_rate:g} is never reached by "
            f"config.optimizer.schedule={o.schedule} without config.optimizer.cooldown_steps"
        )


def _check_ends(c: Config) -> None:
    ends = c.optimizer.ends
    limits = (0, *ends, c.steps) if c.steps else (0, *ends)
    are_steps = all(isinstance(end, int) for end in ends)
    if ends and not (are_steps and all(a < b for a, b in itertools.pairwise(limits))):
        raise UserError(
            f"config.optimizer.ends={ends!r:.80} must be steps in order, such as (1000,), below "
            f"config.steps={c.steps}"
        )


def _check_length(o: Optimizer, length: int, where: str) -> None:
    """Raises UserError if the warm-up and the cooldown are longer than a part of a run."""
    if o.warmup_steps >= length:
        raise UserError(
            f"config.optimizer.warmup_steps={o.warmup_steps} must be below {where}: lower it"
        )
    if o.warmup_steps + o.cooldown_steps > length:
        raise UserError(
            f"config.optimizer.cooldown_steps={o.cooldown_steps} after "
            f"config.optimizer.warmup_steps={o.warmup_steps} is longer than {where}"
        )


def _check_ema(c: Config) -> None:
    if c.ema.start and not c.ema.decay:
        raise UserError(
            f"config.ema.start={c.ema.start} needs config.ema.decay above 0, such as 0.999"
        )
    if c.steps and c.ema.start >= c.steps:
        raise UserError(f"config.ema.start={c.ema.start} must be below config.steps={c.steps}")


def _check_lora(c: Config) -> None:
    if not c.lora.rank and c.lora != Lora():
        raise UserError("config.lora has keys but no rank: set config.lora.rank, such as 8")
    if c.lora.dropout and max(c.chunk.image, c.chunk.text) > 0:
        raise UserError(
            f"config.lora.dropout={c.lora.dropout:g} needs all rows of a layer together: set "
            "config.chunk.image and config.chunk.text to 0"
        )


def _check_optimizer(c: Config) -> None:
    name, rate = c.optimizer.name, c.optimizer.muon_learning_rate
    if name not in ("adamw", "muon") and rate:
        raise UserError(
            f"config.optimizer.muon_learning_rate={rate} has no place in "
            f"config.optimizer.name={name}: set it to 0, or the name to muon"
        )
    if name == "muon" and not rate:
        raise UserError(
            "config.optimizer.name=muon needs config.optimizer.muon_learning_rate above 0, such as "
            "0.01: config.optimizer.learning_rate is that of Adam"
        )


def _check_evaluations(c: Config) -> None:
    if any(step < 1 for step in c.evaluate.at):
        raise UserError(f"config.evaluate.at={c.evaluate.at!r:.80} must be steps from 1 on")
    try:
        captions.fields(c.evaluate.caption)
    except UserError as error:
        raise UserError(f"config.evaluate.caption: {error}") from None
    prompts = c.evaluate.templates
    if not prompts or any("{}" not in prompt for prompt in prompts):
        raise UserError(
            f"config.evaluate.templates={prompts!r:.200} must each hold {{}}: the label"
        )


def _check_label(c: Config) -> None:
    label = c.data.label
    try:
        captions.fields(f"{{{label}}}")
    except UserError:
        raise UserError(f"config.data.label={label!r:.80} must be the name of a field") from None
    is_plain = c.objective.name == "contrastive" and not c.objective.mix
    if label and is_plain and not c.loss.multi_positive:
        raise UserError(
            f"config.data.label={label!r:.80} has no use without "
            "config.loss.multi_positive=True: set that too, or the label to nothing"
        )


def _check_classifier(c: Config) -> None:
    if c.classifier == Classifier():
        return
    if not needs_labels(c.objective):
        raise UserError(
            "config.classifier has keys, but no objective trains a classifier: set "
            "config.objective.name=classification"
        )
    if c.classifier.init == "zero_shot" and not (c.weights.path or c.weights.text):
        raise UserError(
            "config.classifier.init=zero_shot needs config.weights.path or .text: the texts of a "
            "model with random weights say nothing; or set it to zeros"
        )
    if wrong := [prompt for prompt in c.classifier.templates if "{}" not in prompt]:
        raise UserError(f"config.classifier.templates: {wrong[0]!r:.80} must hold {{}}: the label")


def _check_objective(c: Config) -> None:
    """Raises UserError for keys that no objective reads."""
    names, usual = objective_names(c.objective), Objective()
    if c.objective.mix and (c.objective.name, c.objective.options) != (usual.name, {}):
        raise UserError(
            f"config.objective.name={c.objective.name} and config.objective.mix are both given: "
            "name all objectives in mix, with their options"
        )
    ours = all(name in OBJECTIVES for name in names)
    if ours and not {"contrastive", "coca"} & set(names):
        for key, value in c.loss.to_dict().items():
            if value != getattr(Loss(), key):
                raise UserError(
                    f"config.loss.{key}={value!r:.80} is a key of the contrastive objective, which "
                    f"config.objective.name={c.objective.name} is not"
                )
    if ours and "classifier" in c.model.get("heads", {}) and not needs_labels(c.objective):
        raise UserError(
            "config.model.heads.classifier is trained by no objective: set "
            "config.objective.name=classification"
        )


def _check_checkpoints(c: Config) -> None:
    best, keep_every = c.checkpoint.best, c.checkpoint.keep_every
    if keep_every % c.checkpoint.every:
        raise UserError(
            f"config.checkpoint.keep_every={keep_every} must be a multiple of "
            f"config.checkpoint.every={c.checkpoint.every}: only those steps have a checkpoint"
        )
    if best and best.count("/") < 2:
        raise UserError(
            f"config.checkpoint.best={best!r:.80} must be a metric of an evaluation, such as "
            "zero_shot/NAME/top1, classifier/NAME/top1 or retrieval/NAME/image_to_text/r1, or "
            "-validation_loss/NAME/loss for the smallest"
        )
    if c.early_stop and not best:
        raise UserError(
            f"config.early_stop={c.early_stop} needs config.checkpoint.best: a metric that gets "
            "better, such as -validation_loss/NAME/loss"
        )


def _check_weights(c: Config) -> None:
    for side in ("vision", "text"):
        tower = getattr(c.weights, side)
        if tower and c.weights.path:
            raise UserError(
                f"config.weights.{side}={tower!r:.80} has no place beside config.weights.path: set "
                "path to nothing, and vision and text to the files of the two towers"
            )
    for key in ("ema", "library"):
        value = getattr(c.weights, key)
        if value and not c.weights.path:
            raise UserError(
                f"config.weights.{key}={value!r:.80} needs config.weights.path: the weights that "
                "the run starts from"
            )
    if c.weights.keep_positions and not c.weights.resize:
        raise UserError(
            f"config.weights.keep_positions={c.weights.keep_positions} needs "
            "config.weights.resize=True"
        )
    if c.weights.optimizer and (c.weights.resize or not c.weights.path):
        raise UserError(
            "config.weights.optimizer=True needs config.weights.path, the folder of a run, and "
            "config.weights.resize=False: an optimizer's state has the shapes of its parameters"
        )
    if c.weights.optimizer and c.lora.rank:
        raise UserError(
            f"config.weights.optimizer=True has no place beside config.lora.rank={c.lora.rank}: a "
            "new run begins with adapters of its own"
        )


def check_batch_size(c: Config, devices: int) -> None:
    """Raises UserError where the batch does not divide over so many devices."""
    shards, parts = max(1, devices // max(1, c.mesh.tensor)), c.accumulate
    if c.batch_size % (shards * parts):
        near = max(1, round(c.batch_size / (shards * parts))) * shards * parts
        in_parts = f" in config.accumulate={parts} parts" if parts > 1 else ""
        raise UserError(
            f"config.batch_size={c.batch_size} does not divide over "
            f"{counted(shards, 'device')}{in_parts}: use a multiple of {shards * parts}, "
            f"such as {near}"
        )
