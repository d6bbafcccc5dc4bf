"""TensorFlow Datasets without TensorFlow: the emoji are the tars', and any pairs can be read."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clip_jax.cli import tfds as command
from clip_jax.data import captions, pipeline
from clip_jax.data.example import Pair
from clip_jax.data.images import augmentation, decoding
from clip_jax.data.rows import Prepare
from clip_jax.data.sources import open_source
from clip_jax.data.sources.tars import TarSource
from clip_jax.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")

from clip_jax.data.sources.tfds import prepared  # noqa: E402
from clip_jax.data.sources.tfds.emoji import FAMILIES  # noqa: E402

REPOSITORY = Path(__file__).parents[3]
SPLITS = {"train": 9094, "unseen_drawing": 2843, "unseen_concept": 1346}
STUB = """\
from pathlib import Path
Path(__file__).with_name("imported").touch()
raise ImportError("this tensorflow is a trap")
"""


def png(color: str, mode: str = "RGB") -> io.BytesIO:
    file = io.BytesIO()
    Image.new(mode, (8, 6), color).save(file, "png")
    return io.BytesIO(file.getvalue())


class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set with the features that a test asks for."""

    VERSION = tfds.core.Version("1.0.0")
    FEATURES: dict[str, Any] = {}  # noqa: RUF012
    ROWS: list[dict[str, Any]] = []  # noqa: RUF012

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(self.FEATURES),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from enumerate(self.ROWS)


