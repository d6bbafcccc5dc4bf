"""What training programs put before the names of a model's tensors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import TypeVar

from clip_jax.weights.raw import UnreadableError

T = TypeVar("T")
# of torch.compile, FSDP and activation checkpointing, at any place of a name
_WRAPPED = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# the towers that every CLIP has, of open_clip's or OpenAI's names, or of transformers'
_TOWER = re.compile(r"((?:[^.]+\.)*?)(?:visual|vision_model)\.")


def is_tower(name: str) -> bool:
    """Whether a tensor of this name is of an image tower, whatever stands before the name."""
    return _TOWER.match(_WRAPPED.sub("", name)) is not None


def removed(entries: Mapping[str, T]) -> tuple[dict[str, T], str, list[str]]:
    """Tensors by the names that they have in the model alone.

    Args:
      entries: by the names of a file.

    Returns:
      those of the model; the prefix that their names had; the names that do not have it, which
      belong to something else, such as a classifier's head.

    Raises:
      UnreadableError: there are several models, or two names become one.
    """
    plain = {_WRAPPED.sub("", name): entry for name, entry in entries.items()}
    if len(plain) < len(entries):
        raise UnreadableError("two of its names are one without _orig_mod. and the like")
    found = Counter(tower[1] for name in plain if (tower := _TOWER.match(name)))
    # where a tower has no prefix it is the model's; others, such as `ema.`, are beside it
    if not found:
        return _of_all(plain)
    if "" in found:
        others = tuple(prefix for prefix in found if prefix)
        own = {name: entry for name, entry in plain.items() if not name.startswith(others)}
        return own, "", [name for name in plain if name not in own]
    if len(found) > 1:
        several = ", ".join(ascii(prefix[:80]) for prefix in sorted(found)[:5])
        raise UnreadableError(
            f"it holds {len(found)} models, whose names begin with {several}: save one of them "
            "alone, {name: x for name, x in state_dict.items() if name.startswith(PREFIX)}"
        )
    (prefix,) = found
    inner = {n.removeprefix(prefix): entry for n, entry in plain.items() if n.startswith(prefix)}
    return inner, prefix, [name for name in plain if not name.startswith(prefix)]


def _of_all(plain: dict[str, T]) -> tuple[dict[str, T], str, list[str]]:
    """`module.` is removed where all names begin with it, whatever model they are of."""
    if plain and all(name.startswith("module.") for name in plain):
        return {name.removeprefix("module."): entry for name, entry in plain.items()}, "module.", []
    return plain, "", []
