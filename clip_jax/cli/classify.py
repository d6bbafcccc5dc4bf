"""`python -m clip_jax classify`: zero-shot classification of images.

python -m clip_jax classify --checkpoint runs/quickstart cat.png --labels "a cat,a dog"
"""

from __future__ import annotations

import argparse
import glob
import itertools
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from clip_jax.cli.common import CommandParser, guesses_as_notes
from clip_jax.cli.labels import read_labels, read_templates
from clip_jax.data.example import IMAGES
from clip_jax.errors import GuessedWarning, UserError, counted
from clip_jax.io import remote
from clip_jax.io.paths import resolve

SKIPPED = 3  # the exit code if some images were left out
_BATCH_SIZE = 32  # that of `zero_shot`, which imports JAX
_TOP = 5
_TILES = 4  # labels of a heatmap
_OF_LOADING = ("weights", "activation", "ema", "tokenizer", "max_num_patches")
_OF_CAPTIONS = ("beams", "max_tokens", "temperature", "top_p", "seed")  # options of `CaptionWriter`
_OF_LABELS = ("labels", "top", "templates", "truncate", "heatmap")


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command's flags."""
    p = CommandParser(
        prog="python -m clip_jax classify",
        description="Classifies images with your own labels; prints the most likely labels first.",
        epilog="example: python -m clip_jax classify --checkpoint runs/quickstart cat.png "
        f'--labels "a cat,a dog"; the exit code is {SKIPPED} if --skip-broken skipped images, '
        "and 2 after an error",
        allow_abbrev=False,
    )
    p.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="images (png, jpg, webp, …), URLs, folders of images (hidden files are ignored), and "
        "patterns such as 'a/*.jpg'",
    )
    p.add_argument(
        "--checkpoint",
        required=True,
        metavar="RUN",
        help="the folder of a run, of transformers or of open_clip; with --weights the name of a "
        "model, such as ViT-B/32",
    )
    p.add_argument("--weights", metavar="FILE", help="a file of OpenAI, open_clip or transformers")
    p.add_argument("--ema", action="store_true", help="use the averaged weights of a run")
    p.add_argument(
        "--activation",
        choices=("quick_gelu", "gelu"),
        help="the activation function of a file without a config: gelu for the models that "
        "open_clip trained (default: quick_gelu, as in OpenAI's)",
    )
    p.add_argument(
        "--tokenizer", metavar="NAME", help="if the model's files hold none, as for convert"
    )
    p.add_argument(
        "--max-num-patches",
        type=int,
        metavar="N",
        help="of SigLIP 2 NaFlex: images are resized to N patches at most",
    )
    _add_answer_flags(p)
    p.add_argument("--top", type=int, help=f"number of labels to print (default {_TOP})")
    size = "images that are encoded at a time (default %(default)s)"
    p.add_argument("--batch-size", type=int, default=_BATCH_SIZE, metavar="N", help=size)
    p.add_argument("--truncate", action="store_true", help="truncate texts that are too long")
    p.add_argument(
        "--heatmap",
        metavar="FOLDER",
        help="also write a picture of each image into FOLDER, which shows how similar its patches "
        f"are to the {_TILES} most likely labels",
    )
    p.add_argument(
        "--skip-broken",
        action="store_true",
        help="report images that cannot be read, and continue with the others",
    )
    p.add_argument(
        "--json",
        action="store_true",
        help="print one JSON list per image; null: the image was skipped",
    )
    return p


