"""Karpathy's splits as training data."""

import json

import pytest

from clip_jax import config as config_lib
from clip_jax.data.sources import open_source, read_pair
from clip_jax.errors import UserError
from clip_jax.training import setup
from support import encoded, picture, says


@pytest.fixture
def folder(tmp_path):
    """A COCO in miniature: two pictures for training, one of `restval`, one for the test."""
    splits = dict(zip("abcd", ("train", "train", "restval", "test"), strict=True))
    images = []
    for number, (name, split) in enumerate(splits.items()):
        part = "train2014" if split == "train" else "val2014"
        (tmp_path / part).mkdir(exist_ok=True)
        (tmp_path / part / f"{name}.png").write_bytes(encoded(picture(number)))
        sentences = [{"raw": f"{name} {i}"} for i in range(5)]
        images.append(
            {"filename": f"{name}.png", "filepath": part, "split": split, "sentences": sentences}
        )
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images}))
    return tmp_path


@pytest.mark.parametrize(
    ("suffix", "first_captions"),
    [("", ["a 0", "b 0"]), (":train+restval", ["a 0", "b 0", "c 0"]), (":test", ["d 0"])],
)
def test_splits_are_chosen_behind_a_colon(folder, suffix, first_captions):
    source = open_source(f"{folder}/dataset_coco.json{suffix}")
    pairs = [read_pair(source, i) for i in range(len(source))]
    assert [pair.text["caption"][0] for pair in pairs] == first_captions
    assert all(len(pair.text["captions"]) == 5 and pair.image for pair in pairs)


def test_the_splits_have_fingerprints_of_their_own(folder):
    path = f"{folder}/dataset_coco.json"
    specs = (path, f"{path}:train+restval", f"{path}:test")
    assert len({open_source(spec).fingerprint for spec in specs}) == 3
    assert open_source(path).fingerprint == open_source(f"{path}:train").fingerprint


def test_an_unknown_split_names_those_that_exist(folder):
    with pytest.raises(UserError) as error:
        open_source(f"{folder}/dataset_coco.json:train+dev")
    assert says(error.value, "dataset_coco.json", "'dev'", "restval, test, train")


@pytest.mark.parametrize("name", ["finetune_flickr30k", "finetune_coco"])
def test_the_configs_are_aligns_recipe(name, folder):
    c, _ = config_lib.load(name)
    c.data.train = f"{folder}/dataset_coco.json"
    checked, _, _ = setup.checked(c)
    assert (checked.batch_size, checked.optimizer.learning_rate) == (2_048, 1e-5)
    assert checked.steps == (3_000 if name == "finetune_flickr30k" else 6_000)
    assert checked.optimizer.schedule == "linear"
