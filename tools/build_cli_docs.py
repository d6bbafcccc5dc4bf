"""Writes `docs/cli.md`: every command with its flags.

    python tools/build_cli_docs.py

The page is made from the commands' own parsers. `tests/tools/test_docs.py` fails while the file
differs from what this script writes.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from clip_jax import __main__ as command_line
from clip_jax import main
from clip_jax.cli import curate

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"
INTRODUCTION = """\
# Command line

<!-- Made by tools/build_cli_docs.py: edit the help texts of the commands. -->

`clip-jax COMMAND` and `python -m clip_jax COMMAND` are the same. `--help` after a command prints
its flags, and `clip-jax --version` the version. Wrong input ends a command with one line that says
what to do, and exit code 2.

`train`, `evaluate` and `plan` are `python -m clip_jax.main` with `--mode=train`, `--mode=evaluate`
and `--mode=plan`; launchers use that form. The commands that take a config accept
`--config.KEY=VALUE` for any of its keys ([config reference](config.md)).
"""


class HelpRequestedError(Exception):
    """Carries the parser whose help a command was about to print."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__(parser.prog)
        self.parser = parser


def parser_of(*command: str) -> argparse.ArgumentParser:
    """The parser of a command or of its sub-command: the one that prints the help."""

    def print_help(self: argparse.ArgumentParser, file: object = None) -> None:
        raise HelpRequestedError(self)

    try:
        with mock.patch.object(argparse.ArgumentParser, "print_help", print_help):
            command_line.run([*command, "--help"])
    except HelpRequestedError as request:
        return request.parser
    raise AssertionError(f"{' '.join(command)} --help prints no help")


def cell(text: str) -> str:
    """Text for a cell of a table."""
    text = text.replace(str(Path.home()), "~")
    escaped = text.replace("|", "\\|").replace("{", "&#123;").replace("<", "&lt;")
    return " ".join(escaped.split())


def tables(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A table of the arguments, and one for each group to which the command gives a title."""
    groups: dict[str, list[str]] = {"": []}
    for group in parser._action_groups:  # argparse has no public list of them
        is_default = group.title in ("positional arguments", "options")
        title = "" if is_default else str(group.title)
        groups.setdefault(title, []).extend(rows(parser, group._group_actions))
    for title, lines in groups.items():
        if title:
            yield f"{cell(title).capitalize()}:\n"
        yield "| argument | meaning |\n|---|---|"
        yield from (*lines, "")


def rows(parser: argparse.ArgumentParser, actions: list[argparse.Action]) -> Iterator[str]:
    """A line of a table for each argument."""
    for action in actions:
        if "--help" in action.option_strings:
            continue
        value = "" if action.nargs == 0 else str(action.metavar or "")
        if action.choices and not value:
            value = "\\|".join(map(str, action.choices))
        elif action.nargs != 0 and not value and action.option_strings:
            value = action.dest.upper()
        names = ", ".join(action.option_strings)
        help_text = (action.help or "") % {**vars(action), "prog": parser.prog}
        yield f"| `{' '.join(filter(None, (names, value))) or action.dest}` | {cell(help_text)} |"


def section(title: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """The part of the page about one command."""
    yield f"## {title}\n\n{parser.description or ''}\n"
    yield from tables(parser)
    if parser.epilog:
        yield f"```text\n{parser.epilog.strip()}\n```\n"


def page() -> str:
    """The whole page."""
    lines = [INTRODUCTION, "| command | does |", "|---|---|"]
    lines += [f"| `{name}` | {cell(line)} |" for name, (_, line) in command_line.COMMANDS.items()]
    lines.append("")
    modules: dict[str, list[str]] = {}
    for name, (module, _) in command_line.COMMANDS.items():
        modules.setdefault(module, []).append(name)
    for module, names in modules.items():
        with contextlib.redirect_stdout(None):
            parser = main.make_parser() if module == "main" else parser_of(names[0])
        lines += section(", ".join(names), parser)
        if names == ["curate"]:
            for name in curate.COMMANDS:
                lines += section(f"curate {name}", parser_of("curate", name))
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
