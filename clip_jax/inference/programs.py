"""The programs of a model that are written for other runtimes: image, text, classify.

A program is a function of its parameters and of one array of inputs, with any number of rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from clip_jax.data.images.preprocess import Preprocess
from clip_jax.errors import UserError
from clip_jax.inference.resizing import resized
from clip_jax.models.clip import CLIP, normalize
from clip_jax.models.second_projection import project
from clip_jax.weights import arrays

SIDES = {"image": "vision", "text": "text"}  # a program's name: the tower of the model
CLASSIFY = "classify"
NAMES = (*SIDES, CLASSIFY)
# What the programs of images take. uint8: [batch, size, size, 3], resized. any-size: uint8
# [batch, height, width, 3], which the program resizes and crops. float32: [batch, 3, size, size],
# normalised, as the preprocessors of transformers and open_clip give them.
IMAGES = ("uint8", "any-size", "float32")
_CLASSES = f"{CLASSIFY}/text_features"


@dataclasses.dataclass(frozen=True)
class Labels:
    """The labels that a program classifies images by.

    Attributes:
      names: the labels.
      features: their unit-norm text features.
    """

    names: tuple[str, ...]
    features: Float[np.ndarray, "labels embed_dim"]


@dataclasses.dataclass(frozen=True)
class Program:
    """A program.

    Attributes:
      name: `image`, `text` or `classify`.
      run: the function, of the parameters by their paths and of the input.
      parameters: the parameters and batch statistics.
      argument: the shape and dtype of the input.
      result: the name of what it gives: `features` or `probabilities`.
    """

    name: str
    run: Callable[[dict[str, Array], Array], Array]
    parameters: dict[str, Array]
    argument: jax.ShapeDtypeStruct
    result: str = "features"


def build_programs(
    model: CLIP,
    sides: tuple[str, ...],
    *,
    batch: int | None = None,
    normalized: bool = False,
    images: str = "uint8",
    preprocess: Preprocess | None = None,
    labels: Labels | None = None,
) -> list[Program]:
    """Returns the programs of a model.

    Args:
      model: the model.
      sides: which of `SIDES`.
      batch: the number of rows of a batch; None: any.
      normalized: whether features are scaled to length one.
      images: what programs of images take, of `IMAGES`.
      preprocess: how images are resized, for `any-size`.
      labels: the labels of the program `classify`; None: there is none.

    Raises:
      UserError: a side is unknown, or the images can't be prepared by a program.
    """
    if unknown := set(sides) - set(SIDES):
        raise UserError(f"unknown side {min(unknown)!r:.60}; known: {', '.join(SIDES)}")
    prepare, argument = _image_input(model, batch, images, preprocess)
    programs = []
    for side in dict.fromkeys(sides):
        own, run = tower_program(getattr(model, SIDES[side]), SIDES[side], normalized)
        if side == "image":
            programs.append(Program(side, _after(prepare, run), own, argument))
        else:
            shape = (_rows(batch), model.config.text.context_length)
            programs.append(Program(side, run, own, jax.ShapeDtypeStruct(shape, jnp.int32)))
    if labels is not None:
        own, run = tower_program(model.vision, "vision", True)
        own |= {_CLASSES: jnp.asarray(labels.features)}
        classify = _after(prepare, _classifier(model, run))
        programs.append(Program(CLASSIFY, classify, own, argument, "probabilities"))
    return programs


def _rows(batch: int | None) -> Any:
    return jax.export.symbolic_shape("batch")[0] if batch is None else batch


def _image_input(
    model: CLIP, batch: int | None, images: str, preprocess: Preprocess | None
) -> tuple[Callable[[Array], Array], jax.ShapeDtypeStruct]:
    """Returns what makes the tower's input, and the shape and dtype of the program's input."""
    vision = model.config.vision
    size = vision.image_size
    if images != "uint8" and vision.patch_budget is not None:
        raise UserError(
            f"images={images} is not for a tower of images of any shape, which takes packed patches"
        )
    if images == "any-size":
        if preprocess is None:
            raise UserError("images of any size need the model's preprocessing, which is not known")
        names = "height, width" if batch is not None else "batch, height, width"
        dims = jax.export.symbolic_shape(names)
        shape = (*dims, 3) if batch is None else (batch, *dims, 3)
        mean, std = (255 * np.array(v, np.float32) for v in (preprocess.mean, preprocess.std))

        def prepare(rows: Array) -> Array:
            return (resized(rows, preprocess) - mean) / std

        return prepare, jax.ShapeDtypeStruct(shape, jnp.uint8)
    if images == "float32":
        shape = (_rows(batch), 3, size, size)
        return lambda rows: rows.transpose(0, 2, 3, 1), jax.ShapeDtypeStruct(shape, jnp.float32)
    shape = (_rows(batch), *vision.input_shape)
    return lambda rows: rows, jax.ShapeDtypeStruct(shape, jnp.uint8)


def _after(prepare: Callable[[Array], Array], run: Any) -> Callable[[dict[str, Array], Array], Any]:
    return lambda parameters, rows: run(parameters, prepare(rows))


def _classifier(model: CLIP, run: Any) -> Callable[[dict[str, Array], Array], Array]:
    scale = np.asarray(model.scale, np.float32)
    bias = None if model.config.logit_bias is None else np.asarray(model.logit_bias[...])

    def classify(parameters: dict[str, Array], rows: Array) -> Array:
        own = {name: value for name, value in parameters.items() if name != _CLASSES}
        logits = scale * (run(own, rows) @ parameters[_CLASSES].T)
        if bias is None:
            return jax.nn.softmax(logits, axis=-1)
        return jax.nn.sigmoid(logits + bias)

    return classify


def tower_program(module: Any, name: str, normalized: bool) -> tuple[dict[str, Array], Any]:
    """Returns a tower's program.

    Args:
      module: the module of the tower.
      name: the first part of the paths of its parameters.
      normalized: whether features are scaled to length one.

    Returns:
      The parameters and batch statistics by their paths, and a function of these and of a batch.
    """
    graph, params, stats = nnx.split(module, nnx.Param, nnx.BatchStat)
    trees = [nnx.to_pure_dict(state) for state in (params, stats)]
    own = {f"{name}/{path}": value for path, value in arrays.flat(*trees)}
    paths = [[path for path, _ in arrays.flat(tree)] for tree in trees]

    def run(parameters: dict[str, Array], rows: Array) -> Array:
        states = []
        for state, names in zip((params, stats), paths, strict=True):
            filled = jax.tree.map(lambda leaf: leaf, state)  # a copy
            values = arrays.nested({path: parameters[f"{name}/{path}"] for path in names})
            nnx.replace_by_pure_dict(filled, values)
            states.append(filled)
        tower = nnx.merge(graph, *states)
        features = project(tower, tower(rows))
        return normalize(features) if normalized else features.astype(jnp.float32)

    return own, run
