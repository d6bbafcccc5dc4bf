"""Models on disk, whoever wrote them: a checkpoint of a run, or the files of another library."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax

from clip_jax.config.finetune_schema import Lora
from clip_jax.data.images.preprocess import Preprocess
from clip_jax.distributed import multihost
from clip_jax.errors import UserError
from clip_jax.inference.run_variables import read_run, read_unmerged
from clip_jax.io.buckets import as_path, is_bucket, is_folder
from clip_jax.models import architectures
from clip_jax.models.architectures import available, near_names
from clip_jax.models.clip import Variables, abstract_model, variables
from clip_jax.models.lora import adapters_in
from clip_jax.models.model_config import CLIPConfig
from clip_jax.models.tower import Params
from clip_jax.training import best_checkpoint, checkpointing, run_config
from clip_jax.weights import arrays
from clip_jax.weights.library import find_weights, is_weights, preprocess_of, read_variables
from clip_jax.weights.param_mapping import Library, title_of


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A model on disk whose parameters are not read yet.

    Attributes:
      path: the path that the user gave.
      library: the name of the library that wrote the files, for messages.
      config: the architecture.
      preprocess: the preprocessing, from an image to pixels.
      tokenizer: a name for `tokenizers.load`; None if the files hold no tokenizer.
      read: reads the parameters and batch statistics in a dtype of `arrays.DTYPES`.
      read_sharded: reads them onto devices, given their shapes with shardings.
      workdir: the folder of the run; None for weights that are no checkpoint.
      step: the training step of the checkpoint; None for weights that are no checkpoint.
      dtype: the dtype of a run's activations; empty for other weights.
      remarks: sentences about what was assumed or passed over.
      lora: the options of a run's adapters; None without adapters.
      read_adapters: reads the adapters alone; None without adapters. `read` and `read_sharded`
        merge them into the kernels.
      untrained: the towers of a run that have random values: they did not learn, and no weights
        gave them.
      places: whether the pooled features of a run's images have random values, but not those of
        their places.
    """

    path: Path
    library: str
    config: CLIPConfig
    preprocess: Preprocess
    tokenizer: str | None
    read: Callable[[str], Variables] = dataclasses.field(repr=False)
    read_sharded: Callable[[Any], Variables] = dataclasses.field(repr=False)
    workdir: Path | None = None
    step: int | None = None
    dtype: str = ""
    remarks: tuple[str, ...] = ()
    lora: Lora | None = None
    read_adapters: Callable[[], Params] | None = dataclasses.field(default=None, repr=False)
    untrained: tuple[str, ...] = ()
    places: bool = False

    def without_heads(self, names: Collection[str] | None = None) -> ModelSource:
        """Returns the same model without the heads of these names; None: without any."""
        config = self.config.without_heads(names)
        if config == self.config:
            return self
        kept = {name for name, _ in config.heads}

        def read(dtype: str) -> Variables:
            params, stats = self.read(dtype)
            heads = {name: head for name, head in params["heads"].items() if name in kept}
            towers = {name: part for name, part in params.items() if name != "heads"}
            return {**towers, **({"heads": heads} if heads else {})}, stats

        def read_sharded(like: Any) -> Variables:
            shardings = jax.tree.map(lambda x: x.sharding, like)
            placed: Variables = jax.device_put(jax.device_get(read("float32")), shardings)
            return placed

        return dataclasses.replace(self, config=config, read=read, read_sharded=read_sharded)

    @property
    def name(self) -> str:
        """The name of the architecture, or of the path if the architecture has none."""
        return architectures.name_of(self.config, any_activation=True) or self.path.name


def _is_best(path: Path) -> bool:
    """Returns whether a path is RUN/checkpoints/best, which stands for a step and is no folder."""
    return path.name == best_checkpoint.BEST and path.parent.name == checkpointing.FOLDER


def _is_step(path: Path) -> bool:
    """Returns whether a path is the folder RUN/checkpoints/STEP."""
    named = path.name.isdigit() and path.parent.name == checkpointing.FOLDER
    return named and is_folder(path)


def is_run(path: Path) -> bool:
    """Returns whether a path is a run's folder, RUN/checkpoints/STEP or RUN/checkpoints/best."""
    if _is_step(path) or _is_best(path):
        return True
    # a folder of transformers has a file of that name, too
    return (path / checkpointing.CONFIG).is_file() and not is_weights(path)


def open_model_source(
    path: str | Path,
    model: str | None = None,
    activation: str | None = None,
    library: Library | None = None,
    *,
    ema: bool = False,
) -> ModelSource:
    """Opens the model of a run, or of another library's file or folder.

    Args:
      path: the run or the weights.
      model: the architecture of a single file of weights, see `find_weights`.
      activation: the activation function of its MLPs, see `find_weights`.
      library: the library whose names the weights use; None: one of ours, recognized by the
        tensors.
      ema: whether to use the averaged weights of a run.

    Raises:
      UserError: there is neither a run nor weights, or they are of another model than `model`.
    """
    path = as_path(path)
    if not path.exists() and not _is_best(path):
        raise UserError(f"{path} does not exist: give the folder of a run or a file of weights")
    if not is_run(path):
        refuse_average(path, ema)
        return open_weights(path, model, activation, library)
    if library is not None:
        raise UserError(f"{path} is a run, which says what it is: name no library for it")
    return open_run(path, ema=ema)


