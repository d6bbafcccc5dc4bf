"""Checkpoints of state, data position and config, written by orbax whole or not at all.

Each checkpoint contains digests of its files (`digests`), which are verified before a restore.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import save_decision_policy

from clip_jax.errors import UserError
from clip_jax.io.buckets import BucketPath, as_path, is_bucket
from clip_jax.io.files import JsonObject, read_json
from clip_jax.training import digests
from clip_jax.training.orbax_buckets import COMMITTED, support_buckets
from clip_jax.training.orbax_parts import FOLDER, folder_class, make_handlers
from clip_jax.training.preservation import Preserve

DAMAGED = "damaged"  # where a resuming run moves its damaged checkpoints
CONFIG = "config.json"
_METADATA = "_CHECKPOINT_METADATA"  # written by orbax in the folder of each step
_UNFINISHED = ".orbax-checkpoint-tmp"  # part of the name of a folder that is still being written
_MARK = {"digests": 1}  # in orbax's metadata: the folder must have a list of digests


def read_config(workdir: str | Path) -> JsonObject:
    """Reads the config that a run was started with.

    Raises:
      UserError: the folder holds no run.
    """
    path = as_path(workdir) / CONFIG
    if not path.exists():
        raise UserError(
            f"{workdir} holds no run: there is no config.json in it. A folder of another library's "
            "weights needs that library's config beside them"
        )
    return read_json(path)


def read_saved_config(workdir: str | Path, step: int) -> JsonObject | None:
    """Reads the config that a checkpoint was written with; returns None if it cannot be read."""
    try:
        return read_json(as_path(workdir) / FOLDER / str(step) / "config" / "metadata")
    except UserError:
        return None


def steps(workdir: str | Path) -> list[int]:
    """Returns the steps of a run's complete checkpoints, intact or damaged, newest first.

    Raises:
      UserError: the path of their folder is not a folder.
    """
    folder = as_path(workdir) / FOLDER
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"{folder} is no folder, or a link to none: move it away")
    if is_bucket(folder):  # where a checkpoint has its name before it is complete
        names = [path.parent.name for path in folder.glob(f"*/{COMMITTED}")]
    else:
        names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    # the name of a checkpoint that is still being written is longer
    return sorted((int(n) for n in names if n.isdecimal() and str(int(n)) == n), reverse=True)


def find_damage(workdir: str | Path, step: int) -> str:
    """Returns what is wrong with a checkpoint.

    The result is empty if the checkpoint is intact, or has no digests to verify.
    """
    folder = as_path(workdir) / FOLDER / str(step)
    if is_checkable(folder):
        return digests.find_damage(folder, step)
    try:
        marked = (json.loads((folder / _METADATA).read_bytes()).get("custom_metadata") or {}).keys()
    except OSError as error:
        return f"{_METADATA} cannot be read ({error.strerror})"
    except (ValueError, AttributeError, RecursionError):
        return f"{_METADATA} is damaged"
    return f"{digests.NAME} is missing" if marked & _MARK.keys() else ""


def is_checkable(folder: Path) -> bool:
    """Returns whether a step's folder has digests. Those of older versions do not."""
    path = folder / digests.NAME
    return path.exists() or path.is_symlink()


def refuse_damage(workdir: str | Path, step: int, tell: Callable[[str], None]) -> None:
    """Verifies a checkpoint before it is read.

    Args:
      workdir: the run's folder.
      step: the step of the checkpoint.
      tell: called with a line if the checkpoint has no digests to verify.

    Raises:
      UserError: the checkpoint is damaged.
    """
    if why := find_damage(workdir, step):
        others = [str(other) for other in steps(workdir) if other != step]
        instead = f"; there are also {', '.join(others[:5])}" if others else ""
        raise UserError(f"{as_path(workdir) / FOLDER / str(step)} is damaged: {why}{instead}")
    _tell_unchecked(workdir, step, tell)


