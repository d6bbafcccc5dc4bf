"""The embedded emoji: complete, readable, and nothing tested on was trained on."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "clip_jax" / "data" / "emoji"
SEEN = {"noto", "noto-v1", "twemoji", "openmoji", "emojione", "emojione-v1", "fxemoji"}
UNSEEN = {"fluent-flat", "fluent-3d"}
SPLITS = ("train", "unseen_drawing", "unseen_concept")


@dataclasses.dataclass
class Concept:
    """A sample of a tar: its text, and its pictures as arrays by family."""

    key: str
    text: dict[str, Any]
    pictures: dict[str, np.ndarray]


def read_tar(path: Path) -> list[Concept]:
    concepts: list[Concept] = []
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            key, extension = member.name.split(".", 1)
            if extension == "json":
                concepts.append(Concept(key, json.loads(file.read()), {}))
                continue
            family, kind = extension.split(".")
            assert kind == "webp"
            assert concepts[-1].key == key, "a concept's members stand together, its text first"
            with Image.open(io.BytesIO(file.read())) as image:
                concepts[-1].pictures[family] = np.asarray(image.convert("RGB"))
    return concepts


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Concept]]:
    return {
        split: [
            sample for path in sorted(FOLDER.glob(f"{split}-*.tar")) for sample in read_tar(path)
        ]
        for split in SPLITS
    }


@pytest.fixture(scope="module")
def labels() -> dict[str, list[str]]:
    return json.loads((FOLDER / "labels.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "build_emoji", REPOSITORY / "tools" / "build_emoji.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# --- No leak. The rules below are written without a look at the tool's own. -----------------------


def code_stem(key: str) -> str:
    """Code points with every modifier gone: tone, gender, hair, direction, presentation."""
    key = re.sub(r"-1f3f[b-f]\b", "", key)
    key = re.sub(r"-200d-(2640|2642|27a1|1f9b[0-3])\b", "", key.replace("-fe0f", ""))
    return re.sub(r"\b(1f468|1f469|1f9d1)\b", "person", key)


def name_stem(name: str) -> str:
    """A name with its words of gender, direction and tone gone."""
    name = re.sub(r"\b(wo)?m[ae]n('s)?\b|\b(person|people|boys?|girls?)\b", "", name)
    name = re.sub(r"\b(facing |pointing |tilted )?(left|right|up|down)(wards)?\b", "", name)
    name = re.sub(r"\b(light|dark|medium)(-\w+)? skin tone\b|\b(red|curly|white) hair\b", "", name)
    return re.sub(r"[\s:,-]+", " ", name).strip()


def test_stems_put_variants_together() -> None:
    assert code_stem("1f3c3-200d-2642-fe0f-200d-27a1-fe0f") == code_stem("1f3c3-1f3fd-200d-2640")
    assert code_stem("1f468-200d-1f9b0") == code_stem("1f9d1-1f3fb")
    assert code_stem("1f469-200d-1f692") == code_stem("1f9d1-200d-1f692")
    assert code_stem("1f692") != code_stem("1f469-200d-1f692")
    assert name_stem("woman running: facing right") == name_stem("man running")
    assert name_stem("men's room") == name_stem("women's room")
    assert name_stem("leftwards hand") == name_stem("rightwards hand")
    assert name_stem("woman: red hair") == name_stem("man: curly hair")
    assert name_stem("red heart") != name_stem("green heart")


@pytest.mark.parametrize("stem", [code_stem, name_stem])
def test_no_variant_of_an_unseen_concept_is_trained_on(splits: dict, stem: Any) -> None:
    identify = (
        (lambda sample: sample.key) if stem is code_stem else (lambda sample: sample.text["name"])
    )
    trained = {stem(identify(sample)): sample.text["name"] for sample in splits["train"]}
    leaks = {
        sample.text["name"]: trained[stem(identify(sample))]
        for sample in splits["unseen_concept"]
        if stem(identify(sample)) in trained
    }
    assert not leaks


def test_no_family_of_variants_is_split(splits: dict) -> None:
    trained = {sample.text["variants_of"] for sample in splits["train"]}
    unseen = {sample.text["variants_of"] for sample in splits["unseen_concept"]}
    assert not trained & unseen
    assert len(unseen) >= 100
    assert (
        max(Counter(sample.text["variants_of"] for sample in splits["unseen_concept"]).values())
        <= 6
    )


@pytest.mark.parametrize(
    "variants",
    [
        ["santa claus", "mrs. claus", "mx claus"],
        ["prince", "princess", "person with crown"],
        ["merman", "mermaid", "merperson"],
        ["pregnant man", "pregnant woman", "pregnant person"],
        ["man in tuxedo", "woman in tuxedo", "person in tuxedo"],
        ["man dancing", "woman dancing"],
        ["left-facing fist", "right-facing fist"],
        ["backhand index pointing left", "backhand index pointing up"],
        ["magnifying glass tilted left", "magnifying glass tilted right"],
        ["left arrow", "right arrow"],
        ["female sign", "male sign"],
        ["flag: norway", "flag: bouvet island", "flag: svalbard & jan mayen"],
    ],
)
def test_irregular_variants_share_a_family(splits: dict, variants: list[str]) -> None:
    family = {
        sample.text["name"]: sample.text["variants_of"]
        for sample in splits["train"] + splits["unseen_concept"]
    }
    assert len({family[name] for name in variants}) == 1


def test_no_picture_of_an_unseen_concept_is_trained_on(splits: dict) -> None:
    """Not under another name either: no picture of the same set is all but the same."""
    for family in sorted(SEEN):
        trained = [sample for sample in splits["train"] if family in sample.pictures]
        small = np.stack([shrink(sample.pictures[family]) for sample in trained])
        for sample in splits["unseen_concept"]:
            if family in sample.pictures:
                distance = np.abs(small - shrink(sample.pictures[family])).mean(axis=1)
                nearest = int(distance.argmin())
                names = sample.text["name"], trained[nearest].text["name"]
                assert distance[nearest] > 1.0, (family, *names)


def shrink(picture: np.ndarray) -> np.ndarray:
    """16×16, as a vector."""
    return picture.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3), dtype=np.float32).ravel()


def test_no_fluent_drawing_is_trained_on(splits: dict) -> None:
    assert {family for sample in splits["train"] for family in sample.pictures} == SEEN
    assert {family for sample in splits["unseen_drawing"] for family in sample.pictures} == UNSEEN
    trained = {sample.key: sample.pictures for sample in splits["train"]}
    for sample in splits["unseen_drawing"]:
        drawings = np.stack(list(trained[sample.key].values())).astype(np.float32)
        for family, picture in sample.pictures.items():
            distance = np.abs(drawings - picture).mean(axis=(1, 2, 3))
            assert distance.min() > 2.0, (sample.text["name"], family)


# --- What is there --------------------------------------------------------------------------------


def test_every_sample_is_whole(splits: dict) -> None:
    fields = {"name", "keywords", "hexcode", "group", "variants_of"}
    for split, concepts in splits.items():
        for sample in concepts:
            assert set(sample.text) == fields
            assert sample.text["hexcode"].lower() == sample.key
            assert sample.text["name"] == sample.text["name"].lower().strip() != ""
            assert all(isinstance(word, str) and word for word in sample.text["keywords"])
            assert sample.pictures, (split, sample.key)
            for family, picture in sample.pictures.items():
                assert picture.shape == (64, 64, 3), (sample.key, family)
                assert picture.std() > 1, f"{sample.key}.{family} is blank"
    keys = [sample.key for sample in splits["train"] + splits["unseen_concept"]]
    assert len(keys) == len(set(keys))
    assert {sample.key for sample in splits["unseen_drawing"]} <= {
        sample.key for sample in splits["train"]
    }


def test_counts(splits: dict) -> None:
    assert len(splits["train"]) + len(splits["unseen_concept"]) == 1914
    assert 180 <= len(splits["unseen_concept"]) <= 200
    assert len({sample.text["group"] for sample in splits["unseen_concept"]}) == 9
    every = splits["train"] + splits["unseen_concept"] + splits["unseen_drawing"]
    counts = Counter(family for sample in every for family in sample.pictures)
    assert counts == {
        "noto": 1653,
        "noto-v1": 1228,
        "twemoji": 1914,
        "openmoji": 1913,
        "emojione": 1370,
        "emojione-v1": 1165,
        "fxemoji": 875,
        "fluent-flat": 1595,
        "fluent-3d": 1570,
    }


def test_training_shards_are_alike(splits: dict) -> None:
    sizes = [path.stat().st_size for path in sorted(FOLDER.glob("train-*.tar"))]
    assert len(sizes) == 4
    assert max(sizes) < 1.1 * min(sizes)
    groups = [sample.text["group"] for sample in splits["train"][:200]]
    assert len(set(groups)) == 9, "concepts are shuffled over shards"


def test_labels_name_every_concept_once(splits: dict, labels: dict) -> None:
    assert set(labels) == {"unseen_drawing", "unseen_concept"}
    for names in labels.values():
        assert len(names) == len(set(names))
    trained = {sample.text["name"] for sample in splits["train"]}
    unseen = {sample.text["name"] for sample in splits["unseen_concept"]}
    assert set(labels["unseen_concept"]) == unseen
    assert set(labels["unseen_drawing"]) == trained | unseen
    assert labels["unseen_drawing"][0] == "grinning face", "in Unicode's order"


def test_the_folder_is_small_and_says_whose_it_is() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 20e6
    licences = (FOLDER / "LICENSES.md").read_text("utf-8")
    for family in SEEN | UNSEEN:
        assert f"| {family} |" in licences
    for licence in ("Apache-2.0", "CC-BY-4.0", "CC-BY-SA-4.0", "MIT"):
        assert licence in licences


def test_the_vocabulary_covers_the_captions(splits: dict) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / "emoji.model"))
    assert 1000 <= model.vocab_size() <= 2500
    for sample in splits["train"] + splits["unseen_concept"]:
        text = ", ".join([sample.text["name"], *sample.text["keywords"]])
        assert model.unk_id() not in model.encode(text), text
    pieces = [len(model.encode(sample.text["name"])) for sample in splits["train"]]
    assert np.mean(pieces) < 6


# --- The tool -------------------------------------------------------------------------------------


def make_samples(tool: ModuleType, count: int) -> list[Any]:
    return [
        tool.Sample(
            emoji=tool.Emoji(
                label=f"Thing {index}",
                hexcode=f"1F{600 + index}-FE0F",
                tags=tuple(f"word{index}x{number}" for number in range(80)),
                group=0,
                order=index,
            ),
            group="things",
            variants_of=f"1f{600 + index}-fe0f",
            pictures={"noto": bytes([index]) * 300, "fluent-3d": bytes([index]) * 700},
        )
        for index in range(count)
    ]


def test_packing_is_repeatable(tool: ModuleType, tmp_path: Path) -> None:
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
        splits = tool.pack(make_samples(tool, 12), {"1f603-fe0f"}, folder)
        assert [len(splits[split]) for split in SPLITS] == [11, 11, 1]
    names = sorted(path.name for path in folders[0].iterdir())
    assert len(names) == 6
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    with tarfile.open(folders[0] / "unseen_concept-000.tar") as tar:
        assert tar.getnames() == [
            f"1f603-fe0f.{end}" for end in ("json", "noto.webp", "fluent-3d.webp")
        ]
        assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}
        text = tar.extractfile("1f603-fe0f.json")
        assert text is not None
        raw = text.read()
    assert 400 < len(raw) <= 512
    assert json.loads(raw)["keywords"][0] == "word3x0"


def test_compression_fits_blocks_and_spends_seconds_where_they_help(tool: ModuleType) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    plain = Image.new("RGB", (64, 64), "red")
    data, quality = tool.fit_webp(plain, tool.BLOCK)
    assert len(data) <= tool.BLOCK
    assert quality == max(tool.QUALITIES)
    _, worse = tool.fit_webp(Image.fromarray(noise), 2 * tool.BLOCK)
    assert worse < quality
    gains = [0.0, 5.0, 1.0, 9.0]
    encoded = [tool.Encoded(b"one", b"two", gain) for gain in gains]
    count = round(tool.SECOND_BLOCKS * 4)
    best = sorted(gains, reverse=True)[:count]
    assert [one == b"two" for one in tool.spend(encoded)] == [gain in best for gain in gains]


def test_a_failed_build_leaves_the_folder_alone(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "emoji"
    out.mkdir()
    (out / "kept").write_text("old")

    def fail(npm: Path, folder: Path, limit: int | None) -> None:
        (folder / "half").write_text("new")
        raise RuntimeError("out of power")

    monkeypatch.setattr(tool, "build", fail)
    monkeypatch.setattr(tool, "check_versions", lambda npm: None)
    with pytest.raises(RuntimeError, match="out of power"):
        tool.main(["--out", str(out), "--npm", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["emoji"]
    assert (out / "kept").read_text() == "old"


@pytest.mark.slow
def test_two_builds_are_the_same_bytes(tool: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    pytest.importorskip("sentencepiece")
    if shutil.which("npm") is None:
        pytest.skip("needs npm")
    try:
        npm = tool.install(tmp_path)
    except subprocess.CalledProcessError:
        pytest.skip("the packages cannot be fetched")
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        tool.main(["--out", str(folder), "--npm", str(npm), "--limit", "40"])
    names = sorted(path.name for path in folders[0].iterdir())
    assert "train-003.tar" in names
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
