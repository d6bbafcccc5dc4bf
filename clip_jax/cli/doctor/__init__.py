"""`python -m clip_jax doctor`: what this machine has, and what is broken or slow on it.

python -m clip_jax doctor
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence

from clip_jax.cli.common import CommandParser, integer_from, split_overrides
from clip_jax.cli.doctor import devices, machine, packages, report
from clip_jax.cli.doctor.facts import ConfigFacts, Facts
from clip_jax.cli.doctor.finding import Level
from clip_jax.cli.doctor.findings import findings
from clip_jax.errors import UserError

_TIMEOUT = 60  # a TPU slice or eight GPUs take 10 to 20 s


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command's flags."""
    p = CommandParser(
        prog="python -m clip_jax doctor",
        description="Prints versions, devices and limits of this machine, and what is broken or "
        "slow, each with one line that mends it. The exit code is 1 if something is broken.",
        epilog="example: python -m clip_jax doctor",
        allow_abbrev=False,
    )
    p.add_argument("--json", action="store_true", help="print JSON")
    p.add_argument(
        "--config",
        metavar="CONFIG",
        help="also check what a config asks of this machine: a file or the name of a shipped one, "
        "with --config.KEY=VALUE",
    )
    p.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=integer_from(1),
        default=_TIMEOUT,
        help="seconds to wait for the devices (default: %(default)s)",
    )
    return p


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    flags, overrides = split_overrides(argv)
    args = parser().parse_args(flags)
    if overrides and not args.config:
        raise UserError("--config.KEY=VALUE needs --config CONFIG")
    facts = gather(args.timeout, args.config, overrides)
    found = findings(facts)
    if args.json:
        print(json.dumps(report.as_json(facts, found), indent=2, ensure_ascii=False))
    else:
        print(report.as_text(facts, found))
    return int(any(finding.level is Level.BROKEN for finding in found))


def gather(timeout: float, config: str | None = None, overrides: Sequence[str] = ()) -> Facts:
    """Returns the facts about this machine.

    Args:
      timeout: the seconds to wait for the devices.
      config: a config to check, too.
      overrides: `KEY=VALUE` for its keys.

    Raises:
      UserError: the config is wrong.
    """
    wanted = _config(config, overrides) if config else None
    query = devices.start(timeout)
    memory, available = machine.memory()
    return Facts(
        python=platform.python_version(),
        slow_python=packages.slow_python(),
        system=f"{platform.system()} {platform.machine()}",
        versions=packages.versions(),
        requirements=packages.requirements(),
        image_formats=packages.missing_image_formats(),
        cpu=machine.cpu(),
        memory=memory,
        available=available,
        shared_memory=machine.shared_memory(),
        open_files=machine.open_files(),
        huge_pages=machine.huge_pages(),
        folders=machine.folders(),
        environment=machine.environment(),
        nvidia=machine.nvidia(),
        tpu=machine.tpu(),
        query=query(),
        config=wanted,
    )


def _config(name: str, overrides: Sequence[str]) -> ConfigFacts:
    from clip_jax import config as config_lib

    config = config_lib.typed(config_lib.load(name, list(overrides))[0])
    return ConfigFacts(config.data.workers, config.data.cache_mib)
