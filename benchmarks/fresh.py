"""Runs one side of a benchmark in a fresh process, with nothing compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any


def measure(side: str) -> dict[str, Any]:
    """The JSON that the script prints when it runs with `--worker` and the name of the side."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, *sys.argv, "--worker", side]
        environment = {**os.environ, "XDG_CACHE_HOME": cache}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{side} failed: see above")
    return json.loads(done.stdout.splitlines()[-1])
