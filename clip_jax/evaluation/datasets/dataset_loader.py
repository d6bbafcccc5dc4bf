"""Opening test sets: which classes, captions and groups are those of the pictures."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.data import captions
from clip_jax.data.example import PairError
from clip_jax.data.sources import Source, read_text
from clip_jax.data.sources.tfds.location import data_dir, is_installed
from clip_jax.errors import UserError
from clip_jax.evaluation.datasets import layouts, registry
from clip_jax.evaluation.datasets.classes import Classes, Said, natural
from clip_jax.evaluation.datasets.layouts import Place
from clip_jax.evaluation.datasets.registry import StandardSet
from clip_jax.evaluation.datasets.testset import MissingSet, Split, TestSet
from clip_jax.evaluation.scores import METRICS
from clip_jax.io import remote
from clip_jax.io.paths import resolve

KEYS = (
    *("data", "source", "labels", "label", "image", "root", "templates", "caption", "metric"),
    *("title", "train", "validation", "groups", "threshold"),
)
_CLASS = ("cls", "npy", "label", "labels", "class", "category")  # fields that tell a class
_CAPTIONS = ("captions", "caption", "captions/text", "text", "sentences", "raw")
Read = list[tuple[dict[str, Any], str]]  # what is written about pictures, and their names
_MAX_LABELS = 64 << 20  # bytes


@contextlib.contextmanager
def whole(name: str) -> Iterator[None]:
    """Nothing is left out of a test set, or its numbers would be those of another.

    Raises:
      UserError: a pair of it cannot be used.
    """
    try:
        yield
    except PairError as error:
        raise UserError(f"evaluate.sets.{name}: {error}: mend it or take it out") from None


def read_labels(path: str, name: str) -> list[str]:
    """The class names in a JSON file: a list, or the list under `name`.

    Raises:
      UserError: it cannot be read, or holds no such list of distinct names.
    """
    file = Path(resolve(path))
    try:
        if file.stat().st_size > _MAX_LABELS or not (file.is_file() or file.is_dir()):
            raise UserError(f"evaluate.sets.{name}.labels: {file} is no file, or over 64 MiB")
        labels = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"evaluate.sets.{name}.labels: {file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"evaluate.sets.{name}.labels: {file} is not JSON ({error})") from None
    labels = labels.get(name) if isinstance(labels, dict) else labels
    if not isinstance(labels, list) or len(set(map(str, labels))) != len(labels) or not labels:
        raise UserError(f"{file} must hold a list of distinct names (or one under {name!r})")
    return [str(label) for label in labels]


def open_set(
    name: str,
    values: Mapping[str, Any],
    folder: str,
    *,
    templates: Sequence[str],
    caption: str,
) -> TestSet:
    """A test set, opened and checked.

    Args:
      name: of a standard set, or of the user's own.
      values: what a config says of it, `KEYS`; nothing is needed of a standard one that lies in
        `folder`, of another `data`, and where its files do not tell the classes, `labels` and
        `label`.
      folder: where standard sets lie.
      templates: prompts of sets that have none of their own.
      caption: template of the text that belongs to a picture in retrieval.

    Raises:
      MissingSet: a standard set is not there.
      UserError: something of it cannot be used.
    """
    if unknown := sorted(set(values) - set(KEYS)):
        raise UserError(
            f"unknown config key evaluate.sets.{name}.{unknown[0]}; known: {', '.join(KEYS)}"
        )
    known = registry.standard(name) if name in registry.names() else None
    return _Opening(name, dict(values), folder, known, tuple(templates), caption).done()


@dataclasses.dataclass
class _Opening:
    """What is known while a set is opened."""

    name: str
    values: dict[str, Any]
    folder: str
    known: StandardSet | None
    templates: tuple[str, ...]
    caption: str

    @property
    def key(self) -> str:
        return f"evaluate.sets.{self.name}"

    def done(self) -> TestSet:
        place = self._place("test")
        if place is None:
            raise self._missing()
        source = layouts.opened(place, self.values.get("image", ""))
        with whole(self.name):
            read = [read_text(source, i) for i in range(len(source))]
            metric = self._metric(place)
            classes = None
            if metric not in ("retrieval", "bias") and self._has_only_captions(read):
                metric = "retrieval"
            if metric not in ("retrieval", "bias"):
                classes, chosen = self._classes(place, read)
                if len(chosen) < len(read):
                    source = layouts.Chosen(source, chosen)
                    read = [read[i] for i in chosen]
            target = None if classes is None else self._targets(classes, read)
            counts = None if classes is None else self._counts(classes, read, target)
            texts, text_group, image_group = self._texts(read, metric)
            groups = {field: self._field(field, read) for field in self._groups()}
        known, labels = self.known, classes.labels if classes else []
        if target is not None:
            metric, target = _fitting(metric, target, len(labels))
        notes = [classes.note if classes else "", self._size_note(len(source))]
        notes.append(_left_out(source))
        return TestSet(
            name=self.name,
            title=self.values.get("title") or (known.title if known else self.name),
            metric=metric,
            source=source,
            labels=labels,
            templates=self._templates(place),
            target=target,
            counts=counts,
            texts=texts,
            text_group=text_group,
            image_group=image_group,
            groups=groups,
            paper=bool(known and known.paper),
            split_name=place.split,
            subset=_subset(known, labels),
            synonyms={k: v for k, v in known.synonyms.items() if k in labels} if known else {},
            note="; ".join(filter(None, notes)),
            threshold=self._threshold(),
            find=None if classes is None else functools.partial(self._split, classes, place),
        )

    def _has_only_captions(self, read: Read) -> bool:
        """Whether a set of the user's own says what its pictures show and tells no class."""
        told = any(self.values.get(key) for key in ("labels", "label", "metric"))
        if told or self.known or any(field in read[0][0] for field in _CLASS[:3]):
            return False
        try:
            return bool(captions.fill(self.caption, *read[0]).strip())
        except UserError:
            return False

    def _threshold(self) -> float | None:
        value = self.values.get("threshold")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise UserError(f"{self.key}.threshold={value!r} must be a similarity between 0 and 1")
        return float(value)

    def _place(self, split: str) -> Place | None:
        """Where a split lies."""
        data = self.values.get("data" if split == "test" else split)
        if data:
            return self._given(str(data), split)
        if self.values.get("data"):
            path = resolve(str(self.values["data"]))
            near = Path(path) if not remote.is_remote(path) else None
            return layouts.within(near, split) if near and near.is_dir() else None
        if self.known is None:
            raise UserError(f"{self.key} needs data, labels and label: no data given")
        return self._looked_for(self.known, split)

    def _given(self, data: str, split: str) -> Place:
        source, root = (str(self.values.get(key) or "") for key in ("source", "root"))
        if source:
            return Place("data", data, split, root, source, f"config.{self.key}")
        path = resolve(data)
        if split == "test" and not remote.is_remote(path) and Path(path).is_dir():
            suite = any((Path(path) / s / "nshards.txt").is_file() for s in layouts.SPLITS["test"])
            parts = not self.values.get("labels") and layouts.has_splits(Path(path))
            parts = parts or any(Path(path).glob("dataset_*.json"))
            if (suite or parts) and (place := layouts.within(Path(path), split)):
                return place
        return Place("data", data, split, root)

    def _looked_for(self, known: StandardSet, split: str) -> Place | None:
        files = known.files.get(split, ())
        if self.folder:
            home = Path(resolve(self.folder))
            if place := layouts.prepared(str(home), known, split):
                return place
            for name in (known.name, *known.wds):
                if place := layouts.within(home / name, split, files):
                    return place
        if known.tfds and is_installed():
            return layouts.prepared(data_dir(), known, split)
        return None

    def _missing(self) -> UserError:
        known = self.known
        if known is None:
            return UserError(f"{self.key}.data={self.values['data']!r} has no test split")
        where = self.folder or "config.evaluate.folder (which is not set)"
        ways = [f"{where}/{self.name}/test/CLASS/*.jpg"]
        if known.metric in ("retrieval", "bias"):
            ways = [f"{where}/{self.name}/" + "/".join(known.files.get("test", ("test.csv",))[:1])]
        ways += [f"{where}/{wds}/test/0.tar" for wds in known.wds[:1]]
        ways += [f"{spec} of TensorFlow Datasets" for spec in [known.tfds.get("test")] if spec]
        return MissingSet(
            f"{known.title} is not there: get it from {known.home} and put it at "
            f"{', or '.join(ways)} (docs/sets.md)"
        )

    def _metric(self, place: Place) -> str:
        if found := self.values.get("metric"):
            known = (*METRICS, "retrieval", "bias")
            if found not in known:
                raise UserError(f"{self.key}.metric={found!r} is none of {', '.join(known)}")
            return str(found)
        if self.known:
            return self.known.metric
        return "retrieval" if layouts.tells_captions(place) else "accuracy"

    def _templates(self, place: Place) -> tuple[str, ...]:
        found = self.values.get("templates") or ()
        found = (found,) if isinstance(found, str) else tuple(found)
        if self.known:
            found = found or self.known.templates
        found = found or tuple(layouts.own_templates(place)) or self.templates
        if wrong := [t for t in found if not isinstance(t, str) or t.count("{}") != 1]:
            raise UserError(f"{self.key}: template {wrong[0]!r} must hold {{}} once, for the name")
        return found

    def _label(self, read: Read) -> str:
        """The field that tells the class."""
        if field := self.values.get("label"):
            return str(field)
        usual = (self.known.label, *_CLASS) if self.known else _CLASS[:3]
        for field in usual:
            if field in read[0][0]:
                return field
        what = "label" if self.values.get("labels") or self.known else "labels"
        raise UserError(
            f"{self.key} needs data, labels and label: no {what} given, and no folder, .cls or "
            f"column of {read[0][1]} tells a class"
        )

    def _said(self, read: Read) -> list[Said]:
        field = self._label(read)
        said = []
        for text, where in read:
            value = captions.find(text, field)
            if self.values.get("label") and not isinstance(value, (int, list)):
                value = captions.fill(f"{{{field}}}", text, where)
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            if not isinstance(value, (int, str, list)):
                raise UserError(f"{self.key}: {where} tells no class: its {field!r} is {value!r}")
            said.append(Said(value, where))
        return said

    def _classes(self, place: Place, read: Read) -> tuple[Classes, list[int]]:
        """The classes, and which pictures are of one of them."""
        everything = list(range(len(read)))
        if path := self.values.get("labels"):
            return Classes(read_labels(str(path), self.name)), everything
        numbered = layouts.numbered(place)
        if self.known:
            known = self.known
            found = Classes(known.classes, known.folders, known.synonyms, numbered)
            return found, self._shown(found, read) if known.partial else everything
        if numbered:
            return Classes(numbered, numbered=numbered), everything
        said = self._said(read)
        if any(not isinstance(value, str) for value, _ in said):
            raise UserError(
                f"{self.key} needs labels: {said[0].where} tells a number, and no classnames.txt "
                "says of what"
            )
        names = sorted({value for value, _ in said}, key=natural)
        return Classes([name.replace("_", " ") for name in names], names), everything

    def _shown(self, classes: Classes, read: Read) -> list[int]:
        said = self._said(read)
        return [i for i, (value, _) in enumerate(said) if classes.knows(value)] or [
            *range(len(said))
        ]

    def _targets(self, classes: Classes, read: Read) -> np.ndarray:
        said = self._said(read)
        if path := self.values.get("labels"):
            return self._exactly(classes.labels, said, str(path))
        try:
            return classes.targets(said)
        except UserError as error:
            raise UserError(f"{self.key}: {error}") from None

    def _counts(self, classes: Classes, read: Read, target: Any) -> np.ndarray | None:
        """Where a picture counts for a class: not where all that it shows of it is difficult."""
        field = self.known.easy if self.known else ""
        told = [Said(text.get(field), where) for text, where in read] if field else []
        if target.ndim < 2 or not told or not all(isinstance(one.value, list) for one in told):
            return None
        return classes.targets(told) | ~target

    def _exactly(self, labels: list[str], said: list[Said], path: str) -> np.ndarray:
        """Targets by names that are those of a file of labels, letter by letter."""
        order = {label: i for i, label in enumerate(labels)}
        several = any(isinstance(value, list) for value, _ in said)
        target = np.zeros((len(said), len(labels)), bool)
        for row, (value, where) in zip(target, said, strict=True):
            for one in value if isinstance(value, list) and self._is_list() else [value]:
                name = ", ".join(map(str, one)) if isinstance(one, list) else str(one)
                if name not in order:
                    raise UserError(f"{self.key}: {name!r} of {where} is no label of {path}")
                row[order[name]] = True
        return target if several and self._is_list() else target.argmax(axis=1)

    def _is_list(self) -> bool:
        return self.values.get("metric") == "map_11_point"

    def _split(self, classes: Classes, test: Place, split: str) -> Split:
        place = self._place(split)
        if place is None or place[:3] == test[:3]:
            raise UserError(
                f"{self.key} has no split to learn from: give {self.key}.{split}=DATA, or put "
                f"{split}/ beside {test.split}/"
            )
        source = layouts.opened(place, self.values.get("image", ""))
        with whole(self.name):
            read = [read_text(source, i) for i in range(len(source))]
            return Split(source, self._targets(classes, read))

    def _groups(self) -> tuple[str, ...]:
        found = self.values.get("groups") or (self.known.groups if self.known else ())
        return tuple(found.split(",")) if isinstance(found, str) else tuple(found)

    def _field(self, field: str, read: Read) -> list[str]:
        return [captions.fill(f"{{{field}}}", text, where) for text, where in read]

    def _texts(self, read: Read, metric: str) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Captions, their groups, and the groups of the pictures."""
        template = str(self.values.get("caption") or self.caption)
        own = bool(self.values.get("caption"))
        if metric == "retrieval" or (own and template.endswith(":each}")):
            field = captions.fields(template)[:1] if own else []
            each = [_captions(text, where, field) for text, where in read]
            groups = np.repeat(np.arange(len(each)), [len(one) for one in each])
            return [one for found in each for one in found], groups, np.arange(len(each))
        described = self.values.get("label") and self.known is None
        if not (own or described):
            none = np.zeros(0, np.int64)
            return [], none, np.arange(len(read))
        filled = [captions.fill(template, text, where) for text, where in read]
        texts, group = np.unique(filled, return_inverse=True)
        return texts.tolist(), np.arange(len(texts)), group.astype(np.int64)

    def _size_note(self, count: int) -> str:
        official = self.known.splits.get("test", count) if self.known else count
        return "" if count == official else f"{count:,} pictures, not the paper's {official:,}"


def _left_out(source: Source) -> str:
    """What opening the files left out, for the results' page; empty for nothing."""
    report = source.opening_report()
    why = ", ".join(f"{reason} {one.count:,}" for reason, one in report.left_out.items())
    return why and f"{report.seen - report.used:,} of {report.seen:,} {report.unit} left out: {why}"


