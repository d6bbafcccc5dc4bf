"""A run before it starts: everything that its config names, opened and checked."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax

from clip_jax import tokenizers
from clip_jax.config.checks import check, check_batch_size, with_steps
from clip_jax.config.schema import Config
from clip_jax.data import fingerprint, mixture
from clip_jax.data.class_index import ClassIndex
from clip_jax.data.mixture import Mixture
from clip_jax.data.sources import Source
from clip_jax.distributed import multihost
from clip_jax.errors import UserError
from clip_jax.evaluation import results as results_lib
from clip_jax.evaluation.evaluators import load_evaluators
from clip_jax.evaluation.suite import ModelParts, Suite
from clip_jax.inference.model_source import ModelSource, open_model_source
from clip_jax.inference.towers import open_towers
from clip_jax.io.buckets import as_path
from clip_jax.io.files import JsonObject
from clip_jax.losses.objective import Objective
from clip_jax.models import architectures
from clip_jax.models.model_config import SIDES, CLIPConfig
from clip_jax.tokenizers import Tokenizer
from clip_jax.training import (
    best_checkpoint,
    checkpointing,
    class_labels,
    feature_cache,
    setup,
)
from clip_jax.training.run_config import has_untrained_pool, read_random_start, untrained_towers
from clip_jax.training.trackers import check_trackers
from clip_jax.weights import library, positions
from clip_jax.weights.param_mapping import mapping_of


@dataclasses.dataclass
class Run:
    """A config, and everything that it names, opened and checked.

    Attributes:
      config: the config.
      model: the architecture.
      objective: computes the loss that is minimized.
      tokenizer: the tokenizer of the captions.
      data: the training pairs.
      suite: the evaluations.
      workdir: the run's folder.
      weights: the saved model that a fresh run starts from; None: random initial values.
      classes: finds the class of a pair; None: the objective trains no classifier.
      random_start: the towers that have random values in the weights that the run started from.
    """

    config: Config
    model: CLIPConfig
    objective: Objective
    tokenizer: Tokenizer
    data: Mixture
    suite: Suite
    workdir: Path
    weights: ModelSource | None = None
    classes: ClassIndex | None = None
    random_start: tuple[str, ...] = ()

    @functools.cached_property
    def fingerprints(self) -> JsonObject:
        """What identifies the data and the tokenizer: their content, whatever their paths."""
        return {
            "version": fingerprint.VERSION,
            "data": fingerprint.of_mixture(self.data),
            "tokenizer": fingerprint.of_tokenizer(self.tokenizer),
        }


def prepare(config: Any) -> Run:
    """Opens everything that a config names, without touching a device if the config is wrong.

    Args:
      config: a `ConfigDict`, or a `Config`.

    Raises:
      UserError: a mistake in the config, or something that it names cannot be opened.
    """
    data: Mixture | None = None

    def open_data(c: Config) -> Mixture:
        nonlocal data
        data = mixture.open_mixture(c.data.to_dict(), multihost.say_first)
        return data

    c, model, objective = setup.checked(class_labels.with_classifier(check(config), open_data))
    feature_cache.check_folder(c)
    multihost.broadcast_from_first(lambda: check_trackers(c.log))
    evaluators = load_evaluators(c.evaluate.suite)
    check_batch_size(c, jax.device_count())
    if not c.workdir:
        raise UserError("no workdir given: --workdir=FOLDER says where the run is kept")
    tokenizer = tokenizers.load(c.tokenizer, model.text.context_length)
    model.text.check_tokenizer(c.tokenizer, tokenizer)
    fresh = not multihost.broadcast_from_first(lambda: checkpointing.steps(c.workdir))
    weights = saved_weights(c, model) if fresh else None
    random_start = _random_start(c.workdir, weights, fresh=fresh)
    pictures: list[Source] = []
    suite = Suite(
        c.evaluate,
        tokenizer,
        library.preprocess_of(model),
        evaluators,
        training=lambda: pictures,
        model=ModelParts(
            tuple(dict(model.heads)),
            untrained_towers(c, model, random_start),
            has_untrained_pool(c, model, random_start),
        ),
    )
    prefixes = suite.metric_prefixes
    if c.ema.decay:
        prefixes += [f"{results_lib.EMA}/{prefix}" for prefix in prefixes]
    best_checkpoint.check_metric(c.checkpoint.best, prefixes)
    # Late, because a filter can take long; only the labels of a classifier need it before.
    data = open_data(c) if data is None else data
    classes = class_labels.class_index(c, model)
    class_labels.check_classes(data, classes, c.data.label)
    pictures.extend(part.source for part in data.parts)
    c = with_steps(c, len(data))
    setup.check_groups(c, model)
    workdir = as_path(c.workdir)
    return Run(
        *(c, model, objective, tokenizer, data, suite, workdir),
        weights=weights,
        classes=classes,
        random_start=random_start,
    )


def _random_start(workdir: str, weights: ModelSource | None, *, fresh: bool) -> tuple[str, ...]:
    """Returns the towers that have random values in the weights that a run starts from.

    A run that resumes asks its own folder, because it does not open these weights.
    """
    if fresh:
        return weights.untrained if weights else ()
    return multihost.broadcast_from_first(lambda: read_random_start(workdir))


def saved_weights(c: Config, model: CLIPConfig) -> ModelSource | None:
    """Returns the saved model that a fresh run starts from, checked for its architecture.

    None: the run starts from random values.

    Raises:
      UserError: the weights cannot be opened, or are of another model.
    """
    towers = {side: path for side in SIDES if (path := getattr(c.weights, side))}
    if towers:
        return open_towers(
            towers,
            model,
            c.seed,
            resize=c.weights.resize,
            keep_positions=c.weights.keep_positions,
        )
    if not c.weights.path:
        return None
    # With resize the sizes in the file may differ.
    name = None if c.weights.resize else architectures.name_of(model, any_activation=True)
    mapping = c.weights.library or None
    if mapping:
        mapping_of(mapping, "config.weights.library")
    activation = library.config_activation(model, name)
    source = open_model_source(c.weights.path, name, activation, mapping, ema=c.weights.ema)
    if c.weights.optimizer and source.workdir is None:
        raise UserError(
            f"config.weights.optimizer=True: {c.weights.path} is no run, and has no optimizer's "
            "state"
        )
    start = class_labels.classifier_start(c, model, source.config)
    kept = start in ("", "saved") and source.config.labels == model.labels
    if c.weights.optimizer and not (kept and source.config.heads == model.heads):
        raise UserError(
            f"config.weights.optimizer=True: {c.weights.path} has other heads than this run, or "
            "config.classifier.init starts anew, and the optimizer's state would be that of others"
        )
    flag = "--config.weights.resize=True"
    positions.check_fits(source.config, model, c.weights.path, c.weights.resize, flag)
    return source
