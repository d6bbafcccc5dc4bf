"""Replacements for parts of orbax: checkpoints get digests, and small arrays are written whole."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from clip_jax.io.buckets import as_path, is_bucket
from clip_jax.training import digests
from clip_jax.training.orbax_buckets import COMMITTED, support_buckets

FOLDER = "checkpoints"  # of a run, with a folder for each step


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
        (Path(self.get()) / COMMITTED).write_text(_commit_text(final))
        await asyncio.to_thread(digests.write, Path(self.get()), int(final.name))
        await asyncio.to_thread(os.rename, self.get(), final)


class SealedBucketFolder(ocp.path.atomicity.CommitFileTemporaryPath):
    """The folder of a checkpoint in a bucket, which has its final name from the beginning.

    The last object that is written marks it as complete; its digest is known before.
    """

    @classmethod
    def from_final(
        cls, final_path: Any, *, checkpoint_metadata_store: Any = None, **options: Any
    ) -> SealedBucketFolder:
        """Returns the folder `final_path`."""
        path = super().from_final(
            final_path, checkpoint_metadata_store=checkpoint_metadata_store, **options
        )
        path.metadata = checkpoint_metadata_store
        return path

    async def finalize(self) -> None:
        """Finishes the folder once all processes have written."""
        final = as_path(str(self.get_final()))
        if final.parent.name != FOLDER or not final.name.isdecimal():  # an item of a checkpoint
            await super().finalize()
            return
        if self.metadata:
            await asyncio.to_thread(self.metadata.wait_until_finished)
        commit = {COMMITTED: _commit_text(final).encode()}
        await asyncio.to_thread(digests.write, final, int(final.name), commit)
        await asyncio.to_thread((final / COMMITTED).write_bytes, commit[COMMITTED])


def _commit_text(final: Path) -> str:
    return f"Checkpoint commit was successful to {final}"


def folder_class(folder: Path) -> type:
    """Returns the class of the folders of checkpoints that are written below a folder."""
    if not is_bucket(folder):
        return SealedFolder
    support_buckets()
    return SealedBucketFolder


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
