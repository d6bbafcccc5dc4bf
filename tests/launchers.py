"""Launchers for tests: words that are hard to pass on, and programs that stand for others."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# what a shell, a YAML reader or Kubernetes might make something else of
HARD_WORDS = [
    "--config.data.train=/data/{00000..00099}.tar",
    "--workdir=gs://bucket/run",
    "two words",
    "a \"double\" and 'single' quote",
    "$HOME $(id) `id` $$ \\n",
    "*",
    "~",
    "",
    "#no: [comment]",
    "Ω≈ç",
    "--",
]


def environment(**more: str) -> dict[str, str]:
    """This environment without what would lead jax.distributed astray, in UTF-8."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "SLURM_"))}
    return {**variables, "PYTHON": sys.executable, "LC_ALL": "C.UTF-8", **more}


class Tools:
    """A folder for PATH with programs that note how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.log = folder / "calls"
        self.path = f"{folder}:{os.environ['PATH']}"

    def add(self, name: str, body: str = "") -> None:
        """A bash program that does `body` once its arguments and standard input are noted."""
        tool = self.folder / name
        tool.write_text(
            "#!/usr/bin/env bash\n"
            f"{{ printf '%s\\x1f' {name} \"$@\"; printf '\\x1e'; }} >> {self.log}\n{body}\n"
        )
        tool.chmod(0o755)

    def calls(self, name: str = "") -> list[list[str]]:
        """The words of each call so far, of one program or of all."""
        if not self.log.exists():
            return []
        records = self.log.read_text().split("\x1e")[:-1]
        words = [record.split("\x1f")[:-1] for record in records]
        return [call for call in words if name in ("", call[0])]
