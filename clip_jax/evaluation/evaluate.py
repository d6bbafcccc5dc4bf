"""Judging a checkpoint, ours or another library's: `--mode=evaluate`."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from clip_jax import tokenizers
from clip_jax.config.checks import check
from clip_jax.config.schema import Config
from clip_jax.data import mixture
from clip_jax.data.images.preprocess import Preprocess
from clip_jax.data.sources import Source
from clip_jax.distributed import multihost, sharding
from clip_jax.distributed.param_spec import param_specs
from clip_jax.errors import UserError
from clip_jax.evaluation import results as results_lib
from clip_jax.evaluation.features import Encoder
from clip_jax.evaluation.suite import Suite, table
from clip_jax.inference import pretrained
from clip_jax.models import architectures
from clip_jax.models.clip import Variables, abstract_model, parameter_count, variables
from clip_jax.models.model_config import CLIPConfig
from clip_jax.training import checkpointing as checkpoints
from clip_jax.training import metric_writers
from clip_jax.weights import library


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model to be judged, before its parameters are read.

    path: what the user named.
    step: of a run.
    config: the architecture.
    dtype: of matrix products.
    tokenizer: as for `tokenizers.load`.
    preprocess: from a picture to pixels.
    folder: where the report goes.
    read: the variables, given their shapes with shardings.
    note: what was taken for granted or passed over, in words, or nothing.
    """

    path: str
    step: int | None
    config: CLIPConfig
    dtype: str
    tokenizer: str
    preprocess: Preprocess
    folder: Path
    read: Callable[[Any], Variables]
    note: str = ""

    @property
    def name(self) -> str:
        """The architecture's name, or the run's."""
        return architectures.name_of(self.config, any_activation=True) or Path(self.path).name


def find(c: Config, checkpoint: str, workdir: str) -> Subject:
    """What a checkpoint is: a run, RUN/checkpoints/STEP, or a file or folder of weights.

    Args:
      c: the config; its `model` says what a lone file of weights is.
      checkpoint: what `--checkpoint` says; empty: the run in `c.workdir`.
      workdir: what `--workdir` says, where the report goes; empty: into the run's folder.

    Raises:
      UserError: there is none, it is of another architecture, or it has no place for a report.
    """
    path = Path(checkpoint or c.workdir).expanduser()
    if not checkpoint and not c.workdir:
        raise UserError("nothing to evaluate: --checkpoint=RUN or --workdir=RUN names a run")
    if path.is_file() or (path.is_dir() and library.is_weights(path)):
        return _weights(c, path, workdir)
    return _run(c, path, workdir if checkpoint else "")


def _run(c: Config, path: Path, workdir: str) -> Subject:
    said: list[str] = []

    def first() -> tuple[str, int]:
        run, step = pretrained.find_run(path, said.append)
        return str(run), step

    run, step = multihost.from_first(first)
    found = checkpoints.read_model_config(run, step)
    config = found.model
    return Subject(
        path=str(path),
        step=step,
        config=config,
        dtype=c.evaluate.dtype or found.dtype,
        tokenizer=found.tokenizer,
        preprocess=library.preprocess_of(config),
        folder=Path(workdir or run).expanduser(),
        read=lambda like: checkpoints.read_variables(run, step, like),
        note="; ".join(said),
    )


def _weights(c: Config, path: Path, workdir: str) -> Subject:
    model = CLIPConfig.from_dict(c.model, trusted=True)
    name = architectures.name_of(model, any_activation=True) if path.is_file() else None
    found = library.find(path, name, library.config_activation(model, name))
    if not workdir:
        raise UserError(f"{path} is no run: --workdir=FOLDER says where its report goes")

    def read(like: Any) -> Variables:
        return jax.device_put(library.read(found), jax.tree.map(lambda x: x.sharding, like))

    return Subject(
        path=str(path),
        step=None,
        config=found.config,
        dtype=c.evaluate.dtype or "float32",
        tokenizer=found.tokenizer or c.tokenizer,
        preprocess=found.preprocess,
        folder=Path(workdir).expanduser(),
        read=read,
        note=found.guessed,
    )


