"""The launchers as commands."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from launchers import ROOT, Tools, environment


@pytest.fixture
def launch(tmp_path):
    """`launch("local.sh", "2", "--", …)`: the launcher to its end, in a folder of its own."""

    def run(script: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ROOT / "launch" / script, *args],
            env=environment(**env),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def fails(launch):
    """A launcher called wrongly: exit code 2 and one line, which is returned."""

    def run(script: str, *args: str, **env: str) -> str:
        done = launch(script, *args, **env)
        assert done.returncode == 2, done
        assert not done.stdout
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        return line

    return run


@pytest.fixture
def tools(tmp_path):
    return Tools(tmp_path / "tools")


@pytest.fixture
def read_shell() -> Callable[[str], list[str]]:
    """The words that bash reads a line as; the line is not run."""

    def words(line: str) -> list[str]:
        done = subprocess.run(
            ["bash", "-c", f"words=({line}) && printf '%s\\0' \"${{words[@]}}\""],
            capture_output=True,
            text=True,
            check=True,
            env=environment(),
        )
        return done.stdout.split("\0")[:-1]

    return words
