"""Prefixes that training programs put before the names of a model's tensors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import TypeVar

from clip_jax.weights.formats.raw import UnreadableError

T = TypeVar("T")
# one tensor of each kind of text encoder, which a language model holds beside a head or a decoder
_ENCODER = re.compile(
    r"((?:[^.]+\.)*?)(?:embeddings\.word_embeddings"
    r"|block\.0\.layer\.0\.SelfAttention\.q|layers\.0\.self_attn\.q_proj)\.weight"
)
# by torch.compile, FSDP and activation checkpointing, anywhere in a name
_WRAPPED = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# the image tower that every CLIP has, in open_clip and OpenAI's files, or in transformers
_TOWER = re.compile(r"((?:[^.]+\.)*?)(?:visual|vision_model)\.")


def is_tower(name: str) -> bool:
    """Returns whether a tensor belongs to an image tower, whatever the prefix of its name."""
    return _TOWER.match(_WRAPPED.sub("", name)) is not None


def remove_prefix(entries: Mapping[str, T]) -> tuple[dict[str, T], str, list[str]]:
    """Removes the prefix from the names of a model's tensors.

    Args:
      entries: tensors by their names in a file.

    Returns:
      The model's tensors by their names without the prefix; the prefix; and the names that do not
      have it, which belong to something else, such as the head of a classifier.

    Raises:
      UnreadableError: there are several models, or two names become one.
    """
    plain = {_WRAPPED.sub("", name): entry for name, entry in entries.items()}
    if len(plain) < len(entries):
        raise UnreadableError("two of its names are one without _orig_mod. and the like")
    towers = Counter(tower[1] for name in plain if (tower := _TOWER.match(name)))
    # a tower without prefix is the model's; others, such as `ema.`, are beside it
    if not towers:
        return _remove_common_prefix(plain)
    if "" in towers:
        others = tuple(prefix for prefix in towers if prefix)
        own = {name: entry for name, entry in plain.items() if not name.startswith(others)}
        return own, "", [name for name in plain if name not in own]
    if len(towers) > 1:
        several = ", ".join(ascii(prefix[:80]) for prefix in sorted(towers)[:5])
        raise UnreadableError(
            f"it holds {len(towers)} models, whose names begin with {several}: save one of them "
            "alone, {name: x for name, x in state_dict.items() if name.startswith(PREFIX)}"
        )
    (prefix,) = towers
    inner = {n.removeprefix(prefix): entry for n, entry in plain.items() if n.startswith(prefix)}
    return inner, prefix, [name for name in plain if not name.startswith(prefix)]


def _remove_common_prefix(plain: dict[str, T]) -> tuple[dict[str, T], str, list[str]]:
    """Tensors of no CLIP; `module.` is removed if all names begin with it.

    So is the prefix of the text encoder of a language model, which shares its table of tokens with
    the decoder.
    """
    prefix = ""
    if plain and all(name.startswith("module.") for name in plain):
        plain, prefix = (
            {name.removeprefix("module."): entry for name, entry in plain.items()},
            "module.",
        )
    found = {match[1] for name in plain if (match := _ENCODER.fullmatch(name))}
    found = {inner for inner in found if not inner.endswith("decoder.")}
    if len(found) != 1 or "" in found:
        return plain, prefix, []
    (inner,) = found
    own = {n.removeprefix(inner): entry for n, entry in plain.items() if n.startswith(inner)}
    shared = f"{inner.removesuffix('encoder.')}shared.weight"
    if inner.endswith("encoder.") and shared in plain:
        own.setdefault("embed_tokens.weight", plain[shared])
    left_out = [n for n in plain if not n.startswith(inner) and n != shared]
    return own, prefix + inner, left_out
