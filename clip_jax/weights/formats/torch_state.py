"""Finds the state dict of a model in a file of torch, whatever else was saved with it."""

from __future__ import annotations

from collections import deque
from typing import Any

from clip_jax.weights import prefixes
from clip_jax.weights.formats.pickle_reader import MAX_OPCODES, Object, Opaque, TensorView
from clip_jax.weights.formats.raw import MAX_NAME, BadFileError, Entry, UnreadableError
from clip_jax.weights.formats.torch_archive import Storages, tensor_entry

Named = dict[str, Any]  # tensors and other values, by name
_MAX_DEPTH = 3  # of wrappers in wrappers
_MAX_MODULES = 16  # of torch, side by side
# Keys of several state dicts, the likeliest first.
WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "module", "network", "net", "weights", "params"),
    *("ema_state_dict", "state_dict_ema", "model_ema", "ema"),
)


def state_dict(archive: Storages) -> tuple[dict[str, Entry], list[str]]:
    """Finds the tensors of a model's state dict, wherever it is in the saved value.

    A pickled module gives its parameters and buffers.

    Returns:
      The tensors by name, and the keys that lead to models; those of the tensors come first.

    Raises:
      UnreadableError: there is no state dict, or there are several and none is the usual one.
    """
    dicts = _dicts_of_tensors(archive.unpickled())
    if not dicts:
        raise UnreadableError("it is no state_dict and holds none: no tensors by name")
    # a loss or the state of a random generator beside a model are tensors, too
    models = [key for key, tensors in dicts.items() if any(map(prefixes.is_tower, tensors))]
    ranked = sorted(models or dicts, key=_rank)
    if len(models) > 1 and _rank(ranked[0]) == len(WRAPPERS):
        several = ", ".join(ascii(key[:80]) for key in ranked[:5])
        raise UnreadableError(
            f"it holds {len(models)} models, under {several}: save one of them alone, "
            f"torch.save(torch.load(FILE)[{ranked[0][:80]!a}], NEW)"
        )
    entries = {}
    for name, value in dicts[ranked[0]].items():
        if isinstance(value, TensorView):
            entries[name] = tensor_entry(archive, name, value)
        elif _is_tensor(value):
            raise UnreadableError(f"its {name[:80]!a} is made by {value.kind[:80]!a}")
    return entries, ranked if models else []


def _rank(path: str) -> int:
    """Returns the rank of a state dict by the keys that lead to it; the lowest is the likeliest."""
    keys = path.split("/")
    places = [WRAPPERS.index(key) if key in WRAPPERS else len(WRAPPERS) for key in keys]
    return max(places) if path else -1


def _dicts_of_tensors(saved: Any) -> dict[str, Named]:
    """Returns the dictionaries with tensors by the keys that lead to them, such as `a/b`."""
    dicts: dict[str, Named] = {}
    waiting, seen, modules = deque([("", saved, 0)]), 0, 0
    while waiting:
        path, value, depth = waiting.popleft()
        if isinstance(value, Object):
            is_module = "_modules" in value.state
            modules += is_module
            value = _module_tensors(value) if is_module else value.state
        if not isinstance(value, dict):
            continue
        # values may be shared, and a hostile file may nest shared ones
        seen += len(value)
        if seen > MAX_OPCODES or modules > _MAX_MODULES:
            raise BadFileError("it has more dictionaries or modules than any checkpoint")
        if any(map(_is_tensor, value.values())):
            dicts[path] = value
        if depth < _MAX_DEPTH:
            for key, inner in value.items():
                if isinstance(inner, dict | Object) and len(key) < MAX_NAME:
                    waiting.append((f"{path}/{key}" if path else key, inner, depth + 1))
    return dicts


def _is_tensor(value: Any) -> bool:
    """Returns whether a value is a tensor, or one of a kind that is not read."""
    return isinstance(value, TensorView) or (isinstance(value, Opaque) and "_rebuild" in value.kind)


def _module_tensors(module: Object) -> Named:
    """Returns the parameters and buffers of a pickled module, as its state dict names them."""
    tensors: Named = {}
    waiting, seen = [("", module)], 0
    while waiting:
        prefix, module = waiting.pop()
        for part in ("_parameters", "_buffers", "_modules"):
            members = module.state.get(part)
            for name, value in members.items() if isinstance(members, dict) else ():
                seen += 1  # modules may be shared, and a hostile file may nest shared ones
                if seen > MAX_OPCODES:
                    raise BadFileError("it has more modules than any model")
                if isinstance(value, Object) and part == "_modules":
                    waiting.append((f"{prefix}{name}.", value))
                elif value is not None and len(prefix) < MAX_NAME:
                    tensors[prefix + name] = value
    return tensors
