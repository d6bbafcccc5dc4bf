"""Loading a finished run: the library's front and the classify command."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import clip_jax
import runs
from clip_jax import main
from clip_jax.cli import classify, labels
from clip_jax.errors import UserError
from clip_jax.inference.heatmap import similarity_maps
from clip_jax.models.clip import variables
from support import encoded, picture, says, write_tar


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run of a few steps."""
    folder = tmp_path_factory.mktemp("use")
    members = []
    for i in range(16):
        members.append((f"{i:03}.png", encoded(picture(i, (20, 18)))))
        members.append((f"{i:03}.json", f'{{"caption": "picture {i}"}}'.encode()))
    config = runs.write_config(folder, write_tar(folder / "pairs.tar", members), 16)
    done = runs.run(config, folder / "run", "--config.steps=4")
    assert done.returncode == 0, done.stderr
    assert "what to try next" in done.stdout and "clip_jax classify" in done.stdout
    return folder / "run"


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "cat.png"
    picture(3, (40, 30)).save(path)
    return path


def test_the_four_lines_of_the_readme(run, image):
    model, preprocess, tokenize = clip_jax.load(str(run))
    pixels = preprocess(Image.open(image))[None]
    assert pixels.shape == (1, 16, 16, 3) and pixels.dtype == np.uint8
    tokens = tokenize(["a cat", "a dog"])
    assert tokens.shape == (2, 8)
    similarity = (
        model.encode_image(pixels, normalized=True) @ model.encode_text(tokens, normalized=True).T
    )
    assert similarity.shape == (1, 2) and abs(similarity).max() <= 1 + 1e-5
    assert "16px/8" in repr(model) and "parameters" in repr(model) and "\n" not in repr(model)


def test_a_checkpoint_of_a_step_can_be_named(run):
    newest, _, _ = clip_jax.load(str(run))
    named, _, _ = clip_jax.load(str(run / "checkpoints" / "4"))
    np.testing.assert_array_equal(newest.logit_scale[...], named.logit_scale[...])


def test_options_of_files_hold_for_runs(run):
    half, _, _ = clip_jax.load(run, params="bfloat16")
    assert {str(x.dtype) for x in jax.tree.leaves(variables(half)[0])} == {"bfloat16"}
    with pytest.raises(UserError, match="trained with quick_gelu"):
        clip_jax.load(run, activation="gelu")
    with pytest.raises(UserError, match="is a run"):
        clip_jax.load("ViT-B/32", weights=run)


def test_loading_changes_nothing_in_the_folder(run):
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    clip_jax.load(str(run))
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def test_scores_add_up_and_are_the_softmax_of_scaled_cosines(run, image):
    (scores,) = classify.classify(str(run), [str(image)], ["a cat", "a dog", "a car"])
    assert [s["score"] for s in scores] == sorted((s["score"] for s in scores), reverse=True)
    assert sum(s["score"] for s in scores) == pytest.approx(1, abs=1e-5)
    model, preprocess, tokenize = clip_jax.load(str(run))
    cosine = (
        model.encode_text(tokenize(["a cat", "a dog", "a car"]), normalized=True)
        @ (model.encode_image(preprocess(Image.open(image))[None], normalized=True)[0])
    )
    expected = np.exp(np.asarray(cosine) * np.exp(float(model.logit_scale[...])))
    expected = dict(zip(["a cat", "a dog", "a car"], expected / expected.sum(), strict=True))
    for item in scores:
        assert item["score"] == pytest.approx(expected[item["label"]], rel=1e-4)


