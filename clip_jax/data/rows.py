"""Rows of training batches: from a pair to pixels and tokens."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clip_jax.config import schema
from clip_jax.data import captions, syntax
from clip_jax.data.class_index import ClassIndex
from clip_jax.data.example import Pair, PairError, is_blank, only_pair_errors
from clip_jax.data.images import augmentation, decoding
from clip_jax.data.stored_features import StoredFeatures
from clip_jax.models.model_config import VisionTower
from clip_jax.models.patches import PatchBudget
from clip_jax.tokenizers import Tokenizer, packing

Row = dict[str, np.ndarray]
SYNTAX = "syntax"  # of `config.data.long_captions`; the other ways need no words


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Turns a pair into a row of a batch: augmented pixels and the tokens of a sampled caption.

    Attributes:
      tokenizer: tokenizes the captions.
      image_size: pixels a side.
      templates: the caption templates.
      augment: the random changes to images.
      decode: decodes the bytes of an image.
      token_dropout: the share of a caption's tokens to drop.
      weights: the relative probability of each template; if empty, all are equally likely.
      groups: whether a row tells which pairs belong together: those with the same value of the
        field `label`, or, if `label` is empty, those whose images have the same bytes.
      label: the field that tells the class of a pair.
      classes: finds the number of that class, for a row that tells it; None: a row tells none.
      spans: whether a row tells where the words of the caption lie.
      features: stored image features to use in place of pixels.
      budget: the patches of an image, for a model that takes images of any shape; None: squares.
      long_captions: which tokens of an over-long caption stay: `syntax` (see `data.syntax`), or a
        way of `packing.shortener`.
    """

    tokenizer: Tokenizer
    image_size: int
    templates: Sequence[str]
    augment: augmentation.Augment
    decode: decoding.Decoder = dataclasses.field(default_factory=decoding.Decoder)
    token_dropout: float = 0.0
    weights: Sequence[float] = ()
    groups: bool = False
    label: str = ""
    classes: ClassIndex | None = None
    spans: bool = False
    features: StoredFeatures | None = None
    budget: PatchBudget | None = None
    long_captions: str = "truncate"

    @classmethod
    def from_config(
        cls,
        data: Mapping[str, Any],
        tokenizer: Tokenizer,
        vision: VisionTower,
        groups: bool = False,
        classes: ClassIndex | None = None,
        spans: bool = False,
    ) -> Prepare:
        """Makes an instance from `config.data`, whose missing keys have their defaults.

        The images are those that the tower `vision` takes.
        """
        image_size = vision.image_size
        data = schema.Data.with_defaults(data)
        if data["long_captions"] == SYNTAX:
            syntax.load_tagger()  # before anything starts
        augment = augmentation.Augment.from_dict(data["augment"])
        return cls(
            tokenizer,
            image_size,
            tuple(data["captions"]),
            augment,
            decoding.Decoder(
                data["cache_mib"], augment.least_side(image_size) if data["fast_decode"] else 0
            ),
            data["token_dropout"],
            tuple(data["caption_weights"]),
            groups,
            data["label"],
            classes,
            spans,
            budget=vision.patch_budget,
            long_captions=data["long_captions"],
        )

    def for_step(self, seed: int, step: int) -> Prepare:
        """Returns what makes the rows of a step: all its images have the same budget of patches.

        With `augment.num_patches` the budget is random, but depends on seed and step only.
        """
        choices = self.augment.num_patches
        if self.budget is None or not choices:
            return self
        counter = (step << 128) + (1 << 127)  # rows use lower numbers of a position, see `pipeline`
        rng = np.random.Generator(np.random.Philox(key=seed, counter=counter))
        budget = dataclasses.replace(self.budget, patches=choices[rng.integers(len(choices))])
        return dataclasses.replace(self, budget=budget)

    def view(self, pair: Pair, rng: np.random.Generator) -> np.ndarray:
        """Returns the augmented pixels of a pair's image: uint8 [size, size, 3], or its patches.

        Raises:
          PairError: the image cannot be used, for whatever reason.
        """
        return self._augmented(self._decoded(pair), pair, rng)

    def _decoded(self, pair: Pair) -> np.ndarray:
        with only_pair_errors("picture", pair.name):
            return self.decode(pair.image, pair.name)

    def _augmented(self, picture: np.ndarray, pair: Pair, rng: np.random.Generator) -> np.ndarray:
        with only_pair_errors("picture", pair.name):
            size = self.budget or self.image_size
            return augmentation.random_view(picture, size, self.augment, rng)

    def __call__(
        self,
        pair: Pair,
        rng: np.random.Generator,
        turn: int = 0,
        *,
        number: int = 0,
        epoch: int = 0,
    ) -> Row:
        """Makes one row of a batch.

        Args:
          pair: the pair.
          rng: all randomness of the row.
          turn: the number of the item that `{captions:each}` gives, modulo the length of the list.
          number: the number of the pair in its source.
          epoch: the epoch of the source, which chooses among several stored features.

        Returns:
          `image` uint8 [size, size, 3] or [patches, bytes], or `image_features` float32
          [embed_dim], and `tokens` int32 [context]. With `groups` also `group` uint32 [2]: a hash
          that pairs of one group share. With `classes` also `label`, int32: the number of the
          class. With `spans` also `span`, int32 [2], see `packing.word_span`.

        Raises:
          PairError: the pair cannot be used, for whatever reason.
        """
        picture = self._decoded(pair) if self.features is None else None
        with only_pair_errors("caption", pair.name):
            caption = captions.sample(self.templates, pair.text, pair.name, rng, self.weights, turn)
        if picture is not None:
            image_row = {"image": self._augmented(picture, pair, rng)}
        else:
            assert self.features is not None
            image_row = {"image_features": self.features.read(number, epoch, pair.name)}
        with only_pair_errors("caption", pair.name):
            tokens = self._tokens(caption, rng)
        if self.token_dropout:
            has_start = self.tokenizer.sot_id is not None
            tokens = packing.drop(tokens, self.token_dropout, self.tokenizer.pad_id, rng, has_start)
        row = {**image_row, "tokens": tokens}
        if self.groups:
            row["group"] = _group_of(pair, self.label)
        if self.spans:
            row["span"] = packing.word_span(tokens, self.tokenizer)
        if self.classes is not None:
            row["label"] = np.array(
                class_of(pair.text, pair.name, self.label, self.classes), np.int32
            )
        return row

    def _tokens(self, caption: str, rng: np.random.Generator) -> np.ndarray:
        if self.long_captions == "truncate":  # as evaluation does
            return self.tokenizer(caption, truncate=True)[0]
        if self.long_captions == SYNTAX:
            shorten = syntax.shortener(caption, self.tokenizer)
        else:
            shorten = packing.shortener(self.long_captions, rng)
        return packing.pack(self.tokenizer, caption, truncate=True, shorten=shorten)[0]


