"""Findings about environment variables that make JAX slow."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from clip_jax.cli.doctor.facts import Facts
from clip_jax.cli.doctor.finding import Finding, note, slow

# What JAX does while a variable is on.
_SLOW_WHEN_ON = {
    "JAX_DISABLE_JIT": "no program is compiled, each operation runs alone",
    "JAX_DEBUG_NANS": "each result is read back and searched for NaN",
    "JAX_DEBUG_INFS": "each result is read back and searched for infinities",
    "JAX_ENABLE_CHECKS": "JAX checks its own data structures",
    "JAX_CHECK_TRACER_LEAKS": "JAX looks for leaked tracers, and compiles again and again",
    "JAX_ENABLE_X64": "some arrays become float64 and int64, which accelerators compute slowly",
    "JAX_LOG_COMPILES": "JAX logs each compilation",
    "JAX_NO_TRACING": "JAX may compile nothing new",
}
_PRECISIONS = {"highest", "float32", "high", "bfloat16_3x", "tensorfloat32", "bfloat16_6x"}


def _is_on(value: str) -> bool:
    return value.lower() in ("1", "true", "t", "yes", "y", "on")


def _is_off(value: str) -> bool:
    return value.lower() in ("0", "false", "f", "no", "n", "off")


def setting_findings(facts: Facts) -> Iterator[Finding]:
    """Yields what environment variables slow down."""
    values = facts.environment
    for name, effect in _SLOW_WHEN_ON.items():
        if _is_on(values.get(name, "")):
            yield slow(f"{name}={values[name]}: {effect}", f"unset {name}")
    if _is_off(values.get("JAX_ENABLE_COMPILATION_CACHE", "")):
        yield slow(
            "JAX_ENABLE_COMPILATION_CACHE is off: each start compiles all programs again",
            "unset JAX_ENABLE_COMPILATION_CACHE",
        )
    flags = values.get("XLA_FLAGS", "")
    if "xla_dump_to" in flags:
        yield slow("XLA_FLAGS has xla_dump_to: each program is written to disk", "unset XLA_FLAGS")
    yield from _split_cpu(values.get("JAX_NUM_CPU_DEVICES", ""), flags)
    accelerated = facts.uses("gpu") or facts.uses("tpu")
    precision = values.get("JAX_DEFAULT_MATMUL_PRECISION", "")
    if accelerated and precision.lower() in _PRECISIONS:
        yield slow(
            f"JAX_DEFAULT_MATMUL_PRECISION={precision}: products take several passes",
            "unset JAX_DEFAULT_MATMUL_PRECISION",
        )
    if facts.uses("gpu"):
        yield from _gpu_memory(values)
    elif not accelerated and "GLIBC_TUNABLES" in values:
        yield slow(
            "GLIBC_TUNABLES is set, so that training on the CPU keeps it instead of its own "
            "settings of the allocator",
            "unset GLIBC_TUNABLES",
        )


def _split_cpu(devices: str, flags: str) -> Iterator[Finding]:
    count = re.search(r"xla_force_host_platform_device_count=(\d+)", flags)
    for name, number in (("JAX_NUM_CPU_DEVICES", devices), ("XLA_FLAGS", count and count[1])):
        if number and number.isdigit() and int(number) > 1:
            yield slow(
                f"{name} splits the CPU into {number} devices, which share its cores: good for "
                "tests only",
                f"unset {name}",
            )


def _gpu_memory(values: Mapping[str, str]) -> Iterator[Finding]:
    allocator = values.get("XLA_PYTHON_CLIENT_ALLOCATOR", "")
    if allocator == "platform":
        yield slow(
            "XLA_PYTHON_CLIENT_ALLOCATOR=platform: the driver allocates each array",
            "unset XLA_PYTHON_CLIENT_ALLOCATOR",
        )
    elif _is_off(values.get("XLA_PYTHON_CLIENT_PREALLOCATE", "")):
        yield note(
            "XLA_PYTHON_CLIENT_PREALLOCATE is off: memory that grows in pieces fragments, and "
            "large models can fail for want of it",
            "unset XLA_PYTHON_CLIENT_PREALLOCATE",
        )
    for name in ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION"):
        if re.fullmatch(r"0?\.\d+", values.get(name, "")) and float(values[name]) < 0.75:
            yield note(
                f"{name}={values[name]}: JAX uses less of the GPU's memory than the usual 75 %",
                f"unset {name}, or set it to 0.9",
            )
