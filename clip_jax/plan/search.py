"""Searches for alternatives to a config on a topology; each one is compiled."""

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
from clip_jax.models.stack import is_full
from clip_jax.plan.cost import estimate_step, make_recipe
from clip_jax.plan.result import Estimate

Log = Callable[[str], None]
Overrides = dict[str, Any]
MAX_PROPOSALS = 2


@dataclasses.dataclass(frozen=True)
class Rejected:
    """A choice of values that training would reject, and the error message."""

    overrides: Mapping[str, Any]
    error: str


def with_overrides(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """Returns a copy of a config with other values for some (dotted) keys.

    Raises:
      UserError: a key is unknown, or a value does not have its type.
    """
    copy = ConfigDict(config.to_dict())
    for key, value in overrides.items():
        config_lib.override(copy, f"{key}={value}")
    return copy.lock()


def override_flags(overrides: Mapping[str, Any]) -> str:
    """Returns the flags that set these keys on the command line."""
    return " ".join(f"--config.{key}={value}" for key, value in overrides.items())


def estimate_and_log(
    config: ConfigDict,
    topology: str,
    log: Log,
    overrides: Overrides | None = None,
    dump: str | None = None,
) -> Estimate:
    """Returns the `estimate_step` of a config with overrides; logs the start and the result."""
    changes = override_flags(overrides or {})
    log(
        f"compiling for {topology}: {changes or 'the config without changes'}; this takes minutes …"
    )
    start = time.monotonic()
    estimate = estimate_step(with_overrides(config, overrides or {}), topology, dump, overrides)
    verdict = "fits" if estimate.fits else "does not fit"
    summary = f"{verdict}: {estimate.hbm_bytes / 2**30:.2f} GiB"
    if estimate.time_unknown:
        summary += ", time unknown"
    elif estimate.estimated_seconds:
        summary += f", {1e3 * estimate.estimated_seconds:.4g} ms"
    log(f"  {summary} (compiled in {time.monotonic() - start:.0f} s)")
    return estimate


def propose(config: ConfigDict, topology: str, failed: Estimate, log: Log) -> list[Estimate]:
    """Finds changes that make a config fit, the mildest first.

    The changes are cumulative: parameters sharded over all chips, full rematerialization, layers in
    chunks. If none of them fits, the inputs of fewer layers are saved. If that does not suffice,
    the batch is split into parts, and alternatively made smaller.

    Args:
      config: a config that does not fit.
      topology: the name of the topology.
      failed: its estimate.
      log: called with a line about the progress.
    """
    proposals: list[Estimate] = []
    last = failed
    overrides: Overrides = {}
    for change in _cumulative_changes(config, topology):
        overrides |= change
        last = _try_estimate(config, topology, log, overrides) or last
        if last.fits:
            proposals.append(last)
            if len(proposals) == MAX_PROPOSALS:
                return proposals
    proposals = proposals or _with_fewer_inputs(config, topology, last, overrides, log)
    for reductions in () if proposals else (_more_accumulation, _smaller_batches):
        fitting = _first_that_fits(config, topology, last, overrides, reductions, log)
        proposals += [fitting] if fitting else []
    return proposals


def _with_fewer_inputs(
    config: ConfigDict, topology: str, last: Estimate, base: Overrides, log: Log
) -> list[Estimate]:
    """Saves the input of every second or fourth layer on top of `base`, whose estimate is `last`.

    Returns the first estimate that fits.
    """
    if config.remat.startswith("full:"):
        return []
    for group in (2, 4):
        # memory shrinks at most by the size of a group
        if last.hbm_bytes / group <= last.hbm_capacity_bytes:
            estimate = _try_estimate(config, topology, log, {**base, "remat": f"full:{group}"})
            if estimate is not None and estimate.fits:
                return [estimate]
    return []


def _try_estimate(
    config: ConfigDict, topology: str, log: Log, overrides: Overrides
) -> Estimate | None:
    """Returns `estimate_and_log`, or None if the compiler fails; the failure is logged."""
    try:
        return estimate_and_log(config, topology, log, dict(overrides))
    except UserError as error:
        log(f"  {error}")
        return None


def _cumulative_changes(config: ConfigDict, topology: str) -> Iterator[Overrides]:
    recipe, devices = make_recipe(config, topology)
    shape = recipe.mesh.shape
    if shape["data"] > 1:
        yield {"mesh.data": 1, "mesh.fsdp": len(devices.devices) // shape["tensor"]}
    if not is_full(config.remat):
        yield {"remat": "full"}
    auto_chunks = {"chunk.image": -1, "chunk.text": -1}
    full_remat = config if is_full(config.remat) else with_overrides(config, {"remat": "full"})
    old_chunks = make_recipe(full_remat, topology)[0].chunks
    new_chunks = make_recipe(with_overrides(full_remat, auto_chunks), topology)[0].chunks
    if any(new and (new < old or not old) for new, old in zip(new_chunks, old_chunks, strict=True)):
        yield auto_chunks


Reductions = Callable[[ConfigDict, int], Iterator[tuple[int, Overrides]]]


def _more_accumulation(config: ConfigDict, rows: int) -> Iterator[tuple[int, Overrides]]:
    """Splits the batch into more and more parts; `rows` is the number of rows per device."""
    factor = 2
    while rows % (config.accumulate * factor) == 0:
        yield factor, {"accumulate": config.accumulate * factor}
        factor *= 2


def _smaller_batches(config: ConfigDict, rows: int) -> Iterator[tuple[int, Overrides]]:
    """Halves the batch again and again; `rows` is the number of rows per device."""
    factor = 2
    while rows % (config.accumulate * factor) == 0:
        yield factor, {"batch_size": config.batch_size // factor}
        factor *= 2


def _first_that_fits(
    config: ConfigDict,
    topology: str,
    last: Estimate,
    base: Overrides,
    reductions: Reductions,
    log: Log,
) -> Estimate | None:
    """Returns the first reduction on top of `base` that fits; `last` is the estimate of `base`."""
    recipe, _ = make_recipe(with_overrides(config, base), topology)
    shards = recipe.mesh.shape["data"] * recipe.mesh.shape["fsdp"]
    last_factor = 1
    for factor, change in reductions(config, config.batch_size // shards):
        # memory shrinks at most by the factor: skip what would need over twice the capacity
        if last.hbm_bytes * last_factor / factor > 2 * last.hbm_capacity_bytes:
            continue
        estimate = _try_estimate(config, topology, log, {**base, **change})
        if estimate is None:
            continue
        if estimate.fits:
            return estimate
        last, last_factor = estimate, factor
    return None


def default_axes(config: ConfigDict, topology: str) -> dict[str, list[str]]:
    """Returns the keys and values of a sweep without arguments: those that matter most often."""
    recipe, devices = make_recipe(config, topology)
    max_fsdp = len(devices.devices) // recipe.mesh.shape["tensor"]
    return {
        "mesh.data": ["-1"],
        "mesh.fsdp": list(dict.fromkeys(["1", str(max_fsdp)])),
        "remat": ["dots", "full"],
        "chunk.image": ["0", "-1"],
        "accumulate": ["1", "4"],
    }


def parse_axes(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Parses arguments such as `config.accumulate=1,4,16` to keys and their values.

    Raises:
      UserError: an argument does not have that form.
    """
    axes = {}
    for argument in arguments:
        key, _, values = argument.partition("=")
        if not values or not key:
            raise UserError(
                f"--sweep {argument!r}: use KEY=VALUE,VALUE,… such as config.accumulate=1,4,16"
            )
        axes[key.removeprefix("config.")] = values.split(",")
    return axes


def sweep(
    config: ConfigDict, topology: str, axes: Mapping[str, Sequence[str]], log: Log
) -> list[Estimate | Rejected]:
    """Compiles all combinations of the values of the axes; the fastest that fits comes first.

    Combinations with the same program are compiled once.
    """
    choices = []
    for values in itertools.product(*axes.values()):  # finds wrong keys before compiling anything
        choice = with_overrides(config, dict(zip(axes, values, strict=True)))
        typed_values = dict(config_lib.flatten(choice))
        choices.append({key: typed_values[key] for key in axes})
    rows: list[Estimate | Rejected] = []
    compiled: set[str] = set()
    for number, choice in enumerate(choices, 1):
        try:
            key = _program_key(with_overrides(config, choice), topology)
            if key in compiled:
                continue
            compiled.add(key)
            log(f"{number} of {len(choices)}:")
            rows.append(estimate_and_log(config, topology, log, choice))
        except UserError as error:
            rows.append(Rejected(choice, str(error)))
    return sorted(rows, key=_sort_key)


def _program_key(config: ConfigDict, topology: str) -> str:
    """Returns a key that is equal for configs with the same training step."""
    recipe, _ = make_recipe(config, topology)
    rest = {k: v for k, v in config.to_dict().items() if k not in ("chunk", "mesh")}
    return json.dumps([rest, recipe.chunks, dict(recipe.mesh.shape)], sort_keys=True, default=str)


def _sort_key(row: Estimate | Rejected) -> tuple[int, float, int]:
    if isinstance(row, Rejected):
        return 2, 0.0, 0
    # among the choices that fit, those with an unknown time come last
    seconds = math.inf if row.time_unknown else row.step_seconds or 0.0
    return (0 if row.fits else 1), seconds / row.batch_size, row.hbm_bytes
