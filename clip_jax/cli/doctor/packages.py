"""The packages that are installed, and whether they fit each other. Imports none of them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import InvalidRequirement
from packaging.requirements import Requirement as Wanted

from clip_jax.cli.doctor.facts import Requirement

# Those of the first lines of a report.
SHOWN = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow"),
    *("simplejpeg", "cykooz.resizer"),
)
# Added by hand, so that their versions must fit that of JAX.
PLUGINS = (
    *("libtpu", "jax-cuda13-plugin", "jax-cuda13-pjrt", "jax-cuda12-plugin", "jax-cuda12-pjrt"),
    *("jax-rocm7-plugin", "jax-metal"),
)
_ASKING = ("clip_jax", "jax", "jax-cuda13-plugin", "jax-cuda12-plugin")


@functools.cache
def version_of(name: str) -> str | None:
    """Returns the version of a package, or None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Returns the versions of the installed ones of `SHOWN` and `PLUGINS`."""
    found = {name: version_of(name) for name in (*SHOWN, *PLUGINS)}
    return {name: version for name, version in found.items() if version}


def requirements() -> list[Requirement]:
    """Returns what clip_jax, JAX and its plugins ask for on this machine, with all extras."""
    return [
        Requirement(
            by=by,
            extra=extra,
            wanted=_text(wanted),
            name=wanted.name,
            installed=version_of(wanted.name),
            fits=_fits(wanted),
            is_met=_is_met(wanted),
        )
        for by in _ASKING
        for extra in ("", *_extras(by))
        for wanted in _wanted(by, extra)
    ]


def _text(wanted: Wanted) -> str:
    extras = f"[{','.join(sorted(wanted.extras))}]" if wanted.extras else ""
    return f"{wanted.name}{extras}{wanted.specifier}"


def _extras(name: str) -> list[str]:
    if version_of(name) is None:
        return []
    return metadata.metadata(name).get_all("Provides-Extra") or []


def _wanted(name: str, extra: str) -> Iterator[Wanted]:
    """Yields what a package asks for: always, or by one of its extras."""
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return
    for line in lines:
        try:
            wanted = Wanted(line)
        except InvalidRequirement:
            continue
        is_always = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        if extra:
            is_extra = wanted.marker is not None and wanted.marker.evaluate({"extra": extra})
            if is_extra and not is_always:
                yield wanted
        elif is_always:
            yield wanted


def _fits(wanted: Wanted) -> bool:
    version = version_of(wanted.name)
    return version is not None and wanted.specifier.contains(version, prereleases=True)


def _is_met(wanted: Wanted) -> bool:
    parts = (part for extra in wanted.extras for part in _wanted(wanted.name, extra))
    return _fits(wanted) and all(map(_is_met, parts))


def slow_python() -> str:
    """Returns why this Python is slow; empty if it is not."""
    if hasattr(sys, "gettotalrefcount"):
        return "a debug build"
    if sys.flags.dev_mode:
        return "in development mode (-X dev or PYTHONDEVMODE)"
    return ""


def missing_image_formats() -> list[str]:
    """Returns the formats that this Pillow cannot read."""
    try:
        from PIL import features
    except ImportError:
        return []  # a missing package
    known = {"jpg": "JPEG", "zlib": "PNG", "webp": "WebP", "jpg_2000": "JPEG 2000", "avif": "AVIF"}
    supported = features.get_supported()
    return [name for feature, name in known.items() if feature not in supported]