def _add_answer_flags(p: argparse.ArgumentParser) -> None:
    """Adds the flags that say what is answered about an image."""
    p.add_argument(
        "--labels",
        help="labels separated by commas (double quotes around a label with a comma), or @FILE: a "
        "JSON list, a JSON object from numbers to labels, or one label per line (UTF-8); default: "
        "the classes of the model's own classifier",
    )
    p.add_argument(
        "--caption",
        action="store_true",
        help="write a caption of each image in place of labels, by a model whose run trained a "
        "decoder",
    )
    for flag, kind, text in (
        ("--beams", int, "captions that beam search keeps (default 1: no beam search)"),
        (
            "--max-tokens",
            int,
            "the most tokens, start and end included (default: as trained)",
        ),
        ("--temperature", float, "draw tokens, by logits divided by it (default 0: no draw)"),
        ("--top-p", float, "draw from the likeliest tokens with this share together (default 1)"),
        ("--seed", int, "the seed of what is drawn (default 0)"),
    ):
        p.add_argument(flag, type=kind, metavar="N", help=f"with --caption: {text}")
    p.add_argument(
        "--templates",
        help="prompts with {} for the label, separated by |; their features are averaged (default "
        "{}; the default of clip_jax.pipeline, as in transformers, is 'This is a photo of {}.')",
    )


def find_images(names: Sequence[str]) -> list[str]:
    """Returns image files: folders and patterns are expanded in order, other names are unchanged.

    A warning counts the files of a folder that are neither images nor hidden.

    Args:
      names: files, URLs, folders and patterns.

    Raises:
      UserError: a name is empty, or a folder or a pattern has no image.
    """
    files: list[str] = []
    for name in names:
        if not name.strip():
            raise UserError("an IMAGE is empty: give an image, a folder or a pattern")
        path = name if remote.is_remote(name) else resolve(name)
        if remote.is_remote(name) or os.path.isfile(path):
            files.append(path)
        elif os.path.isdir(path):
            files += _images_in(path)
        elif glob.has_magic(path):
            matches = sorted(p for p in glob.glob(path, recursive=True) if not os.path.isdir(p))
            if not matches:
                raise UserError(f"no file matches {name}")
            files += matches
        else:
            files.append(path)  # reading it reports what is wrong
    return files


def _images_in(folder: str) -> list[str]:
    """Returns the images in a folder and in folders below it.

    A folder with several links counts once.
    """
    files: list[str] = []
    seen: set[str] = set()
    for place, inner, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        inner[:] = [name for name in inner if not name.startswith(".")]
        files += (os.path.join(place, name) for name in names if not name.startswith("."))
    images = sorted(file for file in files if file.lower().endswith(IMAGES))
    if not images:
        raise UserError(f"{folder} holds no images ({', '.join(IMAGES)})")
    if others := sorted(set(files) - set(images)):
        warnings.warn(
            f"{folder}: left out {counted(len(others), 'file')} without the ending of an image, "
            f"such as {os.path.basename(others[0])!a}",
            GuessedWarning,
            stacklevel=3,
        )
    return images


def classify(
    checkpoint: str,
    images: Sequence[str],
    labels: Sequence[str] | None,
    templates: Sequence[str] = ("{}",),
    loading: Mapping[str, Any] = MappingProxyType({}),
    heatmap: str | None = None,
    **options: Any,
) -> Iterator[Any]:
    """Returns an iterator over the answers to the images.

    An answer is `[{"label": …, "score": …}, …]` with the best label first.

    Args:
      checkpoint: the run or the model, as for `pretrained.load`.
      images: the images, as for `ZeroShotClassifier.stream`.
      labels: the labels; None: those of the model's own classifier.
      templates: prompts with {} for the label.
      loading: other arguments of `pretrained.load`.
      heatmap: the folder for a picture of each image; None for none.
      options: other arguments of `ZeroShotClassifier.stream`.
    """
    from absl import logging

    from clip_jax.inference import pretrained

    logging.set_verbosity("error")  # without orbax's warning that a checkpoint is only read
    with guesses_as_notes():
        classifier = pretrained.pipeline(model=checkpoint, **loading)
        assert isinstance(classifier, pretrained.ZeroShotClassifier)
        answers = classifier.stream(images, labels, templates, **options)
        if heatmap is None:
            return answers
        return _drawn(classifier, images, answers, templates, Path(heatmap))


