"""The standard sets: what the paper fixes of them, and how they are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.evaluation.datasets import expand, names, standard
from clip_jax.evaluation.datasets import registry as module
from clip_jax.evaluation.metrics.scores import METRICS
from support import refused

# classes, templates, pictures to train and to test: table 9 of the paper, and its published prompts
PAPER = {
    "food101": (101, 1, 75_750, 25_250),
    "cifar10": (10, 18, 50_000, 10_000),
    "cifar100": (100, 18, 50_000, 10_000),
    "birdsnap": (500, 1, 42_283, 2_149),
    "sun397": (397, 2, 19_850, 19_850),
    "stanford_cars": (196, 8, 8_144, 8_041),
    "fgvc_aircraft": (100, 2, 6_667, 3_333),
    "voc2007": (20, 1, 5_011, 4_952),
    "dtd": (47, 8, 3_760, 1_880),
    "oxford_pets": (37, 1, 3_680, 3_669),
    "caltech101": (102, 34, 3_060, 6_085),
    "flowers102": (102, 1, 2_040, 6_149),
    "mnist": (10, 1, 60_000, 10_000),
    "fer2013": (7, 6, 32_140, 3_574),
    "stl10": (10, 2, 1_000, 8_000),
    "eurosat": (10, 3, 10_000, 5_000),
    "resisc45": (45, 18, 3_150, 25_200),
    "gtsrb": (43, 3, 26_640, 12_630),
    "kitti_distance": (4, 1, 6_770, 711),
    "country211": (211, 5, 43_200, 21_100),  # the paper's misprint: 200 a class are 42,200
    "pcam": (2, 1, 294_912, 32_768),
    "ucf101": (101, 48, 9_537, 1_794),
    "kinetics700": (700, 28, 494_801, 31_669),
    "clevr_counts": (8, 1, 2_000, 500),
    "hateful_memes": (2, 1, 8_500, 500),
    "rendered_sst2": (2, 1, 7_792, 1_821),
    "imagenet": (1000, 80, 1_281_167, 50_000),
}
MEAN_PER_CLASS = {"fgvc_aircraft", "oxford_pets", "caltech101", "flowers102"}
OTHER = {
    "voc2007": "map_11_point",
    "kinetics700": "mean_top1_top5",
    "hateful_memes": "roc_auc",
}


def test_the_papers_sets() -> None:
    assert expand(["paper"]) == list(PAPER)
    for name, expected in PAPER.items():
        known = standard(name)
        assert known.paper
        sizes = known.splits["train"], known.splits["test"]
        assert (len(known.classes), len(known.templates), *sizes) == expected, name
        metric = "mean_per_class" if name in MEAN_PER_CLASS else OTHER.get(name, "accuracy")
        assert known.metric == metric, name


@pytest.mark.parametrize("name", names())
def test_the_values_of_a_set_are_consistent(name: str) -> None:
    known = standard(name)
    assert known.name == name
    assert known.metric in (*METRICS, "retrieval", "bias")
    assert bool(known.classes) == (known.metric in METRICS)
    assert all(template.count("{}") == 1 for template in known.templates)
    assert len(set(known.templates)) == len(known.templates)
    assert len(known.folders) in (0, len(known.classes))
    assert set(known.synonyms) <= set(known.classes)
    assert set(known.splits) <= {"train", "validation", "test"} and known.splits["test"] > 0
    assert set(known.tfds) <= {"train", "validation", "test"}
    assert known.home.startswith("http")
    twice = {class_name for class_name in known.classes if known.classes.count(class_name) > 1}
    assert twice <= {"missile", "sunglasses"}, "ImageNet's own"


def test_prompts_to_the_letter() -> None:
    cifar = standard("cifar10")
    assert cifar.classes[0::9] == ("airplane", "truck")
    assert cifar.templates[0] == "a photo of a {}."
    assert cifar.templates[3] == "a low contrast photo of a {}."
    assert cifar.templates[17] == "a photo of the big {}."
    imagenet = standard("imagenet")
    assert imagenet.templates[0] == "a bad photo of a {}."
    assert imagenet.templates[79] == "a tattoo of the {}."
    assert imagenet.classes[0] == "tench" and imagenet.folders[0] == "n01440764"
    assert imagenet.classes[999] == "toilet paper" and imagenet.folders[999] == "n15075141"
    assert standard("ucf101").templates[47] == "a demonstration of the person practicing {}."
    assert standard("ucf101").classes[36:38] == ("Hand Stand Pushups", "Handstand Walking")
    assert standard("kinetics700").templates[20] == "a example of a person practicing {}."
    kinetics = standard("kinetics700").classes
    assert kinetics[586:589] == ("stretching arm", "stretching leg", "sucking lolly")
    assert kinetics[-3:] == ("yawning", "yoga", "zumba")
    assert list(kinetics) == sorted(set(kinetics), key=str.lower)
    assert sum(len(name) + 1 for name in kinetics) == 10_772, "the published list, a name a line"
    assert standard("caltech101").classes[30] == "head of a  crocodile"
    assert standard("gtsrb").classes[29] == "red and white triangle with bicyle warning"
    assert standard("resisc45").templates[5:7] == (
        "aerial view of {}.",
        "satellite imagery of a {}.",
    )
    assert standard("gtsrb").templates[0] == 'a zoomed in photo of a "{}" traffic sign.'
    assert standard("pcam").templates == ("this is a photo of {}",)
    assert standard("clevr_counts").templates == ("a photo of {} objects.",)
    assert standard("sun397").classes[9] == "apse indoor"
    assert standard("fer2013").synonyms["surprised"] == ("shocked", "spooked")


def test_files_call_classes_otherwise() -> None:
    class_names = dict(
        zip(standard("caltech101").folders, standard("caltech101").classes, strict=True)
    )
    assert (
        class_names["faces"] == "off-center face" and class_names["faces_easy"] == "centered face"
    )
    assert (
        class_names["cougar_face"] == "face of a cougar cat"
        and class_names["yin_yang"][:3] == "yin"
    )
    class_names = dict(zip(standard("eurosat").folders, standard("eurosat").classes, strict=True))
    assert class_names["SeaLake"] == "lake or sea" and class_names["Highway"] == "highway or road"


def test_shifted_sets_show_classes_of_imagenet() -> None:
    imagenet = standard("imagenet")
    for name, count in (("imagenet_a", 200), ("imagenet_r", 200), ("imagenet_v2", 1000)):
        known = standard(name)
        assert known.subset is not None and len(known.subset) == count
        chosen = [i for i in known.subset if isinstance(i, int)]
        assert known.classes == tuple(imagenet.classes[i] for i in chosen)
        assert known.folders == tuple(imagenet.folders[i] for i in chosen)
    assert standard("imagenet_a").folders[0] == "n01498041"
    objectnet = standard("objectnet")
    assert len(objectnet.classes) == 113 and objectnet.subset is not None
    shown = {
        name: [imagenet.classes[i] for i in indices]
        for name, indices in zip(objectnet.classes, objectnet.subset, strict=True)
        if isinstance(indices, tuple)
    }
    assert shown["alarm clock"] == ["analog clock", "digital clock"]
    assert shown["wok"] == ["wok"] and shown["banana"] == ["banana"]
    each = [name for indices in shown.values() for name in indices]
    assert len(each) == len(set(each)) == 125, "no class counts twice"


def test_groups() -> None:
    assert expand(["robustness"])[0] == "imagenet" and len(expand(["robustness"])) == 6
    assert expand(["retrieval", "cifar10", "flickr30k"]) == ["flickr30k", "mscoco", "cifar10"]
    assert expand(["all"]) == names() and len(names()) == 36
    assert expand([]) == []


@given(st.lists(st.sampled_from([*names(), "paper", "robustness", "retrieval", "all"])))
def test_a_group_is_its_sets_and_each_comes_once(words: list[str]) -> None:
    sets = expand(words)
    assert len(set(sets)) == len(sets)
    assert set(sets) == {name for word in words for name in expand([word])}
    assert expand(sets) == sets


def test_a_mistyped_name_hints_at_the_nearest() -> None:
    refused(lambda: expand(["cifar-10"]), "'cifar-10'", "did you mean cifar10?")
    refused(lambda: expand(["Flickr"]), "did you mean flickr30k?")
    refused(lambda: expand(["qqq"]), "'qqq'", "paper, robustness")
    refused(lambda: standard("../cifar10"), "'../cifar10'")


def test_there_is_a_file_for_each_set_and_no_other() -> None:
    stems = {path.stem for path in Path(module.__file__).with_name("data").iterdir()}
    assert stems == {*names(), "groups"}


def test_the_files_are_those_that_the_tool_makes() -> None:
    root = Path(__file__).parents[3]
    document = json.loads((root / "tools" / "standard_sets.json").read_text("utf-8"))
    assert list(document["sets"]) == names() and document["groups"]["paper"] == list(PAPER)
    for name, known in document["sets"].items():
        file_values = json.loads(
            (Path(module.__file__).parent / "data" / f"{name}.json").read_text()
        )
        for key, value in known.items():
            if key in ("shown", "subset") or value == "wnids" or _is_asked_of_a_package(value):
                continue
            assert file_values[key] == value, (name, key)


def _is_asked_of_a_package(value: object) -> bool:
    return isinstance(value, dict) and set(value) <= {
        *("clip_benchmark", "tfds_labels", "tfds_list", "tfds_words")
    }


def test_the_docs_tell_every_set_and_size() -> None:
    text = (Path(__file__).parents[3] / "docs" / "sets.md").read_text("utf-8")
    for name in names():
        known = standard(name)
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        assert f"| {known.title} | `{known.metric}` |" in row
        assert f"| {known.splits['test']:,} |" in row
