"""Training steps of a model small enough for tests, over meshes of pretended devices."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from clip_jax.distributed import sharding
from clip_jax.distributed.global_batch import global_batch
from clip_jax.distributed.param_spec import ParamSpec, path_name
from clip_jax.losses.contrastive.objective import Contrastive
from clip_jax.models.clip import Variables, abstract_model
from clip_jax.models.coca_configs import CoCaTextConfig, CoCaVisionConfig, MultimodalConfig
from clip_jax.models.model_config import CLIPConfig, TextConfig, VisionConfig
from clip_jax.training import train_step as step

TINY = CLIPConfig(
    16,
    vision=VisionConfig(image_size=16, patch_size=4, width=32, layers=2, heads=4),
    text=TextConfig(vocab_size=56, context_length=8, width=32, layers=2, heads=4),
)
_SMALL = dict(width=16, layers=2, heads=2)
COCA = CLIPConfig(
    16,
    vision=CoCaVisionConfig(
        image_size=16, patch_size=4, pool_queries=6, pool_width=16, pool_heads=2, **_SMALL
    ),
    text=CoCaTextConfig(vocab_size=56, context_length=8, **_SMALL),
    heads=(("decoder", MultimodalConfig(**_SMALL)),),
)
DENSE = Contrastive("dense")
ADAM = dict(b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.2, clip_norm=0.0)
# keeps the gradient as its state and changes nothing
GRADIENTS = optax.chain(optax.trace(decay=0.0), optax.scale(0.0))


def batch(n: int = 16, seed: int = 0, config: CLIPConfig = TINY) -> dict[str, np.ndarray]:
    """Random rows of the sizes that `config` wants."""
    rng = np.random.default_rng(seed)
    size, end = config.vision.image_size, config.text.vocab_size - 1
    tokens = rng.integers(1, end, (n, config.text.context_length), np.int32)
    tokens[:, -1] = end
    return {"image": rng.integers(0, 256, (n, size, size, 3), np.uint8), "tokens": tokens}


def mesh_of(shape: dict[str, int]) -> Mesh:
    """A mesh over as many devices as its axes multiply to."""
    return sharding.make_mesh(shape, jax.devices()[: math.prod(shape.values())])


def compiled(
    mesh: Mesh,
    config: CLIPConfig = TINY,
    optimizer: optax.GradientTransformation = GRADIENTS,
    *,
    rows: int = 16,
    seed: int = 0,
    remat: str = "none",
    chunks: tuple[int, int] = (0, 0),
    objective: Contrastive = DENSE,
    accumulate: int = 1,
    sharded_optimizer: bool = False,
) -> tuple[step.TrainState, jax.stages.Compiled]:
    """The shapes of a state, and the step compiled for them."""
    graph = nnx.graphdef(abstract_model(config, "float32", remat, chunks))
    options = step.StateOptions(sharded_optimizer)
    like = step.abstract_state(config, optimizer, mesh, options)
    train_step = step.make_train_step(
        graph,
        objective,
        optimizer,
        seed,
        accumulate=accumulate,
        sharded_optimizer=sharded_optimizer,
    )
    shapes = jax.eval_shape(lambda: batch(rows, config=config))
    return like, step.compile_step(train_step, like, mesh).lower(like, shapes).compile()


def toy_specs(params: Any) -> dict[str, ParamSpec]:
    """Metadata for parameters without a model: `blocks` are stacked, `kernel` is a matrix."""

    def spec(name: str, leaf: Any) -> ParamSpec:
        stack = ("layers",) if "blocks" in name else ()
        last = name.rpartition("/")[2]
        decay = last in ("kernel", "embedding", "positional_embedding")
        matrix = last == "kernel" and leaf.ndim - len(stack) == 2
        axes = ("width", "hidden") if matrix else (None,) * (leaf.ndim - len(stack))
        return ParamSpec((*stack, *axes), decay, matrix)

    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {(name := path_name(path)): spec(name, leaf) for path, leaf in leaves}


@functools.cache
def fresh(config: CLIPConfig, seed: int = 0) -> Variables:
    """What `step.init_state` starts from, made once."""
    return jax.device_get(jax.jit(functools.partial(step.init_variables, config, seed))())


@functools.cache
def alone(config: CLIPConfig = TINY) -> tuple[Any, Any, list[dict[str, float]]]:
    """`run` by one device, made once: what other meshes are held against."""
    return run(dict(data=1), config=config)


def run(
    shape: dict[str, int],
    *,
    steps: int = 1,
    config: CLIPConfig = TINY,
    optimizer: optax.GradientTransformation = GRADIENTS,
    seed: int = 0,
    rows: int = 16,
    sharded_optimizer: bool = False,
    **options: Any,
) -> tuple[Any, Any, list[dict[str, float]]]:
    """Parameters before, the optimizer's state after (the gradients), metrics of each step."""
    mesh = mesh_of(shape)
    sharded = {"sharded_optimizer": sharded_optimizer}
    stored = step.StateOptions(sharded_optimizer)
    state = step.state_of(config, fresh(config, seed), optimizer, mesh, stored)
    before = jax.tree.map(np.asarray, state.params)
    _, train_step = compiled(mesh, config, optimizer, seed=seed, rows=rows, **sharded, **options)
    metrics = []
    for i in range(steps):
        placed = global_batch(batch(rows, i, config), mesh)
        state, out = train_step(state, placed)
        metrics.append({k: float(v) for k, v in out.items()})
    return before, jax.tree.map(np.asarray, jax.tree.leaves(state.opt_state)), metrics


def losses_of_fixed_pairs(config: CLIPConfig, steps: int = 12) -> list[float]:
    """The loss of each step of Adam on the same batch."""
    mesh, optimizer = mesh_of(dict(data=1)), optax.adam(3e-3)
    state = step.state_of(config, fresh(config), optimizer, mesh)
    _, train_step = compiled(mesh, config, optimizer, rows=8)
    losses = []
    for _ in range(steps):
        state, metrics = train_step(state, global_batch(batch(8, config=config), mesh))
        losses.append(float(metrics["loss"]))
    return losses


def assert_same_gradients(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    """Equal to 1.5e-6 of the whole gradient's norm, and to 1e-6 in programs that LLVM optimised.

    Left alone by it (see conftest.py), a sum goes from one number to the next and rounds each time.
    """
    pairs = list(zip(ours, theirs, strict=True))
    size = np.sqrt(sum(np.sum(b**2) for _, b in pairs))
    assert np.sqrt(sum(np.sum((a - b) ** 2) for a, b in pairs)) <= 1.5e-6 * size
    for a, b in pairs:  # one array may be an ill-conditioned sum: a wrong one is far off
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)
