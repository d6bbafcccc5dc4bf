"""Models for other runtimes: a folder of programs, as StableHLO or as ONNX.

`export.json` says what programs take and give. `load_exported` runs them.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from clip_jax.data.images.preprocess import Preprocess
from clip_jax.errors import UserError
from clip_jax.inference import onnx, stablehlo
from clip_jax.inference.programs import CLASSIFY, IMAGES, NAMES, Labels, Program, build_programs
from clip_jax.io import files
from clip_jax.io.buckets import on_disk
from clip_jax.io.files import JsonObject
from clip_jax.models.clip import CLIP
from clip_jax.version import __version__
from clip_jax.weights.preprocessing import to_open_clip

MANIFEST = "export.json"
_ENDINGS = (stablehlo.ENDING, onnx.ENDING, f"{onnx.ENDING}.data")
_FILES = (stablehlo.PARAMETERS, *(f"{name}.{end}" for name in NAMES for end in _ENDINGS))
_DTYPES = {name: np.dtype(name) for name in ("uint8", "int32", "float32")}  # of inputs
FORMATS = {"stablehlo": stablehlo.FORMAT, "onnx": onnx.FORMAT}  # their names in export.json


def export_model(
    model: CLIP,
    folder: Path,
    *,
    form: str = "stablehlo",
    sides: Sequence[str] = ("image", "text"),
    batch: int | None = None,
    normalized: bool = False,
    images: str = "uint8",
    labels: Labels | None = None,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    quantize: str | None = None,
    preprocess: Preprocess | None = None,
    tokenizer: str | None = None,
) -> dict[str, int]:
    """Writes the programs of a model: features of images and of texts, probabilities of labels.

    The program `image` takes images (see `images`), `text` token ids int32 [batch, context]; they
    give features float32 [batch, embed_dim]. `classify` takes images and gives probabilities
    float32 [batch, labels].

    Args:
      model: the model.
      folder: where the files are written; it is made if need be.
      form: `stablehlo` or `onnx`.
      sides: the programs of features: `image`, `text`.
      batch: the number of rows of a batch; None: any.
      normalized: whether features are scaled to length one.
      images: what programs take, of `programs.IMAGES`: `uint8` [batch, size, size, 3], or packed
        patches (`models.patches`) if the tower takes these; `any-size`,
        uint8 [batch, height, width, 3], which the program resizes; `float32`, normalised
        [batch, 3, size, size].
      labels: the labels of the program `classify`; None: it is not written.
      platforms: the platforms that StableHLO runs on, of `stablehlo.PLATFORMS`.
      quantize: `int8` for ONNX with products in 8 bits; None: float32.
      preprocess: how images are prepared, for export.json and `any-size`.
      tokenizer: the name of the tokenizer, for export.json.

    Returns:
      The sizes of the files in bytes, by their names.

    Raises:
      UserError: a choice is unknown or impossible, a package is missing, or the folder can't be
        written.
    """
    for name, value, known in (
        ("form", form, FORMATS),
        ("images", images, IMAGES),
        *(("platform", platform, stablehlo.PLATFORMS) for platform in platforms),
    ):
        if value not in known:
            raise UserError(f"unknown {name} {value!r:.60}; known: {', '.join(known)}")
    if quantize is not None and form != "onnx":
        raise UserError("quantize is for the form onnx")
    programs = build_programs(
        model,
        tuple(sides),
        batch=batch,
        normalized=normalized,
        images=images,
        preprocess=preprocess,
        labels=labels,
    )
    config = model.config
    manifest: JsonObject = {
        "format": FORMATS[form],
        "clip_jax": __version__,
        "embed_dim": config.embed_dim,
        "normalized": normalized,
        "logit_scale": float(model.scale),
        "logit_bias": None if config.logit_bias is None else float(model.logit_bias[...]),
        "images": images,
        "programs": {program.name: _described(program, form) for program in programs},
    }
    if preprocess is not None:
        manifest["preprocess"] = {"size": preprocess.size, **_pixels(preprocess)}
    if "text" in sides:
        manifest["tokenizer"] = tokenizer
        manifest["vocab_size"] = config.text.vocab_size
    if labels is not None:
        manifest["labels"] = list(labels.names)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as place:
            if form == "onnx":
                names, own = onnx.write(Path(place), programs, quantize)
            else:
                names, own = stablehlo.write(Path(place), programs, platforms)
            content = json.dumps(manifest | own, indent=2) + "\n"
            (Path(place) / MANIFEST).write_text(content, encoding="utf-8")
            # The manifest goes first and comes last, so that no mixture of two can be loaded.
            for name in (MANIFEST, *_FILES):
                (folder / name).unlink(missing_ok=True)
            for name in (*names, MANIFEST):
                (Path(place) / name).replace(folder / name)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror or error})") from None
    return {name: (folder / name).stat().st_size for name in (*names, MANIFEST)}


def earlier_files(folder: Path) -> list[str]:
    """Returns the files in a folder that an export would replace."""
    return [name for name in (MANIFEST, *_FILES) if (folder / name).exists()]


def _described(program: Program, form: str) -> JsonObject:
    argument = program.argument
    described: JsonObject = {
        "file": f"{program.name}.{form}",
        "input": {"shape": [str(n) for n in argument.shape], "dtype": str(argument.dtype)},
        "output": program.result,
    }
    if form == "stablehlo":
        described["parameters"] = sorted(program.parameters)
    return described


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


class ExportedModel:
    """A model that `export_model` wrote.

    Attributes:
      manifest: the contents of export.json.
      logit_scale: the factor on cosines.
      logit_bias: the bias added to them; None for none.
      labels: the labels that `classify` gives probabilities of.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / MANIFEST
        self.manifest = files.read_json(path)
        loaders: dict[Any, Callable[[Path, JsonObject], dict[str, Any]]] = {
            stablehlo.FORMAT: stablehlo.load,
            onnx.FORMAT: onnx.load,
        }
        load = loaders.get(str(self.manifest.get("format")))
        if load is None:
            raise UserError(f"{path} is no manifest of `clip_jax export`")
        try:
            bias = self.manifest["logit_bias"]
            self.logit_scale = float(self.manifest["logit_scale"])
            self.logit_bias = None if bias is None else float(bias)
            self.labels = [str(label) for label in self.manifest.get("labels", [])]
            self._width = int(self.manifest["embed_dim"])
            programs = {name: self.manifest["programs"][name] for name in self._names()}
            self._dtypes = {name: _DTYPES[own["input"]["dtype"]] for name, own in programs.items()}
            self._shapes = {
                name: [*map(str, own["input"]["shape"])] for name, own in programs.items()
            }
            self._vocabulary = int(self.manifest.get("vocab_size", 1 << 31))
            self._programs = load(folder, programs)
        except UserError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError):
            raise UserError(f"{path} is damaged: export the model again") from None

    def _names(self) -> list[str]:
        """Returns the names of the programs; names of files follow from them."""
        names = list(self.manifest["programs"])
        if set(names) - set(NAMES):
            raise ValueError(f"programs {names}")
        return names

    def encode_image(self, image: Any) -> Float[Any, "batch embed_dim"]:
        """Returns the features of images; `manifest["programs"]["image"]` says their shape."""
        return self._run("image", image, self._width)

    def encode_text(self, tokens: Any) -> Float[Any, "batch embed_dim"]:
        """Returns the features of token ids int32 [batch, context]."""
        return self._run("text", tokens, self._width)

    def classify(self, image: Any) -> Float[Any, "batch labels"]:
        """Returns the probabilities of `labels` for images."""
        return self._run(CLASSIFY, image, len(self.labels))

    def _run(self, name: str, rows: Any, width: int) -> Any:
        if name not in self._programs:
            flag = "--labels" if name == CLASSIFY else f"--sides {name}"
            raise UserError(f"this export has no program {name}: export with {flag}")
        rows = self._checked(name, rows)
        if not len(rows):  # a symbolic batch has one row at least
            return np.zeros((0, width), np.float32)
        return self._programs[name](rows)

    def _checked(self, name: str, rows: Any) -> np.ndarray:
        """Returns the input of a program as an array of its dtype.

        Raises:
          UserError: it is of another shape or kind, or its values are out of range.
        """
        shape, dtype = self._shapes[name], self._dtypes[name]
        wanted = f"the program {name} takes {dtype} [{', '.join(shape)}]"
        try:
            rows = np.asarray(rows)
        except ValueError:  # lists of different lengths
            raise UserError(f"{wanted}, not lists of different lengths") from None
        fits = rows.ndim == len(shape) and all(
            str(size) == dim or (not dim.isdecimal() and (size or not i))
            for i, (size, dim) in enumerate(zip(rows.shape, shape, strict=True))
        )
        if rows.dtype.kind not in "iuf" or not fits:
            raise UserError(f"{wanted}, not {rows.dtype} {list(rows.shape)}")
        if rows.size and (rows.dtype.kind == "f") != (dtype.kind == "f"):
            raise UserError(f"{wanted}, not {rows.dtype}")
        if rows.size and dtype.kind != "f":
            most = self._vocabulary - 1 if name == "text" else 255
            if rows.min() < 0 or rows.max() > most:
                low, high = int(rows.min()), int(rows.max())
                raise UserError(f"{wanted} from 0 to {most}, not from {low} to {high}")
        return rows.astype(dtype)


def load_exported(folder: str | Path) -> ExportedModel:
    """Loads the programs of a folder that `clip_jax export` wrote.

    Raises:
      UserError: a file is missing or damaged, or ONNX Runtime is not installed.
    """
    folder = on_disk(folder)
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} holds no {MANIFEST}: `python -m clip_jax export` writes one")
    return ExportedModel(folder)
