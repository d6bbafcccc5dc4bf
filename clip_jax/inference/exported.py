"""Models as StableHLO programs, which run where there is JAX, or another compiler of StableHLO.

A folder holds a program for each tower, its parameters, and `export.json`, which says what programs
take and give. `load_exported` runs them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from clip_jax.data.images.preprocess import Preprocess
from clip_jax.errors import UserError
from clip_jax.io import files
from clip_jax.io.files import JsonObject
from clip_jax.models.clip import CLIP, normalize
from clip_jax.models.second_projection import project
from clip_jax.version import __version__
from clip_jax.weights import arrays
from clip_jax.weights.preprocessing import to_open_clip
from clip_jax.weights.tensor_writing import write_safetensors
from clip_jax.weights.tensors import open_tensors

MANIFEST = "export.json"
PARAMETERS = "parameters.safetensors"
SIDES = {"image": "vision", "text": "text"}  # a program's name: the tower of the model
_MAX_PROGRAM = 1 << 28  # bytes; parameters are not in it
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export_model(
    model: CLIP,
    folder: Path,
    *,
    sides: Sequence[str] = tuple(SIDES),
    batch: int | None = None,
    normalized: bool = False,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    preprocess: Preprocess | None = None,
    tokenizer: str | None = None,
) -> dict[str, int]:
    """Writes the towers of a model as StableHLO programs.

    A program takes its parameters and a batch: images uint8 [batch, size, size, 3] (or the packed
    patches of `models.patches`), or token ids int32 [batch, context]. It gives
    features float32 [batch, embed_dim].

    Args:
      model: the model.
      folder: where the files are written; it is made if need be.
      sides: the programs, of `SIDES`.
      batch: the number of rows of a batch; None: any.
      normalized: whether features are scaled to length one.
      platforms: the platforms that the programs run on, of `PLATFORMS`.
      preprocess: how images are prepared, for export.json.
      tokenizer: the name of the tokenizer, for export.json.

    Returns:
      The sizes of the files in bytes, by their names.

    Raises:
      UserError: a platform is unknown, or the folder can't be written.
    """
    for platform in platforms:
        if platform not in PLATFORMS:
            raise UserError(f"unknown platform {platform!r:.60}; known: {', '.join(PLATFORMS)}")
    config = model.config
    rows: Any = jax.export.symbolic_shape("batch")[0] if batch is None else batch
    shapes = {
        "image": ((rows, *config.vision.input_shape), jnp.uint8),
        "text": ((rows, config.text.context_length), jnp.int32),
    }
    manifest: JsonObject = {
        "format": "jax.export",
        "clip_jax": __version__,
        "jax": jax.__version__,
        "platforms": list(platforms),
        "embed_dim": config.embed_dim,
        "normalized": normalized,
        "logit_scale": float(model.scale),
        "logit_bias": None if config.logit_bias is None else float(model.logit_bias[...]),
        "programs": {},
    }
    if preprocess is not None:
        manifest["preprocess"] = {"size": preprocess.size, **_pixels(preprocess)}
    if "text" in sides:
        manifest["tokenizer"] = tokenizer
    parameters: dict[str, np.ndarray] = {}
    contents: dict[str, bytes] = {}
    for side in sides:
        own, run = program(getattr(model, SIDES[side]), SIDES[side], normalized)
        shape, dtype = shapes[side]
        exported = jax.export.export(jax.jit(run), platforms=tuple(platforms))(
            {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in own.items()},
            jax.ShapeDtypeStruct(shape, dtype),
        )
        contents[f"{side}.stablehlo"] = bytes(exported.serialize())
        manifest["programs"][side] = {
            "file": f"{side}.stablehlo",
            "input": {"shape": [str(n) for n in shape], "dtype": str(np.dtype(dtype))},
            "parameters": sorted(own),
        }
        parameters |= {name: np.asarray(value) for name, value in own.items()}
    contents[MANIFEST] = (json.dumps(manifest, indent=2) + "\n").encode()
    return _write(Path(folder), parameters, contents)


def _pixels(preprocess: Preprocess) -> JsonObject:
    try:
        return to_open_clip(preprocess)
    except UserError:  # a way that open_clip has no words for
        budget = {} if preprocess.budget is None else dataclasses.asdict(preprocess.budget)
        return {
            **budget,
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "interpolation": preprocess.interpolation,
            "resize_mode": preprocess.resize,
            "resize_size": preprocess.resize_size,
        }


def _write(
    folder: Path, parameters: dict[str, np.ndarray], contents: dict[str, bytes]
) -> dict[str, int]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(folder / PARAMETERS, parameters)
        for name, content in contents.items():
            with files.atomic_write(folder / name) as out:
                out.write(content)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror or error})") from None
    return {name: (folder / name).stat().st_size for name in (PARAMETERS, *contents)}


def program(module: Any, name: str, normalized: bool) -> tuple[dict[str, Array], Any]:
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


class ExportedModel:
    """A model that `export_model` wrote.

    Attributes:
      manifest: the contents of export.json.
      logit_scale: the factor on cosines.
      logit_bias: the bias added to them; None for none.
    """

    def __init__(self, folder: Path) -> None:
        self.manifest = files.read_json(folder / MANIFEST)
        if self.manifest.get("format") != "jax.export":
            raise UserError(f"{folder / MANIFEST} is no manifest of `clip_jax export`")
        try:
            self.logit_scale: float = self.manifest["logit_scale"]
            self.logit_bias: float | None = self.manifest["logit_bias"]
            programs = {side: own["parameters"] for side, own in self.manifest["programs"].items()}
        except (KeyError, TypeError, AttributeError):
            raise UserError(f"{folder / MANIFEST} is damaged: export the model again") from None
        self._programs = {}
        with open_tensors(folder / PARAMETERS) as tensors:
            for side, names in programs.items():
                content = files.read_small(folder / f"{side}.stablehlo", _MAX_PROGRAM, "program")
                try:
                    call = jax.jit(jax.export.deserialize(bytearray(content)).call)
                except Exception as error:  # flatbuffers and XLA have many
                    raise UserError(
                        f"{folder / side}.stablehlo is no program of jax.export ({error!s:.80})"
                    ) from None
                own = {name: jnp.asarray(tensors.read(name)) for name in names}
                self._programs[side] = call, own

    def encode_image(self, image: Any) -> Float[Array, "batch embed_dim"]:
        """Returns the features of images uint8 [batch, size, size, 3]."""
        return self._run("image", jnp.asarray(image, jnp.uint8))

    def encode_text(self, tokens: Any) -> Float[Array, "batch embed_dim"]:
        """Returns the features of token ids int32 [batch, context]."""
        return self._run("text", jnp.asarray(tokens, jnp.int32))

    def _run(self, side: str, rows: Array) -> Array:
        if side not in self._programs:
            raise UserError(f"this export has no program for {side}: export with --sides {side}")
        if not len(rows):  # a symbolic batch has one row at least
            return jnp.zeros((0, self.manifest["embed_dim"]), jnp.float32)
        call, own = self._programs[side]
        features: Array = call(own, rows)
        return features


def load_exported(folder: str | Path) -> ExportedModel:
    """Loads the programs of a folder that `clip_jax export` wrote.

    Raises:
      UserError: a file is missing or damaged.
    """
    folder = Path(folder).expanduser()
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} holds no {MANIFEST}: `python -m clip_jax export` writes one")
    return ExportedModel(folder)
