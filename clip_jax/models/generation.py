"""Writes captions with a decoder: greedy, by sampling, or by beam search."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from clip_jax.errors import UserError

MAX_BEAMS = 1024
_LEAST = 1e-6  # temperature and top_p: float32 computes with them
_NEVER = -1e9  # the logarithm of a share that is as good as zero


@runtime_checkable
class Writer(Protocol):
    """What predicts the tokens of captions, one after the other.

    Attributes:
      needs_start: whether each caption begins with a given token. Otherwise the first token, too,
        can be predicted.
    """

    needs_start: bool

    def start_generation(self, grid: Float[Array, "batch places channels"], length: int) -> Any:
        """Returns what `next_logits` needs to write captions of at most `length` tokens.

        Args:
          grid: the features of the places of the images.
          length: the number of tokens.

        Returns:
          A pair. The second is a tree of arrays [layers, batch, …], whose rows follow the captions.
        """

    def next_logits(
        self, token: Int[Array, " batch"] | None, position: Int[Array, ""], memory: Any
    ) -> tuple[Float[Array, "batch vocabulary"], Any]:
        """Returns the logits of the token at a position, float32, and the memory for the next.

        Args:
          token: the tokens at the position before; None at position 0, where only a writer that
            does not need a start is asked.
          position: the position.
          memory: the result of `start_generation`, or of the call for the position before.
        """


@dataclasses.dataclass(frozen=True)
class Generation:
    """How captions are written.

    Attributes:
      end_id: the token that ends a text.
      pad_id: the token after the end.
      start_id: the token that begins each text; None: the first token is written, too.
      max_tokens: the length of the result, start and end included.
      min_tokens: the tokens that come before the end at least, start included.
      temperature: logits are divided by it before a token is drawn, at least 1e-6; 0: the likeliest
        is taken.
      top_p: a token is drawn from the likeliest that have this share together, at least 1e-6
        (Holtzman et al. 2020).
      beams: captions that are kept at each position, at most `MAX_BEAMS`; 1: no beam search. The
        best has the largest mean log-probability of its tokens.
      open_clip: whether details are those of open_clip's CoCa: beams are compared by sums of
        logits, not of log-probabilities, divided by the number of tokens with the start; without
        beams, padding ends a text, and the last token is an end.
      vocabulary: the number of the tokenizer's tokens, if the model may have more: others are never
        written. None: all can be.
    """

    end_id: int
    pad_id: int
    start_id: int | None = None
    max_tokens: int = 77
    temperature: float = 0.0
    top_p: float = 1.0
    beams: int = 1
    min_tokens: int = 0
    open_clip: bool = False
    vocabulary: int | None = None

    def __post_init__(self) -> None:
        for key in ("max_tokens", "min_tokens", "beams"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise UserError(f"{key}={value!r:.60} must be a whole number")
        for key in ("temperature", "top_p"):
            value = getattr(self, key)
            number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
            if not number or not math.isfinite(value):
                raise UserError(f"{key}={value!r:.60} must be a finite number")
        if self.max_tokens < 2:
            raise UserError(f"max_tokens={self.max_tokens} must be at least 2")
        if not 0 <= self.min_tokens < self.max_tokens:
            raise UserError(
                f"min_tokens={self.min_tokens} must be at least 0 and below "
                f"max_tokens={self.max_tokens}"
            )
        if self.temperature and self.temperature < _LEAST:
            raise UserError(f"temperature={self.temperature:g} must be 0 or at least {_LEAST:g}")
        if not _LEAST <= self.top_p <= 1:
            raise UserError(f"top_p={self.top_p:g} must be at least {_LEAST:g} and at most 1")
        if not 1 <= self.beams <= MAX_BEAMS:
            raise UserError(f"beams={self.beams} must be from 1 to {MAX_BEAMS:,}")
        if self.top_p < 1 and not self.temperature:
            raise UserError(
                f"top_p={self.top_p:g} restricts what is drawn: set temperature above 0, such as "
                "temperature=1.0"
            )
        if self.beams > 1 and self.temperature:
            raise UserError(
                f"beams={self.beams} takes the likeliest captions: set temperature="
                f"{self.temperature:g} to 0"
            )


def generate(
    writer: Writer,
    grid: Float[Array, "batch places channels"],
    options: Generation,
    key: Key[Array, ""],
) -> Int[Array, "batch tokens"]:
    """Writes a caption for each image.

    Args:
      writer: the decoder.
      grid: the features of the places of the images.
      options: how captions are written.
      key: the source of what is drawn.

    Returns:
      The tokens: start if there is one, words, end, padding.

    Raises:
      UserError: the decoder needs a start that `options` do not give.
    """
    if writer.needs_start and options.start_id is None:
        raise UserError("this decoder begins with a start token: start_id must be given")
    if options.beams > 1:
        return _by_beams(writer, grid, options)
    memory = writer.start_generation(grid, options.max_tokens)
    first, token, memory = _first(writer, len(grid), options, memory)

    def write(carry: Any, position: Array) -> tuple[Any, Array]:
        token, done, memory = carry
        logits, memory = writer.next_logits(token, position, memory)
        new = _chosen(logits, options, position, jax.random.fold_in(key, position))
        new = jnp.where(done, options.pad_id, new)
        return (new, done | _ends(new, options), memory), new

    if first == 0:
        logits, memory = writer.next_logits(None, jnp.int32(0), memory)
        token = _chosen(logits, options, jnp.int32(0), jax.random.fold_in(key, 0))
    done = _ends(token, options) if first == 0 else jnp.zeros(len(grid), bool)
    positions = jnp.arange(1, options.max_tokens)
    _, rest = jax.lax.scan(write, (token, done, memory), positions)
    return jnp.concatenate([token[:, None], rest.T], axis=1).astype(jnp.int32)


def _ends(token: Int[Array, " batch"], options: Generation) -> Bool[Array, " batch"]:
    end = token == options.end_id
    return end | (token == options.pad_id) if options.open_clip else end


def _first(
    writer: Writer, batch: int, options: Generation, memory: Any
) -> tuple[int, Int[Array, " batch"], Any]:
    """Returns how many tokens are given, the last of them, and the memory that holds them."""
    if options.start_id is None:
        return 0, jnp.zeros(batch, jnp.int32), memory
    if not writer.needs_start:
        _, memory = writer.next_logits(None, jnp.int32(0), memory)
    return 1, jnp.full(batch, options.start_id, jnp.int32), memory


def _possible(
    logits: Float[Array, "*n vocabulary"], options: Generation, position: Int[Array, ""]
) -> Float[Array, "*n vocabulary"]:
    """Makes tokens of no tokenizer impossible, and the end before `min_tokens`."""
    if options.vocabulary is not None and options.vocabulary < logits.shape[-1]:
        is_token = jnp.arange(logits.shape[-1]) < options.vocabulary
        logits = jnp.where(is_token, logits, -jnp.inf)
    if not options.min_tokens:
        return logits
    early = (jnp.arange(logits.shape[-1]) == options.end_id) & (position < options.min_tokens)
    return jnp.where(early, -jnp.inf, logits)


def _chosen(
    logits: Float[Array, "batch vocabulary"],
    options: Generation,
    position: Int[Array, ""],
    key: Key[Array, ""],
) -> Int[Array, " batch"]:
    logits = _possible(logits, options, position)
    if not options.temperature:
        new = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    else:
        logits = logits / options.temperature
        if options.top_p < 1:
            logits = jnp.where(_is_likely(logits, options.top_p), logits, -jnp.inf)
        rows = jnp.arange(len(logits))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
        new = jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
    if not options.open_clip:
        return new
    return jnp.where(position == options.max_tokens - 1, options.end_id, new)


def _is_likely(logits: Float[Array, "batch vocabulary"], top_p: float) -> Array:
    """Returns which tokens belong to the smallest set of the likeliest with the share `top_p`."""
    order = jnp.argsort(-logits, axis=-1)
    shares = jnp.take_along_axis(jax.nn.softmax(logits), order, axis=-1)
    before = jnp.cumsum(shares, axis=-1) - shares
    inside = before < top_p  # the first always is
    return jnp.take_along_axis(inside, jnp.argsort(order, axis=-1), axis=-1)


class _Beams(NamedTuple):
    """The state of a beam search.

    Attributes:
      tokens: the captions that are being written.
      scores: the sums of the scores of their tokens.
      ended: the best captions that have ended.
      ended_scores: their scores, each divided by its number of tokens; -inf where there is none.
      done: the images for which no caption that is being written can be better.
    """

    tokens: Int[Array, "batch beams length"]
    scores: Float[Array, "batch beams"]
    ended: Int[Array, "batch beams length"]
    ended_scores: Float[Array, "batch beams"]
    done: Bool[Array, " batch"]


def _by_beams(
    writer: Writer, grid: Float[Array, "batch places channels"], options: Generation
) -> Int[Array, "batch tokens"]:
    """Writes captions by beam search.

    Rows of the writer are the beams of all images, those of one image adjacent. The search is that
    of transformers: of the likeliest 2 · beams continuations those that end are put aside, and the
    others go on. An image is done when as many have ended as there are beams, and none that goes on
    has a better mean so far.
    """
    batch, beams, length = len(grid), options.beams, options.max_tokens
    memory = writer.start_generation(jnp.repeat(grid, beams, axis=0), length)
    first, _, memory = _first(writer, batch * beams, options, memory)
    tokens = jnp.full((batch, beams, length), options.pad_id, jnp.int32)
    if first:
        tokens = tokens.at[:, :, 0].set(options.start_id)
    scores = jnp.where(jnp.arange(beams) == 0, 0.0, _NEVER)  # equal beams count once
    state = _Beams(
        tokens,
        jnp.broadcast_to(scores, (batch, beams)),
        tokens,
        jnp.full((batch, beams), -jnp.inf),
        jnp.zeros(batch, bool),
    )

    def write(carry: Any, position: Array, token: Array | None) -> tuple[Any, None]:
        state, memory = carry
        logits, (places, caches) = writer.next_logits(token, position, memory)
        state, parent = _extended(state, logits, position, first, options)
        rows = (jnp.arange(batch)[:, None] * beams + parent).reshape(-1)
        caches = jax.tree.map(lambda x: jnp.take(x, rows, axis=1), caches)
        return (state, (places, caches)), None

    carry = (state, memory)
    if not first:
        carry, _ = write(carry, jnp.int32(0), None)

    def go_on(carry: Any, position: Array) -> tuple[Any, None]:
        tokens = carry[0].tokens
        before = jax.lax.dynamic_index_in_dim(tokens, position - 1, axis=2, keepdims=False)
        return write(carry, position, before.reshape(-1))

    (state, _), _ = jax.lax.scan(go_on, carry, jnp.arange(1, length))
    means = state.scores / _counted(length - 1, first, options)
    means = jnp.where(state.done[:, None], -jnp.inf, means)
    captions = jnp.concatenate([state.ended, state.tokens], axis=1)
    best = jnp.argmax(jnp.concatenate([state.ended_scores, means], axis=1), axis=1)
    return jnp.take_along_axis(captions, best[:, None, None], axis=1)[:, 0]


def _counted(position: Any, first: int, options: Generation) -> Any:
    """Returns the number of tokens up to a position by which scores are divided."""
    return position + 1 - (0 if options.open_clip else first)


def _extended(
    state: _Beams,
    logits: Float[Array, "rows vocabulary"],
    position: Int[Array, ""],
    first: int,
    options: Generation,
) -> tuple[_Beams, Int[Array, "batch beams"]]:
    """Returns the beams with one token more, and the beam that each continues.

    Args:
      state: the beams before.
      logits: the logits of the token of each beam.
      position: the position of the token.
      first: the number of tokens that were given.
      options: how captions are written.
    """
    batch, beams, _ = state.tokens.shape
    values = logits if options.open_clip else jax.nn.log_softmax(logits)
    values = _possible(values, options, position).reshape(batch, beams, -1)
    vocabulary = values.shape[-1]
    totals = (state.scores[..., None] + values).reshape(batch, -1)
    totals, best = jax.lax.top_k(totals, 2 * beams)
    parents, new = best // vocabulary, (best % vocabulary).astype(jnp.int32)
    is_end = new == options.end_id
    means = totals / _counted(position, first, options)

    captions = jnp.take_along_axis(state.tokens, parents[..., None], axis=1)
    captions = captions.at[:, :, position].set(new)
    may_end = is_end & (jnp.arange(2 * beams) < beams) & ~state.done[:, None]
    ended_scores = jnp.concatenate([state.ended_scores, jnp.where(may_end, means, -jnp.inf)], 1)
    ended_scores, kept = jax.lax.top_k(ended_scores, beams)
    ended = jnp.concatenate([state.ended, captions], axis=1)
    ended = jnp.take_along_axis(ended, kept[..., None], axis=1)
    done = state.done | (ended_scores[:, -1] >= means[:, 0])

    scores, going = jax.lax.top_k(jnp.where(is_end, -jnp.inf, totals), beams)
    tokens = jnp.take_along_axis(captions, going[..., None], axis=1)
    parent = jnp.take_along_axis(parents, going, axis=1)
    return _Beams(tokens, scores, ended, ended_scores, done), parent
