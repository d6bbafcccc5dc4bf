"""`python -m clip_jax COMMAND`, which finds every command by its name."""

import subprocess
import sys

import pytest

import clip_jax
from clip_jax import __main__ as command_line
from clip_jax.errors import UserError


def test_help_lists_every_command_and_imports_none(capsys):
    assert command_line.run([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in command_line.COMMANDS)
    assert f"clip_jax {clip_jax.__version__}\n" in shown
    code = (
        "import sys; from clip_jax.__main__ import run\n"
        "run(['--help']); print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_every_command_has_help(name, capsys):
    try:
        assert command_line.run([name, "--help"]) == 0
    except SystemExit as end:  # argparse's own help
        assert end.code == 0
    assert "usage: python -m clip_jax" in capsys.readouterr().out


def test_a_command_that_is_none():
    with pytest.raises(UserError, match=r"no command 'clasify'; did you mean classify\?"):
        command_line.run(["clasify"])
    with pytest.raises(UserError, match="no command 'x'; known: train, evaluate, "):
        command_line.run(["x"])


def test_train_evaluate_and_plan_are_modes_of_main(capsys):
    with pytest.raises(UserError, match="--mode=plan needs --topology"):
        command_line.run(["plan", "--config", "configs/quickstart.py"])