def _training_pictures(c: Config) -> list[Source]:
    """What the overlap is looked for in.

    Raises:
      UserError: the config names no training data, or it cannot be opened.
    """
    if not c.data.train and not c.data.mix:
        raise UserError(
            "--suite=overlap compares with the training pictures: give --config.data.train"
        )
    return [part.source for part in mixture.open_mixture(c.data.to_dict(), _say).parts]


def _say(line: str) -> None:
    if multihost.is_first():
        print(line, file=sys.stderr, flush=True)


def encoder_of(
    subject: Subject, tokenizer: tokenizers.Tokenizer, mesh: Mesh, batch_size: int
) -> tuple[Encoder, float, int]:
    """The subject's towers on a mesh, the factor on its cosines, and how many parameters it has."""
    model = abstract_model(subject.config, subject.dtype)
    shapes = variables(model)
    like = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        shapes,
        sharding.shardings(shapes, param_specs(model), mesh),
    )
    held, graph = subject.read(like), nnx.graphdef(model)
    pad_id = tokenizer.pad_id if subject.config.text.blind_to_padding else None
    scale = float(nnx.merge(graph, *held).scale)
    return Encoder(graph, held, mesh, batch_size, pad_id), scale, parameter_count(model)


def evaluate(
    c: Config, checkpoint: str = "", workdir: str = "", suite: str = "", sets: str = ""
) -> None:
    """Judges a checkpoint; prints the numbers as a table and as JSON, and writes the report.

    Args:
      c: the config; `evaluate` says on what, unless the flags do.
      checkpoint, workdir: as for `find`.
      suite: evaluators between commas; empty: `config.evaluate.suite`.
      sets: test sets between commas, `NAME=PATH` one of the user's own; empty: the config's.

    Raises:
      UserError: there is no such checkpoint, evaluator or set, or one of them is damaged.
    """
    began = time.monotonic()
    c = check(c)
    subject = find(c, checkpoint, workdir)
    tokenizer = tokenizers.load(
        subject.tokenizer,
        subject.config.text.context_length,
        trusted=subject.tokenizer == c.tokenizer,
    )
    subject.config.text.check_tokenizer(subject.tokenizer, tokenizer)
    pictures: list[Source] = []
    evaluation = Suite(
        c.evaluate.to_dict(),
        tokenizer,
        subject.preprocess,
        suite=suite,
        sets=sets,
        training=lambda: pictures,
    )
    if not evaluation:
        raise UserError(
            "there is nothing to evaluate on: --sets=cifar10,mine=/data/mine or "
            "config.evaluate.sets names test sets"
        )
    if "overlap" in evaluation.wanted:
        pictures.extend(_training_pictures(c))
    said = [subject.note, *(one["why"] for one in evaluation.missing)]
    for line in dict.fromkeys(filter(None, said)):
        _say(line)
    mesh = sharding.make_mesh(c.mesh.to_dict())
    encoder, scale, parameters = encoder_of(subject, tokenizer, mesh, c.evaluate.batch_size)
    kept = subject.folder / "evaluation"
    results, thumbnails = evaluation.evaluate(encoder, scale, kept, whole=True, say=_say)
    if not multihost.is_first():
        return
    results["model"] = results_lib.model_facts(
        subject.name,
        subject.path,
        subject.step,
        parameters,
        subject.config.vision.image_size,
        subject.dtype,
    )
    results["curves"] = results_lib.curves(metric_writers.read(subject.folder / "metrics.jsonl"))
    results["seconds"] = time.monotonic() - began
    page = results_lib.write(subject.folder, results, thumbnails)
    found = results_lib.flat(results)
    at = "" if subject.step is None else f" at step {subject.step}"
    print(f"{subject.path}{at}", table(found), f"look at {page}", sep="\n", file=sys.stderr)
    print(json.dumps(({} if subject.step is None else {"step": subject.step}) | found))
