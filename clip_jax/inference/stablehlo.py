"""Programs as StableHLO of `jax.export`: a file for each, and their parameters in one file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from clip_jax.errors import UserError
from clip_jax.inference.programs import Program
from clip_jax.io import files
from clip_jax.io.files import JsonObject
from clip_jax.weights.tensor_writing import write_safetensors
from clip_jax.weights.tensors import open_tensors

FORMAT = "jax.export"
ENDING = "stablehlo"
PARAMETERS = "parameters.safetensors"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_MAX_PROGRAM = 1 << 28  # bytes; parameters are not in it


def write(
    folder: Path, programs: Sequence[Program], platforms: Sequence[str]
) -> tuple[list[str], JsonObject]:
    """Writes programs.

    Args:
      folder: an empty folder.
      programs: the programs.
      platforms: the platforms that they run on, of `PLATFORMS`.

    Returns:
      The names of the files, and what the manifest says beside the programs.

    Raises:
      OSError: a file can't be written.
    """
    parameters: dict[str, np.ndarray] = {}
    contents: dict[str, bytes] = {}
    for program in programs:
        given = {
            name: jax.ShapeDtypeStruct(value.shape, value.dtype)
            for name, value in program.parameters.items()
        }
        exported = jax.export.export(jax.jit(program.run), platforms=tuple(platforms))(
            given, program.argument
        )
        contents[f"{program.name}.{ENDING}"] = bytes(exported.serialize())
        parameters |= {name: np.asarray(value) for name, value in program.parameters.items()}
    write_safetensors(folder / PARAMETERS, parameters)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [PARAMETERS, *contents], {"jax": jax.__version__, "platforms": list(platforms)}


def load(folder: Path, programs: JsonObject) -> dict[str, Callable[[Any], Any]]:
    """Returns the programs of a manifest, as functions of their input.

    Raises:
      UserError: a file is missing or damaged.
    """
    functions = {}
    with open_tensors(folder / PARAMETERS) as tensors:
        for name, program in programs.items():
            path = folder / f"{name}.{ENDING}"
            content = files.read_small(path, _MAX_PROGRAM, "program")
            try:
                call = jax.jit(jax.export.deserialize(bytearray(content)).call)
            except Exception as error:  # flatbuffers and XLA have many
                raise UserError(f"{path} is no program of jax.export ({error!s:.80})") from None
            own = {name: jnp.asarray(tensors.read(name)) for name in program["parameters"]}
            functions[name] = _bound(call, own)
    return functions


def _bound(call: Callable[..., Any], parameters: dict[str, Any]) -> Callable[[Any], Any]:
    return lambda rows: call(parameters, rows)
