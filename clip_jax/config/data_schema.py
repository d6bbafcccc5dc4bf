"""The config keys of `data`, see `schema`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from clip_jax.config.keys import BELOW_ONE, Group, group, key


@dataclasses.dataclass(frozen=True)
class Filter(Group):
    """Conditions on the pairs that are used; zero or empty: no condition."""

    min_side: int = key(0, "least pixels of the shorter side")
    max_side: int = key(0, "most pixels of the longer side")
    max_aspect: float = key(0.0, "greatest ratio of the longer side to the shorter")
    min_characters: int = key(
        0, "least characters of the caption that the first usable template makes"
    )
    max_characters: int = key(0, "most characters of that caption")
    least: Mapping[str, float] = key(
        {}, "least number of a field, by field: {'similarity': 0.3}", user_named=True
    )
    most: Mapping[str, float] = key({}, "greatest number of a field, by field", user_named=True)
    duplicates: int = key(
        0,
        "leave out an image whose bytes equal those of one of this many images before it; -1: of "
        "any before it",
    )


@dataclasses.dataclass(frozen=True)
class Augment(Group):
    """Random changes to the training images. The defaults are the paper's: a random square crop."""

    crop: str = key(
        "fit",
        "fit: the paper's square crop, shrunk until it fits; open_clip: its crop, drawn again "
        "until it fits, with crop_ratio from 3/4 to 4/3 unless another is given",
    )
    crop_scale: tuple[float, float] = key((0.9, 1.0), "least and greatest share of the area")
    crop_ratio: tuple[float, float] = key(
        (1.0, 1.0),
        "least and greatest width over height; for a model that keeps the shapes of images "
        "(naflex) divided by that of the image",
    )
    flip: float = key(0.0, "probability of a mirror image")
    rotate: float = key(0.0, "greatest angle in degrees, either way; corners are white")
    translate: float = key(
        0.0, "greatest shift as a share of each side, either way; what moves in is white"
    )
    zoom: tuple[float, float] = key(
        (1.0, 1.0), "least and greatest factor by which the image is drawn larger, about its centre"
    )
    color: float = key(
        0.0, "strength of changes to brightness, contrast and saturation (0.4: ×0.6 to ×1.4)"
    )
    hue: float = key(0.0, "greatest rotation of the hue, as a share of the circle")
    gray: float = key(0.0, "probability of a grey image")
    blur: tuple[float, float] = key(
        (0.0, 0.0),
        "least and greatest standard deviation of a Gaussian blur, in pixels of the model's input",
    )
    num_patches: tuple[int, ...] = key(
        (),
        "for a model that keeps the shapes of images (naflex): the most patches of an image, of "
        "which each batch draws one; each is at most model.vision.max_num_patches; empty: that",
    )


@dataclasses.dataclass(frozen=True)
class Data(Group):
    """The training pairs."""

    train: str = key(
        "",
        "tars (with braces and globs), a folder of images, a table (csv, tsv, jsonl, parquet, "
        "COCO's json), a folder saved by `datasets`, or tfds:NAME:SPLIT",
    )
    source: str = key(
        "",
        "the kind of data source: tfds, saved, karpathy, folder, records, table, captions or tars; "
        "or your own class as my_package.my_module:MySource, which opens train; empty: by what "
        "train looks like",
    )
    mix: Mapping[str, Any] = key(
        {},
        "several sources in place of train: name → data, and weight (its share of the rows) or "
        "epochs (passes over it in an epoch of the mixture), and its own source, captions, "
        "caption_weights, image, root, selection, filter",
        user_named=True,
    )
    image: str = key(
        "",
        "of a table: the column of the images; empty: the one that looks so. Of tars and folders: "
        "which images of an example, by what follows the stem (seg.png); empty: the plain ones",
    )
    root: str = key("", "of a table: the folder that its paths start from; empty: the table's own")
    separator: str = key("", "between the cells of a CSV or TSV, such as ; or tab; empty: detected")
    quoting: str = key(
        "", "double, or none: quotation marks are ordinary characters; empty: detected"
    )
    encoding: str = key("", "of a CSV, TSV or JSON lines, such as cp1252; empty: detected")
    index: str = key(
        "",
        "where tar indices are kept: empty: the user's cache folder; beside: next to each tar; or "
        "a folder, local or remote, that many hosts share",
        resume=True,
    )
    redirects: tuple[str, ...] = key(
        (),
        "sites that web servers may redirect to, such as ('hf.co',); ('any',): all. A server may "
        "always redirect to itself",
        resume=True,
    )
    max_bad_fraction: float = key(
        0.01,
        "share of broken pairs, which are left out, above which the run ends",
        at_least=0,
        at_most=1,
        resume=True,
    )
    captions: tuple[str, ...] = key(
        ("{caption}",),
        "templates over the fields of a pair, one of which is drawn; of a list, {tags} gives some "
        "items, {tags:one} one, {tags:each} another one every epoch, {tags:all} all; "
        "{text:sentence} gives one sentence",
    )
    caption_weights: tuple[float, ...] = key(
        (), "how often each template is drawn, relative to the others; empty: equally often"
    )
    label: str = key(
        "",
        "the field of a pair that tells its class, for loss.multi_positive (empty: pairs of one "
        "image belong together) and the objective classification (empty: label)",
    )
    selection: str = key(
        "",
        "a folder that `python -m clip_jax curate` wrote: only the pairs that it selects are used",
    )
    filter: Filter = group(Filter)
    token_dropout: float = key(
        0.0, "share of a caption's tokens that is dropped", at_least=0, at_most=BELOW_ONE
    )
    long_captions: str = key(
        "truncate",
        "which tokens of a caption longer than model.text.context_length are kept: truncate: the "
        "first; block: consecutive ones from a random place; random: random ones in their order; "
        "shuffle: random ones in random order; syntax: nouns, then adjectives, verbs and the rest",
        choices=("truncate", "block", "random", "shuffle", "syntax"),
    )
    threads: int = key(
        2, "batches that a process makes at once", at_least=1, at_most=1024, resume=True
    )
    workers: int = key(
        0, "processes that make batches; 0: threads of the main process", at_least=0, resume=True
    )
    prefetch: int = key(4, "batches made ahead", at_least=1, at_most=1024, resume=True)
    fast_decode: bool = key(True, "decode JPEGs at the scale that the crops need, not in full")
    cache_mib: int = key(
        0,
        "MiB of decoded images kept in memory, for data sets that fit",
        at_least=0,
        resume=True,
    )
    augment: Augment = group(Augment)
    cache_features: bool = key(
        False,
        "compute the image features once, keep them on disk, and read them in place of images; "
        "needs optimizer.freeze=vision",
    )
    views: int = key(
        0,
        "augmented views of each image whose features are kept, one for each epoch in turn; 0: "
        "one, without augmentation",
        at_least=0,
        at_most=10_000,
    )
    features: str = key(
        "", "the folder where features are kept; empty: the user's cache folder", resume=True
    )
