"""The embedded emoji as a data set of TensorFlow Datasets; importing this module registers it."""

from __future__ import annotations

import inspect
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clip_jax.data.sources.tars import TarSource
from clip_jax.data.sources.tfds.library import tfds
from clip_jax.io.paths import resolve

SPLITS = ("train", "unseen_drawing", "unseen_concept")
FAMILIES = (
    *("noto", "noto-v1", "twemoji", "openmoji", "emojione", "emojione-v1", "fxemoji"),
    *("fluent-flat", "fluent-3d"),
)


class ClipJaxEmoji(tfds.core.GeneratorBasedBuilder):
    """Emoji in nine families of drawings, with their Unicode names and keywords.

    The pairs of the tars that ship with clip_jax, in their order; the images are the same bytes
    (64×64, lossy WebP). `family` says whose drawing it is. In `unseen_drawing` are the families
    that `train` leaves out, in `unseen_concept` the emoji that it leaves out.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012  # as the base class declares it

    def _info(self) -> Any:
        text = tfds.features.Text
        return tfds.core.DatasetInfo(
            builder=self,
            description=inspect.getdoc(ClipJaxEmoji),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(64, 64, 3)),
                    "name": text(doc="Unicode's name"),
                    "keywords": tfds.features.Sequence(text(), doc="what CLDR says of it"),
                    "hexcode": text(doc="the code points"),
                    "group": text(doc="one of Unicode's nine groups"),
                    "variants_of": text(doc="shared by what differs in skin, gender, hair only"),
                    "family": tfds.features.ClassLabel(names=FAMILIES),
                }
            ),
            disable_shuffling=True,
            license=Path(resolve("embedded:emoji/LICENSES.md")).read_text("utf-8"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        source = TarSource(f"embedded:emoji/{split}-*.tar")
        for i in range(len(source)):
            pair = source[i]
            family = pair.name.rsplit(".", 2)[1]
            yield i, {"image": io.BytesIO(pair.image), "family": family, **pair.text}
