"""Metadata of parameters: logical axes for sharding, and how optimizers treat them.

Every `nnx.Param` of a model carries a `ParamSpec` as its metadata `spec`. Sharding, weight decay,
LAMB, Muon and 16-bit storage read it; no code depends on the names of parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from clip_jax.errors import UserError

LAYERS = "layers"  # the leading axis of stacked layers


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """The metadata of one parameter.

    Attributes:
      axes: the logical name of each axis, a key of `sharding.RULES`; None for an axis that is never
        sharded.
      decay: whether weight decay applies, and LAMB's trust ratio.
      matrix: whether it maps the features of one layer to those of the next. Muon updates these.
      gather: whether it is all-gathered over fsdp with the whole model. False for stacked layers,
        which are gathered one at a time, and for tables that are looked up where they are.
      inside: for stacked layers: how many of the last parts of the path are inside a layer.
      adapter: whether it adapts another parameter. In a model with adapters, only these and the
        heads learn.
      head: whether it belongs to a head, see `models.head`.
    """

    axes: tuple[str | None, ...]
    decay: bool
    matrix: bool = False
    gather: bool = True
    inside: int = 0
    adapter: bool = False
    head: bool = False

    @property
    def stacked(self) -> bool:
        """Whether the leading axis counts layers."""
        return self.axes[:1] == (LAYERS,)

    @property
    def is_vector(self) -> bool:
        """Whether a layer's parameter has at most one axis: a gain, a bias, a temperature."""
        return len(self.axes) - self.stacked < 2

    def in_layer(self) -> ParamSpec:
        """Returns the metadata as it is inside the body of one layer of a stack."""
        return dataclasses.replace(self, axes=self.axes[self.stacked :], gather=True, inside=0)


ParamSpecs = Mapping[str, ParamSpec]  # by the path of the parameter, such as text/ln_final/scale

SCALAR = ParamSpec((), decay=False)
VECTOR = ParamSpec((None,), decay=False)
EMBEDDING = ParamSpec(("vocabulary", "features"), decay=True, gather=False)
POSITIONS = ParamSpec(("positions", "features"), decay=True)


def path_name(path: tuple[Any, ...]) -> str:
    """Returns a leaf's path in a tree as `text/projection/kernel`, in an `nnx.State` too."""
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")


def param_specs(model: nnx.Module | nnx.State) -> dict[str, ParamSpec]:
    """Returns the metadata of all parameters by their paths.

    Raises:
      UserError: a parameter has no metadata, or metadata for another number of axes.
    """
    state = nnx.state(model, nnx.Param) if isinstance(model, nnx.Module) else model
    specs = {}
    for path, param in nnx.to_flat_state(state):
        name = "/".join(map(str, path))
        spec = param.get_metadata().get("spec")
        if not isinstance(spec, ParamSpec):
            raise UserError(
                f"the parameter {name} has no metadata: build it by a function of "
                "clip_jax.models.layers, or as nnx.Param(value, spec=ParamSpec(axes, decay)), see "
                "clip_jax.distributed.param_spec"
            )
        if len(spec.axes) != len(param.shape):
            raise UserError(
                f"the parameter {name} has the shape {param.shape} and metadata for "
                f"{len(spec.axes)} axes, {spec.axes}: name one for each axis"
            )
        specs[name] = spec
    return specs


def defer_gathering(module: nnx.Module) -> None:
    """Marks the parameters of a layer as gathered by the layer itself, see `ParamSpec.gather`."""
    _update(module, lambda spec, _: dataclasses.replace(spec, gather=False))


def mark_head(module: nnx.Module) -> None:
    """Marks the parameters of a head, see `ParamSpec.head`."""
    _update(module, lambda spec, _: dataclasses.replace(spec, head=True))


def add_layer_axis(module: nnx.Module) -> None:
    """Marks the parameters of stacked layers, whose arrays have one more axis than a layer's."""

    def stacked(spec: ParamSpec, inside: int) -> ParamSpec:
        return dataclasses.replace(spec, axes=(LAYERS, *spec.axes), gather=False, inside=inside)

    _update(module, stacked)


def _update(module: nnx.Module, change: Callable[[ParamSpec, int], ParamSpec]) -> None:
    """Replaces the metadata of all parameters by `change(metadata, length of the path)`."""
    for path, param in nnx.iter_graph(module):
        if isinstance(param, nnx.Param) and "spec" in param.get_metadata():
            param.set_metadata(spec=change(param.get_metadata("spec"), len(path)))


def map_params(function: Callable[..., Any], specs: ParamSpecs, params: Any, *more: Any) -> Any:
    """Applies `function(spec, leaf, …)` to every parameter of trees of one structure."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(specs[path_name(path)], *leaves), params, *more
    )


def find_spec(name: str, specs: ParamSpecs) -> ParamSpec | None:
    """Returns the metadata of the parameter whose path ends `name`, or None if there is none.

    An optimizer's state repeats the paths of the parameters, such as `0/mu/text/ln_final/scale`.
    """
    while name not in specs:
        _, slash, name = name.partition("/")
        if not slash:
            return None
    return specs[name]
