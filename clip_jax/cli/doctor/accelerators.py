"""Findings about accelerators: those that the machine has and JAX does not use."""

from __future__ import annotations

import re
from collections.abc import Iterator

from clip_jax.cli.doctor.facts import Facts, Nvidia
from clip_jax.cli.doctor.finding import Finding, broken, gigabytes, note, slow
from clip_jax.errors import counted

# JAX's installation page: the oldest driver and the lowest compute capability of each toolkit.
_DRIVERS = {"13": 580, "12": 525}
_CAPABILITIES = {"13": 7.5, "12": 5.2}
_BUSY = 0.25  # the share of a GPU's memory in use, above which it is worth a line


def device_findings(facts: Facts) -> Iterator[Finding]:
    """Yields what keeps JAX from starting, or from using an accelerator of the machine."""
    query = facts.query
    if query.timed_out:
        yield broken(
            f"JAX found no devices within {query.seconds:.0f} s{_said(facts)}",
            "end what uses them, or restart the machine; on a TPU slice of several hosts, run this "
            "on all of them at once, or set --timeout",
        )
    elif not query.devices and not _explained(facts):
        yield broken(f"JAX does not start{_said(facts)}", _how_to_start(facts))
    yield from _nvidia_findings(facts)
    yield from _tpu_findings(facts)
    if facts.versions.get("jax-metal"):
        yield broken(
            "jax-metal is for older versions of JAX; Macs compute on their CPU",
            "pip uninstall jax-metal",
        )


def _explained(facts: Facts) -> bool:
    """Returns whether the findings about TPUs say why JAX does not start."""
    return bool(facts.tpu.chips) and not facts.uses("tpu")


def _said(facts: Facts) -> str:
    return f": {facts.query.errors[-1]:.300}" if facts.query.errors else ""


def _how_to_start(facts: Facts) -> str:
    said = " ".join(facts.query.errors)
    named = [name for name in facts.environment if name in said]
    if named or "JAX_PLATFORMS" in facts.environment:
        return f"correct or unset {(*named, 'JAX_PLATFORMS')[0]}"
    return f"pip install --force-reinstall jax=={facts.versions.get('jax', '…')}"


def _hidden(facts: Facts, platforms: set[str], variables: tuple[str, ...]) -> str:
    """Returns the setting that hides an accelerator of one of these platforms, or nothing."""
    chosen = facts.environment.get("JAX_PLATFORMS", "")
    if chosen and not platforms & set(chosen.split(",")):
        return f"JAX_PLATFORMS={chosen}"
    for name in variables:
        if facts.environment.get(name) in ("", "-1", "none", "void"):
            return f"{name}={facts.environment[name]}"
    return ""


def _nvidia_findings(facts: Facts) -> Iterator[Finding]:
    nvidia = facts.nvidia
    if nvidia is None:
        return
    if nvidia.problem:
        is_loaded = bool(nvidia.version)
        finding = broken if is_loaded else note
        mend = "restart the machine" if is_loaded else "install or load NVIDIA's driver"
        yield finding(f"nvidia-smi fails: {nvidia.problem:.300}", mend)
    if not nvidia.gpus:
        return
    if facts.uses("gpu"):
        yield from _busy_gpus(nvidia)
    else:
        yield _unused_gpu(facts, nvidia)


def _busy_gpus(nvidia: Nvidia) -> Iterator[Finding]:
    for number, gpu in enumerate(nvidia.gpus):
        if gpu.memory and gpu.used and gpu.used > _BUSY * gpu.memory:
            yield note(
                f"{gigabytes(gpu.used)} of the {gigabytes(gpu.memory)} of GPU {number} are in use",
                "nvidia-smi lists the programs that use it: end them, or choose another GPU with "
                "CUDA_VISIBLE_DEVICES",
            )


