"""What a run says of itself at its start and end is so."""

import shlex
import shutil

import pytest

import runs
from clip_jax import main
from clip_jax.evaluation.datasets import dataset_loader
from clip_jax.training import checkpointing
from support import encoded, picture, refused, write_tar


def lines_of(capsys, config, workdir, *flags):
    assert main.run(runs.command(config, workdir, *flags)[3:]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_small_batches_are_announced_and_the_end_names_written_files(tmp_path, capsys):
    config = runs.small_run(tmp_path, 9)
    workdir = tmp_path / "a run"
    flags = ("--config.steps=1", "--config.optimizer.warmup_steps=0", "--config.log.every=1")
    bare = ("--config.evaluate.sets={}", "--config.log.tensorboard=False")
    out, err = lines_of(capsys, config, workdir, "--config.batch_size=16", *flags, *bare)
    (line,) = [line for line in err.splitlines() if "own negative" in line]
    assert line.startswith("an epoch of 9 pairs is smaller than a batch of 16: ")
    assert "lower config.batch_size" in line
    assert f"--checkpoint {shlex.quote(str(workdir))} " in out
    assert not any(word in out for word in ("report.html", "tensorboard", "own tars"))
    # nothing is written by a run that is done, whatever its flags
    out, _ = lines_of(capsys, config, workdir, "--config.batch_size=16", *flags, bare[0])
    assert "report.html" not in out


def test_several_captions_of_a_picture_are_announced_and_can_be_positives(tmp_path, capsys):
    runs.small_run(tmp_path, 16)
    names = [(f"{i}.png", encoded(picture(i // 4))) for i in range(16)]
    texts = [(f"{i}.txt", f"picture {i}".encode()) for i in range(16)]
    write_tar(tmp_path / "pairs.tar", sorted(names + texts))
    flags = ("--config.steps=1", "--config.optimizer.warmup_steps=0", "--config.evaluate.sets={}")
    flags = (*flags, "--config.batch_size=16")
    _, err = lines_of(capsys, tmp_path / "config.py", tmp_path / "as negatives", *flags)
    facts = "an image has 4 pairs: beside a pair, a batch holds on average 3 others of its image"
    assert f"{facts}, which count as negatives; config.loss.multi_positive=True" in err
    both = (*flags, "--config.loss.multi_positive=True", "--config.accumulate=2")
    _, err = lines_of(capsys, tmp_path / "config.py", tmp_path / "as positives", *both)
    assert f"{facts}, which count as positives\n" in err
    usual, several = (
        [line["loss"] for line in runs.lines(tmp_path / name) if "loss" in line]
        for name in ("as negatives", "as positives")
    )
    # a fresh model finds every candidate about as likely: log n, whatever the positives are
    assert usual[0] != several[0] and abs(usual[0] - several[0]) < 0.5


def test_a_full_batch_is_not_announced_and_all_written_files_are_named(tmp_path, capsys):
    config = runs.small_run(tmp_path, 8)
    sets = f"--config.evaluate.sets={{'mine': {{'data': {str(tmp_path / 'pairs.tar')!r}}}}}"
    flags = ("--config.steps=1", "--config.optimizer.warmup_steps=0", sets)
    out, err = lines_of(capsys, config, tmp_path / "run", *flags)
    assert "own negative" not in err
    assert "begins anew" not in err
    assert "retrieval/mine/image_to_text/r1" in err and "zero_shot" not in err
    for name in ("report.html", "tensorboard"):
        assert name in out and (tmp_path / "run" / name).exists()
    _swapped_and_missing_checkpoints(tmp_path, config, flags, capsys)


def _swapped_and_missing_checkpoints(folder, config, flags, capsys):
    """On the run of the test above, which is there already."""
    mine, other = (folder / name / checkpointing.FOLDER for name in ("run", "other"))
    lines_of(capsys, config, other.parent, *flags, "--config.seed=5")

    def again():
        main.run(runs.command(config, mine.parent, *flags)[3:])

    for keep_config in (True, False):
        shutil.rmtree(mine)
        shutil.copytree(other, mine)
        if not keep_config:
            (mine.parent / checkpointing.CONFIG).unlink()
        refused(again, mine / "1", "another config", "seed: 5")
    shutil.rmtree(mine)
    mine.symlink_to("/nonexistent")
    refused(again, mine, "no folder")
    mine.unlink()
    _, err = lines_of(capsys, config, mine.parent, *flags)
    assert "holds metrics up to step 1 and no checkpoint: the run begins anew" in err


@pytest.mark.parametrize(
    ("ending", "text", "metric"),
    [
        ("txt", b"two cats on a sofa", "retrieval"),
        ("json", b'{"caption": "two cats", "class": "cat"}', "retrieval"),
        ("json", b'{"caption": "two cats", "label": "cat"}', "accuracy"),
    ],
)
def test_a_set_of_captions_without_labels_is_one_of_retrieval(ending, text, metric, tmp_path):
    members = []
    for i in range(3):
        members += [(f"{i}.png", encoded(picture(i))), (f"{i}.{ending}", text)]
    tar = write_tar(tmp_path / "a.tar", members)
    dataset = dataset_loader.open_dataset(
        "mine", {"data": str(tar)}, "", templates=("{}",), caption="{caption}"
    )
    assert dataset.metric == metric
