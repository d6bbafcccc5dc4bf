"""Opening datasets: finding their files, and reading what is written about their images."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_jax.data.example import PairError
from clip_jax.data.sources import Source
from clip_jax.data.sources.tfds.location import data_dir, is_installed
from clip_jax.errors import UserError
from clip_jax.evaluation.datasets import layouts, registry
from clip_jax.evaluation.datasets.annotations import (
    Annotator,
    fit_metric,
    imagenet_subset,
    known_synonyms,
    read_annotations,
)
from clip_jax.evaluation.datasets.classes import Classes
from clip_jax.evaluation.datasets.dataset import Dataset, MissingDataset, Split
from clip_jax.evaluation.datasets.layouts import SplitLocation
from clip_jax.evaluation.datasets.options import WITHOUT_CLASSES, DatasetOptions
from clip_jax.evaluation.datasets.registry import StandardDataset
from clip_jax.io import remote
from clip_jax.io.paths import resolve


@contextlib.contextmanager
def nothing_left_out(name: str) -> Iterator[None]:
    """Turns the error of a broken pair into a UserError that names the dataset.

    Without the pair the metrics would be those of another dataset.

    Args:
      name: the name of the dataset.

    Raises:
      UserError: a pair of the dataset cannot be used.
    """
    try:
        yield
    except PairError as error:
        raise UserError(f"evaluate.sets.{name}: {error}: mend it or take it out") from None


def open_dataset(
    name: str,
    values: Mapping[str, Any],
    folder: str,
    *,
    templates: Sequence[str],
    caption: str,
) -> Dataset:
    """Opens and checks a dataset.

    Args:
      name: the name of a standard dataset, or of the user's own.
      values: the options that a config gives, see `DatasetOptions`. A standard dataset in `folder`
        needs none; another needs `data`, and if its files do not tell the classes, `labels` and
        `label`.
      folder: the folder of the standard datasets.
      templates: prompts for datasets that have none of their own.
      caption: the template of the text that belongs to an image in retrieval.

    Raises:
      MissingDataset: a standard dataset is not there.
      UserError: a part of the dataset cannot be used.
    """
    options = DatasetOptions.from_config(name, values)
    standard = registry.standard(name) if name in registry.names() else None
    location = _find_split(options, standard, folder, "test")
    if location is None:
        raise _missing(options, standard, folder)
    annotator = Annotator(options, standard, location, caption)
    prompts = _templates(options, standard, location, tuple(templates))
    return _annotate(annotator, layouts.open_at(location, options.image), prompts, folder)


def _annotate(
    annotator: Annotator, source: Source, templates: tuple[str, ...], folder: str
) -> Dataset:
    """Returns the dataset of a source's images and their annotations."""
    options, standard, name = annotator.options, annotator.standard, annotator.options.name
    with nothing_left_out(name):
        annotations = read_annotations(source)
        metric = annotator.metric(annotations)
        classes, target, counts = None, None, None
        if metric not in WITHOUT_CLASSES:
            classes, chosen = annotator.classes(annotations)
            if len(chosen) < len(annotations):
                source = layouts.Chosen(source, chosen)
                annotations = [annotations[i] for i in chosen]
            target = annotator.targets(classes, annotations)
            counts = annotator.counts(classes, annotations, target)
        texts = annotator.captions(annotations, metric)
        groups = annotator.groups(annotations)
    labels = classes.labels if classes else []
    if target is not None:
        metric, target = fit_metric(metric, target, len(labels))
    find_split = functools.partial(_open_split, annotator, classes, folder) if classes else None
    notes = [classes.note if classes else "", _size_note(standard, len(source)), _left_out(source)]
    return Dataset(
        name=name,
        title=options.title or (standard.title if standard else name),
        metric=metric,
        source=source,
        labels=labels,
        templates=templates,
        target=target,
        counts=counts,
        **texts._asdict(),
        groups=groups,
        paper=bool(standard and standard.paper),
        split_name=annotator.place.split,
        subset=imagenet_subset(standard, labels),
        synonyms=known_synonyms(standard, labels),
        note="; ".join(filter(None, notes)),
        threshold=options.threshold,
        find_split=find_split,
    )


