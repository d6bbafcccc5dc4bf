"""What is broken, slow or worth knowing: from facts to findings, each with what mends it."""

from __future__ import annotations

from collections.abc import Iterator

from clip_jax.cli.doctor.accelerators import device_findings
from clip_jax.cli.doctor.facts import Facts, Folder, Requirement
from clip_jax.cli.doctor.finding import Finding, Level, broken, gigabytes, note, slow
from clip_jax.cli.doctor.packages import PLUGINS
from clip_jax.cli.doctor.settings import setting_findings

_FEW_FILES = 1024
_FULL, _NEARLY_FULL = 2**28, 5 * 2**30
_LITTLE_MEMORY = 2**30
_LITTLE_SHARED = 2**30
_MUCH_LOAD = 1.5  # processes for each core


def findings(facts: Facts) -> list[Finding]:
    """Returns what is wrong with a machine, the worst first."""
    found = [
        *_package_findings(facts),
        *device_findings(facts),
        *setting_findings(facts),
        *_decoding_findings(facts),
        *_machine_findings(facts),
        *(f for folder in facts.folders for f in _folder_findings(folder)),
        *_config_findings(facts),
    ]
    return sorted(found, key=lambda finding: list(Level).index(finding.level))


def _package_findings(facts: Facts) -> Iterator[Finding]:
    """Yields packages that are missing, too old, or of another version than JAX."""
    if not any(r.by == "clip_jax" for r in facts.requirements):
        yield note("clip_jax is not installed, only on Python's path", "pip install -e .")
    for requirement in facts.requirements:
        is_always = not requirement.extra and requirement.by in ("clip_jax", "jax")
        # data.images.decoding does without it
        is_optional = requirement.name == "cykooz.resizer" and requirement.installed is None
        if is_always and not is_optional and not requirement.is_met:
            yield broken(_mismatch(requirement), f'pip install "{requirement.wanted}"')
    yield from _plugin_findings(facts)


def _mismatch(requirement: Requirement) -> str:
    version = requirement.installed
    has = f"{version} is installed" if version else "it is missing"
    return f"{requirement.by} needs {requirement.wanted}, and {has}"


def _plugin_findings(facts: Facts) -> Iterator[Finding]:
    """Yields plugins of another version than JAX, which ignores them.

    If this is why JAX does not use an accelerator, `accelerators` says so. A libtpu of another
    version compiles plans.
    """
    names = set()
    for requirement in facts.requirements:
        name = requirement.name
        is_plugin = requirement.by == "jax" and name in PLUGINS and requirement.installed
        is_used = facts.uses("tpu") if name == "libtpu" else facts.uses("gpu") or not facts.nvidia
        if is_plugin and is_used and not requirement.fits and name not in names:
            names.add(name)
            version = facts.versions.get("jax", "")
            mend = f'pip install -U "jax[{requirement.extra}]=={version}"'
            yield note(_mismatch(requirement), mend)


def _decoding_findings(facts: Facts) -> Iterator[Finding]:
    """Yields what makes reading images slow."""
    if "cykooz.resizer" not in facts.versions:
        yield slow(
            "cykooz.resizer is not installed: resizing images takes about six times as long",
            "pip install cykooz.resizer  # on ARM it builds with Rust, see rustup.rs",
        )
    if facts.image_formats:
        yield note(
            f"this Pillow does not read {', '.join(facts.image_formats)}",
            "pip install --force-reinstall --only-binary pillow pillow",
        )
    if facts.slow_python:
        yield slow(
            f"this Python is {facts.slow_python}",
            "use a release build of 3.11 to 3.13, without -X dev and PYTHONDEVMODE",
        )


def _machine_findings(facts: Facts) -> Iterator[Finding]:
    """Yields shortages of the machine."""
    cpu = facts.cpu
    is_on_cpu = not (facts.uses("gpu") or facts.uses("tpu"))
    is_x86 = "x86_64" in facts.system
    if cpu.quota and cpu.quota < cpu.cores:
        yield slow(
            f"this container may use {cpu.quota:g} of the {cpu.cores} cores that it sees: threads "
            "wait for each other",
            f"start it with --cpuset-cpus=0-{max(0, int(cpu.quota) - 1)} instead of --cpus",
        )
    if cpu.load > _MUCH_LOAD * cpu.cores:
        yield slow(
            f"{cpu.load:.0f} processes compete for {cpu.cores} cores",
            "top lists them: end those that you do not need",
        )
    if is_x86 and "Linux" in facts.system and "AVX2" not in cpu.features:
        yield slow("this processor has no AVX2", "use one made after 2015; virtual ones hide it")
    if facts.available < _LITTLE_MEMORY:
        yield slow(
            f"{gigabytes(facts.available)} of memory are free",
            "end other programs, or lower config.batch_size",
        )
    if facts.shared_memory is not None and facts.shared_memory < _LITTLE_SHARED:
        gpus = sum(device.platform == "gpu" for device in facts.query.devices)
        if gpus > 1:
            yield slow(
                f"/dev/shm has {gigabytes(facts.shared_memory)}, through which GPUs exchange data",
                "start the container with --shm-size=8g or --ipc=host",
            )
    if 0 <= facts.open_files < _FEW_FILES:
        yield note(f"at most {facts.open_files} files may be open", "ulimit -n 65536")
    if is_on_cpu and facts.huge_pages == "never":
        yield slow("the kernel gives no huge pages", _huge_pages("madvise"))
    if facts.uses("tpu") and facts.huge_pages not in ("always", ""):
        yield slow("TPUs start and end slowly without huge pages", _huge_pages("always"))


def _huge_pages(setting: str) -> str:
    return f'sudo sh -c "echo {setting} > /sys/kernel/mm/transparent_hugepage/enabled"'


def _folder_findings(folder: Folder) -> Iterator[Finding]:
    """Yields why nothing can be written to a folder, or that its disk is nearly full."""
    if folder.problem:
        is_cache = folder.use == "compiled programs"
        mend = "JAX_COMPILATION_CACHE_DIR" if is_cache else "TMPDIR" if "temp" in folder.use else ""
        yield (slow if is_cache else broken)(
            f"{folder.path}: {folder.use} cannot be written there ({folder.problem})",
            f"set {mend} to a folder of yours"
            if mend
            else "go to another folder, or set --workdir",
        )
    elif folder.free < _NEARLY_FULL:
        yield (broken if folder.free < _FULL else note)(
            f"the disk of {folder.path} ({folder.use}) has {gigabytes(folder.free)} left",
            "free some space: a checkpoint takes 12 bytes a parameter, 1.8 GB for ViT-B/32",
        )


def _config_findings(facts: Facts) -> Iterator[Finding]:
    """Yields what a config asks for and the machine does not have."""
    if facts.config is None:
        return
    if facts.config.workers > facts.cpu.cores:
        yield slow(
            f"config.data.workers={facts.config.workers} on {facts.cpu.cores} cores: they wait for "
            "each other",
            f"--config.data.workers={facts.cpu.cores}",
        )
    cache = facts.config.cache_mib * 2**20
    if cache > facts.available:
        yield broken(
            f"config.data.cache_mib={facts.config.cache_mib}: {gigabytes(facts.available)} of "
            "memory are free",
            f"--config.data.cache_mib={facts.available // 2**21}",
        )
