"""Compiles programs for devices that need not exist, and reads what the compiler says."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from clip_jax.errors import UserError
from clip_jax.plan import gpus, program
from clip_jax.plan.program import Program
from clip_jax.plan.roofline import Roofline

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50}
_AMOUNT = r"([\d.]+)([KMGTP]?)i?B?"
_OUT_OF_MEMORY = (
    re.compile(rf"memory required .*?\({_AMOUNT}\) exceeds available HBM \({_AMOUNT}\)"),
    re.compile(rf"memory space hbm\. Used {_AMOUNT} of {_AMOUNT} hbm", re.IGNORECASE),
)


class CompileResult(NamedTuple):
    """The result of a compilation.

    Attributes:
      executable: the compiled program; None if it does not fit into the memory of a device.
      requested_bytes: the memory that the compiler asks for if it does not fit.
      program: the parsed program.
    """

    executable: jax.stages.Compiled | None
    requested_bytes: int
    program: Program


def compile_lowered(
    lowered: jax.stages.Lowered,
    platform: str,
    dump: str | None = None,
    machine: Roofline | None = None,
) -> CompileResult:
    """Compiles and parses a lowered function.

    Args:
      lowered: the function.
      platform: `tpu`, `gpu` or `cpu`.
      dump: a folder that keeps the output of the compiler; None: nothing is kept.
      machine: the GPU; None for other devices.

    Raises:
      UserError: the compiler fails for another reason than memory, or the folder cannot be written.
    """
    options: dict[str, Any] = {"xla_dump_hlo_as_text": True}
    if platform == "gpu":
        options |= gpus.COMPILER_OPTIONS
    if platform == "cpu":  # the estimate does not depend on LLVM's optimizations
        options["xla_backend_optimization_level"] = "0"
    with _dump_folder(dump) as folder, _compilation_cache_disabled():
        try:
            executable = lowered.compile(compiler_options={"xla_dump_to": folder, **options})
        except jax.errors.JaxRuntimeError as error:
            if amounts := find_out_of_memory(str(error)):
                return CompileResult(None, amounts.requested, Program())
            message = " ".join(str(error).split())
            raise UserError(f"the compiler fails on this step: {message:.600}") from None
        text = _program_text(executable, Path(folder))
        return CompileResult(executable, 0, program.parse(text, machine))


@contextlib.contextmanager
def _dump_folder(dump: str | None) -> Iterator[str]:
    """The folder for the output of the compiler: the user's, or a temporary one."""
    if dump is None:
        with tempfile.TemporaryDirectory(prefix="clip_jax_plan_") as folder:
            yield folder
        return
    try:
        os.makedirs(dump, exist_ok=True)
    except OSError as error:
        raise UserError(f"--dump={dump}: {error.strerror}") from None
    yield dump


@contextlib.contextmanager
def _compilation_cache_disabled() -> Iterator[None]:
    """Forces a compilation: a program from JAX's cache would leave no text."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


class Memory(NamedTuple):
    """Bytes that a program requests, and bytes that are available."""

    requested: int
    available: int


def find_out_of_memory(message: str) -> Memory | None:
    """Parses the compiler's error for a program that needs too much memory."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    for pattern in _OUT_OF_MEMORY:
        if match := pattern.search(message):
            requested, unit, available, available_unit = match.groups()
            return Memory(
                round(float(requested) * 2 ** _UNITS[unit]),
                round(float(available) * 2 ** _UNITS[available_unit]),
            )
    return None


def _program_text(executable: jax.stages.Compiled, folder: Path) -> str:
    dumps = sorted(folder.glob("*after_codegen.txt"), key=lambda path: path.stat().st_size)
    return dumps[-1].read_text() if dumps else executable.as_text() or ""
