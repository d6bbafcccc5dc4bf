"""The command line: `python -m clip_jax.main --config configs/quickstart.py`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clip_jax.cli.allocator import tune_allocator
from clip_jax.cli.common import (
    CommandParser,
    add_multihost_flags,
    run_and_exit,
    split_overrides,
)
from clip_jax.distributed import cluster_env, multihost
from clip_jax.errors import UserError

if TYPE_CHECKING:
    from clip_jax.config import Config

_MODES_IN_WORDS = {
    "train": """\
Train. The same command resumes a stopped run. Ctrl-C and SIGTERM save a checkpoint first.
  python -m clip_jax.main --config configs/quickstart.py
  python -m clip_jax.main --config configs/vit_b16.py --config.data.train='/data/{00000..41407}.tar'

Train on many hosts: start the same command on each host. TPU pods, Slurm and Kubernetes need no
more. Elsewhere add --coordinator, --processes and --process, or set JAX_COORDINATOR_ADDRESS,
JAX_NUM_PROCESSES and JAX_PROCESS_ID.""",
    "evaluate": """\
Evaluate a checkpoint by the protocols of the papers and write a report (docs/evaluation.md).
  python -m clip_jax.main --config configs/vit_b32.py --mode=evaluate --checkpoint ViT-B-32.pt \\
      --workdir runs/b32 --sets=cifar10,mine=/data/mine --suite=zero_shot,linear_probe""",
    "plan": """\
Plan: compile a training step for a TPU slice or GPUs that are not there, without data
(docs/plan.md). The exit code is 0 even if the step does not fit: scripts read "fits" in the output
of --json.
  python -m clip_jax.main --config configs/vit_l14.py --mode=plan --topology=v5e:16x16
  python -m clip_jax.main --config configs/vit_b16.py --mode=plan --topology=h100:8""",
}
MODES = tuple(_MODES_IN_WORDS)
_KEYS = """\
--config.KEY=VALUE sets any key of the config; --config FILE --help lists the keys, docs/config.md
describes them all."""
# the groups of keys that a mode reads; none: all
_GROUPS = {
    "train": (),
    "evaluate": (
        *("workdir", "model", "tokenizer", "mesh", "evaluate"),
        *("data.train", "data.mix", "data.source", "data.redirects"),
    ),
    "plan": (
        *("batch_size", "accumulate", "steps", "model", "dtype", "remat", "chunk", "mesh"),
        *("objective", "loss", "classifier", "optimizer", "ema", "lora", "data.cache_features"),
    ),
}
_GROUP_TITLE, _HOSTS = "flags of --mode=", "many hosts"


def make_parser(mode: str = "") -> argparse.ArgumentParser:
    """The parser of the command.

    Args:
      mode: the mode that its help describes; empty: all.
    """
    about = [_MODES_IN_WORDS[mode]] if mode else _MODES_IN_WORDS.values()
    parser = CommandParser(
        prog="python -m clip_jax.main",
        description="Trains, evaluates and plans CLIP models.",
        epilog="\n\n".join([_KEYS, *about]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--config",
        metavar="CONFIG",
        help="a file such as configs/quickstart.py, or a shipped config by name: quickstart",
    )
    add("--workdir", metavar="FOLDER", help="the folder of the run, on disk "
        "or in a bucket: gs://BUCKET/FOLDER, s3://BUCKET/FOLDER (config.workdir)")  # fmt: skip
    add("--mode", default="", help=f"one of {', '.join(MODES)} (default: train)")
    _add_evaluation_flags(parser.add_argument_group(f"{_GROUP_TITLE}evaluate"))
    group = parser.add_argument_group(f"{_GROUP_TITLE}train")
    group.add_argument(
        "--force",
        action="store_true",
        help="train in a --workdir that another run is using: that run stops",
    )
    _add_plan_flags(parser.add_argument_group(f"{_GROUP_TITLE}plan"))
    add_multihost_flags(parser.add_argument_group(_HOSTS))
    add("--help", "-h", action="store_true", help="show this text and the keys of the config; with "
        "--mode, what that mode reads")  # fmt: skip
    if mode:
        _hide_other_modes(parser, mode)
    return parser


def _hide_other_modes(parser: argparse.ArgumentParser, mode: str) -> None:
    """Leaves the flags of the other modes out of the help."""
    for group in parser._action_groups:  # argparse has no public list of them
        title = group.title or ""
        is_other = title.startswith(_GROUP_TITLE) and title != f"{_GROUP_TITLE}{mode}"
        if is_other or (title == _HOSTS and mode == "plan"):
            for action in group._group_actions:
                action.help = argparse.SUPPRESS


def _add_evaluation_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--checkpoint",
        metavar="RUN",
        help="the model to evaluate: the folder of a run, its checkpoints/STEP or "
        "checkpoints/best, or weights of OpenAI, open_clip or transformers (default: the run in "
        "--workdir)",
    )
    group.add_argument(
        "--ema", action="store_true", help="evaluate the averaged weights of the run"
    )
    group.add_argument(
        "--suite",
        metavar="NAME,…",
        help="the evaluations: some of zero_shot, classifier, linear_probe, few_shot, retrieval, "
        "validation_loss, robustness, bias, scoring, perplexity, captioning and overlap, or all "
        "(default: config.evaluate.suite)",
    )
    group.add_argument(
        "--sets",
        metavar="NAME,…",
        help="the data sets: names in the config, standard ones (docs/sets.md) such as cifar10, "
        "paper or robustness, and NAME=PATH for your own (default: all in the config)",
    )


def _add_plan_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--topology",
        metavar="NAME",
        help="the devices: v5e:16x16, v5p:4x4x4, h100:8, a100:4x8 (hosts × GPUs), cpu:8, …",
    )
    group.add_argument(
        "--json", action="store_true", help="print the plan as JSON on the last line"
    )
    group.add_argument(
        "--sweep",
        metavar="KEY=V,V,…",
        nargs="*",
        action="extend",
        help="compare all combinations of these values, such as config.accumulate=1,4,16 "
        "config.remat=dots,full; without a KEY: a default choice",
    )
    group.add_argument(
        "--dump", metavar="FOLDER", help="keep the output of the compiler for the step"
    )


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code.

    Raises:
      UserError: a flag, the config or the data is wrong.
    """
    flags, overrides = split_overrides(argv)
    args = make_parser().parse_args(flags)
    if args.mode not in ("", *MODES):
        raise UserError(f"unknown --mode {args.mode!r}; known: {', '.join(MODES)}")
    if args.help:
        return _help(args, overrides)
    args.mode = args.mode or "train"
    _check_flags(args)
    if args.mode == "plan":
        _prepare_plan(args)

    from clip_jax import config as config_lib

    if args.workdir:
        overrides.append(f"workdir={args.workdir}")
    config, _ = config_lib.load(args.config, overrides)
    if args.mode == "plan":
        from clip_jax.plan.report import print_plan, print_sweep

        if args.sweep is None:
            print_plan(config, args.topology, args.config, as_json=args.json, dump=args.dump)
        else:
            print_sweep(config, args.topology, args.config, args.sweep, as_json=args.json)
    else:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        process_info = cluster_env.detect_process(
            args.coordinator, args.processes, args.process, os.environ
        )
        typed_config = config_lib.typed(config)
        with multihost.process_group(process_info, args.connect_timeout, args.heartbeat_timeout):
            _train_or_evaluate(args, typed_config)
    return 0


