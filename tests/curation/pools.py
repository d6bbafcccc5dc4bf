"""Small pools for the tests of curation."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image

from clip_jax.cli.curate import run


def picture(color: int, size: tuple[int, int] = (300, 220), kind: str = "PNG") -> bytes:
    """An image whose content is a number."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (color % 256, color // 256 % 256, 128)).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path: Path, pairs: Sequence[tuple[bytes, Mapping[str, object]]]) -> None:
    """A WebDataset tar of images and fields."""
    with tarfile.open(path, "w") as file:
        for i, (image, fields) in enumerate(pairs):
            for end, content in (("json", json.dumps(fields).encode()), ("png", image)):
                member = tarfile.TarInfo(f"{i:06}.{end}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))


def curate(data: object, out: Path, *flags: str) -> dict[str, int]:
    """Runs the command in this process; returns the number of pairs by reason."""
    pytest.importorskip("apache_beam")
    assert run([str(data), "--out", str(out), "--workers=1", *flags]) == 0
    report = json.loads((out / "curation.json").read_text())
    return {"kept": report["kept"], **{x["reason"]: x["pairs"] for x in report["left_out"]}}
