"""Which parameters learn, and how: `optimizer.freeze`, `optimizer.groups`, `optimizer.layer_decay`.

Patterns name parameters as `vision/transformer/blocks/3/mlp/fc/kernel`: the path of the parameter,
with the number of the layer for layers that are stacked in one array. A stacked array can therefore
belong to several groups, layer by layer.

A frozen parameter has no gradient and no optimizer state: the training step differentiates only the
tree that `ParamGroups.trainable` returns.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from clip_jax.config.optimizer_schema import Optimizer
from clip_jax.config.values import is_number
from clip_jax.distributed.param_spec import ParamSpecs, path_name
from clip_jax.errors import UserError

Tree = dict[str, Any]  # nested dictionaries of arrays
ALL = "everything else"  # the name of the group of parameters that no pattern matches
BASE = "base weights"  # the name of the group of all but adapters, in a model that has adapters

# What comes before the first numbered layer of a tower, for `layer_decay`.
_INPUTS = re.compile(
    "(stem|bn_stem|(class|patch|positional|token|segment)_embedding|ln_pre|ln_embedding)(/|$)"
)
_STAGE = re.compile(r"stage(\d+)/")
_PART = re.compile(r"(\w+)(?:\[(-?\d+)?(:)?(-?\d+)?\])?")


@dataclasses.dataclass(frozen=True)
class ParamGroup:
    """How the parameters of one group learn.

    Attributes:
      name: the pattern, or `ALL`.
      frozen: whether they stay as they are.
      learning_rate: factor on the learning rate.
      weight_decay: in place of `optimizer.weight_decay`; None: that one.
      start: the step from which on they learn.
      warmup_steps: updates after `start` in which their rate rises linearly, in place of
        `optimizer.warmup_steps`; None: as the others.
    """

    name: str = ALL
    frozen: bool = False
    learning_rate: float = 1.0
    weight_decay: float | None = None
    start: int = 0
    warmup_steps: int | None = None

    def schedule(self, common: optax.Schedule, common_warmup: int) -> optax.Schedule:
        """Returns the group's learning rate as a function of the number of its own updates.

        The factor `learning_rate` is not applied.

        Args:
          common: the learning rate by step.
          common_warmup: the steps of its warm-up.
        """
        if self.warmup_steps is None:
            return (lambda count: common(count + self.start)) if self.start else common
        warmup = self.warmup_steps

        def rate(count: Any) -> Any:
            peak = common(jnp.maximum(count + self.start, common_warmup))
            return peak * jnp.minimum((count + 1) / max(warmup, 1), 1.0)

        return rate


@dataclasses.dataclass(frozen=True)
class ParamGroups:
    """The group of each parameter, or of each layer of a stacked parameter.

    Attributes:
      groups: all groups; the last is `ALL`.
      assignment: the index of the group of each parameter by its path; an array with an entry for
        each layer if the parameter is stacked.
      factors: the factor that `layer_decay` puts on the learning rate of each parameter, likewise.
    """

    groups: tuple[ParamGroup, ...]
    assignment: Mapping[str, np.ndarray]
    factors: Mapping[str, np.ndarray]

    @functools.cached_property
    def learning(self) -> frozenset[int]:
        """The groups that are not frozen."""
        return frozenset(i for i, group in enumerate(self.groups) if not group.frozen)

    @property
    def everything_alike(self) -> bool:
        """Whether all parameters learn in the same way, as they do without any of the keys."""
        used = {int(i) for index in self.assignment.values() for i in np.unique(index)}
        alike = {dataclasses.replace(self.groups[i], name="") for i in used}
        factors = all(np.all(factor == 1) for factor in self.factors.values())
        return factors and alike <= {ParamGroup(name="")}

    def is_frozen(self, name: str) -> bool:
        """Whether a parameter is frozen in all of its layers."""
        return not any(int(i) in self.learning for i in np.ravel(self.assignment[name]))

    @functools.cached_property
    def frozen_towers(self) -> frozenset[str]:
        """`vision`, `text`, or both, if no parameter of that tower learns."""
        towers = {name.partition("/")[0] for name in self.assignment if "/" in name}
        learning = {n.partition("/")[0] for n in self.assignment if not self.is_frozen(n)}
        return frozenset(towers - learning)

    def trainable(self, params: Tree) -> Tree:
        """The part of the parameters that learns: no frozen parameters, no frozen layers."""
        return self._select(params, self.learning)

    def merge(self, trained: Tree, params: Tree) -> Tree:
        """All parameters: those of `trained`, and the frozen ones of `params`."""
        new = dict(_leaves(trained))

        def merged(name: str, leaf: Array) -> Array:
            if name not in new:
                return leaf
            rows = _rows(self.assignment[name], self.learning)
            if rows is None:
                return new[name]
            return leaf.astype(new[name].dtype).at[rows].set(new[name], unique_indices=True)

        return _map(merged, params)

    def stored(self, params: Tree, specs: ParamSpecs, dtype: str) -> Tree:
        """Parameters, with matrices that are frozen in all layers in `dtype`."""

        def cast(name: str, leaf: Array) -> Array:
            return (
                leaf.astype(dtype) if self.is_frozen(name) and not specs[name].is_vector else leaf
            )

        return params if dtype == "float32" else _map(cast, params)

    def counts(self, params: Any) -> list[tuple[ParamGroup, int]]:
        """The number of values in each group that has any, `params` being arrays or shapes."""
        sizes = [0] * len(self.groups)
        for name, leaf in _leaves(params):
            index = np.ravel(self.assignment[name])
            for i in index:
                sizes[i] += leaf.size // len(index)
        return [(g, size) for g, size in zip(self.groups, sizes, strict=True) if size]

    def described(self, params: Any) -> str:
        """How many values learn, in words for a message; `params` are arrays or shapes."""
        counts = self.counts(params)
        learning = sum(size for group, size in counts if not group.frozen)
        total = sum(size for _, size in counts)
        parts = [f"{size:,} {_manner(group)} ({group.name})" for group, size in counts]
        factors = np.concatenate([np.ravel(f) for f in self.factors.values()] or [np.ones(1)])
        if factors.min() < 1:
            parts.append(f"layer decay multiplies rates by {factors.min():.2g} to 1")
        return f"{learning:,} of {total:,} parameters learn: {'; '.join(parts)}"

    def optimizer(
        self, make: Callable[[ParamGroup], optax.GradientTransformation]
    ) -> optax.GradientTransformation:
        """An optimizer of the trainable parameters that treats each group as it wants.

        Args:
          make: the optimizer of a group at the full learning rate.
        """
        chosen = {str(i): frozenset({i}) for i in sorted(self.learning)}
        inner = {name: self._started(make, self.groups[int(name)]) for name in chosen}

        def parts(tree: Tree) -> dict[str, Tree]:
            selected = {n: self._select(tree, i, self.learning) for n, i in chosen.items()}
            return {name: part for name, part in selected.items() if part}

        def init(params: Tree) -> dict[str, Any]:
            return {name: inner[name].init(part) for name, part in parts(params).items()}

        def update(
            updates: Tree, state: Mapping[str, Any], params: Tree | None = None
        ) -> tuple[Tree, dict[str, Any]]:
            assert params is not None
            old, new = parts(params), {}
            result, by_name = dict(state), {}
            for name, part in parts(updates).items():
                new, result[name] = inner[name].update(part, state[name], old[name])
                by_name[name] = dict(_leaves(new))

            def joined(name: str, leaf: Array) -> Array:
                return self._join(name, leaf, by_name, chosen)

            return _map(joined, updates), result

        return optax.GradientTransformation(init, update)

    def _join(
        self, name: str, leaf: Array, by_name: Mapping[str, Any], chosen: Mapping[str, Any]
    ) -> Array:
        """A parameter's updates from its groups, times its factors."""
        index = self.assignment[name]
        for group, updates in by_name.items():
            if name in updates:
                rows = _rows(index, chosen[group], self.learning)
                leaf = updates[name] if rows is None else leaf.at[rows].set(updates[name])
        rates = np.array([group.learning_rate for group in self.groups])[index]
        factor = rates * self.factors.get(name, np.float64(1))
        if factor.ndim:  # of the layers that learn
            factor = factor[[int(i) in self.learning for i in index]]
            factor = factor.reshape(-1, *(1,) * (leaf.ndim - 1))
        return leaf if np.all(factor == 1) else leaf * jnp.asarray(factor, leaf.dtype)

    @staticmethod
    def _started(
        make: Callable[[ParamGroup], optax.GradientTransformation], group: ParamGroup
    ) -> optax.GradientTransformation:
        optimizer = make(group)
        if not group.start:
            return optimizer
        # until then neither parameters nor moments change
        return optax.conditionally_mask(optimizer, lambda step: step >= group.start)

    def _select(
        self, tree: Tree, groups: frozenset[int], within: frozenset[int] | None = None
    ) -> Tree:
        """The parameters and layers of some groups; `within`: the groups of `tree`, None: all."""

        def choose(tree: Tree, prefix: str) -> Tree:
            result = {}
            for key, value in tree.items():
                name = f"{prefix}{key}"
                if isinstance(value, dict):
                    if part := choose(value, f"{name}/"):
                        result[key] = part
                    continue
                rows = _rows(self.assignment[name], groups, within)
                if rows is None or not isinstance(rows, slice) or rows.stop > rows.start:
                    result[key] = value if rows is None else value[rows]
            return result

        return choose(tree, "")


