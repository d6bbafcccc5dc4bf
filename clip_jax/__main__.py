"""`python -m clip_jax COMMAND`: runs a command by its name."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from clip_jax.cli.allocator import tune_allocator
from clip_jax.cli.common import run_and_exit
from clip_jax.errors import UserError
from clip_jax.version import __version__

# The module whose `run` is the command, and one line of help. Modules are imported when used.
COMMANDS = {
    "train": ("main", "train a model from a config, or resume a run"),
    "evaluate": (
        "main",
        "evaluate a run, or weights of other libraries, by the protocols of the papers",
    ),
    "plan": ("main", "estimate the memory and time of a step on a TPU slice, without one"),
    "classify": ("cli.classify", "classify images with labels of your own"),
    "convert": ("cli.convert", "write a model for OpenAI's code, open_clip or transformers"),
    "export": ("cli.export", "write a model as StableHLO programs, to serve it by JAX alone"),
    "interpolate": ("cli.interpolate", "mix the weights of two models (WiSE-FT)"),
    "soup": ("cli.soup", "average the weights of several models"),
    "curate": ("cli.curate", "select the pairs of a pool that are worth training on"),
    "inspect": ("cli.inspect", "show what the data of a config contain and how fast they are read"),
    "doctor": ("cli.doctor", "say what is broken or slow on this machine, and what mends it"),
    "tfds": ("cli.tfds", "prepare a data set of TensorFlow Datasets, without TensorFlow"),
}


def _help() -> str:
    commands = "\n".join(f"  {name:<11} {line}" for name, (_, line) in COMMANDS.items())
    return (
        f"usage: python -m clip_jax COMMAND [FLAG …]\n\nclip_jax {__version__}\n\n{commands}\n\n"
        "python -m clip_jax COMMAND --help lists the flags of a command"
    )


def run(argv: Sequence[str]) -> int:
    """Runs the command that the first argument names; returns its exit code.

    Raises:
      UserError: the command is unknown, or its flags are wrong.
    """
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help", "help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"clip_jax {__version__}")
        return 0
    if name not in COMMANDS:
        matches = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {matches[0]}?" if matches else f"known: {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {name!r:.80}; {hint}")
    module, _ = COMMANDS[name]
    command: Callable[[Sequence[str]], int] = import_module(f"clip_jax.{module}").run
    return command([f"--mode={name}", *rest] if module == "main" else rest)


def main() -> None:
    """The command line: `python -m clip_jax`."""
    # `python -m` does this; the script `clip-jax` does not. At the end, so that nothing is hidden.
    if not sys.flags.safe_path and not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    if COMMANDS.get(next(iter(sys.argv[1:]), ""), ("",))[0] == "main":
        tune_allocator()
    run_and_exit(run, sys.argv[1:])


if __name__ == "__main__":
    main()