def _unused_gpu(facts: Facts, nvidia: Nvidia) -> Finding:
    """Returns why JAX does not use the GPUs that the driver sees."""
    what = f"JAX does not use the {nvidia.gpus[0].name}"
    driver = int(nvidia.version.partition(".")[0] or 0)
    toolkit = next((v for v in ("13", "12") if f"jax-cuda{v}-plugin" in facts.versions), "")
    fitting = _fitting_toolkit(nvidia, driver)
    install = f'pip install -U "jax[cuda{fitting or 12}]=={facts.versions.get("jax", "")}"'
    visible = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
    if setting := _hidden(facts, {"cuda", "gpu"}, visible):
        return slow(f"{what}: {setting} hides it", f"unset {setting.partition('=')[0]}")
    if not nvidia.is_reachable:
        return broken(
            f"{what}: it has no device files here",
            "start the container with GPUs: docker run --gpus all …",
        )
    if not fitting:
        return broken(
            f"{what}: its driver is {nvidia.version or 'unknown'}, and JAX needs 525 or newer",
            "install a newer NVIDIA driver, 580 or newer",
        )
    if not toolkit:
        return broken(f"{what}: its plugin is not installed", install)
    if driver < _DRIVERS[toolkit] or fitting < toolkit:
        return broken(
            f"{what}: CUDA {toolkit} needs driver {_DRIVERS[toolkit]} or newer and compute "
            f"capability {_CAPABILITIES[toolkit]}, here are {nvidia.version} and "
            f"{nvidia.gpus[0].capability or 'an unknown one'}",
            f"pip uninstall -y jax-cuda{toolkit}-plugin jax-cuda{toolkit}-pjrt && {install}",
        )
    by = (f"jax-cuda{toolkit}-plugin", "jax")
    extras = (f"cuda{toolkit}", "with-cuda", "with_cuda")
    unmet = [r for r in facts.requirements if r.by in by and r.extra in extras and not r.is_met]
    if unmet:
        has = f"{unmet[-1].installed} is installed" if unmet[-1].installed else "it is missing"
        return broken(f"{what}: it needs {unmet[-1].wanted}, and {has}", install)
    if facts.environment.get("LD_LIBRARY_PATH"):
        return broken(
            f"{what}{_said(facts)}",
            "unset LD_LIBRARY_PATH, which can replace the CUDA libraries of JAX by others",
        )
    return broken(f"{what}{_said(facts)}", install)


def _fitting_toolkit(nvidia: Nvidia, driver: int) -> str:
    """Returns the newest CUDA for a driver and its GPUs: 13, 12, or nothing."""
    lowest = min((gpu.capability for gpu in nvidia.gpus if gpu.capability), default=99.0)
    # WSL's driver and a few containers do not tell their version
    fits = [
        toolkit
        for toolkit, oldest in _DRIVERS.items()
        if (not driver or driver >= oldest) and lowest >= _CAPABILITIES[toolkit]
    ]
    return fits[0] if fits else ""


def _tpu_findings(facts: Facts) -> Iterator[Finding]:
    if not facts.tpu.chips or facts.uses("tpu") or facts.query.timed_out:
        return
    what = f"JAX does not use the {counted(facts.tpu.chips, 'TPU chip')} of this machine"
    install = f'pip install -U "jax[tpu]=={facts.versions.get("jax", "")}"'
    libtpu = [r for r in facts.requirements if (r.by, r.extra, r.name) == ("jax", "tpu", "libtpu")]
    user = re.search(r"in use by (?:a )?process with pid (\d+)", " ".join(facts.query.errors))
    if setting := _hidden(facts, {"tpu"}, ("TPU_VISIBLE_CHIPS", "TPU_VISIBLE_DEVICES")):
        yield slow(f"{what}: {setting} hides them", f"unset {setting.partition('=')[0]}")
    elif "libtpu" not in facts.versions:
        yield broken(f"{what}: libtpu is not installed", install)
    elif user:
        yield broken(
            f"{what}: process {user[1]} uses them", f"wait for it, or end it: kill {user[1]}"
        )
    elif not facts.tpu.is_reachable:
        yield broken(
            f"{what}: their device files are missing, or this user may not open them",
            "start the container with --privileged, or the command with sudo",
        )
    elif libtpu and not libtpu[0].is_met:
        yield broken(
            f"{what}: this JAX needs {libtpu[0].wanted}, and {libtpu[0].installed} is installed",
            install,
        )
    else:
        yield broken(f"{what}{_said(facts)}", install)