def _help(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Prints the flags, and with a config its keys; with a mode only those that it reads."""
    make_parser(args.mode).print_help()
    if not args.config:
        return 0
    from clip_jax import config as config_lib
    from clip_jax.models.reference import key_docs

    config, doc = config_lib.load(args.config, list(overrides))
    docs = {**config_lib.key_docs(), **key_docs(config.model.to_dict())}
    keys = config_lib.describe(config, docs=docs, groups=_GROUPS.get(args.mode, ()))
    title = f"the keys that --mode={args.mode} reads" if args.mode else "its keys"
    print(f"\n{args.config}: {doc.strip()}\n\n{title}:\n{keys}")
    return 0


def _check_flags(args: argparse.Namespace) -> None:
    """Raises a UserError for flags that are missing or do not fit the mode."""
    if not args.config:
        raise UserError("--config is missing: try --config configs/quickstart.py")
    if args.mode != "plan" and (args.topology or args.json or args.sweep is not None or args.dump):
        raise UserError("--topology, --json, --sweep and --dump need --mode=plan")
    if args.mode != "train" and args.force:
        raise UserError("--force needs --mode=train: other modes only read the folder of a run")
    if args.mode != "evaluate" and (args.checkpoint or args.suite or args.sets or args.ema):
        raise UserError("--checkpoint, --suite, --sets and --ema need --mode=evaluate")


def _prepare_plan(args: argparse.Namespace) -> None:
    """Checks the flags of a plan, and keeps JAX away from this machine's accelerators.

    The environment must be set before JAX is imported.
    """
    from clip_jax.plan import gpus, topology

    if not args.topology:
        raise UserError(f"--mode=plan needs --topology, such as one of {topology.EXAMPLES}")
    if args.sweep is not None and args.dump:
        raise UserError("--dump keeps the output for one program: leave out --sweep")
    os.environ["JAX_PLATFORMS"] = "cpu"
    topology.set_libtpu_environment(os.environ)
    with gpus.without_native_logs():
        import jax  # noqa: F401  # with plan-gpu its extensions log that there is no driver


def _train_or_evaluate(args: argparse.Namespace, config: Config) -> None:
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
            config,
            args.checkpoint or "",
            args.workdir or "",
            args.suite or "",
            args.sets or "",
            ema=args.ema,
        )


if __name__ == "__main__":
    tune_allocator()
    run_and_exit(run, sys.argv[1:])