def test_the_command_prints_labels_or_json(run, image):
    command = [sys.executable, "-m", "clip_jax", "classify", "--checkpoint", str(run), str(image)]
    command += ["--labels", "a cat,a dog"]
    shown = subprocess.run(command, env=runs.environment(), capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    rows = [line.split("%  ") for line in shown.stdout.splitlines()]
    assert {label for _, label in rows} == {"a cat", "a dog"}
    assert float(rows[0][0]) >= float(rows[1][0])
    machine = subprocess.run(
        [*command, "--json"], env=runs.environment(), capture_output=True, text=True
    )
    items = json.loads(machine.stdout)
    assert [item["label"] for item in items] == [label for _, label in rows]


def test_heatmaps_show_the_patches_of_each_image(run, image, tmp_path, capsys):
    """Two images of one name get two files; a tile for the image and one for each label."""
    (tmp_path / "more").mkdir()
    second = tmp_path / "more" / "cat.png"
    picture(5, (30, 40)).save(second)
    argv = ["--checkpoint", str(run), str(image), str(second), "--labels", "a cat,a dog,a car"]
    assert classify.run([*argv, "--heatmap", str(tmp_path / "maps")]) == 0
    assert "a dog" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert names == ["cat-2.png", "cat.png"]
    drawn = [np.asarray(Image.open(tmp_path / "maps" / name)) for name in names]
    assert drawn[0].shape == (268, 956, 3) and (drawn[0] != drawn[1]).any()


def test_a_heatmap_is_bright_where_a_patch_is_like_the_text(run):
    model, preprocess, _ = clip_jax.load(str(run))
    pixels = preprocess(picture(2, (40, 30)))
    patches = np.asarray(model.encode_image(pixels[None], output="patches", normalized=True))[0]
    maps = similarity_maps(model, pixels, patches[[2]])
    assert maps.shape == (1, 2, 2) and np.argmax(maps) == 2
    np.testing.assert_allclose(maps.max(), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--labels", "a,b"], ["IMAGE"]),
        (["nowhere.png", "--labels", "a,b"], ["nowhere.png"]),
        (["{image}", "--labels", ","], ["--labels"]),
        (["{image}", "--labels", "a,b", "--batch-size", "0"], ["--batch-size"]),
        (["{image}", "--labels", "@nowhere.txt"], ["nowhere.txt"]),
        (["{image}", "--labels", "a", "--templates", "a photo"], ["a photo", "{}"]),
        (["{image}", "--labels", "a", "--top", "0"], ["--top"]),
        (["{broken}", "--labels", "a"], ["broken.png"]),
        (["{image}", "--labels", "a,b", "--heatmap", "{broken}"], ["--heatmap", "no folder"]),
        (["{image}", "--caption", "--heatmap", "x"], ["--heatmap is for labels"]),
    ],
)
def test_mistakes_are_one_line_errors(run, image, tmp_path, argv, words):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    argv = [a.format(image=image, broken=broken) if a[0] == "{" else a for a in argv]
    with pytest.raises(UserError) as caught:
        classify.run(["--checkpoint", str(run), *argv])
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_labels_from_a_file(tmp_path):
    (tmp_path / "lines.txt").write_text("a cat\n\n a dog \n")
    (tmp_path / "list.json").write_text('["a cat", "a dog, perhaps"]')
    assert labels.read_labels(f"@{tmp_path / 'lines.txt'}") == ["a cat", "a dog"]
    assert labels.read_labels(f"@{tmp_path / 'list.json'}") == ["a cat", "a dog, perhaps"]


def test_a_folder_that_is_not_a_run(tmp_path, run):
    with pytest.raises(UserError, match="no run or model at"):
        clip_jax.load(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"no config\.json"):
        clip_jax.load(str(tmp_path))
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    with pytest.raises(UserError, match="no checkpoint yet"):
        clip_jax.load(str(tmp_path))


def test_evaluating_a_folder_that_is_not_a_run(tmp_path, run):
    config = run.parent / "config.py"
    with pytest.raises(UserError, match=r"no config\.json"):
        main.run(["--config", str(config), "--workdir", str(tmp_path), "--mode=evaluate"])


