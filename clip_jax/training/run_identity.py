"""Checks that a run's folder belongs to the run that resumes in it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clip_jax import config as config_lib
from clip_jax.config.schema import Config
from clip_jax.data import fingerprint
from clip_jax.distributed import multihost
from clip_jax.errors import UserError
from clip_jax.io import files
from clip_jax.io.files import JsonObject
from clip_jax.models.model_config import CLIPConfig
from clip_jax.training import checkpointing, run_config, setup
from clip_jax.training.run import Run

_FINGERPRINTS = "fingerprints.json"
# Keys that name files of weights, and the names of their fingerprints.
_WEIGHTS = {key: key for key in ("weights.vision", "weights.text")} | {"weights.path": "weights"}
# Keys that may change as long as no learning rate of an update that is done does.
_LENGTH = frozenset(
    {
        "steps",
        "epochs",
        *(
            f"optimizer.{key}"
            for key in (
                *("schedule", "final_learning_rate", "cooldown_steps", "timescale"),
                *("ends", "then"),
            )
        ),
    }
)


def claim_workdir(run: Run) -> None:
    """Writes config.json into a new workdir, or checks that an existing one is of the same run.

    The first process does this for all processes, before any continues.

    Raises:
      UserError: the folder belongs to a run of another config, or cannot be written.
    """
    multihost.broadcast_from_first(lambda: _claim(run))
    if multihost.broadcast_from_first(lambda: run.fingerprints) != run.fingerprints:
        raise UserError(
            "this process reads other data or another tokenizer than process 0: every host needs "
            "the same files"
        )


def release_workdir(run: Run) -> None:
    """Reverses `claim_workdir` for a run that could not start, so that a corrected one can.

    A folder with checkpoints or metrics stays as it is.
    """
    traces = [*run.workdir.glob(f"{checkpointing.FOLDER}/*"), *run.workdir.glob("metrics.jsonl")]
    if multihost.is_first() and not traces:
        for name in (checkpointing.CONFIG, _FINGERPRINTS, run_config.START):
            (run.workdir / name).unlink(missing_ok=True)


def _claim(run: Run) -> None:
    path, fingerprints = run.workdir / checkpointing.CONFIG, run.workdir / _FINGERPRINTS
    now = run.fingerprints
    weights = {key: getattr(run.config.weights, key.partition(".")[2]) for key in _WEIGHTS}
    if not path.exists():
        used = {_WEIGHTS[key]: file for key, file in weights.items() if file}
        prints = {name: fingerprint.of_weights(file) for name, file in used.items()}
        _write_fingerprints(fingerprints, {**now, **prints})
        run_config.write_random_start(run.workdir, run.random_start)
        with files.atomic_write(path) as file:
            file.write(config_lib.to_json(run.config).encode())
        return
    old = _with_model_defaults(checkpointing.read_config(run.workdir))
    changed = config_lib.changes(old, _with_model_defaults(run.config.to_dict()))
    before = _read_fingerprints(fingerprints)
    moved = [key for key in changed if config_lib.is_place(key)] if before else []
    for key, file in weights.items():
        if before and key in changed and _are_moved(old, key, file, before.get(_WEIGHTS[key])):
            moved.append(key)
    done = max(checkpointing.steps(run.workdir), default=0)
    prolonged = _prolonging_keys(old, run.config, changed, done)
    if rest := [line for key, line in changed.items() if key not in (*moved, *prolonged)]:
        raise UserError(
            f"{run.workdir} holds a run of another config ({'; '.join(rest)}): "
            "give another --workdir, or the values it was started with"
            + _how_to_prolong(old, run.config)
        )
    if before is None:
        _write_fingerprints(fingerprints, now)
    elif any(before.get(key) != value for key, value in now.items()):
        raise UserError(
            f"{run.workdir} holds a run on {_different(before, now)}: give the data it began with, "
            "or another --workdir"
        )
    elif moved or prolonged:
        with files.atomic_write(path) as file:
            file.write(config_lib.to_json(run.config).encode())


def _with_model_defaults(config: JsonObject) -> JsonObject:
    """Returns a run's config with all keys of its architecture.

    An older version had fewer, and a config file may leave out those of a tower that it replaces.
    """
    try:
        return {**config, "model": CLIPConfig.from_dict(config["model"]).to_dict()}
    except (KeyError, UserError):
        return config  # the comparison names what differs


def _prolonging_keys(
    old: JsonObject, config: Config, changed: Iterable[str], done: int
) -> frozenset[str]:
    """Returns the changed keys of length and schedule, if no update that is done is affected.

    Args:
      old: the config that the run had.
      config: its config now.
      changed: the keys that differ.
      done: updates that are done. Their learning rates must be those of both configs.
    """
    keys = _LENGTH.intersection(changed)
    if not keys:
        return keys
    optimizer = old.get("optimizer")
    values = {"optimizer": optimizer if isinstance(optimizer, dict) else {}}
    try:
        before = config_lib.typed({**values, "steps": old.get("steps", Config.steps)})
    except UserError:
        return frozenset()
    updates = np.arange(done)
    old_rates, rates = (
        np.asarray(jax.vmap(setup.learning_rate_schedule(c))(updates)) if done else updates
        for c in (before, config)
    )
    return keys if np.array_equal(old_rates, rates) else frozenset()


def _how_to_prolong(old: JsonObject, config: Config) -> str:
    """Returns what to add to a command that gives a run more steps; empty where it does not."""
    steps = old.get("steps")
    if not isinstance(steps, int) or config.steps <= steps or steps in config.optimizer.ends:
        return ""
    return (
        "; more steps would change learning rates of updates that are done: add "
        f"--config.optimizer.ends='{(*config.optimizer.ends, steps)}' and "
        "--config.optimizer.then=continue, rewarm or constant"
    )


def _are_moved(old: JsonObject, key: str, path: str, before: Any) -> bool:
    """Returns whether weights at another path are those that the run started from.

    A resumed run does not read them. If they no longer exist, equal file names are enough.
    """
    now, group = fingerprint.of_weights(path) if path else "", old.get("weights")
    if before and now is not None:
        return bool(before == now)
    old_path = group.get(key.partition(".")[2]) if isinstance(group, dict) else None
    return bool(old_path and path) and Path(str(old_path)).name == Path(path).name


def _read_fingerprints(path: Path) -> JsonObject | None:
    """Returns the fingerprints in a run's folder; None if there are none of this version."""
    if not path.exists():
        return None
    try:
        fingerprints = files.read_json(path, what="fingerprints")
    except UserError as error:
        raise UserError(
            f"{error}: it tells whether the data is what the run began with; delete it where you "
            "are sure of that"
        ) from None
    return fingerprints if fingerprints.get("version") == fingerprint.VERSION else None