def _drawn(
    classifier: Any,
    images: Sequence[str],
    answers: Iterator[Any],
    templates: Sequence[str],
    folder: Path,
) -> Iterator[Any]:
    """Yields the answers, after a heatmap of each image has been written into a folder."""
    import io

    from clip_jax.io import files

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--heatmap {folder} is no folder ({error.strerror})") from None
    used: set[str] = set()
    for path, answer in zip(images, answers, strict=True):
        if not isinstance(answer, UserError):
            labels = [item["label"] for item in answer[:_TILES]]
            content = io.BytesIO()
            classifier.heatmap(path, labels, templates, truncate=True).save(content, "PNG")
            stem = Path(path.partition("?")[0]).stem[:100] or "image"
            number = itertools.count(2)
            name = stem
            while name in used:
                name = f"{stem}-{next(number)}"
            used.add(name)
            with files.atomic_write(folder / f"{name}.png") as out:
                out.write(content.getvalue())
        yield answer


def write_captions(args: argparse.Namespace, images: Sequence[str]) -> Iterator[Any]:
    """Yields `[{"generated_text": …}]` for each image, or the error of an image that is skipped."""
    from absl import logging

    from clip_jax.inference import pretrained

    logging.set_verbosity("error")
    with guesses_as_notes():
        writer = pretrained.pipeline(pretrained.IMAGE_TO_TEXT, args.checkpoint, **_loading(args))
    assert isinstance(writer, pretrained.CaptionWriter)
    values = {name: getattr(args, name) for name in _OF_CAPTIONS}
    options = {name: value for name, value in values.items() if value is not None}
    captions = writer.stream(
        images, batch_size=args.batch_size, skip_broken=args.skip_broken, **options
    )
    for caption in captions:
        yield caption if isinstance(caption, UserError) else [{"generated_text": caption}]


def _loading(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the flags that say how the model is loaded."""
    return {name: getattr(args, name) for name in _OF_LOADING}


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    _check_flags(args)
    labels = None if args.labels is None else read_labels(args.labels)
    templates = read_templates(args.templates)
    with guesses_as_notes():
        images = find_images(args.images)
    if args.caption:
        answers = write_captions(args, images)
    else:
        answers = classify(
            args.checkpoint,
            images,
            labels,
            templates,
            _loading(args),
            args.heatmap,
            batch_size=args.batch_size,
            truncate=args.truncate,
            top_k=_TOP if args.top is None else args.top,
            skip_broken=args.skip_broken,
        )
    return _print_answers(answers, images, args.json)


def _check_flags(args: argparse.Namespace) -> None:
    """Raises UserError for a wrong value, or for a flag that does nothing beside the others."""
    for name in ("top", "batch_size", "beams"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"{_flag(name)} {value} must be at least 1")
    for name in _OF_LABELS if args.caption else _OF_CAPTIONS:
        value = getattr(args, name)
        if value is not None and value is not False:
            why = "is for labels: leave it or --caption out" if args.caption else "needs --caption"
            raise UserError(f"{_flag(name)} {why}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _print_answers(answers: Iterator[Any], images: Sequence[str], as_json: bool) -> int:
    """Prints the answer to each image; returns the exit code."""
    skipped = 0
    for path, answer in zip(images, answers, strict=True):
        if isinstance(answer, UserError):
            skipped += 1
            print(f"skipped: {answer}", file=sys.stderr)
            if as_json:
                print("null")
            continue
        if as_json:
            print(json.dumps(answer))
            continue
        if len(images) > 1:
            print(_printable(path))
        for item in answer:
            if "score" in item:
                print(f"{item['score']:7.2%}  {_printable(item['label'])}")
            else:
                print(_printable(item["generated_text"]))
    if skipped:
        print(f"skipped {skipped} of {counted(len(images), 'image')}", file=sys.stderr)
    return SKIPPED if skipped else 0