def _fitting(metric: str, target: np.ndarray, classes: int) -> tuple[str, np.ndarray]:
    """A metric that fits the targets, and targets that fit the metric."""
    if target.ndim == 2:
        return "map_11_point" if metric == "accuracy" else metric, target
    if metric == "map_11_point":
        return metric, np.arange(classes) == target[:, None]
    return metric, target


def _subset(known: StandardSet | None, labels: Sequence[str]) -> np.ndarray | None:
    """ImageNet's classes, label by label; None where the labels are not those known."""
    if known is None or known.subset is None or tuple(labels) != known.classes:
        return None
    if all(isinstance(one, int) for one in known.subset):
        return np.array(known.subset, np.int64)
    found = np.empty(len(known.subset), object)
    found[:] = [[one] if isinstance(one, int) else list(one) for one in known.subset]
    return found


def _captions(text: Mapping[str, Any], where: str, fields: Sequence[str]) -> list[str]:
    """The captions of a picture: items of a list, or the lines of a text.

    Raises:
      PairError: there is none.
    """
    for field in fields or _CAPTIONS:
        value = captions.find(text, field)
        if isinstance(value, str):
            value = value.splitlines()
        if isinstance(value, list):
            found = [str(one).strip() for one in value if one is not None and str(one).strip()]
            if found:
                return found
    raise PairError(
        "caption", f"{where} has no caption: none of {', '.join(fields or _CAPTIONS)} holds one"
    )