def refuse_average(path: str | Path, ema: bool) -> None:
    """Raises a UserError if `ema` asks for the averaged weights of a model that is no run."""
    if ema:
        raise UserError(f"{path} is no run: only a run with config.ema.decay has averaged weights")


def open_run(path: str | Path, *, ema: bool = False) -> ModelSource:
    """Opens a checkpoint of a run: the newest intact one, or the one that the path names.

    Args:
      path: the run's folder, RUN/checkpoints/STEP or RUN/checkpoints/best.
      ema: whether to use the averaged weights.

    Raises:
      UserError: there is no checkpoint, it is damaged, or it has no averaged weights.
    """
    path = as_path(path)
    remarks: list[str] = []

    def checkpoint() -> tuple[str, int]:
        workdir, step = find_checkpoint(path, remarks.append)
        return str(workdir), step

    workdir, step = multihost.broadcast_from_first(checkpoint)
    run = run_config.read_model_config(workdir, step)

    if ema and not run.finetuning.ema.decay:
        raise UserError(
            f"{path} has no averaged weights: a run keeps them with config.ema.decay above 0"
        )

    def read_sharded(like: Any) -> Variables:
        return read_run(as_path(workdir), step, run, like, ema=ema)

    def on_one_device() -> Variables:
        where = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            variables(abstract_model(run.model)),
        )

    def read_adapters() -> Params:
        params, _ = read_unmerged(as_path(workdir), step, run, on_one_device(), ema=ema)
        return adapters_in(params)

    has_adapters = run.finetuning.lora.rank > 0

    return ModelSource(
        path=path,
        library="a run",
        config=run.model,
        preprocess=preprocess_of(run.model),
        tokenizer=run.tokenizer,
        read=lambda dtype: arrays.cast(read_sharded(on_one_device()), dtype),
        read_sharded=read_sharded,
        workdir=as_path(workdir),
        step=step,
        dtype=run.dtype,
        remarks=tuple(remarks),
        lora=run.finetuning.lora if has_adapters else None,
        read_adapters=read_adapters if has_adapters else None,
        untrained=run_config.untrained_towers(run.finetuning, run.model, run.random_start),
        places=run_config.has_untrained_pool(run.finetuning, run.model, run.random_start),
    )


def find_checkpoint(path: Path, tell: Callable[[str], None]) -> tuple[Path, int]:
    """Finds a checkpoint of a run: the newest intact one, or the one that the path names.

    Args:
      path: the run's folder, RUN/checkpoints/STEP, or RUN/checkpoints/best.
      tell: called with a line for each checkpoint that is passed over.

    Returns:
      The run's folder and the step.

    Raises:
      UserError: there is no checkpoint, or it is damaged.
    """
    if _is_best(path):
        path = path.with_name(str(best_checkpoint.read_best(path.parent.parent).step))
    if _is_step(path):
        workdir, step = path.parent.parent, int(path.name)
        checkpointing.refuse_damage(workdir, step, tell)
        return workdir, step
    if not is_folder(path):  # a name may be one that no file can have
        raise UserError(
            f"there is no run or model at {path!s:.200}: give the --workdir of a run, a folder or "
            "file of another library's weights (none are downloaded), or with weights=FILE a name: "
            f"{', '.join(near_names(str(path)) or available()[:10])}, …"
        )
    checkpointing.read_config(path)
    newest = checkpointing.newest(path, tell)
    if newest is None:
        raise UserError(f"{path} holds no checkpoint yet")
    return path, newest


def open_weights(
    path: str | Path,
    model: str | None = None,
    activation: str | None = None,
    library: Library | None = None,
) -> ModelSource:
    """Opens the model of another library's file or folder; arguments as for `find_weights`.

    Raises:
      UserError: there is none, or it is another model than `model`.
    """
    if is_bucket(as_path(path)):
        raise UserError(f"{path} is no run: weights of others are read from disk, copy them there")
    weights = find_weights(path, model, activation, library)

    def read_sharded(like: Any) -> Variables:
        shardings = jax.tree.map(lambda x: x.sharding, like)
        placed: Variables = jax.device_put(read_variables(weights), shardings)
        return placed

    return ModelSource(
        path=as_path(path),
        library=title_of(weights.library),
        config=weights.config,
        preprocess=weights.preprocess,
        tokenizer=weights.tokenizer,
        read=lambda dtype: read_variables(weights, dtype),
        read_sharded=read_sharded,
        remarks=(weights.assumptions,) if weights.assumptions else (),
    )
