"""What a config's data hold, in exact numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clip_jax.cli import inspect
from clip_jax.cli.inspect import draw
from clip_jax.config import ROOT
from clip_jax.training import setup
from support import encoded, picture, refused, write_tar

CONFIG = str(ROOT / "configs" / "quickstart.py")


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Twenty pairs, of which two pictures and a text are broken."""
    members = []
    for i in range(20):
        image = encoded(picture(i, (40 + i, 24 if i < 5 else 48)), "jpeg" if i % 2 else "png")
        text = json.dumps({"caption": " ".join(["cat"] * (i + 1))}).encode()
        image = image[:100] if i in (3, 8) else image
        members += [(f"{i:02}.jpg", image), (f"{i:02}.json", b"[]" if i == 4 else text)]
    write_tar(tmp_path / "a.tar", members)
    return f"--config.data.train={tmp_path}/a.tar"


def looked(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    """What `--json` prints."""
    assert inspect.run([CONFIG, "--json", "--config.data.captions=('{caption}',)", *argv]) == 0
    return json.loads(capsys.readouterr().out)


def test_all_pairs_in_numbers(data, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = looked(capsys, data, "--pairs=0", "--seconds=0")
    assert found["pairs"] == found["rows"] == found["looked_at"] == 20
    (source,) = found["sources"]
    assert (source["name"], source["pairs"], source["rows"]) == ("", 20, 20)
    assert source["opening"]["left_out"] == {}
    assert found["broken"] == {"picture": 2, "text": 1}
    assert "03.jpg" in found["complaints"]["picture"]
    assert found["formats"] == {"JPEG": 9, "PNG": 8}
    good = [i for i in range(20) if i not in (3, 4, 8)]
    assert found["width"] == {
        "least": 40, "median": 40 + good[8], "95%": 58, "most": 59,
    }  # fmt: skip
    assert found["small"] == 3  # 24 pixels for the model's 32
    tokens = found["tokens"]
    assert (tokens["least"], tokens["most"]) == (3, 22)  # with start and end
    assert found["cut"] == sum(i + 3 > 16 for i in good)
    with Image.open(tmp_path / "inspect.png") as sheet:
        assert sheet.size == (1200, 3 * 340)


def test_the_first_that_training_draws(data, tmp_path, capsys) -> None:
    argv = (data, "--picture=", "--seconds=0.01", "--config.batch_size=4")
    found = looked(capsys, *argv, "--pairs=20")
    assert found["broken"] == {"picture": 2, "text": 1}  # an epoch is a permutation
    some = looked(capsys, *argv, "--pairs=70")
    assert some["looked_at"] == 20, "no pair twice"
    assert sum(some["broken"].values()) + sum(some["formats"].values()) == 20
    assert some["images_per_second"] > 0
    assert some["hosts"] == -(-some["trained_per_second"] // some["images_per_second"])
    assert not list(tmp_path.glob("*.png"))


def test_a_mixture_and_what_a_filter_left_out(data, tmp_path, capsys) -> None:
    train = data.removeprefix("--config.data.train=")
    config = tmp_path / "mixed.py"
    config.write_text(
        "from configs import quickstart\n"
        "def get_config():\n"
        "  c = quickstart.get_config()\n"
        "  c.data.train, c.data.captions = '', ('{caption}',)\n"
        f"  c.data.mix = {{'small': {{'data': {train!r}, 'epochs': 2.0}}, 'large': {{'data': "
        f"{train!r}, 'epochs': 1.0, 'filter': {{'min_side': 40}}}}}}\n"
        "  return c\n"
    )
    assert inspect.run([str(config), "--pairs=0", "--seconds=0", "--picture="]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "pairs      37; an epoch has 57 rows"
    assert lines[1] == "           large: 17 pairs, 17 rows; left out: size 3"
    assert lines[2] == "           small: 20 pairs, 40 rows"
    assert sum(line.startswith("broken     ") for line in lines) == 2


def test_what_opening_left_out(tmp_path, capsys) -> None:
    for name, content in {
        "a.jpg": encoded(picture()),
        "a.txt": b"a cat",
        "b.jpg": b"",
        "c.txt": b"c",
    }.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "d.heic").touch()
    argv = (f"--config.data.train={tmp_path}", "--seconds=0", "--picture=")
    (source,) = looked(capsys, *argv)["sources"]
    counts = {why: one["count"] for why, one in source["opening"]["left_out"].items()}
    assert counts == {"no_text": 1, "no_picture": 1, "unknown_ending": 1}
    assert (source["opening"]["seen"], source["opening"]["used"]) == (5, 2)
    assert inspect.run([CONFIG, "--config.data.captions=('{caption}',)", *argv]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = "left out   no_text 1 of 5 files: images without a text, such as b.jpg"
    assert said in lines and sum(line.startswith("left out ") for line in lines) == 3


@pytest.mark.parametrize("flags", [["--json"], []])
def test_the_config_is_checked_once(data, flags, monkeypatch, capsys) -> None:
    calls = []
    check = setup.check
    monkeypatch.setattr(setup, "check", lambda *args: calls.append(args) or check(*args))
    captions = "--config.data.captions=('{caption}',)"
    argv = [CONFIG, data, captions, "--pairs=1", "--seconds=0", "--picture=", *flags]
    assert inspect.run(argv) == 0
    assert len(calls) == 1
    assert "looked" in capsys.readouterr().out


def test_a_sheet_holds_any_caption() -> None:
    image = Image.new("RGB", (300, 1), "red")
    long = [(image, "word " * 400), (image, "W" * 400), (image, ""), (image, "\n\0é漢")]
    sheet = np.asarray(draw(long))
    assert sheet.shape == (340, 1200, 3)
    assert (sheet[:, :12] == 255).all()  # nothing is written beside its cell


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--pairs=-1"], "--pairs -1 must be at least 0"),
        (["--mfu=0"], "--mfu 0.0 must be above 0 and at most 1"),
        (["--config.data.train="], "no data given"),
        (["--config.data.trian=x"], "did you mean config.data.train?"),
    ],
)
def test_what_cannot_be(argv: list[str], said: str) -> None:
    refused(lambda: inspect.run([CONFIG, *argv]), said)
