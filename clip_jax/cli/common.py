"""What the commands share: a parser, config overrides, and errors as one line."""

from __future__ import annotations

import argparse
import io
import logging
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from clip_jax.distributed import multihost
from clip_jax.errors import DamageWarning, GuessedWarning, UserError, is_disk_full, redacted


class CommandParser(argparse.ArgumentParser):
    """A parser that reports a wrong flag as a `UserError`, without the usage text."""

    def error(self, message: str) -> None:  # type: ignore[override]  # argparse says NoReturn
        """Raises a UserError instead of exiting."""
        raise UserError(f"{message}; see {self.prog} --help")


_NOTES = (GuessedWarning, DamageWarning)  # warnings that are printed as notes


@contextmanager
def guesses_as_notes() -> Iterator[None]:
    """Prints warnings about assumptions and damage as notes on standard error, and no others."""

    def say(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, _NOTES):
            print(f"note: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        for kind in _NOTES:
            warnings.simplefilter("always", kind)
        warnings.showwarning = say
        yield


def integer_from(minimum: int, maximum: int = 999_999_999) -> Callable[[str], int]:
    """Returns the `type` of a flag that accepts integers from `minimum` to `maximum`."""

    def integer(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or not minimum <= int(text) <= maximum:
            most = f" and at most {maximum}" if maximum < 999_999_999 else ""
            raise argparse.ArgumentTypeError(
                f"{text} must be a whole number, at least {minimum}{most}"
            )
        return int(text)

    return integer


def share(text: str) -> float:
    """Returns the value of a flag that is a number from 0 to 1; the `type` of the flag."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} must be a number from 0 to 1")
    return value


def add_multihost_flags(group: argparse._ArgumentGroup) -> None:
    """Adds the flags that tell a process its place among others."""
    group.add_argument("--coordinator", metavar="HOST:PORT", help="the address of process 0")
    group.add_argument(
        "--processes", metavar="N", type=integer_from(1), help="the number of processes"
    )
    group.add_argument(
        "--process", metavar="I", type=integer_from(0), help="the index of this process, from 0"
    )
    group.add_argument(
        "--connect-timeout",
        metavar="SECONDS",
        type=integer_from(1),
        default=multihost.CONNECT_TIMEOUT,
        help="seconds to wait for all processes to connect (default: %(default)g)",
    )
    group.add_argument(
        "--heartbeat-timeout",
        metavar="SECONDS",
        type=integer_from(1),
        default=multihost.HEARTBEAT_TIMEOUT,
        help="seconds without a heartbeat after which a process counts as dead "
        "(default: %(default)g)",
    )


# What the driver of an NVIDIA GPU makes; the last one is that of Windows' subsystem for Linux.
_NVIDIA_DRIVER = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg")


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits a command line into its flags and its config overrides.

    Returns:
      The other flags, and `KEY=VALUE` for each `--config.KEY=VALUE` and `--config.KEY VALUE`.
    """
    flags, overrides = [], []
    words = iter(argv)
    for word in words:
        if not word.startswith("--config."):
            flags.append(word)
        else:
            key = word.removeprefix("--config.")
            overrides.append(key if "=" in key else f"{key}={next(words, '')}")
    return flags, overrides


def run_and_exit(command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> NoReturn:
    """Runs a command and exits with its code.

    A mistake of the user is printed as one line on standard error, with exit code 2. A failure of
    the machine, such as a full disk, is printed as one line with exit code 1.

    Args:
      command: a function from arguments to an exit code.
      argv: the arguments.
    """
    _silence_reported_errors()
    if not any(map(os.path.exists, _NVIDIA_DRIVER)):
        # With plan-gpu installed JAX would log a traceback: its plugin finds no CUDA to check.
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names can have unencodable characters
            stream.reconfigure(errors="backslashreplace")
    try:
        code = command(argv)
    except UserError as error:
        code = _print_error(str(error), 2)
    except KeyboardInterrupt:
        code = _print_error("interrupted: what was saved before stays", 130)
    except BrokenPipeError:
        code = 0
    except Exception as error:
        if line := _machine_failure(error):
            _print_error(line, 1)
        else:
            sys.stderr.write(redacted(traceback.format_exc()))
        code = 1
    multihost.exit_process(code)


def _silence_reported_errors() -> None:
    """Stops other threads from printing a failure that `run_and_exit` reports in one line.

    Threads read and write checkpoints; their failures also reach the main thread.
    """

    def thread_hook(args: threading.ExceptHookArgs) -> None:
        if not (args.exc_value and _machine_failure(args.exc_value)):
            threading.__excepthook__(args)

    def unraisable_hook(args: sys.UnraisableHookArgs) -> None:
        # writes that are still pending when the process ends
        if "Event loop is closed" not in str(args.exc_value):
            sys.__unraisablehook__(args)

    def log_filter(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        never_retrieved = "exception was never retrieved" in record.getMessage()
        return not never_retrieved and not (error and _machine_failure(error))

    threading.excepthook = thread_hook
    sys.unraisablehook = unraisable_hook
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(log_filter)


def _machine_failure(error: BaseException) -> str:
    """Returns a line about an error that the program did not cause; empty for a bug."""
    if is_disk_full(error):
        return "the disk is full: free some space and start the same command again, it resumes"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return ""


def _print_error(line: str, code: int) -> int:
    print(f"error: {redacted(' '.join(line.split()))}", file=sys.stderr)
    return code
