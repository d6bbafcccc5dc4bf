"""The command line: `python -m clip_jax.main --config configs/quickstart.py`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clip_jax.cli.allocator import tune_allocator
from clip_jax.cli.common import LinesParser, at_least, report, split_overrides
from clip_jax.distributed import cluster_env, multihost
from clip_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

MODES = ("train", "evaluate", "plan")
_EPILOG = """\
any key of the config can be set:  --config.KEY=VALUE   (--config FILE --help lists them)
  python -m clip_jax.main --config configs/quickstart.py
  python -m clip_jax.main --config configs/vit_b16.py --config.data.train='/data/{00000..41407}.tar'
the same command resumes a run that was stopped; Ctrl-C and SIGTERM save first
many hosts: the same command on each; on a TPU pod, in Slurm and in Kubernetes that is all,
elsewhere the three flags, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID
a checkpoint judged as the paper does, and a page about it; what there is: docs/evaluation.md
  python -m clip_jax.main --config configs/vit_b32.py --mode=evaluate --checkpoint ViT-B-32.pt \
      --workdir runs/b32 --sets=cifar10,mine=/data/mine --suite=zero_shot,linear_probe
what a step would take on a TPU slice, asked of its compiler; no TPU, no data (docs/plan.md):
  python -m clip_jax.main --config configs/vit_l14.py --mode=plan --topology=v5e:16x16
the exit code is 0 also for a step that does not fit: scripts read "fits" of --json"""


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    p = LinesParser(
        prog="python -m clip_jax.main",
        description="Trains and evaluates CLIP models.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    p.add_argument(
        "--config",
        metavar="CONFIG",
        help="a file such as configs/quickstart.py, or just quickstart",
    )
    p.add_argument("--workdir", metavar="FOLDER", help="where the run is kept (config.workdir)")
    p.add_argument(
        "--mode", default="train", help=f"one of {', '.join(MODES)} (default: %(default)s)"
    )
    p.add_argument(
        "--checkpoint",
        metavar="RUN",
        help="what is evaluated: a run's folder, its checkpoints/STEP, or weights of OpenAI's, "
        "open_clip's or transformers' (default: the run in --workdir)",
    )
    p.add_argument(
        "--suite",
        metavar="NAME,…",
        help="how: some of zero_shot, linear_probe, few_shot, retrieval, robustness, bias and "
        "overlap, or all (default: config.evaluate.suite)",
    )
    p.add_argument(
        "--sets",
        metavar="NAME,…",
        help="on what: sets of the config, standard ones (docs/sets.md) such as cifar10, paper or "
        "robustness, and NAME=PATH for your own (default: the config's)",
    )
    p.add_argument(
        "--force",
        action="store_true",
        help="train in a --workdir that is in use: the run at work there ends",
    )
    p.add_argument("--topology", metavar="NAME", help="of a plan: v5e:16x16, v5p:4x4x4, cpu:8, …")
    p.add_argument("--json", action="store_true", help="the plan's last line is JSON")
    p.add_argument(
        "--sweep",
        metavar="KEY=V,V,…",
        nargs="*",
        action="extend",
        help="plans for all of these values, such as config.accumulate=1,4,16 "
        "config.remat=dots,full; alone: for the usual choices",
    )
    p.add_argument("--dump", metavar="FOLDER", help="keeps what the compiler wrote of the step")
    p.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 lets all meet")
    p.add_argument("--processes", metavar="N", type=at_least(1), help="how many there are")
    p.add_argument("--process", metavar="I", type=at_least(0), help="which one this is, from 0")
    for name, default, what in (
        ("connect", multihost.CONNECT_TIMEOUT, "that all processes have to come"),
        (
            "heartbeat",
            multihost.HEARTBEAT_TIMEOUT,
            "without a sign of life until one counts as dead",
        ),
    ):
        p.add_argument(
            f"--{name}-timeout",
            metavar="SECONDS",
            type=at_least(1),
            default=default,
            help=f"seconds {what} (default: %(default)g)",
        )
    p.add_argument("--help", "-h", action="store_true", help="this text, and the config's keys")
    return p


def run(argv: Sequence[str]) -> int:
    """The whole command; returns the exit code.

    Raises:
      UserError: what the user gave is wrong.
    """
    flags, overrides = split_overrides(argv)
    args = parser().parse_args(flags)
    if args.mode not in MODES:
        raise UserError(f"unknown --mode {args.mode!r}; known: {', '.join(MODES)}")
    if not args.config:
        if args.help:
            parser().print_help()
            return 0
        raise UserError("--config is missing: try --config configs/quickstart.py")

    if args.mode == "plan":
        _prepare_plan(args)
    elif args.topology or args.json or args.sweep is not None or args.dump:
        raise UserError("--topology, --json, --sweep and --dump belong to --mode=plan")
    if args.force and args.mode != "train":
        raise UserError("--force belongs to --mode=train: others only read a run's folder")
    if args.mode != "evaluate" and (args.checkpoint or args.suite or args.sets):
        raise UserError("--checkpoint, --suite and --sets belong to --mode=evaluate")

    from clip_jax import config as config_lib

    if args.workdir:
        overrides.append(f"workdir={args.workdir}")
    config, doc = config_lib.load(args.config, overrides)
    if args.help:
        parser().print_help()
        keys = config_lib.describe(config, explain=True)
        print(f"\n{args.config}: {doc.strip()}\n\nits keys:\n{keys}")
        return 0
    if args.mode == "plan":
        from clip_jax.plan import report as plan_report

        plan_report.plan(
            config,
            args.topology,
            name=args.config,
            axes=args.sweep,
            as_json=args.json,
            dump=args.dump,
        )
        return 0
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    place = cluster_env.find(args.coordinator, args.processes, args.process, os.environ)
    with multihost.joined(place, args.connect_timeout, args.heartbeat_timeout):
        _start(args, config)
    return 0


def _prepare_plan(args: argparse.Namespace) -> None:
    """What must be set before JAX is imported: a plan leaves this machine's accelerators alone."""
    from clip_jax.plan import topology

    if not args.topology:
        raise UserError(f"--mode=plan needs --topology, one of such as {topology.EXAMPLES}")
    if args.sweep is not None and args.dump:
        raise UserError("--dump keeps one program: leave out --sweep")
    os.environ["JAX_PLATFORMS"] = "cpu"
    topology.quiet(os.environ)


def _start(args: argparse.Namespace, config: ConfigDict) -> None:
    from clip_jax.distributed.compilation_cache import use_compilation_cache
    from clip_jax.io.redirects import allow_redirects

    use_compilation_cache()
    allow_redirects(config.data.redirects)
    if args.mode == "train":
        from clip_jax.training import loop

        loop.train(config, force=args.force)
    else:
        from clip_jax.evaluation import evaluate

        evaluate.evaluate(
            config, args.checkpoint or "", args.workdir or "", args.suite or "", args.sets or ""
        )


if __name__ == "__main__":
    tune_allocator()
    report(run, sys.argv[1:])
