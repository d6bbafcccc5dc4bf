"""Data sets that TensorFlow Datasets prepared, read without TensorFlow: `tfds:NAME:SPLIT`.

    python -m clip_jax tfds NAME --data-dir FOLDER

prepares a data set as ArrayRecord files, and `config.data.train=tfds:NAME:SPLIT` then trains on it,
with TFDS_DATA_DIR=FOLDER in the environment. NAME is as TensorFlow Datasets takes it:
`clip_jax_emoji`, `coco_captions/2014:1.1.0`.
"""

from __future__ import annotations

from clip_jax.data.sources.protocol import Source, SourceOptions

_PREFIX = "tfds:"


class PreparedDatasets:
    """The `tfds` kind of source. It imports TensorFlow Datasets only to open one."""

    @staticmethod
    def matches(spec: str) -> bool:
        """Returns whether `spec` is `tfds:NAME:SPLIT`."""
        return spec.startswith(_PREFIX)

    @staticmethod
    def open(spec: str, options: SourceOptions) -> Source:
        """Opens a split of a prepared data set; see `TfdsSource`."""
        from clip_jax.data.sources.tfds.source import TfdsSource

        return TfdsSource(spec.removeprefix(_PREFIX), options.tfds_folder)
