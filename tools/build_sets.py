"""Writes the data files of the standard test sets, `clip_jax/evaluation/datasets/data`.

    python tools/build_sets.py clip_benchmark-1.6.2-py2.py3-none-any.whl

`standard_sets.json` describes the sets, with the names and prompts that OpenAI published for its
paper (data/prompts.md of openai/CLIP). Longer tables come from where they are published under a
free licence: class names and prompts that are the same in CLIP_benchmark, labels in TensorFlow
Datasets, and the names of ImageNet's classes in torchvision (with which ObjectNet names its own).
The latter two must be installed; none of their code is run.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OUT = HERE.parent / "clip_jax" / "evaluation" / "datasets" / "data"


def installed(package: str, path: str) -> str:
    """A file of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"{package} is not installed")
    return (Path(spec.submodule_search_locations[0]) / path).read_text("utf-8")


def constants(source: str) -> dict[str, Any]:
    """The literal values that a module assigns to names."""
    values = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                values[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return values


class Tables:
    """Lists from the packages, as `standard_sets.json` refers to them."""

    def __init__(self, wheel: str) -> None:
        with zipfile.ZipFile(wheel) as file:
            self._read: Callable[[str], str] = lambda name: file.read(
                f"clip_benchmark/datasets/{name}"
            ).decode()
            self._classes = json.loads(self._read("en_classnames.json"))
            templates = json.loads(self._read("en_zeroshot_classification_templates.json"))
            self.lists = constants(self._read("builder.py"))
        self._templates = {
            name: [template.replace("{c}", "{}") for template in texts]
            for name, texts in templates.items()
        }
        self.wnids: list[str] = self.lists["all_imagenet_wordnet_ids"]
        self.imagenet = constants(installed("torchvision", "models/_meta.py"))[
            "_IMAGENET_CATEGORIES"
        ]

    def resolve(self, key: str, value: Any) -> Any:
        """The list that a value refers to."""
        if value == "wnids":
            return self.wnids
        if not isinstance(value, dict) or key not in ("classes", "templates", "folders"):
            return value
        [(kind, where)] = value.items()
        if kind == "clip_benchmark":
            return (self._templates if key == "templates" else self._classes)[where]
        if kind == "tfds_list":
            names = constants(installed("tensorflow_datasets", where[0]))[where[1]]
        else:
            names = installed("tensorflow_datasets", where).split()
        if kind == "tfds_words":  # splits ApplyEyeMakeup as OpenAI does: Hand Stand Pushups
            spaced = [re.sub("(?<=[a-z])(?=[A-Z])", " ", name) for name in names]
            return [name.replace("Handstand Pushups", "Hand Stand Pushups") for name in spaced]
        if key == "folders":
            return names
        return [re.sub("^/./", "", name).replace("_", " ").replace("/", " ") for name in names]


def subset(tables: Tables, name: str) -> list[int]:
    """The indices of a subset of ImageNet's classes."""
    if name == "all":
        return list(range(len(tables.wnids)))
    chosen = set(tables.lists[name])
    return [i for i, wnid in enumerate(tables.wnids) if wnid in chosen]


def build_set(tables: Tables, name: str, known: dict[str, Any]) -> dict[str, Any]:
    """The data file of a set."""
    document = {key: tables.resolve(key, value) for key, value in known.items()}
    if "subset" in document:
        document["subset"] = subset(tables, document["subset"])
    if name == "caltech101":  # in the order of files: capitals first
        first = ["background_google", "faces", "faces_easy", "leopards", "motorbikes"]
        document["folders"] = first + sorted(set(document["folders"]) - set(first))
    if shown := document.pop("shown", None):
        document["classes"] = [name.lower() for name in shown]
        document["folders"] = list(shown)
        document["subset"] = [
            [tables.imagenet.index(one) for one in wnids] for wnids in shown.values()
        ]
    if len(document.get("folders", [])) not in (0, len(document.get("classes", []))):
        sys.exit(f"{name}: {len(document['folders'])} folders, {len(document['classes'])} classes")
    return document


def main() -> None:
    """Writes all data files."""
    tables = Tables(sys.argv[1])
    sources = json.loads((HERE / "standard_sets.json").read_text("utf-8"))
    OUT.mkdir(exist_ok=True)
    written = {name: build_set(tables, name, known) for name, known in sources["sets"].items()}
    for name, content in {**written, "groups": sources["groups"]}.items():
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (OUT / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(f"{len(written)} sets in {OUT}")


if __name__ == "__main__":
    main()
