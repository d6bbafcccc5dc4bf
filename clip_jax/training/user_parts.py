"""Traces a user's towers and objectives before a run, so that their mistakes are one line each.

Nothing is computed: the traces only pass shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

from clip_jax.config.schema import Config
from clip_jax.config.values import is_number
from clip_jax.distributed.sharding import AXES
from clip_jax.errors import UserError, only_user_errors
from clip_jax.losses.objective import Objective
from clip_jax.losses.weighted import Weighted
from clip_jax.models.clip import CLIP, abstract_model, variables
from clip_jax.models.head import Head
from clip_jax.models.model_config import CLIPConfig
from clip_jax.models.registry import kind_of
from clip_jax.models.tower import TextTower, VisionTower
from clip_jax.registry import is_users, path_of

_ROWS = 2
_ONE_DEVICE = AbstractMesh((1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3)

Shapes = Any  # a tree of `jax.ShapeDtypeStruct`


def check_towers(c: Config, architecture: CLIPConfig) -> None:
    """Checks that a user's towers can be built and called, and that a user's heads can be built.

    Raises:
      UserError: one of them fails, or returns something else.
    """
    vision, text = architecture.vision, architecture.text
    if is_users(vision):
        images = jax.ShapeDtypeStruct((_ROWS, *vision.input_shape), jnp.uint8)
        _check_tower("vision", vision, c, architecture, images)
    if is_users(text):
        tokens = jax.ShapeDtypeStruct((_ROWS, text.context_length), jnp.int32)
        _check_tower("text", text, c, architecture, tokens)
    for name, head in architecture.heads:
        if is_users(head):
            with only_user_errors(f"config.model.heads.{name}.kind={kind_of(head)}: build"):
                nnx.eval_shape(partial(_build_head, head, c, architecture))


def _build_head(head: Head, c: Config, architecture: CLIPConfig) -> Any:
    return head.build(architecture, dtype=c.dtype, remat=c.remat, rngs=nnx.Rngs(0))


def _check_tower(
    side: str, tower: VisionTower | TextTower, c: Config, architecture: CLIPConfig, rows: Shapes
) -> None:
    where = f"config.model.{side}.kind={kind_of(tower)}"
    width = architecture.tower_features
    name = "projection_width" if architecture.projection_width else "embed_dim"

    def build() -> Any:
        options: dict[str, Any] = dict(dtype=c.dtype, remat=c.remat, chunk=0, rngs=nnx.Rngs(0))
        return tower.build(width, architecture.activation, **options)

    def call(state: Any, rows: Any, key: Any) -> Any:
        module = nnx.merge(graph, state)
        return module(rows, key=jax.random.split(key, _ROWS)) if side == "vision" else module(rows)

    with only_user_errors(f"{where}: build"):
        graph, state = nnx.split(nnx.eval_shape(build))
    with only_user_errors(f"{where}: its module"):
        features = _traced(call, state, rows, _key())
    if getattr(features, "shape", None) != (_ROWS, width):
        raise UserError(
            f"{where}: its module returns {_described(features)} for {_ROWS} rows, not "
            f"[{_ROWS}, {width}]: a row of config.model.{name} features each"
        )
    with only_user_errors(f"{where}: flops"):
        flops = (
            tower.flops(width)
            if isinstance(tower, VisionTower)
            else tower.flops(width, tower.context_length)
        )
    _check_flops(where, flops)


def check_objective(
    c: Config, architecture: CLIPConfig, objective: Objective, batch: Shapes
) -> None:
    """Checks that a user's objective, or those in a mix, return a loss and metrics.

    Args:
      c: the config.
      architecture: the architecture.
      objective: the objective.
      batch: the shapes of a global batch.

    Raises:
      UserError: one of them fails, or returns something else.
    """
    for where, part in _users_objectives(objective):
        model = abstract_model(architecture, c.dtype, c.remat, lora=c.lora)
        _check_objective(where, part, model, batch, c.accumulate)
        with only_user_errors(f"{where}: flops"):
            flops = part.flops(architecture, c.batch_size)
        _check_flops(where, flops)


def _users_objectives(objective: Objective) -> Iterator[tuple[str, Objective]]:
    """Yields the objectives that are a user's, each with the key that names it."""
    parts = {"config.objective.name": objective}
    if isinstance(objective, Weighted):
        named = objective.objectives.items()
        parts = {f"config.objective.mix.{name}.name": part for name, part in named}
    for key, part in parts.items():
        if is_users(part):
            yield f"{key}={path_of(type(part))}", part


def _check_objective(
    where: str, objective: Objective, model: CLIP, batch: Shapes, accumulate: int
) -> None:
    graph, rows = nnx.graphdef(model), batch["tokens"].shape[0]

    def features(model_variables: Any, batch: Any, key: Any) -> Any:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
        return objective.features(nnx.merge(graph, *model_variables), batch, keys)

    def loss(features: Any, model_variables: Any, batch: Any) -> Any:
        return objective.loss(features, nnx.merge(graph, *model_variables), batch)

    with only_user_errors(f"{where}: features"):
        made = _traced(features, variables(model), batch, _key())
    if accumulate > 1 and any(leaf.shape[:1] != (rows,) for leaf in jax.tree.leaves(made)):
        raise UserError(
            f"{where}: features returns {_described(made)} for {rows} rows; with config.accumulate "
            "the first axis of each array runs over the rows"
        )
    with only_user_errors(f"{where}: loss"):
        result = _traced(loss, made, variables(model), batch)
    _check_loss(where, result)


def _check_loss(where: str, result: Shapes) -> None:
    """Raises UserError if what `loss` returns is no loss with metrics."""
    is_pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)
    if not is_pair:
        raise UserError(
            f"{where}: loss returns {_described(result)}, not a pair of the loss and a dictionary "
            "of metrics"
        )
    value, metrics = result
    is_float = _is_scalar(value) and jnp.issubdtype(value.dtype, jnp.floating)
    if not is_float:
        raise UserError(f"{where}: loss returns the loss {_described(value)}, not one float")
    for name, metric in metrics.items():
        if not isinstance(name, str) or not _is_scalar(metric):
            raise UserError(
                f"{where}: loss returns the metric {name!r:.60} as {_described(metric)}; metrics "
                "are single numbers by name"
            )


def _check_flops(where: str, flops: Any) -> None:
    if not is_number(flops) or flops < 0:
        raise UserError(f"{where}: flops returns {flops!r:.60}, not a number")


def _is_scalar(value: Shapes) -> bool:
    return getattr(value, "shape", None) == ()


def _key() -> Shapes:
    return jax.eval_shape(lambda: jax.random.key(0))


def _traced(function: Any, *shapes: Shapes) -> Shapes:
    """Returns the shapes of a function's result, traced as it is in a step on one device."""

    def on_mesh(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(_ONE_DEVICE):
            return function(*arguments)

    return jax.eval_shape(on_mesh, *shapes)


def _described(value: Shapes) -> str:
    """Describes a tree of shapes, such as `(float32[], {'x': float32[3]})`."""
    named = jax.tree.map(lambda leaf: _Shape(f"{leaf.dtype}{list(leaf.shape)}"), value)
    return f"{named!r:.120}"


class _Shape(str):
    """The text of a shape, without quotes in containers."""

    __slots__ = ()
    __repr__ = str.__str__
