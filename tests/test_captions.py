"""A run that learns to write captions, and what writes them with its model."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clip_jax
import runs
from clip_jax import config as config_lib
from clip_jax import main
from clip_jax.cli import classify
from clip_jax.errors import GuessedWarning, UserError
from clip_jax.evaluation import programs
from clip_jax.inference import conversion, model_source
from clip_jax.training import announcements, run_config
from clip_jax.training.run import Run, prepare
from clip_jax.training.run_identity import claim_workdir
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
    assert "IMAGE.png --caption" in done.stdout and "--labels" not in done.stdout
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


def test_an_untrained_text_tower_is_not_evaluated(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--config", str(run.parent / "config.py"), "--mode=evaluate", "--checkpoint", str(run)]
    flags += [f"--sets=own={run.parent / 'data'}"]
    main.run([*flags, "--suite=zero_shot,scoring"])
    document = json.loads((run / "report.json").read_text())
    (own,) = document["sets"].values()
    assert own["scoring"]["score"]["value"] == 1.0 and "zero_shot" not in own
    assert [item["set"] for item in document["missing"]] == ["zero_shot"]
    assert "scoring, perplexity and captioning" in document["missing"][0]["why"]
    assert re.search("own: scoring .* prompts? for each of 3 images", capsys.readouterr().err)
    with pytest.raises(UserError) as caught:
        main.run([*flags, "--suite=zero_shot"])
    assert says(caught.value, "zero_shot", "random values", "scoring")


def test_a_run_that_starts_from_it_has_an_untrained_text_tower_too(
    run: Path, tmp_path: Path
) -> None:
    def prepared(name: str, *overrides: str) -> Run:
        start = [f"workdir={tmp_path / name}", f"weights.path={run}"]
        c, _ = config_lib.load(str(run.parent / "config.py"), [*start, *overrides])
        return prepare(c)

    mix = {"captioning": 1.0, "bag_of_words": 1.0}
    heads = {"decoder": {"width": 8, "layers": 1, "heads": 2, "both_ways": True}}
    new = prepared("new", f"objective.mix={mix}", f"model.heads={heads}")
    assert new.weights is not None
    assert list(announcements.head_starts(new.weights.config, new.model)) == [
        "its decoder has other sizes (width 16, here 8) and starts at random",
        "the weights have no head words: it starts at random",
    ]
    (taken,) = announcements.head_starts(new.weights.config, new.weights.config)
    (left_out,) = announcements.head_starts(new.model, new.model.without_heads())
    assert "decoder is taken" in taken and "decoder and words are left out" in left_out
    claim_workdir(new)
    assert run_config.read_random_start(new.workdir) == ("text",)
    contrastive = prepared("contrastive")
    assert contrastive.random_start == ("text",)
    assert run_config.untrained_towers(contrastive.config, contrastive.model, ("text",)) == ()


def test_a_run_knows_that_its_weights_had_an_untrained_text_tower(
    run: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    config = json.loads((copy / "config.json").read_text())
    config["weights"]["path"] = "/moved/since"
    (copy / "config.json").write_text(json.dumps(config))
    assert model_source.open_run(copy).untrained == ()  # of a version without the record
    run_config.write_random_start(copy, ("text",))
    source = model_source.open_run(copy)
    assert source.untrained == ("text",)
    notes: list[str] = []
    with pytest.raises(UserError):
        conversion.convert(source, tmp_path / "o.safetensors", "openai", note=notes.append)
    assert not notes  # of what is refused
    conversion.convert(source, tmp_path / "out", "hugging_face", note=notes.append)
    assert any("decoder, which is left out" in note for note in notes)
    assert any("the text tower has random values" in note for note in notes)
    (copy / run_config.START).write_text('{"random": ["txt"]}')
    for path, words in (
        (copy, ["start.json", "txt", "vision, text"]),
        (tmp_path / "none" / "checkpoints" / "best", ["none", "holds no run"]),
    ):
        with pytest.raises(UserError) as caught:
            model_source.open_run(path)
        assert says(caught.value, *words)


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


def test_probes_use_places_where_nothing_trains_what_pools_them(run: Path) -> None:
    frozen = json.loads((run / "config.json").read_text())["optimizer"]["freeze"].split(",")
    assert "vision.projection" in frozen
    assert model_source.open_run(run).places
    model = clip_jax.load(str(run))[0]
    rows = np.zeros((1, 16, 16, 3), np.uint8)
    _, pooled = programs._places(model, rows)
    np.testing.assert_allclose(pooled, model.encode_grid(rows)[1].mean(1), rtol=1e-5)
