"""Checkpoints by orbax: state, data position and config, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy, save_decision_policy

from clip_jax.errors import UserError
from clip_jax.files import read_json

FOLDER = "checkpoints"
CONFIG = "config.json"


def read_config(workdir: str | Path) -> dict[str, Any]:
    """The config that a run was started with.

    Raises:
      UserError: the folder holds no run.
    """
    path = Path(workdir) / CONFIG
    if not path.exists():
        raise UserError(f"{workdir} holds no run: there is no config.json in it")
    return read_json(path)


def latest_step(workdir: str | Path) -> int | None:
    """The step of a run's newest complete checkpoint."""
    folder = Path(workdir).absolute() / FOLDER
    return max(ocp.utils.checkpoint_steps(folder), default=None) if folder.is_dir() else None


class Checkpoints:
    """The checkpoints of one run: saved in the background, the newest kept."""

    def __init__(self, workdir: str | Path, *, every: int = 1, keep: int = 1) -> None:
        self._folder = Path(workdir).absolute() / FOLDER
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                save_decision_policy=save_decision_policy.AnySavePolicy(
                    [
                        save_decision_policy.PreemptionCheckpointingPolicy(),
                        save_decision_policy.FixedIntervalPolicy(every),
                    ]
                ),
                preservation_policy=preservation_policy.LatestN(keep),
                enable_async_checkpointing=True,
                cleanup_tmp_directories=True,
            ),
            handler_registry=_handlers(),
        )

    def latest(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(
        self, step: int, state: Any, data: Any, config: dict[str, Any], *, force: bool
    ) -> None:
        """Starts a save when the step is due (or forced); returns while it is being written."""
        if step == self._manager.latest_step():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(state),
                data=ocp.args.JsonSave(data),
                config=ocp.args.JsonSave(config),
            ),
            force=force,
        )

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """The state of a step, laid out like `like` (shapes with shardings), and the data's."""
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(state=_as(like), data=ocp.args.JsonRestore()),
        )
        return restored["state"], restored["data"]

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()


def read_variables(workdir: str | Path, step: int, like: tuple[Any, Any]) -> tuple[Any, Any]:
    """Only the parameters and batch statistics of a step, for use without an optimizer.

    like: their shapes, with the shardings that they shall have.
    """
    shapes = dict(zip(("params", "stats"), like, strict=True))
    shapes = {name: tree for name, tree in shapes.items() if tree}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        path = Path(workdir).absolute() / FOLDER / str(step) / "state"
        found = reader.restore(path, args=_as(shapes, partial_restore=True))
    return found["params"], found.get("stats", {})


def _as(like: Any, **options: Any) -> ocp.args.PyTreeRestore:
    """Restore as `like`: shapes with shardings."""
    how = ocp.checkpoint_utils.construct_restore_args(like)
    return ocp.args.PyTreeRestore(item=like, restore_args=how, **options)


def _handlers() -> Any:
    """Orbax's own, but small arrays are written whole.

    What several devices hold it cuts up, so that each writes a part, by a program for each shape.
    """
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=1 << 20)
    kinds = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    state = ocp.PyTreeCheckpointHandler(type_handler_registry=kinds)
    known = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for args in (ocp.args.PyTreeSave, ocp.args.PyTreeRestore):
        known.add("state", args, state)
    for name in ("data", "config"):
        for args in (ocp.args.JsonSave, ocp.args.JsonRestore):
            known.add(name, args)
    return known


def bytes_of(tree: Any) -> int:
    """How large a tree of arrays or shapes is."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
