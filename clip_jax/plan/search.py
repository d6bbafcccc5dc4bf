"""Other ways to train a config on a topology, each of them compiled."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from clip_jax import config as config_lib
from clip_jax.errors import UserError
from clip_jax.plan.cost import Estimate, estimated, recipe_of

Say = Callable[[str], None]
Overrides = dict[str, Any]
ENOUGH = 2  # proposals


@dataclasses.dataclass(frozen=True)
class Refused:
    """A choice that training would refuse, with the line that says why."""

    overrides: Mapping[str, Any]
    error: str


def changed(c: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """A copy of a config in which keys (dotted) have other values.

    Raises:
      UserError: there is no such key, or the value is not of its type.
    """
    copy = ConfigDict(c.to_dict())
    for key, value in overrides.items():
        config_lib.override(copy, f"{key}={value}")
    return copy.lock()


def flags(overrides: Mapping[str, Any]) -> str:
    """What to type for them."""
    return " ".join(f"--config.{key}={value}" for key, value in overrides.items())


def timed(
    c: ConfigDict,
    topology: str,
    say: Say,
    overrides: Overrides | None = None,
    dump: str | None = None,
) -> Estimate:
    """`estimated`, and before and after it a line on what goes on."""
    say(f"compiling for {topology}: {flags(overrides or {}) or 'the config as it is'} …")
    began = time.monotonic()
    found = estimated(changed(c, overrides or {}), topology, dump, overrides)
    said = f"{'fits' if found.fits else 'does not fit'}: {found.hbm_bytes / 2**30:.2f} GiB"
    if found.time_unknown:
        said += ", time unknown"
    elif found.estimated_seconds:
        said += f", {1e3 * found.estimated_seconds:.4g} ms"
    say(f"  {said} (compiled in {time.monotonic() - began:.0f} s)")
    return found


def proposals(c: ConfigDict, topology: str, failed: Estimate, say: Say) -> list[Estimate]:
    """What would fit in place of a config that does not, the mildest change first.

    Parameters over all chips, full rematerialisation, layers in chunks: each on top of the one
    before. Then, on top of all, the batch in parts; and in place of that a smaller batch.
    """
    found: list[Estimate] = []
    last, base = failed, dict[str, Any]()
    for more in _ladder(c, topology):
        base |= more
        last = _tried(c, topology, say, base) or last
        if last.fits:
            found.append(last)
            if len(found) == ENOUGH:
                return found
    for shrink in () if found else (_parts, _batches):
        fitting = _first_that_fits(c, topology, last, base, shrink, say)
        found += [fitting] if fitting else []
    return found


def _tried(c: ConfigDict, topology: str, say: Say, overrides: Overrides) -> Estimate | None:
    """`timed`; None where the compiler fails, which is then said."""
    try:
        return timed(c, topology, say, dict(overrides))
    except UserError as error:
        say(f"  {error}")
        return None


def _ladder(c: ConfigDict, topology: str) -> Iterator[Overrides]:
    made, place = recipe_of(c, topology)
    shape = made.mesh.shape
    if shape["data"] > 1:
        yield {"mesh.data": 1, "mesh.fsdp": len(place.devices) // shape["tensor"]}
    if c.remat != "full":
        yield {"remat": "full"}
    auto = {"chunk.image": -1, "chunk.text": -1}
    chunked = recipe_of(changed(c, {"remat": "full", **auto}), topology)[0].chunks
    asked = recipe_of(changed(c, {"remat": "full"}), topology)[0].chunks
    if any(new and (new < old or not old) for new, old in zip(chunked, asked, strict=True)):
        yield auto


def _parts(c: ConfigDict, rows: int) -> Iterator[tuple[int, Overrides]]:
    """The batch in more and more parts; `rows` are those of a device."""
    factor = 2
    while rows % (c.accumulate * factor) == 0:
        yield factor, {"accumulate": c.accumulate * factor}
        factor *= 2


def _batches(c: ConfigDict, rows: int) -> Iterator[tuple[int, Overrides]]:
    factor = 2
    while rows % (c.accumulate * factor) == 0:
        yield factor, {"batch_size": c.batch_size // factor}
        factor *= 2


def _first_that_fits(
    c: ConfigDict,
    topology: str,
    last: Estimate,
    base: Overrides,
    shrink: Callable[[ConfigDict, int], Iterator[tuple[int, Overrides]]],
    say: Say,
) -> Estimate | None:
    made, _ = recipe_of(changed(c, base), topology)
    shards = made.mesh.shape["data"] * made.mesh.shape["fsdp"]
    last_factor = 1
    for factor, more in shrink(c, c.batch_size // shards):
        # a part of the rows takes at least that part of the memory, and here even half is too much
        if last.hbm_bytes * last_factor / factor > 2 * last.hbm_capacity_bytes:
            continue
        found = _tried(c, topology, say, {**base, **more})
        if found and found.fits:
            return found
        last, last_factor = found or last, factor if found else last_factor
    return None


def default_axes(c: ConfigDict, topology: str) -> dict[str, list[str]]:
    """The choices that most often matter."""
    made, place = recipe_of(c, topology)
    all_of_them = len(place.devices) // made.mesh.shape["tensor"]
    return {
        "mesh.data": ["-1"],
        "mesh.fsdp": list(dict.fromkeys(["1", str(all_of_them)])),
        "remat": ["dots", "full"],
        "chunk.image": ["0", "-1"],
        "accumulate": ["1", "4"],
    }


def axes_of(texts: Sequence[str]) -> dict[str, list[str]]:
    """`config.accumulate=1,4,16` and the like as keys with their values.

    Raises:
      UserError: one is not of that form.
    """
    found = {}
    for text in texts:
        key, _, values = text.partition("=")
        if not values or not key:
            raise UserError(
                f"--sweep {text!r}: give KEY=VALUE,VALUE,… such as config.accumulate=1,4,16"
            )
        found[key.removeprefix("config.")] = values.split(",")
    return found


def sweep(
    c: ConfigDict, topology: str, axes: Mapping[str, Sequence[str]], say: Say
) -> list[Estimate | Refused]:
    """Every choice of values of the axes, compiled; the fastest that fits comes first.

    Those that come to the same program are compiled once.
    """
    choices = []
    for values in itertools.product(*axes.values()):  # a wrong key is said before all compiling
        known = dict(config_lib.flatten(changed(c, dict(zip(axes, values, strict=True)))))
        choices.append({key: known[key] for key in axes})
    found: list[Estimate | Refused] = []
    seen: set[str] = set()
    for number, choice in enumerate(choices, 1):
        try:
            same = _program(changed(c, choice), topology)
            if same in seen:
                continue
            seen.add(same)
            say(f"{number} of {len(choices)}:")
            found.append(timed(c, topology, say, choice))
        except UserError as error:
            found.append(Refused(choice, str(error)))
    return sorted(found, key=_rank)


def _program(c: ConfigDict, topology: str) -> str:
    """What is the same for configs whose step is the same."""
    made, _ = recipe_of(c, topology)
    rest = {k: v for k, v in c.to_dict().items() if k not in ("chunk", "mesh")}
    return json.dumps([rest, made.chunks, dict(made.mesh.shape)], sort_keys=True, default=str)


def _rank(found: Estimate | Refused) -> tuple[int, float, int]:
    if isinstance(found, Refused):
        return 2, 0.0, 0
    # those of unknown time come after the others that fit
    seconds = math.inf if found.time_unknown else found.step_seconds or 0.0
    per_image = seconds / found.batch_size
    return (0 if found.fits else 1), per_image, found.hbm_bytes
