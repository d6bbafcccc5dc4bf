"""Replacements for parts of orbax: checkpoints get digests, and small arrays are written whole."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from clip_jax.training import digests

FOLDER = "checkpoints"  # of a run, with a folder for each step
_COMMITTED = "commit_success.txt"


class SealedFolder(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """The temporary folder of a checkpoint, which gets its digests just before it is renamed.

    Orbax's own class writes into the folder after the last point at which its files can be listed.
    """

    @classmethod
    def from_final(
        cls, final_path: Any, *, checkpoint_metadata_store: Any = None, **options: Any
    ) -> SealedFolder:
        """Returns the temporary folder that is renamed to `final_path` in the end."""
        path = super().from_final(
            final_path, checkpoint_metadata_store=checkpoint_metadata_store, **options
        )
        path.metadata = checkpoint_metadata_store
        return path

    async def finalize(self) -> None:
        """Finishes the folder once all processes have written.

        Runs in the saving thread of the first process.
        """
        final = Path(self.get_final())
        if final.parent.name != FOLDER or not final.name.isdecimal():  # an item of a checkpoint
            await super().finalize()
            return
        if self.metadata:
            await asyncio.to_thread(self.metadata.wait_until_finished)
        # orbax recognizes complete checkpoints by this file where folders cannot be renamed
        (Path(self.get()) / _COMMITTED).write_text(f"Checkpoint commit was successful to {final}")
        await asyncio.to_thread(digests.write, Path(self.get()), int(final.name))
        await asyncio.to_thread(os.rename, self.get(), final)


def make_handlers() -> Any:
    """Returns orbax's handlers, changed so that small arrays are written in one piece.

    By default orbax splits every replicated array, so that each device writes a part of it, which
    compiles a program for each shape.
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
