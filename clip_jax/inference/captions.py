"""Captions of images, written by a model with a decoder."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from clip_jax.data.images.pictures import are_several, picture
from clip_jax.data.images.preprocess import Preprocess
from clip_jax.errors import UserError
from clip_jax.inference.batches import batch_rows, padded
from clip_jax.io.files import JsonObject
from clip_jax.models.clip import CLIP
from clip_jax.models.generation import Generation
from clip_jax.models.head import DECODER
from clip_jax.tokenizers import Tokenizer

_NAMES = {  # of options of transformers
    "num_beams": "beams",
    "max_new_tokens": "max_tokens",
    "max_length": "max_tokens",
    "min_length": "min_tokens",
}


class CaptionWriter:
    """Writes captions of images, called as the pipeline `image-to-text` of transformers.

    Args:
      model: the model, which has a decoder.
      preprocess: the preprocessing of the model.
      tokenize: the tokenizer of the model.

    Raises:
      UserError: the model has no decoder, or no tokenizer.
    """

    def __init__(self, model: CLIP, preprocess: Preprocess, tokenize: Any) -> None:
        if model.config.head(DECODER) is None:
            raise UserError(
                "this model writes no captions: a run with config.objective.name=captioning trains "
                "a decoder"
            )
        self.model, self.preprocess = model, preprocess
        if not isinstance(tokenize, Tokenizer):
            raise UserError("captions need the tokenizer that the decoder was trained with")
        self.tokenizer = tokenize

    def __call__(self, images: Any, **options: Any) -> Any:
        """Returns `[{"generated_text": …}]` for an image, and a list of these for several.

        Args:
          images: an image in any form that `data.pictures.picture` takes, or several.
          options: as for `stream`. The answer to a skipped image is None.

        Raises:
          UserError: an image is wrong, or an option is wrong or unknown.
        """
        known = list(inspect.signature(self.stream).parameters)[1:]
        if unknown := next((name for name in options if name not in known), ""):
            hint = f": here it is {_NAMES[unknown]}" if unknown in _NAMES else ""
            raise UserError(f"unknown option {unknown}{hint}; known: {', '.join(known)}")
        several = are_several(images)
        captions = self.stream(images if several else [images], **options)
        answers: list[list[JsonObject] | None] = [
            None if isinstance(text, UserError) else [{"generated_text": text}] for text in captions
        ]
        return answers if several else answers[0]

    def stream(
        self,
        images: Iterable[Any],
        *,
        max_tokens: int | None = None,
        min_tokens: int = 0,
        temperature: float = 0.0,
        top_p: float = 1.0,
        beams: int = 1,
        open_clip: bool = False,
        seed: int | None = None,
        batch_size: int = 32,
        skip_broken: bool = False,
    ) -> Iterator[str | UserError]:
        """Returns an iterator over the captions of the images, in order.

        Args:
          images: the images.
          max_tokens: the most tokens of a caption, start and end included; None: as many as the
            model was trained with.
          min_tokens: the tokens before the end at least, start included.
          temperature: logits are divided by it before a token is drawn; 0: the likeliest is taken.
          top_p: a token is drawn from the likeliest that have this share together; only with a
            temperature.
          beams: captions that beam search keeps; 1: no beam search.
          open_clip: whether details are those of open_clip's CoCa, see `generation.Generation`.
          seed: the seed of what is drawn, only with a temperature; None: 0. The captions depend on
            the place of an image in its batch, too.
          batch_size: images at a time.
          skip_broken: whether the answer to an image that cannot be read is the error, which is
            otherwise raised.

        Raises:
          UserError: an image or an option is wrong.
        """
        _check_whole("batch_size", batch_size, 1)
        if seed is not None:
            _check_whole("seed", seed, 0)
            if not temperature:
                raise UserError(
                    f"seed={seed} changes nothing, because nothing is drawn: set temperature above "
                    "0, such as temperature=1.0"
                )
        context = self.model.config.text.context_length
        chosen = generation_with(
            self.tokenizer,
            max_tokens=context if max_tokens is None else max_tokens,
            temperature=temperature,
            top_p=top_p,
            beams=beams,
            min_tokens=min_tokens,
            open_clip=open_clip,
        )
        return self._captions(images, chosen, seed or 0, batch_size, skip_broken)

    def _captions(
        self,
        images: Iterable[Any],
        options: Generation,
        seed: int,
        batch_size: int,
        skip_broken: bool,
    ) -> Iterator[str | UserError]:
        rest, key = iter(images), jax.random.key(seed)
        for number in itertools.count():
            batch = [self._pixels(x, skip_broken) for x in itertools.islice(rest, batch_size)]
            if not batch:
                return
            pixels = [item for item in batch if not isinstance(item, UserError)]
            size = batch_rows(len(batch), batch_size, started=bool(number))
            texts = iter(self._written(pixels, size, options, jax.random.fold_in(key, number)))
            for item in batch:
                yield item if isinstance(item, UserError) else next(texts)

    def _pixels(self, image: Any, skip_broken: bool) -> np.ndarray | UserError:
        try:
            return self.preprocess(picture(image))
        except UserError as error:
            if skip_broken:
                return error
            raise UserError(f"{error} (--skip-broken, or skip_broken=True, goes on)") from None

    def _written(
        self, pixels: list[np.ndarray], size: int, options: Generation, key: Any
    ) -> list[str]:
        """Returns the captions of some images, which are padded to `size` rows."""
        if not pixels:
            return []
        rows = padded(np.stack(pixels), size)
        tokens = np.asarray(self.model.generate(rows, options, key=key))[: len(pixels)]
        return [self.tokenizer.decode(row.tolist()) for row in tokens]


def _check_whole(key: str, value: Any, least: int) -> None:
    integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not integer or not least <= value < 1 << 31:
        raise UserError(f"{key}={value!r:.60} must be a whole number from {least} on")


def generation_with(tokenizer: Tokenizer, **options: Any) -> Generation:
    """Returns how captions are written with a tokenizer's special tokens.

    Args:
      tokenizer: the tokenizer.
      options: the other fields of `Generation`.
    """
    return Generation(
        end_id=tokenizer.eot_id,
        pad_id=tokenizer.pad_id,
        start_id=tokenizer.sot_id,
        vocabulary=tokenizer.vocab_size,
        **options,
    )
