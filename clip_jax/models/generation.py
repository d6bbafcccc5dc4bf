"""Writes captions with a decoder: greedy, by sampling, or by beam search."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from clip_jax.errors import UserError
from clip_jax.models.decoder import Decoder, Memory

DECODER = "decoder"  # in `model.heads`
_NEVER = -1e9  # the logarithm of a share that is as good as zero


@dataclasses.dataclass(frozen=True)
class Generation:
    """How captions are written.

    Attributes:
      end_id: the token that ends a text.
      pad_id: the token after the end.
      start_id: the token that begins each text; None: the first token is written, too.
      max_tokens: the length of the result, start and end included.
      temperature: logits are divided by it before a token is drawn; 0: the likeliest is taken.
      top_p: a token is drawn from the likeliest that have this share together (Holtzman et al.
        2020).
      beams: captions that are kept at each position; 1: no beam search. The best has the largest
        mean log-probability of its tokens.
    """

    end_id: int
    pad_id: int
    start_id: int | None = None
    max_tokens: int = 77
    temperature: float = 0.0
    top_p: float = 1.0
    beams: int = 1

    def __post_init__(self) -> None:
        if self.max_tokens < 2:
            raise UserError(f"max_tokens={self.max_tokens} must be at least 2")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.beams < 1:
            raise UserError(
                f"temperature={self.temperature:g} must be at least 0, top_p={self.top_p:g} above "
                f"0 and at most 1, beams={self.beams} at least 1"
            )
        if self.beams > 1 and self.temperature:
            raise UserError(
                f"beams={self.beams} takes the likeliest captions: set temperature="
                f"{self.temperature:g} to 0"
            )


def generate(
    decoder: Decoder,
    grid: Float[Array, "batch places channels"],
    options: Generation,
    key: Key[Array, ""],
) -> Int[Array, "batch tokens"]:
    """Writes a caption for each image.

    Args:
      decoder: the decoder.
      grid: the features of the places of the images.
      options: how captions are written.
      key: the source of what is drawn.

    Returns:
      The tokens: start if there is one, words, end, padding.
    """
    if options.beams > 1:
        return _by_beams(decoder, grid, options)
    memory = decoder.start_generation(grid, options.max_tokens)
    first, token, memory = _first(decoder, len(grid), options, memory)

    def write(carry: Any, position: Array) -> tuple[Any, Array]:
        token, done, memory = carry
        logits, memory = decoder.next_logits(token, position, memory)
        new = _chosen(logits, options, jax.random.fold_in(key, position))
        new = jnp.where(done, options.pad_id, new)
        return (new, done | (new == options.end_id), memory), new

    if first == 0:
        logits, memory = decoder.next_logits(None, jnp.int32(0), memory)
        token = _chosen(logits, options, jax.random.fold_in(key, 0))
    done = (token == options.end_id) if first == 0 else jnp.zeros(len(grid), bool)
    positions = jnp.arange(1, options.max_tokens)
    _, rest = jax.lax.scan(write, (token, done, memory), positions)
    return jnp.concatenate([token[:, None], rest.T], axis=1).astype(jnp.int32)


def _first(
    decoder: Decoder, batch: int, options: Generation, memory: Memory
) -> tuple[int, Int[Array, " batch"], Memory]:
    """Returns how many tokens are given, the last of them, and the memory that holds them."""
    if options.start_id is None:
        return 0, jnp.zeros(batch, jnp.int32), memory
    _, memory = decoder.next_logits(None, jnp.int32(0), memory)
    return 1, jnp.full(batch, options.start_id, jnp.int32), memory


def _chosen(
    logits: Float[Array, "batch vocabulary"], options: Generation, key: Key[Array, ""]
) -> Int[Array, " batch"]:
    if not options.temperature:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / options.temperature
    if options.top_p < 1:
        logits = jnp.where(_is_likely(logits, options.top_p), logits, -jnp.inf)
    rows = jnp.arange(len(logits))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def _is_likely(logits: Float[Array, "batch vocabulary"], top_p: float) -> Array:
    """Returns which tokens belong to the smallest set of the likeliest with the share `top_p`."""
    order = jnp.argsort(-logits, axis=-1)
    shares = jnp.take_along_axis(jax.nn.softmax(logits), order, axis=-1)
    before = jnp.cumsum(shares, axis=-1) - shares
    inside = before < top_p  # the first always is
    return jnp.take_along_axis(inside, jnp.argsort(order, axis=-1), axis=-1)


def _by_beams(
    decoder: Decoder, grid: Float[Array, "batch places channels"], options: Generation
) -> Int[Array, "batch tokens"]:
    """Writes captions by beam search.

    Rows of the decoder are the beams of all images, those of one image adjacent. A beam that has
    ended stays as it is, with padding, and competes by the mean log-probability of its tokens.
    """
    batch, beams, length = len(grid), options.beams, options.max_tokens
    memory = decoder.start_generation(jnp.repeat(grid, beams, axis=0), length)
    first, _, memory = _first(decoder, batch * beams, options, memory)
    tokens = jnp.full((batch, beams, length), options.pad_id, jnp.int32)
    if first:
        tokens = tokens.at[:, :, 0].set(options.start_id)
    scores = jnp.where(jnp.arange(beams) == 0, 0.0, _NEVER)  # equal beams count once
    scores = jnp.broadcast_to(scores, (batch, beams))
    counts = jnp.zeros((batch, beams), jnp.int32)
    done = jnp.zeros((batch, beams), bool)

    def write(carry: Any, position: Array, token: Array | None) -> tuple[Any, None]:
        tokens, scores, counts, done, memory = carry
        logits, memory = decoder.next_logits(token, position, memory)
        shares = jax.nn.log_softmax(logits).reshape(batch, beams, -1)
        vocabulary = shares.shape[-1]
        only_pad = jnp.where(jnp.arange(vocabulary) == options.pad_id, 0.0, _NEVER)
        shares = jnp.where(done[..., None], only_pad, shares)
        totals = scores[..., None] + shares
        means = totals / jnp.maximum(counts + ~done, 1)[..., None]
        _, best = jax.lax.top_k(means.reshape(batch, -1), beams)
        parent, new = best // vocabulary, (best % vocabulary).astype(jnp.int32)

        def chosen(x: Array) -> Array:
            return jnp.take_along_axis(x, parent.reshape(batch, beams, *[1] * (x.ndim - 2)), axis=1)

        scores = jnp.take_along_axis(totals.reshape(batch, -1), best, axis=1)
        tokens, counts, done = chosen(tokens), chosen(counts), chosen(done)
        tokens = tokens.at[:, :, position].set(jnp.where(done, options.pad_id, new))
        counts = counts + ~done
        done = done | (new == options.end_id)
        places, caches = memory
        rows = (jnp.arange(batch)[:, None] * beams + parent).reshape(-1)
        caches = jax.tree.map(lambda x: jnp.take(x, rows, axis=1), caches)
        return (tokens, scores, counts, done, (places, caches)), None

    carry = (tokens, scores, counts, done, memory)
    if not first:
        carry, _ = write(carry, jnp.int32(0), None)

    def go_on(carry: Any, position: Array) -> tuple[Any, None]:
        before = jax.lax.dynamic_index_in_dim(carry[0], position - 1, axis=2, keepdims=False)
        return write(carry, position, before.reshape(-1))

    carry, _ = jax.lax.scan(go_on, carry, jnp.arange(1, length))
    tokens, scores, counts, _, _ = carry
    best = jnp.argmax(scores / jnp.maximum(counts, 1), axis=1)
    return jnp.take_along_axis(tokens, best[:, None, None], axis=1)[:, 0]