def _tell_unchecked(workdir: str | Path, step: int, tell: Callable[[str], None]) -> None:
    folder = as_path(workdir) / FOLDER / str(step)
    if not is_checkable(folder):
        tell(f"{folder} is of an older version, without digests: damage to it would not show")


def newest(workdir: str | Path, tell: Callable[[str], None]) -> int | None:
    """Returns the step of a run's newest intact checkpoint, or None if it has no checkpoint.

    Args:
      workdir: the run's folder.
      tell: called with a line for each newer checkpoint that is damaged, and with one if the
        checkpoint has no digests.

    Raises:
      UserError: all checkpoints are damaged.
    """
    damaged: dict[int, str] = {}
    while left := [step for step in steps(workdir) if step not in damaged]:
        why = find_damage(workdir, left[0])
        if not (as_path(workdir) / FOLDER / str(left[0])).is_dir():
            continue  # the run may be at work, and deletes its oldest checkpoints
        if why:
            damaged[left[0]] = why
            continue
        for step, flaw in damaged.items():
            tell(
                f"{as_path(workdir) / FOLDER / str(step)} is damaged ({flaw}) and passed over for "
                f"that of step {left[0]}"
            )
        _tell_unchecked(workdir, left[0], tell)
        return left[0]
    if damaged:
        flaws = "; ".join(f"{step}: {why}" for step, why in damaged.items())
        raise UserError(
            f"{as_path(workdir) / FOLDER} holds no whole checkpoint ({flaws}): bring back a copy, "
            "or move the folder away to begin anew"
        )
    return None


def set_aside(workdir: str | Path, after: int) -> None:
    """Moves the damaged checkpoints of later steps into the folder `damaged`.

    Args:
      workdir: the run's folder.
      after: the step after which checkpoints are moved.

    Raises:
      UserError: they cannot be moved.
    """
    for step in [step for step in steps(workdir) if step > after]:
        target = as_path(workdir) / DAMAGED / str(step)
        number = 1
        while target.exists():
            number += 1
            target = target.with_name(f"{step}_{number}")
        try:
            target.parent.mkdir(exist_ok=True)
            (as_path(workdir) / FOLDER / str(step)).rename(target)
        except OSError as error:
            raise UserError(f"{target} cannot be written ({error.strerror})") from None


def _remove_unfinished(folder: Path) -> None:
    """Removes the unfinished folders of saves that were killed.

    Orbax would remove them in a thread that nothing waits for. That thread prints a traceback if
    the process ends early, for example because of a mistake in the config.
    """
    if isinstance(folder, BucketPath):
        complete = {str(step) for step in steps(folder.parent)}
        for path in folder.iterdir() if folder.exists() else ():
            if path.name.isdecimal() and path.name not in complete:
                path.remove_tree()
        return
    for path in folder.glob(f"*{_UNFINISHED}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


class Checkpoints:
    """The checkpoints of one run, saved in the background.

    Args:
      workdir: the run's folder.
      every: the number of steps between two checkpoints.
      keep, keep_every: which checkpoints are kept; see `Preserve`.

    Attributes:
      preserve: decides which checkpoints are kept.
    """

    def __init__(
        self, workdir: str | Path, *, every: int = 1, keep: int = 1, keep_every: int = 0
    ) -> None:
        self.preserve = Preserve(keep, keep_every)
        self._folder = as_path(workdir).absolute() / FOLDER
        if jax.process_index() == 0:
            _remove_unfinished(self._folder)
        self._manager = ocp.CheckpointManager(
            epath.Path(self._folder),
            options=ocp.CheckpointManagerOptions(
                save_decision_policy=save_decision_policy.AnySavePolicy(
                    [
                        save_decision_policy.PreemptionCheckpointingPolicy(),
                        save_decision_policy.FixedIntervalPolicy(every),
                    ]
                ),
                preservation_policy=self.preserve,
                enable_async_checkpointing=True,
                temporary_path_class=folder_class(self._folder),
                lightweight_initialize=True,  # do not read the metadata of damaged checkpoints
            ),
            handler_registry=make_handlers(),
        )

    def save(self, step: int, state: Any, data: Any, config: JsonObject, *, force: bool) -> None:
        """Starts a save if the step is due or `force` is set; returns while it is being written."""
        if step == self._manager.latest_step():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(state),
                data=ocp.args.JsonSave(data),
                config=ocp.args.JsonSave(config),
            ),
            custom_metadata=_MARK,
            force=force,
        )

    def restore(self, step: int, like: Any) -> tuple[Any, JsonObject]:
        """Restores the training state and the data state of a step.

        Args:
          step: the step.
          like: the shapes of the training state, with the shardings that its arrays get.

        Returns:
          The training state and the data state.

        Raises:
          UserError: the checkpoint is of another model, or damaged and without digests.
        """
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(state=_restore_args(like), data=ocp.args.JsonRestore()),
            )
            return restored["state"], restored["data"]
        except Exception as error:  # orbax and tensorstore raise errors of any kind
            raise _unreadable(self._folder / str(step), error) from error

    def close(self) -> None:
        """Waits until all saves are complete."""
        self._manager.wait_until_finished()
        self._manager.close()