def _group_of(pair: Pair, label: str) -> np.ndarray:
    """Returns a 64-bit hash, as two words, of a pair's label, or of its image without a label.

    Raises:
      PairError: the pair lacks the label.
    """
    content = pair.image
    if label:
        value = label_of(pair.text, pair.name, label)
        content = json.dumps(value, sort_keys=True, default=str).encode()
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return np.frombuffer(digest, "<u4").astype(np.uint32)


def label_of(text: Mapping[str, Any], name: str, field: str) -> Any:
    """Returns the value of the field that tells the class of a pair.

    Args:
      text: the text fields of the pair.
      name: the name of the pair, for messages.
      field: the name of the field.

    Raises:
      PairError: the pair lacks the field.
    """
    value = captions.field_value(text, field)
    if is_blank(value):
        fields = ", ".join(map(str, list(text)[:20])) or "none"
        raise PairError(
            "text",
            f"{name}: it lacks the field {field!r}, which config.data.label names; its fields are "
            f"{fields:.200}",
        )
    return value


def class_name_of(text: Mapping[str, Any], name: str, field: str) -> str | int | float:
    """Returns the name or number of the class of a pair; arguments as for `label_of`.

    Raises:
      PairError: the pair lacks the field, or it holds a list or an object.
    """
    value = label_of(text, name, field)
    if not isinstance(value, str | int | float):
        raise PairError("text", f"{name}: its {field!r} is {value!r:.80}, not the name of a class")
    return str(value) if isinstance(value, bool) else value


def class_of(text: Mapping[str, Any], name: str, field: str, classes: ClassIndex) -> int:
    """Returns the number of the class of a pair; other arguments as for `label_of`.

    Raises:
      PairError: the pair lacks the field, or it names no class.
    """
    value = class_name_of(text, name, field)
    number = classes.find(value)
    if number is None:
        line = f"{name}: {value!r:.80} is none of the {len(classes.labels):,} classes"
        raise PairError("text", line)
    return number