def _write_fingerprints(path: Path, fingerprints: JsonObject) -> None:
    with files.atomic_write(path) as file:
        file.write(json.dumps(fingerprints, indent=1, sort_keys=True).encode() + b"\n")


def _different(before: JsonObject, now: JsonObject) -> str:
    """Returns how the fingerprints of a run's folder and of a command differ, for a message."""
    old, new = before.get("data"), now["data"]
    if not isinstance(old, dict) or old == new:
        return "another tokenizer"
    name = min(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    pairs = [str(prints.get(name, "0")).partition(" ")[0] for prints in (old, new)]
    where = f"config.data.mix.{name}" if name else "config.data.train"
    return f"other pairs than {where} gives ({pairs[0]:.20} then, {pairs[1]} now)"


def check_same_run(run: Run, step: int) -> None:
    """Raises UserError if a checkpoint of another run was put into this run's folder."""
    if (saved := checkpointing.read_saved_config(run.workdir, step)) is None:
        return  # from an older version; restoring compares shapes
    saved = _with_model_defaults(saved)
    changed = config_lib.changes(saved, _with_model_defaults(run.config.to_dict()))
    prolonged = _prolonging_keys(saved, run.config, changed, step)
    lines = [
        line
        for key, line in changed.items()
        # the first two may have moved
        if not (config_lib.is_place(key) or key in _WEIGHTS or key in prolonged)
    ]
    if lines:
        raise UserError(
            f"{run.workdir / checkpointing.FOLDER / str(step)} is that of a run of another config "
            f"({'; '.join(lines)}): bring back the run's own, or move it away"
        )
