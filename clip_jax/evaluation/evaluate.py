"""Evaluating a checkpoint, ours or another library's: `--mode=evaluate`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import jax
from flax import nnx
from jax.sharding import Mesh

from clip_jax import tokenizers
from clip_jax.config.checks import check
from clip_jax.config.schema import Config
from clip_jax.data import mixture
from clip_jax.data.sources import Source
from clip_jax.distributed import multihost, sharding
from clip_jax.distributed.param_spec import param_specs
from clip_jax.errors import UserError
from clip_jax.evaluation import results as results_lib
from clip_jax.evaluation.evaluators import load_evaluators
from clip_jax.evaluation.features import Encoder
from clip_jax.evaluation.suite import ModelParts, Suite
from clip_jax.inference.model_source import ModelSource, open_run, open_weights, refuse_average
from clip_jax.io.buckets import as_path
from clip_jax.models import architectures
from clip_jax.models.clip import abstract_model, parameter_count, variables
from clip_jax.models.model_config import CLIPConfig
from clip_jax.training import metric_writers
from clip_jax.weights import library


def find_model(
    c: Config, checkpoint: str, workdir: str, *, ema: bool = False
) -> tuple[ModelSource, Path]:
    """Returns the model of a checkpoint, and the folder for its report.

    Args:
      c: the config; its `model` is the architecture of a single file of weights.
      checkpoint: the value of `--checkpoint`: a run, RUN/checkpoints/STEP, or a file or folder of
        weights; empty: the run in `c.workdir`.
      workdir: the value of `--workdir`, the folder for the report; empty: the run's folder.
      ema: whether to use the averaged weights of the run. Their report goes into its folder `ema`.

    Raises:
      UserError: there is no such checkpoint, it is of another architecture, or there is no folder
        for its report.
    """
    if not checkpoint and not c.workdir:
        raise UserError("nothing to evaluate: --checkpoint=RUN or --workdir=RUN names a run")
    path = as_path(checkpoint or c.workdir)
    if path.is_file() or (path.is_dir() and library.is_weights(path)):
        model = CLIPConfig.from_dict(c.model, trusted=True)
        refuse_average(path, ema)
        name = architectures.name_of(model, any_activation=True) if path.is_file() else None
        source = open_weights(path, name, library.config_activation(model, name))
        if not workdir:
            raise UserError(f"{path} is no run: --workdir=FOLDER says where its report goes")
        return source, as_path(workdir)
    source = open_run(path, ema=ema)
    own = (source.workdir or path) / results_lib.EMA if ema else source.workdir or path
    return source, as_path((checkpoint and workdir) or own)


def _open_training_data(c: Config) -> list[Source]:
    """Opens the sources that the model was trained on.

    Raises:
      UserError: the config names no training data, or it cannot be opened.
    """
    if not c.data.train and not c.data.mix:
        raise UserError(
            "--suite=overlap compares with the training images: give --config.data.train"
        )
    return [
        part.source for part in mixture.open_mixture(c.data.to_dict(), multihost.say_first).parts
    ]


def load_encoder(
    source: ModelSource, dtype: str, pad_id: int, mesh: Mesh, batch_size: int
) -> tuple[Encoder, float, int]:
    """Loads a model onto a mesh.

    Args:
      source: the model.
      dtype: the dtype of matrix products.
      pad_id: the id of the tokenizer's padding.
      mesh: the devices.
      batch_size: rows that each device encodes at a time.

    Returns:
      The model's two towers, the factor on its cosines, and the number of its parameters.
    """
    model = abstract_model(source.config, dtype)
    shapes = variables(model)
    like = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        shapes,
        sharding.shardings(shapes, param_specs(model), mesh),
    )
    parameters, graph = source.read_sharded(like), nnx.graphdef(model)
    trim_to = pad_id if source.config.text.blind_to_padding else None
    scale = float(nnx.merge(graph, *parameters).scale)
    encoder = Encoder(graph, parameters, mesh, batch_size, trim_to)
    return encoder, scale, parameter_count(model)


def evaluate(
    c: Config,
    checkpoint: str = "",
    workdir: str = "",
    suite: str = "",
    sets: str = "",
    *,
    ema: bool = False,
) -> None:
    """Evaluates a checkpoint; prints the metrics as a table and as JSON, and writes the report.

    Args:
      c: the config; its `evaluate` names the evaluators and datasets that the flags do not.
      checkpoint: as for `find_model`.
      workdir: as for `find_model`.
      suite: names of evaluators, separated by commas; empty: `config.evaluate.suite`.
      sets: names of datasets, separated by commas; `NAME=PATH` is a dataset of the user's own.
        Empty: those of the config.
      ema: as for `find_model`.

    Raises:
      UserError: there is no such checkpoint, evaluator or dataset, or one of them is damaged.
    """
    began = time.monotonic()
    c = check(c)
    key = "--suite" if suite else "config.evaluate.suite"
    evaluators = load_evaluators(suite or c.evaluate.suite, key)
    source, folder = find_model(c, checkpoint, workdir, ema=ema)
    tokenizer = load_tokenizer(source, c)
    training: list[Source] = []
    evaluation = Suite(
        c.evaluate,
        tokenizer,
        source.preprocess,
        evaluators,
        explicit=bool(suite),
        sets=sets,
        training=lambda: training,
        model=ModelParts(tuple(dict(source.config.heads)), source.untrained, source.places),
    )
    check_not_empty(evaluation)
    if evaluation.needs_training:
        training.extend(_open_training_data(c))
    remarks = ["; ".join(source.remarks), *(missing.why for missing in evaluation.missing)]
    for line in dict.fromkeys(filter(None, remarks)):
        multihost.say_first(line)
    mesh = sharding.make_mesh(c.mesh.to_dict())
    dtype = c.evaluate.dtype or source.dtype or "float32"
    batch_size = c.evaluate.batch_size
    encoder, scale, parameters = load_encoder(source, dtype, tokenizer.pad_id, mesh, batch_size)
    results = evaluation.evaluate(
        encoder, scale, folder / "evaluation", detailed=True, say=multihost.say_first
    )
    if multihost.is_first():
        model = _model_facts(source, parameters, dtype)
        lines = metric_writers.read_metrics(folder / "metrics.jsonl")
        curves = results_lib.curves(lines, evaluators)
        page = results_lib.write_report(folder, results, model, curves, time.monotonic() - began)
        _print(source, results.metrics(), page)


def check_not_empty(suite: Suite) -> None:
    """Raises UserError if a suite has no test set."""
    if not suite:
        raise UserError(
            "there is nothing to evaluate on: --sets=cifar10,mine=/data/mine or "
            "config.evaluate.sets names test sets"
        )


def load_tokenizer(source: ModelSource, c: Config) -> tokenizers.Tokenizer:
    """Loads the tokenizer of the model, or that of the config if the model names none."""
    name, text = source.tokenizer or c.tokenizer, source.config.text
    tokenizer = tokenizers.load(name, text.context_length, trusted=name == c.tokenizer)
    text.check_tokenizer(name, tokenizer)
    return tokenizer


def _model_facts(source: ModelSource, parameters: int, dtype: str) -> results_lib.ModelFacts:
    return results_lib.ModelFacts(
        name=source.name,
        checkpoint=str(source.path),
        step=source.step,
        parameters=parameters,
        image_size=source.config.vision.image_size,
        dtype=dtype,
    )


def _print(source: ModelSource, metrics: dict[str, float], page: Path) -> None:
    step = {} if source.step is None else {"step": source.step}
    title = f"{source.path} at step {source.step}" if step else str(source.path)
    print(title, results_lib.table(metrics), f"look at {page}", sep="\n", file=sys.stderr)
    print(json.dumps(step | metrics))
