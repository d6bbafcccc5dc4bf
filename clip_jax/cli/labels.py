"""Labels of the command line: in a text, or in a file."""

from __future__ import annotations

import json
import re
from pathlib import Path

from clip_jax.errors import UserError
from clip_jax.io.files import read_small
from clip_jax.io.paths import resolve

_MAX_LABELS = 4 << 20  # bytes of a file
_ROW = re.compile(r"[^\t]*\t|\d+\s*[,;]")  # the start of a line with more than a label
_QUOTED = re.compile(r'^"((?:[^"]|"")*)"$')


def read_labels(value: str) -> list[str]:
    """Reads the labels of `a,b`, or of `@FILE`: a JSON list or object, or one label per line.

    Raises:
      UserError: there is no label, something is no label, or there is no such plain file.
    """
    from clip_jax.inference.zero_shot import split_labels

    if value.startswith("@"):
        path = Path(resolve(value[1:]))
        content = read_small(path, _MAX_LABELS, "list of labels")
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"--labels: {path} is not UTF-8 ({error.reason}): save it so") from None
        is_json = text.lstrip().startswith(("[", "{"))
        labels = _json_labels(text, path) if is_json else _labels_by_line(text, path)
        if not labels:
            raise UserError(f"--labels: {path} is empty")
    elif not (labels := split_labels(value)):
        raise UserError("--labels is empty")
    return labels


def read_templates(value: str | None) -> list[str]:
    """Reads the prompts of `--templates`, separated by |; None: the label alone.

    Raises:
      UserError: a prompt has no {} for the label.
    """
    templates = ["{}"] if value is None else value.split("|")
    if wrong := [t for t in templates if "{}" not in t]:
        raise UserError(f"--templates: {wrong[0]!r} has no {{}} for the label")
    return templates


def _labels_by_line(text: str, path: Path) -> list[str]:
    """Returns one label per line, with or without double quotes, as in tables of one column."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and all(_ROW.match(line) for line in lines):
        raise UserError(
            f"--labels: {path} is a table ({lines[0]!r:.60}): give its column of labels alone, a "
            "label a line"
        )
    return [_QUOTED.sub(lambda m: m[1].replace('""', '"'), line).strip() for line in lines]


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands in an object twice")
    return values


def _json_labels(text: str, path: Path) -> list[str]:
    try:
        values = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise UserError(f"--labels: {path} is not JSON ({error})") from None
    if isinstance(values, dict):
        if not all(key.isdecimal() and len(key) < 10 for key in values):
            raise UserError(
                f"--labels: {path} holds an object: give a list of labels, or an object from "
                'numbers to labels, such as {"0": "a cat"}'
            )
        if len({int(key) for key in values}) < len(values):
            raise UserError(f"--labels: {path}: two labels have the same number")
        values = [values[key] for key in sorted(values, key=int)]
    for label in values:
        if not isinstance(label, str) or not label.strip():
            raise UserError(f"--labels: {path}: a label must be a text, not {label!r:.80}")
    return [label.strip() for label in values]
