"""Reads TorchScript archives, as OpenAI released its models."""

from __future__ import annotations

import re

from clip_jax.weights.formats.pickle_reader import Object, TensorView
from clip_jax.weights.formats.raw import BadFileError, Entry, check_name
from clip_jax.weights.formats.torch_archive import Archive, tensor_entry

MAX_CODE = 16 << 20  # bytes
MAX_ATTRIBUTES = 200_000
_MODULE = re.compile(
    r"^class (\w+)\(Module\):\n((?:  __(?:parameters|buffers)__ = \[.*\]\n)*)", re.MULTILINE
)


def is_torchscript(archive: Archive) -> bool:
    """Returns whether an archive holds a program rather than a state dict."""
    return "constants.pkl" in archive


def state_dict(archive: Archive) -> dict[str, Entry]:
    """Returns the parameters and buffers of the modules, as their state dict names them."""
    declared = _declared(archive)
    entries = {}
    waiting, seen = [("", archive.unpickled())], 0
    while waiting:
        prefix, module = waiting.pop()
        # modules may be shared, and a hostile file may nest shared ones
        seen += 1 + len(module.state) if isinstance(module, Object) else 1
        if seen > MAX_ATTRIBUTES:
            raise BadFileError("it has more attributes than any model")
        if not isinstance(module, Object) or module.kind not in declared:
            continue
        for name, value in module.state.items():
            check_name(prefix + name)
            if isinstance(value, Object):
                waiting.append((f"{prefix}{name}.", value))
            elif isinstance(value, TensorView) and name in declared[module.kind]:
                entries[prefix + name] = tensor_entry(archive, prefix + name, value)
    if not entries:
        raise BadFileError("it holds no tensors")
    return entries


def _declared(archive: Archive) -> dict[str, set[str]]:
    """Returns the attributes of each module class that are its parameters and buffers.

    Other tensors are constants of the code and do not belong to the state dict.
    """
    declared, left = {}, MAX_CODE
    for member in archive:
        if not member.startswith("code/") or not member.endswith(".py"):
            continue
        code = archive.read(member, left)
        left -= len(code)
        package = member.removeprefix("code/").removesuffix(".py").replace("/", ".")
        for name, lists in _MODULE.findall(code.decode(errors="replace")):
            declared[f"{package} {name}"] = set(re.findall(r'"([^"\\]*)"', lists))
    return declared
