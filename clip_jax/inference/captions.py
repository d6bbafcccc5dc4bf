"""Captions of images, written by a model with a decoder."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from clip_jax.data.images.pictures import are_several, picture
from clip_jax.data.images.preprocess import Preprocess
from clip_jax.errors import UserError
from clip_jax.io.files import JsonObject
from clip_jax.models.clip import CLIP
from clip_jax.models.generation import DECODER, Generation
from clip_jax.tokenizers import Tokenizer


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
          options: as for `stream`.
        """
        several = are_several(images)
        captions = self.stream(images if several else [images], **options)
        answers: list[list[JsonObject]] = [[{"generated_text": text}] for text in captions]
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
        seed: int = 0,
        batch_size: int = 32,
    ) -> Iterator[str]:
        """Yields the caption of each image, in order.

        Args:
          images: the images.
          max_tokens: the most tokens of a caption, start and end included; None: as many as the
            model was trained with.
          min_tokens: the tokens before the end at least, start included.
          temperature: logits are divided by it before a token is drawn; 0: the likeliest is taken.
          top_p: a token is drawn from the likeliest that have this share together.
          beams: captions that beam search keeps; 1: no beam search.
          open_clip: whether details are those of open_clip's CoCa, see `generation.Generation`.
          seed: the seed of what is drawn. The captions depend on the place of an image in its
            batch, too.
          batch_size: images at a time.

        Raises:
          UserError: an image or an option is wrong.
        """
        tokenizer = self.tokenizer
        chosen = generation_with(
            tokenizer,
            max_tokens=max_tokens or self.model.config.text.context_length,
            temperature=temperature,
            top_p=top_p,
            beams=beams,
            min_tokens=min_tokens,
            open_clip=open_clip,
        )
        rest, key = iter(images), jax.random.key(seed)
        for number in itertools.count():
            pixels = [self.preprocess(picture(x)) for x in itertools.islice(rest, batch_size)]
            if not pixels:
                return
            count = len(pixels)
            size = batch_size if number else min(batch_size, 1 << (count - 1).bit_length())
            rows = np.stack([*pixels, *pixels[-1:] * (size - count)])
            tokens = self.model.generate(rows, chosen, key=jax.random.fold_in(key, number))
            yield from (tokenizer.decode(row.tolist()) for row in np.asarray(tokens)[:count])


def generation_with(tokenizer: Tokenizer, **options: Any) -> Generation:
    """Returns how captions are written with a tokenizer's special tokens.

    Args:
      tokenizer: the tokenizer.
      options: the other fields of `Generation`.
    """
    return Generation(
        end_id=tokenizer.eot_id, pad_id=tokenizer.pad_id, start_id=tokenizer.sot_id, **options
    )
