"""What commands share: flags, overrides of a config, and errors as one line."""

from __future__ import annotations

import argparse
import io
import logging
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn

from clip_jax.distributed import multihost
from clip_jax.errors import UserError, is_disk_full, redacted


class LinesParser(argparse.ArgumentParser):
    """A parser whose complaint is one line, without the usage before it."""

    def error(self, message: str) -> None:  # type: ignore[override]  # argparse says NoReturn
        """Raises what is wrong instead of exiting."""
        raise UserError(f"{message}; see {self.prog} --help")


def at_least(least: int) -> Callable[[str], int]:
    """The `type` of a flag that takes whole numbers from `least` on."""

    def number(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is no whole number from {least} on")
        return int(text)

    return number


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """`--config.KEY=VALUE` and `--config.KEY VALUE` apart from the other flags."""
    rest, overrides = [], []
    words = iter(argv)
    for word in words:
        if not word.startswith("--config."):
            rest.append(word)
        else:
            key = word.removeprefix("--config.")
            overrides.append(key if "=" in key else f"{key}={next(words, '')}")
    return rest, overrides


def report(command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> NoReturn:
    """Runs a command and exits; a mistake of the user's is one line on stderr and exit code 2."""
    _leave_it_to_the_main_thread()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name in a file may hold what it cannot encode
            stream.reconfigure(errors="backslashreplace")
    try:
        code = command(argv)
    except UserError as error:
        code = _fail(str(error), 2)
    except KeyboardInterrupt:
        code = _fail("interrupted before anything could be saved", 130)
    except BrokenPipeError:
        code = 0
    except Exception as error:
        if line := _outside(error):
            _fail(line, 1)
        else:
            sys.stderr.write(redacted(traceback.format_exc()))
        code = 1
    multihost.leave(code)


def _leave_it_to_the_main_thread() -> None:
    """Checkpoints are written and read by threads; what fails there, `report` says in one line."""

    def thread_failed(args: threading.ExceptHookArgs) -> None:
        if not (args.exc_value and _outside(args.exc_value)):
            threading.__excepthook__(args)

    def callback_failed(args: sys.UnraisableHookArgs) -> None:
        if "Event loop is closed" not in str(args.exc_value):  # what else was being written
            sys.__unraisablehook__(args)

    def worth_logging(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        unheard = "exception was never retrieved" in record.getMessage()
        return not unheard and not (error and _outside(error))

    threading.excepthook = thread_failed
    sys.unraisablehook = callback_failed
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(worth_logging)


def _outside(error: BaseException) -> str:
    """What went wrong outside of the program, such as a full disk, in one line; or nothing."""
    if is_disk_full(error):
        return "the disk is full: make room and start the same command again, it resumes"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return ""


def _fail(line: str, code: int) -> int:
    print(f"error: {redacted(' '.join(line.split()))}", file=sys.stderr)
    return code
