"""Gradients of a batch in parts: those of the whole, for less memory."""

import dataclasses

import jax
import numpy as np
import pytest

from clip_jax.distributed import sharding
from clip_jax.distributed.global_batch import global_batch
from clip_jax.losses.contrastive.objective import Contrastive
from clip_jax.models.model_config import ResNetConfig
from clip_jax.training import train_step as step
from steps import (
    GRADIENTS,
    TINY,
    alone,
    assert_same_gradients,
    batch,
    compiled,
    fresh,
    mesh_of,
    run,
)

DROPPING = dataclasses.replace(TINY, vision=dataclasses.replace(TINY.vision, patch_dropout=0.5))
SIGMOID = dataclasses.replace(TINY, logit_bias=-10.0, max_logit_scale=0.0)


@pytest.mark.parametrize(
    ("config", "shape", "parts", "options"),
    [
        (DROPPING, dict(data=1), 4, {}),
        (SIGMOID, dict(data=8), 2, {}),
        (DROPPING, dict(data=2, fsdp=2, tensor=2), 4, {"remat": "full"}),
        (SIGMOID, dict(data=2, fsdp=4), 2, {"objective": Contrastive("blockwise")}),
        (
            DROPPING,
            dict(data=4, fsdp=2),
            2,
            {"objective": Contrastive("ring"), "sharded_optimizer": True, "remat": "dots"},
        ),
    ],
    ids=["one device", "data", "all axes", "fsdp, blockwise", "sharded optimizer, ring"],
)
def test_parts_give_the_gradients_of_the_whole(config, shape, parts, options):
    _, gradients, metrics = run(shape, config=config, accumulate=parts, **options)
    _, expected, expected_gradients = alone(config)
    assert_same_gradients(gradients, expected)
    for name, value in expected_gradients[0].items():
        assert metrics[0][name] == pytest.approx(value, rel=2e-6), name


def test_memory_falls_with_the_parts():
    deep = dataclasses.replace(
        TINY,
        vision=dataclasses.replace(TINY.vision, layers=6, image_size=32),
        text=dataclasses.replace(TINY.text, layers=6),
    )
    used = [
        compiled(mesh_of(dict(data=2)), deep, rows=64, accumulate=parts)[1]
        .memory_analysis()
        .temp_size_in_bytes
        for parts in (1, 4)
    ]
    assert used[0] > 2.5 * used[1], used  # a quarter, but for parameters and features


def test_batch_statistics_follow_every_part():
    vision = ResNetConfig(image_size=32, width=4, layers=(1, 1, 1, 1), heads=2)
    config = dataclasses.replace(TINY, vision=vision)
    mesh = mesh_of(dict(data=1))
    state = step.state_of(config, fresh(config), GRADIENTS, mesh)
    _, train_step = compiled(mesh, config, accumulate=2)
    state, metrics = train_step(state, global_batch(batch(config=config), mesh))
    assert np.isfinite(float(metrics["loss"]))
    counts = [x for x in jax.tree.leaves(state.stats) if x.ndim == 0]
    assert counts and all(int(count) == 2 for count in counts)


def test_a_part_holds_rows_of_every_device_and_none_twice():
    mesh = mesh_of(dict(data=4, fsdp=2))
    rows = np.arange(48)

    def parts(x):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            pieces = sharding.split_chunks(x, 3)
            return pieces, sharding.merge_chunks(pieces)

    pieces, again = jax.jit(parts)(jax.device_put(rows, sharding.batch_sharding(mesh)))
    np.testing.assert_array_equal(again, rows)
    np.testing.assert_array_equal(np.sort(pieces, axis=None), rows)
    owners = np.asarray(pieces) // 6  # six rows a device
    assert all(sorted(part) == sorted([*range(8), *range(8)]) for part in owners.tolist())
