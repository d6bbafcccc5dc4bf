"""Data sources: one protocol, one module for each kind, and the registry that finds the kind.

Code outside this package knows sources through `Source` only. A kind is found by what the data
looks like, or named by `config.data.source`: one of `SOURCES`, or a class of the user's own as
`my_package.my_module:MySource`.
"""

from __future__ import annotations

import inspect

from clip_jax.data.opening import OpeningReport
from clip_jax.data.sources.protocol import (
    BESIDE,
    KnowsFiles,
    KnowsLayout,
    KnowsMembers,
    KnowsText,
    Members,
    Source,
    SourceKind,
    SourceOptions,
    layout,
    read_pair,
    read_text,
)
from clip_jax.data.sources.table_options import TableOptions
from clip_jax.errors import UserError, only_user_errors
from clip_jax.registry import Registry

__all__ = [
    "BESIDE",
    "SOURCES",
    "KnowsFiles",
    "KnowsLayout",
    "KnowsMembers",
    "KnowsText",
    "Members",
    "Source",
    "SourceKind",
    "SourceOptions",
    "TableOptions",
    "layout",
    "open_source",
    "read_pair",
    "read_text",
    "source_kind",
]

# In the order in which they are asked whether the data looks like theirs. The last matches always.
SOURCES: Registry[SourceKind] = Registry(
    "data source",
    {
        "tfds": "clip_jax.data.sources.tfds:PreparedDatasets",
        "saved": "clip_jax.data.sources.tables:SavedDatasets",
        "karpathy": "clip_jax.data.sources.karpathy:KarpathySource",
        "folder": "clip_jax.data.sources.folders:FolderSource",
        "records": "clip_jax.data.sources.records:RecordSource",
        "table": "clip_jax.data.sources.tables:Tables",
        "captions": "clip_jax.data.sources.captioned:CaptionedSource",
        "tars": "clip_jax.data.sources.tars:TarSource",
    },
)
_MEMBERS = ("fingerprint", "opening_report", "__len__", "__getitem__")  # of `Source`


def source_kind(name: str, key: str = "config.data.source") -> SourceKind:
    """Returns the kind of source that a config names.

    Args:
      name: one of `SOURCES`, or the dotted path of a user's class.
      key: the config key that holds the name, for error messages.

    Raises:
      UserError: nothing has this name, it cannot be imported, or it has no method `open`.
    """
    kind = SOURCES.get(name, key)
    if not callable(getattr(kind, "open", None)):
        raise UserError(
            f"{key}={name} is no data source: it needs a class method open(spec, options)"
        )
    return kind


def open_source(
    spec: str,
    options: SourceOptions | None = None,
    *,
    kind: str = "",
    key: str = "config.data",
) -> Source:
    """Opens the pairs that a config names.

    Args:
      spec: a pattern of tars (`/data/{00000..00099}.tar`, `embedded:emoji/train-*.tar`), a folder
        of images (`/data/images`), also with a table of captions in it or given by itself
        (`/coco/annotations/captions_train2017.json`), a file of Karpathy's splits
        (`/coco/dataset_coco.json:train+restval`), a table (`/data/*.parquet`, csv, tsv,
        jsonl), ArrayRecord files (`/data/*.array_record`), a folder that Hugging Face's `datasets`
        saved, or `tfds:NAME:SPLIT` for a prepared TensorFlow data set. Tars, tables and folders of
        images may be remote: `gs://bucket/{000..999}.tar`. A kind of the user's own defines its own
        specs.
      options: see `SourceOptions`; None for its defaults.
      kind: as `source_kind` takes it; empty for the first of `SOURCES` that matches `spec`.
      key: the group of config keys that names the data, for error messages.

    Raises:
      UserError: nothing is there, it cannot be read, or it holds no pair.
    """
    if not spec:
        raise UserError(
            "no data given: set config.data.train to your tars, a folder of images, a table or "
            "tfds:NAME:SPLIT"
        )
    options = options or SourceOptions()
    if not kind:
        matching = (SOURCES.get(name) for name in SOURCES.names)
        return next(kind for kind in matching if kind.matches(spec)).open(spec, options)
    opener = source_kind(kind, f"{key}.source")
    with only_user_errors(f"{key}.source={kind}: opening {spec}"):
        source = opener.open(spec, options)
    if missing := [name for name in _MEMBERS if inspect.getattr_static(source, name, None) is None]:
        raise UserError(
            f"{key}.source={kind} opens a {type(source).__name__} without "
            f"{', '.join(missing)}: a data source needs {', '.join(_MEMBERS)}"
        )
    with only_user_errors(f"{key}.source={kind}: what it says of {spec}"):
        pairs, report = len(source), source.opening_report()
    if not pairs:
        raise UserError(f"{key}.source={kind} finds no pair in {spec}")
    if not isinstance(report, OpeningReport):
        raise UserError(
            f"{key}.source={kind}: opening_report() returns {report!r:.60}, not an OpeningReport"
        )
    return source
