"""Resolves the keys `optimizer.freeze`, `groups` and `layer_decay` to groups of parameters.

Patterns name parameters as `vision/transformer/blocks/3/mlp/fc/kernel`: the path of the parameter,
with the number of the layer for layers that are stacked in one array.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from clip_jax.config.optimizer_schema import Optimizer
from clip_jax.config.values import is_number
from clip_jax.distributed.param_spec import ParamSpecs
from clip_jax.errors import UserError
from clip_jax.optim.param_groups import BASE, ParamGroup, ParamGroups, named_leaves

# What comes before the first numbered layer of a tower, for `layer_decay`.
_INPUTS = re.compile(
    "(stem|bn_stem|(class|patch|positional|token|segment)_embedding|ln_pre|ln_embedding)(/|$)"
)
_STAGE = re.compile(r"stage(\d+)/")
_PART = re.compile(r"(\w+)(?:\[(?!\])(-?\d+)?(:)?(-?\d+)?\])?")


def resolve(config: Optimizer, specs: ParamSpecs, params: Any) -> ParamGroups:
    """Returns the groups that `config.optimizer` describes.

    Args:
      config: the keys `freeze`, `groups` and `layer_decay`.
      specs: the metadata of the parameters.
      params: the parameters, or their shapes.

    Raises:
      UserError: a pattern is malformed or matches nothing, or everything is frozen.
    """
    shapes = {name: leaf.shape for name, leaf in named_leaves(params)}
    names = {name: _layer_names(name, shapes[name], specs) for name in shapes}
    every_name = [layer for layers in names.values() for layer in layers]
    groups, tests = [], []
    for part in filter(None, (part.strip() for part in config.freeze.split(","))):
        groups.append(ParamGroup(part, frozen=True))
        tests.append(_part_test(part, names, specs))
    for number, entry in enumerate(config.groups):
        groups.append(_group(f"config.optimizer.groups[{number}]", entry))
        tests.append(_pattern_test(f"config.optimizer.groups[{number}]", groups[-1].name))
    if any(spec.adapter for spec in specs.values()):
        added = [name for name in names if specs[name].adapter or specs[name].head]
        learning = {layer for name in added for layer in names[name]}
        groups.append(ParamGroup(BASE, frozen=True))
        tests.append(lambda name: name not in learning)
    groups.append(ParamGroup())
    first = {name: _first(name, tests) for name in every_name}
    for i, (group, matches) in enumerate(zip(groups, tests, strict=False)):
        if group.name == BASE:
            continue
        if not any(map(matches, every_name)):
            raise UserError(_nothing(group, every_name))
        # a part that is frozen twice does no harm
        if i not in first.values() and not group.frozen:
            raise UserError(
                f"config.optimizer.groups: all that {group.name!r} matches is in groups before it "
                "or frozen by config.optimizer.freeze, and the first match counts: move it up, or "
                "leave it out"
            )
    assignment = {
        name: np.array([first[layer] for layer in layers])
        if specs[name].stacked
        else np.array(first[name])
        for name, layers in names.items()
    }
    resolved = ParamGroups(tuple(groups), assignment, _layer_factors(config, names, specs))
    if all(resolved.is_frozen(name) for name in assignment):
        raise UserError("config.optimizer freezes every parameter: nothing is left to train")
    return resolved


def _group(where: str, entry: Any) -> ParamGroup:
    """Returns a group from an entry of `optimizer.groups`."""
    fields = {field.name: field for field in dataclasses.fields(ParamGroup)}
    known = ["pattern", *(name for name in fields if name != "name")]
    if not isinstance(entry, Mapping) or not isinstance(entry.get("pattern"), str):
        raise UserError(
            f"{where}={entry!r:.200} must be a dictionary with a pattern, such as "
            "{'pattern': 'text/.*', 'learning_rate': 0.1}"
        )
    for key, value in entry.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f", such as {near[0]}" if near else ""
            raise UserError(f"{where}: unknown key {key!r}{hint}; known: {', '.join(known)}")
        is_flag, is_count = key == "frozen", key in ("start", "warmup_steps")
        fits = (
            isinstance(value, str)
            if key == "pattern"
            else isinstance(value, bool)
            if is_flag
            else is_number(value)
            and 0 <= value < math.inf
            and (not is_count or value == int(value))
        )
        if not fits:
            kind = "true or false" if is_flag else "a whole number" if is_count else "a number"
            raise UserError(f"{where}: {key}={value!r:.80} must be {kind}, at least 0")
    values = {key: entry[key] for key in entry if key != "pattern"}
    group = ParamGroup(entry["pattern"], **values)
    if group.frozen and len(values) > 1:
        raise UserError(f"{where}: a frozen group has no other keys; it has {', '.join(values)}")
    return group


def _layer_names(name: str, shape: tuple[int, ...], specs: ParamSpecs) -> list[str]:
    """Returns the names that patterns see: one for each layer of a stacked parameter."""
    spec = specs[name]
    if not spec.stacked:
        return [name]
    *outer, inner = _split_at_stack(name, spec.inside)
    return ["/".join([*outer, str(layer), inner]) for layer in range(shape[0])]


def _split_at_stack(name: str, inside: int) -> tuple[str, str]:
    parts = name.split("/")
    return "/".join(parts[:-inside]), "/".join(parts[-inside:])


def _first(name: str, tests: Sequence[Callable[[str], bool]]) -> int:
    return next((i for i, matches in enumerate(tests) if matches(name)), len(tests))


def _pattern_test(where: str, pattern: str) -> Callable[[str], bool]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"{where}: {pattern!r:.80} is no regular expression ({error})") from None
    return lambda name: compiled.fullmatch(name) is not None


def _part_test(
    part: str, names: Mapping[str, Sequence[str]], specs: ParamSpecs
) -> Callable[[str], bool]:
    """Makes the test for a part of the model, such as `text.ln_final` or `vision.blocks[:8]`.

    Components may be left out where that is unique: `vision.blocks` is `vision/transformer/blocks`.
    """
    tower, *rest = re.split("[./]", part)
    parsed = [_PART.fullmatch(component) for component in rest]
    if not re.fullmatch(r"\w+", tower) or not all(parsed):
        raise UserError(
            f"config.optimizer.freeze: {part!r:.80} is no part of a model, such as vision, "
            "text.ln_final or vision.blocks[:8]; separate several by commas"
        )
    chosen: set[str] = set()
    for name, layers in names.items():
        stack = _split_at_stack(name, specs[name].inside)[0] if specs[name].stacked else None
        components, position, rows = name.split("/"), 0, slice(None)
        if components[0] != tower:
            continue
        for match in parsed:
            assert match is not None
            position = _index(components, match[1], position + 1)
            if position < 0:
                break
            if "[" in match[0]:
                if stack != "/".join(components[: position + 1]):
                    position = -1
                    break
                rows = _slice(match)
        if position >= 0:
            chosen.update(layers[rows])
    return chosen.__contains__


def _index(components: Sequence[str], component: str, start: int) -> int:
    return components.index(component, start) if component in components[start:] else -1


def _slice(match: re.Match[str]) -> slice:
    low, colon, high = (match[i] for i in (2, 3, 4))
    start = int(low) if low else None
    if colon:
        return slice(start, int(high) if high else None)
    assert start is not None
    return slice(start, start + 1 or None)


def _nothing(group: ParamGroup, names: Sequence[str]) -> str:
    parts = list(dict.fromkeys(name.partition("/")[0] for name in names))
    wanted = group.name.replace(".", "/")
    near = difflib.get_close_matches(wanted, [*parts, *names], 3, 0.3) or names[:3]
    key = "freeze" if group.frozen and "/" not in group.name else "groups"
    return (
        f"config.optimizer.{key}: {group.name!r:.80} matches no parameter of this model, whose "
        f"parameters are named as {', '.join(near)}"
    )


def _layer_factors(
    config: Optimizer, names: Mapping[str, Sequence[str]], specs: ParamSpecs
) -> dict[str, np.ndarray]:
    """Returns the factors of `layer_decay`: decay ** (layers above), 1 above the last layer.

    As in BEiT (Bao et al. 2021): embeddings count as layer 0, the first block as layer 1, and what
    follows the blocks as the layer after the last.
    """
    factors = {}
    for tower, decay in config.layer_decay.to_dict().items():
        if decay == 1:
            continue
        inside = {name: layers for name, layers in names.items() if name.startswith(f"{tower}/")}
        depths = {name: _depths(name, layers, specs) for name, layers in inside.items()}
        top = max((d for depth in depths.values() for d in depth if d is not None), default=0) + 1
        if top == 1:
            raise UserError(
                f"config.optimizer.layer_decay.{tower}={decay:g}: this tower has no numbered "
                "layers; set rates by config.optimizer.groups"
            )
        for name, depth in depths.items():
            powers = np.array([decay ** (0 if d is None else top - d) for d in depth])
            factors[name] = powers if specs[name].stacked else powers[0]
    return factors


def _depths(name: str, layers: Sequence[str], specs: ParamSpecs) -> list[int | None]:
    """Returns the number of each layer; None for what follows the last layer."""
    rest = name.partition("/")[2]
    if match := _STAGE.match(rest):
        return [int(match[1])] * len(layers)
    if specs[name].stacked:
        return [i + 1 for i in range(len(layers))]
    return [0 if _INPUTS.match(rest) else None]
