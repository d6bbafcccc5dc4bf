"""Low-rank adapters of linear layers: y = x·W + (alpha / rank) · dropout(x)·A·B.

Source: Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models. A starts Kaiming-uniform
with the slope √5 (uniform within ±1/√inputs), as in the authors' code, and B at zero: the first
loss is that of the base model.
"""

from __future__ import annotations

import difflib
import re
import zlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from clip_jax.config.finetune_schema import Lora
from clip_jax.distributed.param_spec import ParamSpec
from clip_jax.errors import UserError
from clip_jax.models.layers import Linear
from clip_jax.models.tower import Params

NAMES = ("lora_a", "lora_b")


def add_adapters(model: nnx.Module, config: Lora, rngs: nnx.Rngs) -> None:
    """Adds adapters to the linear layers of a model that `config.targets` matches.

    Raises:
      UserError: the pattern is malformed or matches nothing, or a kernel is smaller than the rank.
    """
    layers = dict(_linear_layers(model))
    try:
        matches = re.compile(config.targets).fullmatch
    except re.error as error:
        raise UserError(
            f"config.lora.targets={config.targets!r:.80} is no regular expression ({error})"
        ) from None
    chosen = [name for name in layers if matches(name)]
    if not chosen:
        near = difflib.get_close_matches(config.targets, layers, 3, 0.3) or list(layers)[:3]
        raise UserError(
            f"config.lora.targets={config.targets!r:.80} matches no kernel of a linear layer; "
            f"there are {', '.join(near)}"
        )
    for name in chosen:
        _adapt(layers[name], name, config, rngs)


def _linear_layers(model: nnx.Module) -> Iterator[tuple[str, Linear]]:
    for path, module in nnx.iter_graph(model):
        if isinstance(module, Linear):
            yield "/".join(map(str, [*path, "kernel"])), module


def _adapt(layer: Linear, name: str, config: Lora, rngs: nnx.Rngs) -> None:
    *stack, inputs, outputs = layer.kernel.shape
    if config.rank > min(inputs, outputs):
        raise UserError(
            f"config.lora.rank={config.rank} is above the sides of {name}, {inputs} × {outputs}: "
            "lower it, or leave this kernel out of config.lora.targets"
        )
    spec: ParamSpec = layer.kernel.get_metadata("spec")
    *layers, rows, columns = spec.axes

    def metadata(*axes: str | None) -> ParamSpec:
        # small enough to be gathered wherever the kernel is
        return ParamSpec(
            (*layers, *axes), decay=True, matrix=True, gather=spec.gather, inside=spec.inside,
            adapter=True,
        )  # fmt: skip

    bound = inputs**-0.5
    a = jax.random.uniform(
        rngs.params(), (*stack, inputs, config.rank), minval=-bound, maxval=bound
    )
    b = jnp.zeros((*stack, config.rank, outputs))
    layer.lora_a = nnx.Param(a, spec=metadata(rows, None))
    layer.lora_b = nnx.Param(b, spec=metadata(None, columns))
    layer.rank, layer.scale = config.rank, scale_of(config)
    layer.dropout, layer.number = config.dropout, zlib.crc32(name.encode()) >> 1


def merge(params: Params, scale: float) -> Params:
    """Returns the parameters of the equivalent model without adapters.

    Each kernel becomes W + scale·A·B, computed in float32.
    """
    if all(name in params for name in NAMES):
        a, b = (params[name].astype(jnp.float32) for name in NAMES)
        kernel = params["kernel"]
        product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        merged = (kernel.astype(jnp.float32) + scale * product).astype(kernel.dtype)
        return {**_without(params), "kernel": merged}
    return {k: merge(v, scale) if isinstance(v, dict) else v for k, v in params.items()}


def _without(params: Params) -> Params:
    return {name: value for name, value in params.items() if name not in NAMES}


def adapters_in(params: Params) -> Params:
    """Returns the adapters alone, at the same paths as in `params`."""
    result: Params = {}
    for name, value in params.items():
        if isinstance(value, dict):
            if part := adapters_in(value):
                result[name] = part
        elif name in NAMES:
            result[name] = value
    return result


def with_adapters(params: Params, adapters: Params) -> Params:
    """Returns the parameters of a model with the given adapters at their paths."""
    result = dict(params)
    for name, value in adapters.items():
        is_layer = isinstance(value, dict)
        result[name] = with_adapters(params[name], value) if is_layer else value
    return result


def scale_of(config: Lora) -> float:
    """Returns the factor on A·B."""
    return config.alpha / config.rank