def read_parts(workdir: str | Path, step: int, like: Mapping[str, Any]) -> JsonObject:
    """Reads parts of the training state of a step, such as `params` and `stats`.

    Args:
      workdir: the run's folder.
      step: the step.
      like: the shapes of each part by its name, with the shardings that its arrays get. An empty
        part stays empty.

    Returns:
      The parts by name.

    Raises:
      UserError: the checkpoint is of another model, or damaged and without digests.
    """
    shapes = {name: tree for name, tree in like.items() if tree}
    folder = as_path(workdir).absolute() / FOLDER / str(step)
    if is_bucket(folder):
        support_buckets()
    try:
        _check_shapes(folder / "state", shapes)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            state = reader.restore(
                epath.Path(folder / "state"), args=_restore_args(shapes, partial_restore=True)
            )
        return {name: state.get(name, {}) for name in like}
    except Exception as error:  # orbax and tensorstore raise errors of any kind
        raise _unreadable(folder, error) from error


def _check_shapes(folder: Path, model_shapes: Mapping[str, Any]) -> None:
    """Compares a checkpoint's arrays with the model's.

    Orbax itself ignores arrays that are not requested, and fails in the middle of reading where
    shapes differ.

    Raises:
      ValueError: they differ.
    """
    metadata = ocp.PyTreeCheckpointHandler().metadata(epath.Path(folder)).tree
    stored, requested = _shapes(metadata), _shapes(model_shapes)
    parts = {"params", "stats", *model_shapes}  # every use of a model reads the first two
    stored = {name: shape for name, shape in stored.items() if name[0] in parts}
    for name in sorted(stored.keys() | requested.keys()):
        if stored.get(name) != requested.get(name):
            has, needs = stored.get(name, "none"), requested.get(name, "none")
            raise ValueError(f"it holds {'.'.join(name)} of shape {has}, the model has {needs}")


def _shapes(tree: Any) -> dict[tuple[str, ...], tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(map(_key_name, path)): leaf.shape for path, leaf in leaves}


def _key_name(key: Any) -> str:
    """Returns a key of a dictionary, of a sequence or of a named tuple, as orbax writes it."""
    names = (getattr(key, attribute, None) for attribute in ("key", "idx", "name"))
    return str(next(name for name in names if name is not None))


def _unreadable(folder: Path, error: Exception) -> UserError:
    why = " ".join(f"{type(error).__name__}: {error}".split())
    return UserError(
        f"{folder} cannot be restored: it is damaged, or config.json beside it tells of another "
        f"model ({why:.200})"
    )


def _restore_args(like: Any, **options: Any) -> ocp.args.PyTreeRestore:
    """Returns the arguments that restore a tree as `like`, shapes with shardings."""
    shardings = ocp.checkpoint_utils.construct_restore_args(like)
    return ocp.args.PyTreeRestore(item=like, restore_args=shardings, **options)


def bytes_of(tree: Any) -> int:
    """Returns the size of a tree of arrays or shapes in bytes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
