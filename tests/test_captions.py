"""A run that learns to write captions, and what writes them with its model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clip_jax
import runs
from clip_jax import main
from clip_jax.cli import classify
from clip_jax.errors import GuessedWarning, UserError
from support import says

CAPTIONS = {(220, 30, 30): "red apple", (30, 60, 220): "blue sky", (30, 190, 40): "green leaf"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose decoder knows three images by heart."""
    folder = tmp_path_factory.mktemp("captions")
    for color, caption in CAPTIONS.items():
        (folder / "data" / caption).mkdir(parents=True)
        Image.new("RGB", (16, 16), color).save(folder / "data" / caption / "0.png")
    text = runs.CONFIG.format(train=str(folder / "data"), labels="")
    lines = [line for line in text.splitlines() if "sets.held" not in line]
    (folder / "config.py").write_text("\n".join(lines) + "\n")
    head = "{'decoder': {'width': 16, 'layers': 1, 'heads': 2, 'both_ways': True}}"
    done = runs.run(
        *(folder / "config.py", folder / "run", "--config.objective.name=captioning"),
        *(f"--config.model.heads={head}", "--config.steps=80", "--config.log.every=20"),
        *("--config.optimizer.learning_rate=0.02", "--config.checkpoint.every=40"),
    )
    assert done.returncode == 0, done.stderr
    losses = [line["loss"] for line in runs.lines(folder / "run") if "loss" in line]
    assert losses[-1] < 0.2 * losses[0]
    return folder / "run"


def images() -> list[Image.Image]:
    return [Image.new("RGB", (16, 16), color) for color in CAPTIONS]


@pytest.mark.parametrize("options", [{}, {"beams": 3, "min_tokens": 2}, {"batch_size": 2}])
def test_it_writes_what_it_learned(run: Path, options: dict[str, int]) -> None:
    writer = clip_jax.pipeline("image-to-text", model=str(run))
    answers = writer(images(), **options)
    assert [answer[0]["generated_text"] for answer in answers] == list(CAPTIONS.values())
    assert writer(images()[0], **options) == [{"generated_text": "red apple"}]


def test_draws_repeat_by_seed(run: Path) -> None:
    writer = clip_jax.pipeline("image-to-text", model=str(run))
    options = {"temperature": 5.0, "max_tokens": 6}
    first, again, other = (writer(images(), seed=seed, **options) for seed in (0, 0, 1))
    assert first == again != other


def test_the_command_writes_captions(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run.parent / "data"
    assert classify.run([str(folder), "--checkpoint", str(run), "--caption", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(line[0]["generated_text"] for line in lines) == sorted(CAPTIONS.values())
    broken, apple = tmp_path / "broken.png", folder / "red apple" / "0.png"
    broken.write_bytes(b"no image")
    flags = ["--skip-broken", "--temperature=0.001", "--top-p=0.5", "--seed=1", "--max-tokens=8"]
    argv = [str(apple), str(broken), "--checkpoint", str(run), "--caption"]
    assert classify.run([*argv, *flags]) == classify.SKIPPED
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [str(apple), "red apple"] and "broken.png" in captured.err
    for flags, words in (
        (["--caption", "--labels", "a,b"], ["--caption", "--labels"]),
        (["--caption", "--top=5"], ["--caption", "--top"]),
        (["--labels=a,b", "--beams=2"], ["--caption", "--beams"]),
        (["--caption"], ["broken.png", "--skip-broken"]),
        (["--caption", "--top-p=0.5"], ["top_p=0.5", "temperature"]),
        ([], ["--labels", "--caption"]),
    ):
        with pytest.raises(UserError) as caught:
            classify.run([str(broken), "--checkpoint", str(run), *flags])
        assert says(caught.value, *words)


def test_labels_are_scored_by_the_decoder(run: Path) -> None:
    labels = list(CAPTIONS.values())
    answers = clip_jax.pipeline(model=str(run))(images(), labels, "{}")
    assert [answer[0]["label"] for answer in answers] == labels
    assert all(answer[0]["score"] > 0.9 for answer in answers)
    with pytest.warns(GuessedWarning, match="random values"):
        clip_jax.load(str(run))


def test_an_untrained_text_tower_is_not_evaluated(run: Path) -> None:
    flags = ["--config", str(run.parent / "config.py"), "--mode=evaluate", "--checkpoint", str(run)]
    flags += [f"--sets=own={run.parent / 'data'}"]
    main.run([*flags, "--suite=zero_shot,scoring"])
    document = json.loads((run / "report.json").read_text())
    (own,) = document["sets"].values()
    assert own["scoring"]["score"]["value"] == 1.0 and "zero_shot" not in own
    assert [item["set"] for item in document["missing"]] == ["zero_shot"]
    with pytest.raises(UserError) as caught:
        main.run([*flags, "--suite=zero_shot"])
    assert says(caught.value, "zero_shot", "random values", "scoring")


def test_mistakes_are_one_line(run: Path) -> None:
    writer = clip_jax.pipeline("image-to-text", model=str(run))
    for options, words in (
        ({"max_tokens": 9}, ["max_tokens=9", "at most 8"]),
        ({"max_tokens": 0}, ["max_tokens=0", "at least 2"]),
        ({"beams": 0}, ["beams=0"]),
        ({"num_beams": 4}, ["num_beams", "beams", "known", "top_p"]),
        ({"top_k": 4}, ["top_k", "known", "temperature"]),
        ({"seed": 1}, ["seed=1", "temperature"]),
        ({"seed": -1, "temperature": 1.0}, ["seed=-1"]),
        ({"batch_size": 0}, ["batch_size=0"]),
    ):
        with pytest.raises(UserError) as caught:
            writer(images()[0], **options)
        assert says(caught.value, *words)
    features = clip_jax.load(str(run))[0].encode_image(np.zeros((1, 16, 16, 3), np.uint8))
    assert features.shape == (1, 8)
