"""What `curate` prints at its end."""

from __future__ import annotations

import shlex

from clip_jax.errors import counted
from clip_jax.io.files import JsonObject


def text(report: JsonObject, out: str, path: str) -> str:
    """Returns what a person reads.

    Args:
      report: `curation.json`.
      out: the folder, as it was given.
      path: the page; empty: none.
    """
    total, kept = report["pairs"], report["kept"]
    lines = [f"{kept:,} of {total:,} pairs are kept ({kept / total:.1%})"]
    for item in report["left_out"]:
        lines.append(f"  {item['reason']} {item['pairs']:,}: {item['meaning']}")
    if broken := report["broken_files_count"]:
        fault = report["broken_files"][0]["fault"]
        lines.append(f"{counted(broken, 'file')} cannot be opened: {fault}")
    opening = report["opening"]
    for item in opening["left_out"]:
        which = f"{item['reason']} {item['count']:,} of {opening['seen']:,} {opening['unit']}"
        lines.append(f"left out at opening: {which}: {item['meaning']}, such as {item['example']}")
    lines += [f"note: {note}" for note in opening["notes"]]
    if more := opening["notes_count"] - len(opening["notes"]):
        lines.append(f"and {counted(more, 'note')} more")
    if limits := report["limits"]:
        named = ", ".join(f"{name} {t:,}".strip() for name, t in limits.items())
        lines.append(
            f"t = {named}; {report['matches']['before']:,} matches before, "
            f"{report['matches']['after']:,} after"
        )
    if kept > (most := report["rules"].get("pairs", kept)):
        lines.append(f"--pairs={most} cannot be met: even t = 1 keeps {kept:,} pairs")
    if path:
        lines.append(f"look at them: {path}")
    lines.append(_next_step(report, out))
    return "\n".join(lines)


def _next_step(report: JsonObject, out: str) -> str:
    """Returns what to do with a selection."""
    if not report["kept"]:
        return "nothing is left to train on: change the limits and start again"
    if report["source"]["addresses"]:
        return (
            f"write their list: python -m clip_jax curate export {shlex.quote(out)} --to FOLDER "
            "--format parquet --no-images"
        )
    values: dict[str, object] = {"train": report["data"], "selection": out}
    source = {"source": "kind", "image": "image", "root": "root"}
    values |= {key: x for key, own in source.items() if (x := report["source"][own])}
    if report["captions"] != ["{caption}"]:
        values["captions"] = tuple(report["captions"])
    flags = (f"--config.data.{key}={_quoted(str(x))}" for key, x in values.items())
    return f"train on them: {' '.join(flags)}"


def _quoted(word: str) -> str:
    """Returns a text as one word of a shell, in double quotes if it has single ones."""
    return f'"{word}"' if "'" in word and not set('"$`\\!') & set(word) else shlex.quote(word)