def _manner(group: ParamGroup) -> str:
    """How a group learns, in words."""
    if group.frozen:
        return "frozen"
    facts = [
        f"at {group.learning_rate:g} of the rate" if group.learning_rate != 1 else "",
        f"decay {group.weight_decay:g}" if group.weight_decay is not None else "",
        f"from step {group.start:,}" if group.start else "",
        f"{group.warmup_steps:,} steps of warm-up" if group.warmup_steps is not None else "",
    ]
    return ", ".join(filter(None, facts)) or "at the full rate"


def resolve(config: Optimizer, specs: ParamSpecs, params: Any) -> ParamGroups:
    """The groups that `config.optimizer` describes.

    Args:
      config: the keys `freeze`, `groups` and `layer_decay`.
      specs: the metadata of the parameters.
      params: the parameters, or their shapes.

    Raises:
      UserError: a pattern is malformed or matches nothing, or everything is frozen.
    """
    shapes = {name: leaf.shape for name, leaf in _leaves(params)}
    names = {name: _layer_names(name, shapes[name], specs) for name in shapes}
    every_name = [layer for layers in names.values() for layer in layers]
    groups, tests = [], []
    for part in filter(None, (part.strip() for part in config.freeze.split(","))):
        groups.append(ParamGroup(part, frozen=True))
        tests.append(_part_test(part, names, specs))
    for number, entry in enumerate(config.groups):
        groups.append(_group(f"config.optimizer.groups[{number}]", entry))
        tests.append(_pattern_test(f"config.optimizer.groups[{number}]", groups[-1].name))
    adapters = {layer for name in names if specs[name].adapter for layer in names[name]}
    if adapters:
        groups.append(ParamGroup(BASE, frozen=True))
        tests.append(lambda name: name not in adapters)
    groups.append(ParamGroup())
    first = {name: _first(name, tests) for name in every_name}
    for i, (group, matches) in enumerate(zip(groups, tests, strict=False)):
        if group.name == BASE:
            continue
        if not any(map(matches, every_name)):
            raise UserError(_nothing(group, every_name))
        if i not in first.values():
            raise UserError(
                f"config.optimizer.groups: all that {group.name!r} matches is in groups before it, "
                "and the first match counts: move it up, or leave it out"
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
    """A group from an entry of `optimizer.groups`."""
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
            else is_number(value) and value >= 0 and (not is_count or value == int(value))
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
    """The names that patterns see: one for each layer of a stacked parameter."""
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
    """The test for a part of the model as `vision`, `text.ln_final` or `vision.blocks[:8]`.

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
    near = difflib.get_close_matches(group.name.replace(".", "/"), names, 3, 0.3) or names[:3]
    key = "freeze" if group.frozen and "/" not in group.name else "groups"
    return (
        f"config.optimizer.{key}: {group.name!r:.80} matches no parameter of this model, whose "
        f"parameters are named as {', '.join(near)}"
    )


def _layer_factors(
    config: Optimizer, names: Mapping[str, Sequence[str]], specs: ParamSpecs
) -> dict[str, np.ndarray]:
    """The factors of `layer_decay`: decay ** (layers above), 1 above the last layer.

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
    """The number of each layer; None for what follows the last layer."""
    rest = name.partition("/")[2]
    if match := _STAGE.match(rest):
        return [int(match[1])] * len(layers)
    if specs[name].stacked:
        return [i + 1 for i in range(len(layers))]
    return [0 if _INPUTS.match(rest) else None]


def _rows(
    index: np.ndarray, groups: frozenset[int], within: frozenset[int] | None = None
) -> slice | np.ndarray | None:
    """The layers of an array that are in `groups`; None: all of them, or the parameter itself.

    Args:
      index: the group of each layer, or of the parameter.
      groups: which are chosen.
      within: the array has only the layers of these groups; None: all layers.
    """
    own = np.ravel(index)
    if within is not None:
        own = own[[int(i) in within for i in own]]
    chosen = np.array([int(i) in groups for i in own], bool)
    if chosen.all() and len(chosen):
        return None
    rows = np.flatnonzero(chosen)
    if not len(rows):
        return slice(0, 0)
    contiguous = rows[-1] - rows[0] + 1 == len(rows)
    return slice(int(rows[0]), int(rows[-1]) + 1) if contiguous else rows


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield path_name(path), leaf


def _map(function: Callable[[str, Any], Any], tree: Tree) -> Tree:
    result: Tree = jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(path_name(path), leaf), tree
    )
    return result
