"""The report of `doctor`, as text and as JSON."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from clip_jax.cli.doctor.facts import Device, Facts
from clip_jax.cli.doctor.finding import Finding, Level, gigabytes
from clip_jax.cli.doctor.packages import PLUGINS, SHOWN
from clip_jax.errors import counted, redacted
from clip_jax.version import __version__

# The extras of setup.py and what each is for; tests/cli/test_doctor.py compares.
EXTRAS = {
    "tpu": "Cloud TPUs",
    "cuda13": "NVIDIA GPUs, driver 580 or newer",
    "cuda12": "NVIDIA GPUs, driver 525 or newer",
    "plan": "--mode=plan for TPUs that are not here",
    "plan-gpu": "--mode=plan for GPUs that are not here",
    "remote": "data at gs://, s3:// and https://",
    "tables": "data in CSV, JSON lines and Parquet",
    "tokenizers": "tokenizer.json of published models",
    "syntax": "config.data.long_captions=syntax",
    "onnx": "export --format onnx",
    "curate": "curation of pools of pairs",
    "tfds": "TensorFlow Datasets, without TensorFlow",
    "docs": "the documentation as a site",
    "test": "the tests",
    "parity": "the tests against torch, transformers and open_clip",
}


def as_json(facts: Facts, found: Sequence[Finding]) -> dict[str, Any]:
    """Returns the report as values of JSON."""
    values = dataclasses.asdict(facts)
    values["environment"] = {name: redacted(value) for name, value in facts.environment.items()}
    values["extras"] = {name: is_installed(facts, name) for name in EXTRAS}
    findings = [dataclasses.asdict(finding) for finding in found]
    return {"clip_jax": __version__, "findings": findings, "facts": values}


def is_installed(facts: Facts, extra: str) -> bool:
    """Returns whether all packages of an extra are installed."""
    asked = [r for r in facts.requirements if (r.by, r.extra) == ("clip_jax", extra)]
    return bool(asked) and all(requirement.is_met for requirement in asked)


def as_text(facts: Facts, found: Sequence[Finding]) -> str:
    """Returns the report as lines for people."""
    return "\n".join([*_facts(facts), "", *_findings(found)])


def _facts(facts: Facts) -> Iterator[str]:
    yield f"clip_jax {__version__}, Python {facts.python}, {facts.system}"
    for title, names in (("packages", SHOWN), ("plugins", PLUGINS)):
        shown = [f"{name} {facts.versions[name]}" for name in names if name in facts.versions]
        if shown:
            yield f"{title}: {', '.join(shown)}"
    yield from _devices(facts)
    if facts.nvidia:
        counts = Counter(gpu.name for gpu in facts.nvidia.gpus)
        gpus = ", ".join(f"{count} x {name}" for name, count in counts.items()) or "no GPU"
        yield f"NVIDIA driver {facts.nvidia.version or '(unknown)'}: {gpus}"
    if facts.tpu.chips:
        yield f"TPU: {counted(facts.tpu.chips, 'chip')}"
    cpu = facts.cpu
    quota = f" (the container allows {cpu.quota:g})" if cpu.quota else ""
    features = ", ".join(cpu.features) or "no known vector units"
    no_amx = "" if "AMX" in cpu.features or "x86_64" not in facts.system else "; no AMX"
    yield f"CPU: {cpu.model}, {counted(cpu.cores, 'core')}{quota}; {features}{no_amx}"
    shared = "" if facts.shared_memory is None else f", /dev/shm {gigabytes(facts.shared_memory)}"
    yield (
        f"memory: {gigabytes(facts.memory)}, {gigabytes(facts.available)} free{shared}; "
        f"{_limit(facts.open_files)} open files"
    )
    for folder in facts.folders:
        yield f"{folder.use}: {folder.path}, {gigabytes(folder.free)} free"
    if facts.environment:
        values = (f"{name}={value:.60}" for name, value in sorted(facts.environment.items()))
        yield redacted(f"environment: {' '.join(values)}")
    yield from _extras(facts)


def _limit(files: int) -> str:
    return "any number of" if files < 0 else f"{files:,}"


def _devices(facts: Facts) -> Iterator[str]:
    query = facts.query
    if not query.devices:
        yield f"devices: none, after {query.seconds:.1f} s"
    for device, count in Counter(map(_device, query.devices)).items():
        hosts = f" on each of {query.hosts} hosts" if query.hosts > 1 else ""
        yield f"devices: {count} x {device}{hosts}; JAX starts in {query.seconds:.1f} s"


def _device(device: Device) -> str:
    memory = f", {gigabytes(device.memory)} for JAX" if device.memory else ""
    chip = f" ({device.chip})" if device.chip and device.chip not in device.kind else ""
    peak = f", at most {device.peak / 1e12:.4g} TFLOP/s in bfloat16" if device.peak else ""
    kind = "CPU" if device.platform == "cpu" else device.kind
    return f"{kind}{chip}{memory}{peak}"


def _extras(facts: Facts) -> Iterator[str]:
    if not any(r.by == "clip_jax" for r in facts.requirements):
        return
    installed = [name for name in EXTRAS if is_installed(facts, name)]
    yield f"extras: {', '.join(installed) or 'none'}"
    absent = [name for name in EXTRAS if name not in installed]
    if absent:
        yield "not installed, pip install -e '.[NAME]':"
        yield from (f"  {name:<11} {EXTRAS[name]}" for name in absent)


def _findings(found: Sequence[Finding]) -> Iterator[str]:
    for finding in found:
        yield f"{finding.level}: {finding.problem}\n  {finding.mend}"
    counts = Counter(finding.level for finding in found)
    some = [f"{count} {level}" for level, count in counts.items() if level is not Level.NOTE]
    if not counts[Level.BROKEN]:
        some.insert(0, "nothing broken")
    yield ", ".join(some)
