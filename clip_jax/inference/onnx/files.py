"""ONNX files of programs: written, quantised and run."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from clip_jax.errors import UserError
from clip_jax.inference.onnx.fusions import fuse
from clip_jax.inference.onnx.program import convert
from clip_jax.inference.programs import Program
from clip_jax.io.files import JsonObject

FORMAT = ENDING = "onnx"
QUANTIZED = ("int8",)
# Convolutions stay in float32: ONNX Runtime's in 8 bits are slower on CPUs.
_OPERATORS = ("MatMul", "Gather")


def write(
    folder: Path, programs: Sequence[Program], quantize: str | None = None
) -> tuple[list[str], JsonObject]:
    """Writes programs, each with its parameters in float32.

    Args:
      folder: an empty folder.
      programs: the programs.
      quantize: `int8`: matrix products and tables of words in 8 bits; inputs of products are
        quantised when the program runs. None: float32.

    Returns:
      The names of the files, and what the manifest says beside the programs.

    Raises:
      UserError: a package is missing, or an operator of the model has no counterpart in ONNX.
      OSError: a file can't be written.
    """
    try:
        from clip_jax.inference.onnx import writing
    except ImportError:
        raise UserError(_missing("onnx")) from None
    if quantize not in (None, *QUANTIZED):
        raise UserError(f"unknown quantize {quantize!r:.60}; known: {', '.join(QUANTIZED)}")
    names = []
    for program in programs:
        argument = program.argument
        name = "tokens" if program.name == "text" else "images"
        graph, inputs, (output,) = convert(_bound(program), {name: argument})
        fuse(graph)
        graph.prune([output])
        model = writing.model_proto(graph, inputs, {program.result: output})
        path = folder / f"{program.name}.{ENDING}"
        written = writing.save(model, graph, path)
        if quantize:
            _quantize(path, written)
        names += [part.name for part in written]
    return names, {"opset": writing.OPSET, "quantized": quantize}


def _bound(program: Program) -> Callable[[jax.Array], jax.Array]:
    """Returns a program with its parameters, in float32."""
    parameters = {
        name: value.astype(jnp.float32) if jnp.issubdtype(value.dtype, jnp.floating) else value
        for name, value in program.parameters.items()
    }
    return lambda rows: program.run(parameters, rows)


def _quantize(path: Path, written: Sequence[Path]) -> None:
    """Replaces files by quantised ones of the same names."""
    try:
        from onnxruntime import quantization
    except ImportError:
        raise UserError(_missing("onnxruntime")) from None
    logging.disable(logging.WARNING)  # it recommends a pass that changes nothing here
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as place:
            quantization.quantize_dynamic(
                path,
                Path(place) / path.name,
                op_types_to_quantize=list(_OPERATORS),
                per_channel=True,
                weight_type=quantization.QuantType.QInt8,
                use_external_data_format=len(written) > 1,
            )
            for part in written:
                (Path(place) / part.name).replace(part)
    finally:
        logging.disable(logging.NOTSET)


def load(folder: Path, programs: JsonObject) -> dict[str, Callable[[Any], Any]]:
    """Returns the programs of a manifest, as functions of their input, run by ONNX Runtime.

    Raises:
      UserError: ONNX Runtime is not installed, or a file is missing or damaged.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError(_missing("onnxruntime")) from None
    functions = {}
    for name in programs:
        path = folder / f"{name}.{ENDING}"
        if not path.is_file():
            raise UserError(f"{path} is missing: export the model again")
        try:
            session = onnxruntime.InferenceSession(path)
        except Exception as error:  # ONNX Runtime has many
            raise UserError(f"{path} cannot be run ({error!s:.120})") from None
        functions[name] = _session_call(session)
    return functions


def _session_call(session: Any) -> Callable[[Any], Any]:
    name = session.get_inputs()[0].name
    return lambda rows: session.run(None, {name: rows})[0]


def _missing(package: str) -> str:
    return f"ONNX needs the package {package}: pip install 'clip_jax[onnx]'"