def _find_split(
    options: DatasetOptions, standard: StandardDataset | None, folder: str, split: str
) -> SplitLocation | None:
    """Returns the location of a split; None if it is not there."""
    data = {"test": options.data, "train": options.train, "validation": options.validation}[split]
    if data:
        return _location_from_options(options, data, split)
    if options.data:
        path = resolve(options.data)
        if remote.is_remote(path) or not Path(path).is_dir():
            return None
        return layouts.find_split(Path(path), split)
    if standard is None:
        raise UserError(f"{options.key} needs data, labels and label: no data given")
    return _find_standard(standard, folder, split)


def _location_from_options(options: DatasetOptions, data: str, split: str) -> SplitLocation:
    if options.source:
        key = f"config.{options.key}"
        return SplitLocation("data", data, split, options.root, options.source, key)
    path = resolve(data)
    if split == "test" and not remote.is_remote(path) and Path(path).is_dir():
        suite = any((Path(path) / s / "nshards.txt").is_file() for s in layouts.SPLITS["test"])
        parts = not options.labels and layouts.has_splits(Path(path))
        parts = parts or any(Path(path).glob("dataset_*.json"))
        if (suite or parts) and (location := layouts.find_split(Path(path), split)):
            return location
    return SplitLocation("data", data, split, options.root)


def _find_standard(standard: StandardDataset, folder: str, split: str) -> SplitLocation | None:
    if folder:
        home = Path(resolve(folder))
        if location := layouts.find_prepared(str(home), standard, split):
            return location
        for name in (standard.name, *standard.wds):
            if location := layouts.find_split(home / name, split, standard.files.get(split, ())):
                return location
    if standard.tfds and is_installed():
        return layouts.find_prepared(data_dir(), standard, split)
    return None


def _missing(options: DatasetOptions, standard: StandardDataset | None, folder: str) -> UserError:
    if standard is None:
        return UserError(f"{options.key}.data={options.data!r} has no test split")
    where = folder or "FOLDER, the folder that config.evaluate.folder names"
    home = f"{where}/{options.name}"
    ways = [f"{home}/test/CLASS/*.jpg"]
    if standard.metric in WITHOUT_CLASSES:
        ways = [f"{home}/" + "/".join(standard.files.get("test", ("test.csv",))[:1])]
    ways += [f"{where}/{wds}/test/0.tar" for wds in standard.wds[:1]]
    ways += [f"{spec} of TensorFlow Datasets" for spec in [standard.tfds.get("test")] if spec]
    return MissingDataset(
        f"{standard.title} is not there: get it from {standard.home} and put it at "
        f"{', or '.join(ways)} (docs/sets.md)"
    )


def _templates(
    options: DatasetOptions,
    standard: StandardDataset | None,
    location: SplitLocation,
    usual: tuple[str, ...],
) -> tuple[str, ...]:
    templates = options.templates or (standard.templates if standard else ())
    templates = templates or tuple(layouts.own_templates(location)) or usual
    if wrong := [t for t in templates if not isinstance(t, str) or t.count("{}") != 1]:
        raise UserError(f"{options.key}: template {wrong[0]!r} must hold {{}} once, for the name")
    return templates


def _open_split(annotator: Annotator, classes: Classes, folder: str, split: str) -> Split:
    """Opens a split to train on, with the test split's classes.

    Raises:
      UserError: there is none; the line says what to give.
    """
    options, test = annotator.options, annotator.place
    location = _find_split(options, annotator.standard, folder, split)
    if location is None or location[:3] == test[:3]:
        raise UserError(
            f"{options.key} has no split to learn from: give {options.key}.{split}=DATA, or put "
            f"{split}/ beside {test.split}/"
        )
    source = layouts.open_at(location, options.image)
    with nothing_left_out(options.name):
        return Split(source, annotator.targets(classes, read_annotations(source)))


def _size_note(standard: StandardDataset | None, count: int) -> str:
    official = standard.splits.get("test", count) if standard else count
    return "" if count == official else f"{count:,} images, not the paper's {official:,}"


def _left_out(source: Source) -> str:
    """Returns what opening the files left out, for the report page; empty for nothing."""
    report = source.opening_report()
    why = ", ".join(f"{reason} {part.count:,}" for reason, part in report.left_out.items())
    return why and f"{report.seen - report.used:,} of {report.seen:,} {report.unit} left out: {why}"