def test_clips_own_tokens_and_models_by_name():
    tokens = clip_jax.tokenize("a photo of a cat.")
    assert tokens[0, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, 269, 49407]
    assert tokens.shape == (1, 77)
    assert "ViT-B/32" in clip_jax.available_models()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xef\xbb\xbfa cat\r\na dog\r\n", ["a cat", "a dog"]),
        (b'\xef\xbb\xbf["a cat"]', ["a cat"]),
        (b'{"10": "a dog", "9": "a cat"}', ["a cat", "a dog"]),
        (b"a dog, running\n", ["a dog, running"]),
        (b'"a dog, running"\n"a ""cat"""\n"no" end\n', ["a dog, running", 'a "cat"', '"no" end']),
    ],
)
def test_label_files(tmp_path, content, expected):
    (tmp_path / "labels").write_bytes(content)
    assert labels.read_labels(f"@{tmp_path / 'labels'}") == expected
    assert labels.read_labels('a cat,"a dog, running"') == ["a cat", "a dog, running"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'[["a cat"], "a dog"]', ["must be a text", "a cat"]),
        (b'["a cat", null]', ["must be a text", "None"]),
        (b'{"cat": 3}', ["object", "list of labels"]),
        (b'{"0": ["n01440764", "tench"]}', ["must be a text", "tench"]),
        (b"[" * 100_000, ["not JSON"]),
        (b"[" + b"9" * 5000 + b"]", ["not JSON"]),
        ("a cat".encode("utf-16"), ["UTF-8"]),
        (b"\n\n", ["labels", "empty"]),
        (b'{"0": "a cat", "0": "a dog"}', ["labels", "twice"]),
        (b'{"0": "a cat", "00": "a dog"}', ["labels", "same number"]),
        (b"0\ta cat\n1\ta dog\n", ["is a table", "a label a line"]),
        (b"0,a cat\n1,a dog\n", ["is a table", "0,a cat"]),
        (b"x" * (5 << 20), ["over 4 MiB"]),
    ],
)
def test_files_that_hold_no_labels(tmp_path, content, words):
    (tmp_path / "labels").write_bytes(content)
    with pytest.raises(UserError) as caught:
        labels.read_labels(f"@{tmp_path / 'labels'}")
    assert says(caught.value, *words)


def test_devices_and_pipes_are_no_label_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", tmp_path / "pipe", tmp_path):
        with pytest.raises(UserError, match="no plain file"):
            labels.read_labels(f"@{path}")


def test_folders_patterns_and_broken_pictures(run, tmp_path, capsys):
    for name in ("a/2.png", "a/b/1.jpg", "c[1].png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(1, (20, 18)).save(tmp_path / name)
    (tmp_path / "a" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / "._2.png").write_bytes(b"what macOS leaves")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    patterns = [str(tmp_path / "a"), str(tmp_path / "*.png"), str(tmp_path / "c[1].png")]
    paths = [os.path.relpath(path, tmp_path) for path in classify.find_images(patterns)]
    assert paths == ["a/2.png", "a/b/1.jpg", "a/broken.png", "c[1].png", "c[1].png"]
    argv = ["--checkpoint", str(run), *patterns, "--labels", "a,b"]
    with pytest.raises(UserError, match=r"broken\.png"):
        classify.run(argv)
    capsys.readouterr()
    assert classify.run([*argv, "--skip-broken", "--json", "--batch-size", "2"]) == 3
    shown = capsys.readouterr()
    answers = [json.loads(line) for line in shown.out.splitlines()]
    assert [answer is None for answer in answers] == [False, False, True, False, False]
    assert "skipped: " in shown.err and "1 of 5" in shown.err
    assert "left out 1 file without" in shown.err and "notes.txt" in shown.err
    (tmp_path / "empty").mkdir()
    for name, words in (("empty", "holds no images"), ("e*y", "no file matches")):
        with pytest.raises(UserError, match=words):
            classify.find_images([str(tmp_path / name)])
    with pytest.raises(UserError, match="IMAGE is empty"):
        classify.find_images([""])


def test_notes_of_the_command(run, image, capsys):
    argv = ["--checkpoint", str(run), str(image), "--labels"]
    assert classify.run([*argv, "a,a"]) == 0
    err = capsys.readouterr().err
    assert "'a' given more than once" in err and "100 %" in err
    assert classify.run([*argv, "a,b", "--truncate", "--templates", "{} " + "word " * 99]) == 0
    with pytest.raises(UserError, match="--truncate"):
        classify.run([*argv, "a,b", "--templates", "{} " + "word " * 99])
