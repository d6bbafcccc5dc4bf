"""Tests `python -m clip_jax COMMAND`, which runs a command by its name."""

import subprocess
import sys

import pytest

import clip_jax
import runs
from clip_jax import __main__ as command_line
from clip_jax.errors import UserError


def test_help_lists_all_commands_and_imports_none(capsys):
    assert command_line.run([]) == 0
    output = capsys.readouterr().out
    assert all(f"  {name} " in output for name in command_line.COMMANDS)
    assert f"clip_jax {clip_jax.__version__}\n" in output
    code = (
        "import sys; from clip_jax.__main__ import run\n"
        "run(['--help']); print('jax' in sys.modules)"
    )
    argv = [sys.executable, "-c", code]
    process = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert process.stdout.endswith("False\n")


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_every_command_has_help(name, capsys):
    try:
        assert command_line.run([name, "--help"]) == 0
    except SystemExit as exit_:  # from the help of argparse
        assert exit_.code == 0
    assert "usage: python -m clip_jax" in capsys.readouterr().out


def test_an_unknown_command_is_a_user_error():
    with pytest.raises(UserError, match=r"unknown command 'clasify'; did you mean classify\?"):
        command_line.run(["clasify"])
    with pytest.raises(UserError, match="unknown command 'x'; known: train, evaluate, "):
        command_line.run(["x"])


def test_train_evaluate_and_plan_are_modes_of_main(capsys):
    with pytest.raises(UserError, match="--mode=plan needs --topology"):
        command_line.run(["plan", "--config", "configs/quickstart.py"])


def test_the_script_finds_modules_in_the_current_folder(tmp_path):
    (tmp_path / "near_losses.py").write_text("class Near:\n    pass\n")
    # as the script `clip-jax`, for which Python puts the script's folder on the path
    script = "import sys; sys.path.remove(''); from clip_jax.__main__ import main; main()"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            script,
            "train",
            "--config",
            "quickstart",
            "--config.objective.name=near_losses:Near",
        ],
        cwd=tmp_path,
        env=runs.environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "error: config.objective: Near is no objective" in done.stderr
