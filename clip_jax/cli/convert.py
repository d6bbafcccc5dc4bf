"""`python -m clip_jax convert`: a model's files for another library.

python -m clip_jax convert runs/quickstart out --to hugging_face
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import textwrap
from collections.abc import Sequence

from clip_jax.cli.common import CommandParser
from clip_jax.cli.loading import add_loading_flags, check_sizes
from clip_jax.cli.mixing import print_note
from clip_jax.errors import counted, megabytes
from clip_jax.inference.conversion import DTYPES, convert
from clip_jax.models.architectures import available
from clip_jax.models.model_config import ACTIVATIONS
from clip_jax.weights.param_mapping import MAPPINGS, mapping_of

_EXAMPLES = """\
examples:
  OpenAI to open_clip         {0} ViT-B-32.pt out --to open_clip
  OpenAI to transformers      {0} ViT-B-32.pt out --to hugging_face
  open_clip to transformers   {0} open_clip_folder out --to hugging_face
  open_clip to OpenAI         {0} open_clip_folder ViT-B-32.pt --to openai
  transformers to open_clip   {0} clip-vit-base-patch32 out --to open_clip
  transformers to OpenAI      {0} clip-vit-base-patch32 ViT-B-32.pt --to openai
  a run to transformers       {0} runs/mine out --to hugging_face
  a run to open_clip          {0} runs/mine out --to open_clip
  a run to OpenAI             {0} runs/mine mine.pt --to openai

models that are known by name:
{1}"""


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command's flags."""
    command = "python -m clip_jax convert"
    names = textwrap.fill(
        ", ".join(available()),
        78,
        initial_indent="  ",
        subsequent_indent="  ",
        break_on_hyphens=False,
    )
    p = CommandParser(
        prog=command,
        description="Writes a model for another library, and verifies it by reading it back.",
        epilog=_EXAMPLES.format(command, names),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument(
        "source",
        metavar="SOURCE",
        help="the folder of a run, of transformers or of open_clip, or a file of weights",
    )
    p.add_argument("dest", metavar="DEST", help="a folder, or a .safetensors, .bin or .pt file")
    libraries = f"{', '.join(MAPPINGS.names)}, or your own as my_package.my_module:MyMapping"
    p.add_argument(
        "--to",
        required=True,
        metavar="LIBRARY",
        help=f"the library to write for: {libraries}; or lora: only the adapters of a run",
    )
    p.add_argument(
        "--from",
        dest="source_library",
        metavar="LIBRARY",
        help="the library whose files SOURCE holds, as for --to (default: recognized)",
    )
    p.add_argument("--model", metavar="NAME", help="the architecture, if no config names it")
    p.add_argument(
        "--dtype", default="keep", choices=DTYPES, help="of the parameters (default: unchanged)"
    )
    add_loading_flags(p)
    p.add_argument(
        "--activation",
        choices=ACTIVATIONS,
        help="write another activation function than the model was trained with: SigLIP in "
        "open_clip needs gelu",
    )
    p.add_argument(
        "--adapters",
        metavar="FILE",
        help="merge the adapters (LoRA) of a file that --to lora wrote into the weights",
    )
    p.add_argument("--ema", action="store_true", help="the averaged weights of a run")
    p.add_argument("--overwrite", action="store_true", help="replace existing files")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    return p


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    check_sizes(args)
    if args.to == "lora":
        return _write_adapters(args)
    mapping_of(args.to, "--to")
    if args.source_library is not None:
        mapping_of(args.source_library, "--from")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # leave accelerators to others

    from absl import logging

    logging.set_verbosity("error")  # without orbax's warning that a checkpoint is only read
    options = {k: v for k, v in vars(args).items() if k != "json"}
    conversion = convert(**options, note=print_note)
    if args.json:
        print(json.dumps(dataclasses.asdict(conversion)))
        return 0
    dtypes = " and ".join(conversion.dtype)
    print(f"read {args.source} ({conversion.library}): {conversion.model}, {dtypes}")
    for path, size in conversion.files.items():
        print(f"wrote {path}  {megabytes(size)}")
    print(f"read back: {counted(conversion.tensors, 'tensor')}, bit for bit")
    return 0


def _write_adapters(args: argparse.Namespace) -> int:
    """Writes only the adapters of a run."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from clip_jax.inference import adapters
    from clip_jax.inference.model_source import open_model_source

    source = open_model_source(args.source, ema=args.ema)
    files = adapters.save(source, args.dest, overwrite=args.overwrite, note=print_note)
    if args.json:
        print(json.dumps({"files": files}))
    for path, size in () if args.json else files.items():
        print(f"wrote {path}  {megabytes(size)}")
    return 0