def toy(folder: Path, features: dict[str, Any], *rows: dict[str, Any], name: str = "toy") -> Path:
    """Prepares rows as a data set; its folder."""
    builder_class = type(
        "Toy",
        (Toy,),
        {"FEATURES": features, "ROWS": list(rows), "name": name, "__module__": __name__},
        skip_registration=True,
    )
    builder = builder_class(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The emoji, prepared by the command beside a TensorFlow that must not be imported."""
    folder = tmp_path_factory.mktemp("tfds")
    trap = folder / "trap" / "tensorflow"
    trap.mkdir(parents=True)
    (trap / "__init__.py").write_text(STUB)
    done = subprocess.run(
        [sys.executable, "-m", "clip_jax", "tfds", "clip_jax_emoji", "--data-dir", folder],
        env=os.environ | {"PYTHONPATH": f"{trap.parent}{os.pathsep}{REPOSITORY}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "train 9,094, unseen_drawing 2,843, unseen_concept 1,346" in done.stdout
    assert f"TFDS_DATA_DIR={folder} " in done.stdout
    assert "--config.data.train='tfds:clip_jax_emoji:train'" in done.stdout
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty TFDS_DATA_DIR."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def emoji_here(emoji: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TFDS_DATA_DIR", str(emoji))
    return emoji


READ = """
import sys
import tensorflow_datasets as tfds
import clip_jax.data.sources.tfds.emoji
from clip_jax.data.sources import open_source

builder = tfds.builder("clip_jax_emoji", data_dir=sys.argv[1], file_format="array_record")
builder.download_and_prepare()
assert builder.as_data_source("train")[0]["image"].shape == (64, 64, 3)
assert open_source("tfds:clip_jax_emoji:train[:50%]")[0].text["name"] == "saxophone"
assert not [name for name in sys.modules if name.split(".")[0] in ("tensorflow", "keras")]
"""


def test_tensorflow_is_never_imported(emoji_here: Path) -> None:
    trap = emoji_here / "trap"
    env = os.environ | {"PYTHONPATH": f"{trap}{os.pathsep}{REPOSITORY}"}
    subprocess.run([sys.executable, "-c", READ, emoji_here], env=env, check=True)
    assert not (trap / "tensorflow" / "imported").exists()


def test_nothing_else_imports_tensorflow_datasets() -> None:
    importing = [
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "clip_jax").rglob("*.py")
        if re.search(r"^\s*(import|from) tensorflow", path.read_text("utf-8"), re.MULTILINE)
    ]
    assert importing == ["clip_jax/data/sources/tfds/library.py"]


@pytest.mark.parametrize("split", SPLITS)
def test_emoji_are_the_tars(emoji_here: Path, split: str) -> None:
    source, tars = (
        open_source(f"tfds:clip_jax_emoji:{split}"),
        TarSource(f"embedded:emoji/{split}-*.tar"),
    )
    assert len(source) == len(tars) == SPLITS[split]
    families = set()
    for i in range(0, len(tars), 1 if split == "unseen_concept" else 7):
        pair, expected = source[i], tars[i]
        assert pair.image == expected.image
        family = pair.text.pop("family")
        assert pair.text == expected.text
        assert expected.name.endswith(f".{family}.webp")
        families.add(family)
    fluent = {"fluent-flat", "fluent-3d"}
    every = set(FAMILIES)
    assert families == {"train": every - fluent, "unseen_drawing": fluent}.get(split, every)


def test_emoji_decode_in_tfds_to_the_same_pixels(emoji: Path) -> None:
    builder = tfds.builder("clip_jax_emoji", data_dir=emoji)
    tars = TarSource("embedded:emoji/unseen_concept-*.tar")
    rows = builder.as_data_source("unseen_concept")
    for i in range(0, len(tars), 50):
        pixels = np.asarray(decoding.decode(tars[i].image, tars[i].name))
        np.testing.assert_array_equal(rows[i]["image"], pixels)
        assert rows[i]["name"].decode() == tars[i].text["name"]
    assert (Path(builder.data_dir) / "LICENSE").read_text("utf-8").count("CC-BY-SA-4.0") >= 2
    assert not builder.info.description.splitlines()[-1].startswith(" ")


def tokenize(text: str, truncate: bool) -> np.ndarray:
    return np.frombuffer(text.encode()[:8].ljust(8), np.uint8).astype(np.int32)[None]


def test_training_reads_the_same_batches_as_from_the_tars(emoji_here: Path) -> None:
    prepare = Prepare(
        tokenize,  # type: ignore[arg-type]
        32,
        ("{name}", "{keywords}, {group}"),
        augmentation.Augment(flip=0.5),
    )
    specs = ("tfds:clip_jax_emoji:train", "embedded:emoji/train-*.tar")
    from_tfds, from_tars = (
        pipeline.batches(open_source(spec), prepare, batch_size=16, seed=3)[5] for spec in specs
    )
    np.testing.assert_array_equal(from_tfds["image"], from_tars["image"])
    np.testing.assert_array_equal(from_tfds["tokens"], from_tars["tokens"])


def test_parts_and_sums_of_splits(emoji_here: Path) -> None:
    train, concept = SPLITS["train"], SPLITS["unseen_concept"]
    sizes = {
        "train[:90%]": round(train * 0.9),
        "train[100:110]+unseen_concept": 10 + concept,
        "all": sum(SPLITS.values()),
    }
    for split, size in sizes.items():
        assert len(open_source(f"tfds:clip_jax_emoji:{split}")) == size
        assert len(open_source(f"tfds:clip_jax_emoji:1.*.*:{split}")) == size
    full = open_source("tfds:clip_jax_emoji:train")
    part = open_source("tfds:clip_jax_emoji:train[100:110]")
    assert part.fingerprint != full.fingerprint
    assert full.fingerprint == open_source("tfds:clip_jax_emoji:train").fingerprint
    assert [pair.image for pair in map(part.__getitem__, range(10))] == [
        full[i].image for i in range(100, 110)
    ]
    with pytest.raises(IndexError):
        part[10]
    with pytest.raises(IndexError):
        part[-1]


def test_source_goes_to_workers_and_threads(emoji_here: Path) -> None:
    source = open_source("tfds:clip_jax_emoji:unseen_concept")
    first = source[7]
    copy = pickle.loads(pickle.dumps(source))
    assert copy[7] == first and len(copy) == len(source) and repr(copy) == repr(source)
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer)[7].text['name'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(source),
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode().strip() == first.text["name"]
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda i: copy[i].text["hexcode"], range(300)))
    assert names == [source[i].text["hexcode"] for i in range(300)]


def test_every_kind_of_text_is_read(here: Path) -> None:
    f = tfds.features
    features = {
        "picture": f.Image(),
        "mask": f.LabeledImage(labels=3, shape=(None, None, 1)),
        "label": f.ClassLabel(names=["cat", "dog"]),
        "label_number": f.ClassLabel(num_classes=3),
        "tags": f.Sequence(f.Text()),
        "labels": f.Sequence(f.ClassLabel(names=["x", "y"])),
        "captions": f.Sequence({"id": f.Scalar(np.int64), "text": f.Text()}),
        "about": f.FeaturesDict({"title": f.Text(), "year": f.Scalar(np.int64)}),
        "pair": f.Tensor(shape=(2,), dtype=np.object_),
        "box": f.BBoxFeature(),
        "embedding": f.Tensor(shape=(4,), dtype=np.float32),
    }
    row = {
        "picture": png("red"),
        "mask": png("white", "L"),
        "label": "dog",
        "label_number": 2,
        "tags": ["ein Hündchen", "b"],
        "labels": ["y", "x"],
        "captions": [{"id": 1, "text": "one"}, {"id": 2, "text": "two"}],
        "about": {"title": "T", "year": 1999},
        "pair": ["p", "q"],
        "box": tfds.features.BBox(0.0, 0.0, 1.0, 1.0),
        "embedding": np.zeros(4, np.float32),
    }
    unlabelled = row | {
        "picture": png("blue"),
        "mask": png("white", "L"),
        "label": -1,
        "tags": [],
        "captions": [],
    }
    toy(here, features, row, unlabelled)
    source = open_source("tfds:toy:train")
    assert repr(source) == "TfdsSource('toy:train', 2 pairs)"
    pair = source[0]
    assert isinstance(pair, Pair) and pair.name == "tfds:toy:train[0]"
    assert decoding.decode(pair.image, pair.name).getpixel((0, 0)) == (255, 0, 0)
    assert pair.text == {
        "label": "dog",
        "label_number": "2",
        "tags": ["ein Hündchen", "b"],
        "labels": ["y", "x"],
        "captions/text": ["one", "two"],
        "caption": ["one", "two"],
        "about/title": "T",
        "pair": ["p", "q"],
    }
    template = "{about/title}: {captions/text}, {caption}"
    assert captions.fill(template, pair.text, pair.name) == "T: one, two, one, two"
    assert "label" not in source[1].text and source[1].text["tags"] == []
    with pytest.raises(UserError, match=r"tfds:toy:train\[1\].*needs the field 'label'"):
        captions.fill("{label}", source[1].text, source[1].name)


@pytest.mark.parametrize(
    ("names", "caption"),
    [
        (["label"], "label"),
        (["text", "id"], "text"),
        (["captions", "text", "id"], "captions"),
        (["caption", "id"], "caption"),
        (["id", "title"], None),
        ([], None),
    ],
)
def test_caption_stands_for_the_obvious_text(
    here: Path, names: list[str], caption: str | None
) -> None:
    features = {"image": tfds.features.Image()} | {name: tfds.features.Text() for name in names}
    toy(here, features, {"image": png("red")} | {name: f"a {name}" for name in names})
    expected = {name: f"a {name}" for name in names}
    if caption:
        expected["caption"] = f"a {caption}"
    assert open_source("tfds:toy:train")[0].text == expected


def test_version_and_configuration_are_chosen(here: Path) -> None:
    def place(target: str, color: str) -> None:
        prepared = toy(here / "made" / color, features, {"image": png(color), "text": color})
        shutil.copytree(prepared, here / target)

    features = {"image": tfds.features.Image(), "text": tfds.features.Text()}
    place("plain/1.9.0", "red")
    place("plain/1.10.0", "green")
    shutil.copytree(here / "plain/1.9.0", here / "plain/incomplete.AAAAAA_2.0.0")
    place("several/small/1.0.0", "blue")
    place("several/big-2.x/1.0.0", "white")

    def text(name: str) -> str:
        return open_source(f"tfds:{name}:train")[0].text["text"]

    assert text("plain") == text("plain:1.10.0") == "green"
    assert text("plain:1.9.0") == text("plain:1.9.*") == "red"
    assert text("several/small") == text("several/small:1.0.0") == "blue"
    assert text("several/big-2.x") == "white"
    with pytest.raises(UserError, match=r"several config.*several/big-2\.x, several/small$"):
        text("several")
    with pytest.raises(UserError, match=r"is not prepared in .*\(plain:1\.10\.0, plain:1\.9\.0 is"):
        text("plain:2.0.0")
    with pytest.raises(UserError, match=r"is not prepared in .*several/small:1\.0\.0"):
        text("several/other")


def line(spec: str) -> str:
    with pytest.raises(UserError) as caught:
        open_source(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "spec", ["tfds:mnist", "tfds::train", "tfds:mnist:", "tfds:mnist:train[:5"]
)
def test_an_invalid_spec_is_refused(here: Path, spec: str) -> None:
    assert "is not tfds:NAME:SPLIT" in line(spec)


def test_unknown_names_are_refused(here: Path) -> None:
    assert "names no data set" in line("tfds:two words:train")
    assert "has no 'mnits'" in line("tfds:mnits:train")
    assert line("tfds:mnits:train").endswith("did you mean mnist?")
    assert "did you mean" not in line("tfds:qqqqqqqq:train")


def test_not_prepared(here: Path) -> None:
    for name in ("clip_jax_emoji", "mnist", "mnist:3.0.1"):
        command = f"python -m clip_jax tfds {name} --data-dir {here}"
        assert f"{name} is not prepared in {here}: run {command}" in line(f"tfds:{name}:test")


def test_unknown_split(emoji_here: Path) -> None:
    for split in ("test", "train[5:3]", "train[20000:]", "train[5]", "train[0:0]", "train[x]"):
        message = line(f"tfds:clip_jax_emoji:{split}")
        assert f"no split {split!r}" in message
        assert all(known in message for known in SPLITS)


def test_prepared_for_tensorflow(here: Path) -> None:
    folder = toy(here, {"image": tfds.features.Image()}, {"image": png("red")})
    info = folder / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    message = line("tfds:toy:train")
    assert f"{folder} is prepared as tfrecord, which needs TensorFlow" in message
    assert "python -m clip_jax tfds toy --data-dir" in message
    assert "file_format='array_record'" in message


def test_the_image_feature_must_be_clear(here: Path) -> None:
    f = tfds.features
    toy(here, {"text": f.Text(), "id": f.Text()}, {"text": "a", "id": "b"}, name="words")
    assert line("tfds:words:train") == "words has no image feature; it has: id, text"
    two = {"left": f.Image(), "right": f.Image()}
    toy(here, two, {"left": png("red"), "right": png("blue")}, name="stereo")
    assert line("tfds:stereo:train").endswith("none is called image: left, right")
    three = two | {"image": f.Image()}
    row = {"left": png("red"), "right": png("blue"), "image": png("lime")}
    toy(here, three, row, name="three")
    pair = open_source("tfds:three:train")[0]
    assert decoding.decode(pair.image, pair.name).getpixel((0, 0)) == (0, 255, 0)


def test_a_folder_that_is_damaged(here: Path) -> None:
    folder = toy(here, {"image": tfds.features.Image()}, {"image": png("red")})
    records = next(folder.glob("*train.array_record*"))
    content = records.read_bytes()
    records.write_bytes(content[:10_000])
    source = open_source("tfds:toy:train")
    with pytest.raises(UserError, match=r"tfds:toy:train\[0\] cannot be read"):
        source[0]
    records.unlink()
    with pytest.raises(UserError, match=r"tfds:toy:train\[0\] cannot be read"):
        open_source("tfds:toy:train")[0]
    (folder / "dataset_info.json").write_text("{")
    assert "cannot be read as a prepared data set" in line("tfds:toy:train")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    for name in ("library", "emoji", "features", "prepared", "source"):
        monkeypatch.delitem(sys.modules, f"clip_jax.data.sources.tfds.{name}")
    assert "pip install 'clip_jax[tfds]'" in line("tfds:clip_jax_emoji:train")


def test_the_command_reports_mistakes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.run(["--help"])
    assert "--data-dir" in capsys.readouterr().out
    with pytest.raises(UserError, match="NAME"):
        command.run([])
    with pytest.raises(UserError, match="did you mean mnist"):
        command.run(["mnits"])
    with pytest.raises(UserError, match=r"imagenet2012 cannot be prepared .*Manual directory"):
        command.run(["imagenet2012"])


def test_the_command_leaves_prepared_datasets_alone(
    emoji_here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = emoji_here / "clip_jax_emoji" / "1.0.0" / "dataset_info.json"
    before = info.stat().st_mtime_ns
    assert command.run(["clip_jax_emoji"]) == 0
    assert info.stat().st_mtime_ns == before
    assert "train 9,094" in capsys.readouterr().out


def test_a_data_set_whose_code_needs_tensorflow(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str, **_: Any) -> None:
        raise ImportError("No module named 'tensorflow'")

    monkeypatch.setattr(tfds, "builder", fail)
    with pytest.raises(UserError, match="whose own code needs TensorFlow to prepare"):
        prepared.prepare("mnist", str(here))
