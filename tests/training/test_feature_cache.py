"""Features of a frozen image tower, computed once and read in place of pictures."""

import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import runs
from clip_jax import config as config_lib
from clip_jax.data import stored_features
from clip_jax.data.example import PairError
from clip_jax.data.images.decoding import decode
from clip_jax.data.sources import read_pair
from clip_jax.errors import UserError
from clip_jax.training import feature_cache, setup
from clip_jax.training.run import prepare
from clip_jax.training.trainer import Trainer
from steps import mesh_of
from support import encoded, picture, says, write_tar

PAIRS = 20
FLAGS = (
    "--config.data.cache_features=True",
    "--config.optimizer.freeze=vision",
    "--config.model.vision.patch_dropout=0.0",
)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return runs.small_run(tmp_path_factory.mktemp("features"), PAIRS)


@pytest.fixture
def values(config, tmp_path):
    """The config with cached features, which are kept in the test's own folder."""
    c, _ = config_lib.load(str(config))
    c.data.train = str(shutil.copy(c.data.train, tmp_path / "pairs.tar"))
    c.workdir, c.data.cache_features, c.data.features = (
        str(tmp_path / "run"),
        True,
        str(tmp_path / "features"),
    )
    c.optimizer.freeze, c.model.vision.patch_dropout = "vision", 0.0
    return c


def filled(c):
    """A trainer whose features are computed, its state, what it said, and its batches."""
    trainer = Trainer(prepare(c))
    batches = trainer.data()
    state, lines = trainer.fresh(), []
    trainer.fill_feature_cache(state.variables, lines.append)
    return trainer, state, lines, batches


def model_of(trainer, state):
    return nnx.merge(trainer.graph, *state.variables)


def all_features(trainer, pictures=range(PAIRS), views=1):
    (stored,) = trainer.feature_cache.stored
    return np.array([[stored.read(i, v, "x") for v in range(views)] for i in pictures])


def test_without_views_the_features_are_those_of_an_evaluation(values):
    trainer, state, lines, batches = filled(values)
    assert says(lines[0], f"{PAIRS} images", "once")
    source = trainer.run.data.parts[0].source
    pixels = np.stack(
        [
            trainer.feature_cache.preprocess(decode(read_pair(source, i).image, "x"))
            for i in range(PAIRS)
        ]
    )
    expected = model_of(trainer, state).encode_image(pixels, normalized=True)
    np.testing.assert_allclose(all_features(trainer)[:, 0], expected, atol=1e-6)
    batch = next(batches)
    assert batch["image_features"].shape == (8, 8) and "image" not in batch


def test_each_epoch_takes_the_next_of_the_stored_views(values):
    values.data.views = 2
    trainer, state, _, batches = filled(values)
    own = trainer.feature_cache
    source = trainer.run.data.parts[0].source
    pixels = np.stack([own._pixels(source, i, v) for i in range(PAIRS) for v in range(2)])
    assert not np.array_equal(pixels[0], pixels[1])
    expected = np.asarray(model_of(trainer, state).encode_image(pixels, normalized=True))
    features = all_features(trainer, views=2)
    np.testing.assert_allclose(features.reshape(-1, 8), expected, atol=1e-6)
    place = trainer.run.data.place
    for step in range(8):  # three epochs
        rows = next(batches)["image_features"]
        for row in range(8):
            _, epoch, i = place(step * 8 + row, values.seed)
            np.testing.assert_array_equal(rows[row], features[i, epoch % 2])


def test_the_first_loss_is_that_of_the_pictures(values):
    trainer, state, _, batches = filled(values)
    rows = next(batches)
    source = trainer.run.data.parts[0].source
    pairs = [trainer.run.data.place(row, values.seed).pair for row in range(8)]
    pixels = np.stack([trainer.feature_cache._pixels(source, i, 0) for i in pairs])
    model = model_of(trainer, state)
    expected, _ = trainer.objective.loss(
        model(pixels, rows["tokens"])[:2], model, {"tokens": rows["tokens"]}
    )
    placed = trainer.place(rows)
    _, metrics = trainer.compile(placed["tokens"].shape[1])(state, placed)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_a_second_run_reads_what_the_first_computed(values, tmp_path):
    first = all_features(filled(values)[0])
    files = sorted((tmp_path / "features").rglob("*.npy"))
    before = [file.stat().st_mtime_ns for file in files]
    values.workdir = str(tmp_path / "other")
    trainer, _, lines, _ = filled(values)
    assert says(lines[0], "are read from")
    assert [file.stat().st_mtime_ns for file in files] == before
    np.testing.assert_array_equal(all_features(trainer), first)
    values.seed = 1  # other weights
    assert says(filled(values)[2][0], "computing")


def test_another_architecture_with_the_same_weights_has_features_of_its_own(values, tmp_path):
    first = all_features(filled(values)[0])
    values.model.vision.heads, values.workdir = 4, str(tmp_path / "other")
    trainer, _, lines, _ = filled(values)
    assert says(lines[0], "computing")
    assert not np.array_equal(all_features(trainer), first)


def test_a_picture_that_is_written_again_is_encoded_again(values, tmp_path):
    filled(values)
    members = []
    for i in range(PAIRS):
        members.append((f"{i:03}.png", encoded(picture(i + (i == 2), (20, 18)))))
        members.append((f"{i:03}.json", f'{{"caption": "picture {i}"}}'.encode()))
    write_tar(Path(values.data.train), members)
    assert says(filled(values)[2][0], "computing")


