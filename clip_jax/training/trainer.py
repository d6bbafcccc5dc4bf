"""A run on its devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from clip_jax import optim
from clip_jax.data import pipeline
from clip_jax.data.rows import Prepare, Row
from clip_jax.data.stored_features import StoredFeatures
from clip_jax.distributed import global_batch as rows_lib
from clip_jax.distributed import multihost, sharding
from clip_jax.errors import UserError
from clip_jax.evaluation import results as results_lib
from clip_jax.evaluation.features import Encoder
from clip_jax.inference.model_source import ModelSource
from clip_jax.losses.objective import extra_arrays, full_rows
from clip_jax.models import architectures, attention, classifier, lora
from clip_jax.models.clip import Params, Variables, parameter_count
from clip_jax.tokenizers import packing
from clip_jax.training import checkpointing, class_labels, metric_writers, setup
from clip_jax.training import train_step as step_lib
from clip_jax.training.feature_cache import FeatureCache
from clip_jax.training.run import Run
from clip_jax.weights import library, positions

# The tokens of each text of a batch, and the patches of each image if images are patches.
Sizes = tuple[int, int | None]


class Trainer(setup.Recipe):
    """A run on its devices: the compiled step, the state, the data."""

    def __init__(self, run: Run) -> None:
        self.run = run
        mesh = sharding.make_mesh(run.config.mesh.to_dict())
        attention.check_kernel(run.config.attention, mesh.local_devices[0])
        super().__init__(run.config, run.model, run.objective, mesh)

    def evaluate(self, variables: Variables) -> results_lib.SuiteResults:
        """Evaluates a model's variables."""
        scale = float(nnx.merge(self.graph, *variables).scale)
        return self.run.suite.evaluate(self._encoder(variables), scale)

    def _encoder(self, variables: Variables) -> Encoder:
        run = self.run
        pad_id = run.tokenizer.pad_id if run.model.text.blind_to_padding else None
        return Encoder(self.graph, variables, self.mesh, run.config.evaluate.batch_size, pad_id)

    @cached_property
    def averaged(self) -> Callable[[step_lib.TrainState], Variables]:
        """A compiled function from a state to its averaged variables."""
        where = jax.tree.map(lambda leaf: leaf.sharding, self.state_like.variables)
        average = partial(step_lib.averaged_variables, groups=self.groups)
        return jax.jit(average, out_shardings=where)

    def report(
        self, results: results_lib.SuiteResults, step: int, seconds: float, *, ema: bool = False
    ) -> Path:
        """Writes the report and its images into the run's folder, or into `ema` inside it.

        Returns:
          The folder of the images.
        """
        run = self.run
        folder = run.workdir / results_lib.EMA if ema else run.workdir
        pictures = folder / "pictures" / f"step_{step}"
        results_lib.write_sheets(results, pictures)
        model = results_lib.ModelFacts(
            architectures.name_of(run.model, any_activation=True) or run.workdir.name,
            str(run.workdir),
            step,
            parameter_count(self.model),
            run.model.vision.image_size,
            run.config.dtype,
        )
        lines = metric_writers.read_metrics(run.workdir / "metrics.jsonl")
        lines = results_lib.average_lines(lines) if ema else lines
        curves = results_lib.curves(lines, results.evaluators)
        results_lib.write_report(folder, results, model, curves, seconds)
        return pictures

    def initial_parameters(self) -> Params:
        """Returns random initial parameters, with those of the adapters."""
        c = self.config
        return step_lib.init_variables(self.run.model, c.seed, c.lora)[0]

    def state_from(self, source: ModelSource) -> step_lib.TrainState:
        """Creates a state at step 0 from saved weights, in float32.

        Positions are resized to the model's sizes.
        """
        params, stats = jax.device_get(source.read("float32"))
        vision, text = self.run.model.vision, self.run.model.text
        params, _ = positions.resize_model(
            params,
            source.config,
            context_length=text.context_length,
            keep_positions=self.config.weights.keep_positions,
            **vision.sizes(),
        )
        heads = params.pop("heads", {})
        if self.config.lora.rank:
            initial = jax.jit(lambda: lora.adapters_in(self.initial_parameters()))()
            params = lora.with_adapters(params, jax.device_get(initial))
        if self.run.model.heads:
            params = {**params, "heads": self._initial_heads((params, stats), source, heads)}
        state = self._state_of((params, stats))
        if not self.config.weights.optimizer:
            return state
        return dataclasses.replace(state, opt_state=self._optimizer_state_from(source))

    def _state_of(self, variables: Variables) -> step_lib.TrainState:
        return step_lib.state_of(
            self.run.model, variables, self.optimizer, self.mesh, self.state_options
        )

    def _initial_heads(self, variables: Variables, source: ModelSource, saved: Params) -> Params:
        """Returns the initial parameters of the model's heads.

        A head that the saved model has, too, starts from its parameters, any other from initial
        values. `classifier.init` decides about a classifier.

        Args:
          variables: the variables without heads.
          source: the saved model.
          saved: the parameters of its heads.
        """
        run = self.run
        heads = jax.device_get(jax.jit(lambda: self.initial_parameters()["heads"])())
        for name, head in run.model.heads:
            if name == classifier.NAME:
                continue
            if source.config.head(name) == head:
                heads[name] = saved[name]
        start = class_labels.classifier_start(self.config, run.model, source.config)
        if start == "saved":
            labels = source.config.labels, run.model.labels
            heads[classifier.NAME] = class_labels.reordered(saved[classifier.NAME], *labels)
        elif start == "zero_shot":
            params, stats = variables
            state = self._state_of(({**params, "heads": heads}, stats))
            heads[classifier.NAME] = class_labels.zero_shot_classifier(
                self.config, run.model, self._encoder(state.variables), run.tokenizer
            )
        return heads

    def _optimizer_state_from(self, source: ModelSource) -> Any:
        """Returns the optimizer's state of a run's checkpoint, with the schedule at its beginning.

        Raises:
          UserError: the run has another optimizer, or other parameters that learn.
        """
        assert source.workdir is not None and source.step is not None
        like = self.state_like
        parts = {"params": like.params, "stats": like.stats, "opt_state": like.opt_state}
        try:
            saved = checkpointing.read_parts(source.workdir, source.step, parts)
        except UserError as error:
            raise UserError(
                f"config.weights.optimizer=True needs the optimizer that {source.path} has, and "
                f"the same parameters that learn: {error}"
            ) from None
        return optim.restarted(saved["opt_state"])

    def fresh(self) -> step_lib.TrainState:
        """Creates a state at step 0 with weights that the config names, or with random values."""
        run = self.run
        if run.weights:
            return self.state_from(run.weights)
        seed = run.config.seed
        return step_lib.init_state(run.model, self.optimizer, seed, self.mesh, self.state_options)

    @cached_property
    def prepare(self) -> Prepare:
        """The function from a pair to a row of a batch."""
        c = self.config
        return Prepare.from_config(
            c.data.to_dict(),
            self.run.tokenizer,
            self.run.model.vision,
            groups="group" in extra_arrays(self.run.objective),
            classes=self.run.classes,
            spans="span" in extra_arrays(self.run.objective),
        )

    @cached_property
    def feature_cache(self) -> FeatureCache | None:
        """The image features that training reads in place of images; None: it reads images."""
        c, run = self.config, self.run
        if not c.data.cache_features:
            return None
        preprocess = library.preprocess_of(run.model)
        stored = tuple(StoredFeatures() for _ in run.data.parts)
        return FeatureCache(c, run.model, run.data, self.prepare, preprocess, stored)

    def data(self) -> pipeline.Batches:
        """Returns an iterator over this process's batches."""
        c = self.config
        batches = pipeline.batches(
            self.run.data,
            self.prepare,
            batch_size=c.batch_size,
            seed=c.seed,
            rows=rows_lib.process_rows(self.mesh, c.batch_size),
            stored=self.feature_cache.stored if self.feature_cache else (),
        )
        return pipeline.iterator(
            batches,
            threads=c.data.threads,
            workers=c.data.workers,
            prefetch=c.data.prefetch,
            max_bad_fraction=c.data.max_bad_fraction,
        )

    def fill_feature_cache(self, variables: Variables, say: Callable[[str], None]) -> None:
        """Computes the image features that training reads, if it reads them and some are missing.

        Args:
          variables: the variables of the model, with the weights of the image tower.
          say: called with a line about what is computed or read.
        """
        if self.feature_cache is not None:
            self.feature_cache.fill(self._encoder(variables), variables, say)

    def place(self, rows: Row) -> dict[str, jax.Array]:
        """Returns this process's rows as part of the global batch.

        Token columns that are padding in every row are removed if there is only one process, and
        neither the text tower nor the objective depends on them.
        """
        blind = self.run.model.text.blind_to_padding and not full_rows(self.objective)
        # Several processes would have to agree on the longest text.
        if blind and not multihost.is_multi_process():
            pad_id = self.run.tokenizer.pad_id
            rows = {**rows, "tokens": packing.trim(rows["tokens"], pad_id=pad_id)}
        return rows_lib.global_batch(rows, self.mesh)

    def compile(self, context_length: int, patches: int | None = None) -> step_lib.TrainStep:
        """Compiles the step for texts of `context_length` tokens; arguments as for `lower`."""
        return self.lower(context_length, patches).compile()

    def sizes(self, batch: Mapping[str, jax.Array]) -> Sizes:
        """Returns the arguments of `compile` for a batch: its tokens, and its patches if any."""
        packed = self.run.model.vision.patch_budget is not None and "image" in batch
        return batch["tokens"].shape[1], batch["image"].shape[1] if packed else None
