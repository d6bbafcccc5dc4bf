"""Which parameters learn, and how: `optimizer.freeze`, `optimizer.groups`, `optimizer.layer_decay`.

A parameter that stacks layers can belong to several groups, layer by layer. `group_patterns` makes
the groups of a config.

A frozen parameter has no gradient and no optimizer state: the training step differentiates only the
tree that `ParamGroups.trainable` returns.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from clip_jax.distributed.param_spec import ParamSpecs, path_name

Tree = dict[str, Any]  # nested dictionaries of arrays
ALL = "everything else"  # the name of the group of parameters that no pattern matches
BASE = "base weights"  # the group of all but adapters and heads, in a model with adapters


@dataclasses.dataclass(frozen=True)
class ParamGroup:
    """How the parameters of one group learn.

    Attributes:
      name: the pattern, or `ALL`.
      frozen: whether the parameters stay as they are.
      learning_rate: the factor on the learning rate.
      weight_decay: replaces `optimizer.weight_decay`; None: that one is used.
      start: the step from which on the parameters learn.
      warmup_steps: the updates after `start` in which the learning rate rises linearly; replaces
        `optimizer.warmup_steps`. None: as the other groups.
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
      factors: the factor that `layer_decay` puts on the learning rate of each parameter, by its
        path; an array with an entry for each layer if the parameter is stacked.
    """

    groups: tuple[ParamGroup, ...]
    assignment: Mapping[str, np.ndarray]
    factors: Mapping[str, np.ndarray]

    @functools.cached_property
    def learning(self) -> frozenset[int]:
        """The indices of the groups that are not frozen."""
        return frozenset(i for i, group in enumerate(self.groups) if not group.frozen)

    @property
    def everything_alike(self) -> bool:
        """Whether all parameters learn in the same way, as they do if none of the keys is set."""
        used = {int(i) for index in self.assignment.values() for i in np.unique(index)}
        alike = {dataclasses.replace(self.groups[i], name="") for i in used}
        factors = all(np.all(factor == 1) for factor in self.factors.values())
        return factors and alike <= {ParamGroup(name="")}

    def is_frozen(self, name: str) -> bool:
        """Returns whether a parameter is frozen in all of its layers."""
        return not any(int(i) in self.learning for i in np.ravel(self.assignment[name]))

    @functools.cached_property
    def frozen_towers(self) -> frozenset[str]:
        """The towers, `vision` and `text`, of which no parameter learns."""
        towers = {name.partition("/")[0] for name in self.assignment if "/" in name}
        learning = {n.partition("/")[0] for n in self.assignment if not self.is_frozen(n)}
        return frozenset(towers - learning)

    def trainable(self, params: Tree) -> Tree:
        """Returns the part of the parameters that learns, without frozen parameters and layers."""
        return self._select(params, self.learning)

    def merge(self, trained: Tree, params: Tree) -> Tree:
        """Returns all parameters: those of `trained`, and the frozen ones of `params`."""
        new = dict(named_leaves(trained))

        def merged(name: str, leaf: Array) -> Array:
            if name not in new:
                return leaf
            rows = _rows(self.assignment[name], self.learning)
            if rows is None:
                return new[name]
            return leaf.astype(new[name].dtype).at[rows].set(new[name], unique_indices=True)

        return _map(merged, params)

    def stored(self, params: Tree, specs: ParamSpecs, dtype: str) -> Tree:
        """Converts the matrices that are frozen in all layers to `dtype`."""

        def cast(name: str, leaf: Array) -> Array:
            return (
                leaf.astype(dtype) if self.is_frozen(name) and not specs[name].is_vector else leaf
            )

        return params if dtype == "float32" else _map(cast, params)

    def counts(self, params: Any) -> list[tuple[ParamGroup, int]]:
        """Returns the groups that have any values, each with their number.

        Args:
          params: the parameters, or their shapes.
        """
        sizes = [0] * len(self.groups)
        for name, leaf in named_leaves(params):
            index = np.ravel(self.assignment[name])
            for i in index:
                sizes[i] += leaf.size // len(index)
        return [(g, size) for g, size in zip(self.groups, sizes, strict=True) if size]

    def described(self, params: Any) -> str:
        """Returns how many values learn, in words for a message.

        Args:
          params: the parameters, or their shapes.
        """
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
        """Makes an optimizer of the trainable parameters in which each group has its own settings.

        Args:
          make: makes the optimizer of a group at the full learning rate.
        """
        chosen = {str(i): frozenset({i}) for i in sorted(self.learning)}
        inner = {name: self._started(make, self.groups[int(name)]) for name in chosen}

        def parts(tree: Tree) -> dict[str, Tree]:
            selected = {n: self._select(tree, i, self.learning) for n, i in chosen.items()}
            return {name: part for name, part in selected.items() if part}

        def init(params: Tree) -> Tree:
            return {name: inner[name].init(part) for name, part in parts(params).items()}

        def update(
            updates: Tree, state: Mapping[str, Any], params: Tree | None = None
        ) -> tuple[Tree, Tree]:
            assert params is not None
            old, new_state, by_name = parts(params), dict(state), {}
            for name, part in parts(updates).items():
                new, new_state[name] = inner[name].update(part, state[name], old[name])
                by_name[name] = dict(named_leaves(new))

            def joined(name: str, leaf: Array) -> Array:
                return self._join(name, leaf, by_name, chosen)

            return _map(joined, updates), new_state

        return optax.GradientTransformation(init, update)

    def _join(
        self, name: str, leaf: Array, by_name: Mapping[str, Any], chosen: Mapping[str, Any]
    ) -> Array:
        """Joins a parameter's updates from its groups, and multiplies them by its factors."""
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
        """Selects the parameters and layers of some groups from a tree.

        Args:
          tree: the parameters.
          groups: the groups that are selected.
          within: the groups that `tree` has; None: all.
        """

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
    """Describes how a group learns, in words."""
    if group.frozen:
        return "frozen"
    facts = [
        f"at {group.learning_rate:g} of the rate" if group.learning_rate != 1 else "",
        f"decay {group.weight_decay:g}" if group.weight_decay is not None else "",
        f"from step {group.start:,}" if group.start else "",
        f"{group.warmup_steps:,} steps of warm-up" if group.warmup_steps is not None else "",
    ]
    return ", ".join(filter(None, facts)) or "at the full rate"


def _rows(
    index: np.ndarray, groups: frozenset[int], within: frozenset[int] | None = None
) -> slice | np.ndarray | None:
    """Returns the layers of an array that are in `groups`; None: all, or the parameter itself.

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


def named_leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yields the path and the value of each leaf of a tree."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield path_name(path), leaf


def _map(function: Callable[[str, Any], Any], tree: Tree) -> Tree:
    result: Tree = jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(path_name(path), leaf), tree
    )
    return result