def test_a_picture_that_could_not_be_read_once_is_tried_again(values, monkeypatch):
    original = feature_cache.FeatureCache._pixels

    def failing(self, source, i, view):
        if i == 3:
            raise PairError("picture", "the network is down")
        return original(self, source, i, view)

    with monkeypatch.context() as patched:
        patched.setattr(feature_cache.FeatureCache, "_pixels", failing)
        assert says(filled(values)[2][1], "1 image", "cannot be read")
        assert says(filled(values)[2][0], "are read from"), "it still cannot be read"
    trainer, _, lines, _ = filled(values)
    assert says(lines[0], "computing")
    assert np.isfinite(all_features(trainer)).all()


@pytest.mark.parametrize("damage", ["junk", "cut", "no digest"])
def test_a_damaged_file_is_computed_again(values, tmp_path, damage):
    first = all_features(filled(values)[0])
    (file,) = (tmp_path / "features").rglob("*.npy")
    if damage == "junk":
        file.write_bytes(b"x" * file.stat().st_size)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    else:
        file.with_suffix(".json").unlink()
    trainer, _, lines, _ = filled(values)
    assert says(lines[0], "computing")
    np.testing.assert_array_equal(all_features(trainer), first)


def test_files_of_a_few_pictures_are_as_good_as_one(values, monkeypatch, tmp_path):
    first = all_features(filled(values)[0])
    for module in (stored_features, feature_cache):
        monkeypatch.setattr(module, "ROWS", 7)
    shutil.rmtree(tmp_path / "features")
    trainer, *_ = filled(values)
    assert len(list((tmp_path / "features").rglob("*.npy"))) == 3
    np.testing.assert_array_equal(all_features(trainer), first)


def test_a_picture_that_cannot_be_read_is_replaced(values, tmp_path):
    members = []
    for i in range(PAIRS):
        image = b"no picture" if i == 3 else encoded(picture(i, (20, 18)))
        members.append((f"{i:03}.png", image))
        members.append((f"{i:03}.json", f'{{"caption": "picture {i}"}}'.encode()))
    values.data.train = str(write_tar(tmp_path / "broken.tar", members))
    values.data.max_bad_fraction = 1.0
    _, _, lines, batches = filled(values)
    assert says(lines[1], "1 image", "cannot be read")
    bad = 0
    for _ in range(5):
        assert np.isfinite(next(batches)["image_features"]).all()
        bad += int(batches.bad.sum())
    assert bad == 2  # once an epoch


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("optimizer.freeze", "", ["cache_features", "optimizer.freeze=vision"]),
        ("optimizer.freeze", "vision.blocks", ["cache_features", "optimizer.freeze=vision"]),
        ("model.vision.patch_dropout", 0.5, ["patch_dropout=0.5"]),
        ("data.views", -1, ["config.data.views=-1"]),
        ("data.cache_features", False, ["config.data.views=2", "cache_features"]),
    ],
)
def test_nonsense_is_one_line(values, key, value, words):
    if key == "data.cache_features":
        values.data.views = 2
    values.update_from_flattened_dict({key: value})
    with pytest.raises(UserError) as error:
        setup.checked(values)
    assert says(error.value, *words)


def test_a_folder_that_cannot_be_written_is_refused_before_a_device_is_touched(
    values, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    values.data.features = str(tmp_path / "file" / "features")
    monkeypatch.setattr(jax, "device_count", lambda: pytest.fail("a device was touched"))
    with pytest.raises(UserError) as error:
        prepare(values)
    assert says(error.value, values.data.features, "cannot be written", "config.data.features")


def test_features_without_room_are_refused_before_any_is_computed(values, monkeypatch):
    trainer = Trainer(prepare(values))
    trainer.data()
    state, lines = trainer.fresh(), []
    usage = shutil.disk_usage(".")._replace(free=PAIRS * 8 * 4 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError) as error:
        trainer.fill_feature_cache(state.variables, lines.append)
    assert says(error.value, values.data.features, "GiB free", "config.data.features") and not lines


@pytest.mark.slow
def test_killed_and_started_again_it_ends_the_same_to_the_bit(config, tmp_path):
    flags = (*FLAGS, f"--config.data.features={tmp_path / 'features'}", "--config.data.views=2")
    full = tmp_path / "full"
    done = runs.run(config, full, *flags)
    assert done.returncode == 0, done.stderr
    assert "parameters learn" in done.stderr and "computing features" in done.stderr
    killed = tmp_path / "killed"
    runs.run_until(config, killed, 6, signal.SIGKILL, *flags)
    again = runs.run(config, killed, *flags)
    assert again.returncode == 0, again.stderr
    assert runs.values(full) == runs.values(killed)
    ours, theirs = runs.parameters(full), runs.parameters(killed)
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def test_the_step_of_a_run_with_cached_features_has_no_image_tower(values):
    def flops(c):
        recipe = setup.Recipe(*setup.checked(c), mesh_of(dict(data=1)))
        return recipe.lower().compile().cost_analysis()["flops"], recipe.step_flops()

    cached, counted = flops(values)
    values.data.cache_features = False
    pictures, all_counted = flops(values)
    assert cached < pictures and counted < all_counted
