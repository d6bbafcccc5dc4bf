"""`python -m clip_jax curate`: which pairs of a pool to train on, and what that takes.

python -m clip_jax curate '/data/{00000..00099}.tar' --out curated --queries queries.txt
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

# The sub-commands: the module whose `run` is the command, and one line of help. Without the name of
# one, `curate` is the pipeline.
COMMANDS: dict[str, tuple[str, str]] = {
    "queries": ("queries", "build the list of queries that pairs are matched with"),
    "score": ("score", "write the CLIP score of every pair, by any model"),
    "fields": ("fields", "write numeric fields of the pairs, to filter by them"),
    "export": ("export", "write the selected pairs as new tars or tables"),
    "inspect": ("inspect", "show the pairs of a query or of a reason"),
    "semantic": ("semantic", "find semantic duplicates by the features of images"),
}


def run(argv: Sequence[str]) -> int:
    """Runs the sub-command that the first argument names, or else the pipeline."""
    name, *rest = argv or ["--help"]
    if name not in COMMANDS:
        from clip_jax.cli.curate import pipeline

        return pipeline.run(argv or ["--help"], COMMANDS)
    command: Callable[[Sequence[str]], int] = import_module(f"{__name__}.{COMMANDS[name][0]}").run
    return command(rest)
