"""Nothing of a step lies on every device, or travels between them, by accident."""

import math

import jax
import pytest

from clip_jax.distributed import sharding
from clip_jax.losses.contrastive.objective import Contrastive
from clip_jax.models.model_config import CLIPConfig, TextConfig, VisionConfig
from clip_jax.training import train_step
from programs import arrays, collectives
from steps import GRADIENTS, compiled, mesh_of

# No two of these sizes are alike, so that a shape says what it is.
ROWS, LAYERS, WIDTH, PATCHES, TOKENS = 80, 3, 32, 17, 11
MODEL = CLIPConfig(
    16,
    vision=VisionConfig(image_size=32, patch_size=8, width=WIDTH, layers=LAYERS, heads=4),
    text=TextConfig(vocab_size=200, context_length=TOKENS, width=WIDTH, layers=LAYERS, heads=4),
)
MESHES = [dict(data=8), dict(data=2, fsdp=4), dict(data=2, fsdp=2, tensor=2)]
LARGE = 500  # numbers; what is smaller may lie anywhere


def faults(shape, **options):
    """What a compiled step does that it should not, in words."""
    mesh = mesh_of(shape)
    like, program = compiled(mesh, MODEL, rows=ROWS, remat="full", **options)
    text, shards = program.as_text(), sharding.batch_shards(mesh)
    return [
        *_replicated(text, like.params, shards),
        *_unsplit(like.params, mesh.shape["fsdp"] * mesh.shape["tensor"]),
        *_unexpected(text, like.params, mesh, options.get("sharded_optimizer")),
    ]


def _replicated(text, params, shards):
    """Rows of the whole batch, or all layers of a parameter that is split, on one device."""
    split = [leaf for leaf in jax.tree.leaves(params) if not leaf.sharding.is_fully_replicated]
    stacks = {tuple(sorted(leaf.shape)) for leaf in split if leaf.shape[0] == LAYERS}
    for array in arrays(text):
        if not array.floating or len(array.shape) < 3:
            continue
        if ROWS in array.shape and array.size > ROWS * PATCHES * WIDTH / shards:
            yield f"the whole batch: {array}"
        if tuple(sorted(array.shape)) in stacks:
            yield f"every layer of a parameter: {array}"


def _unsplit(params, parts):
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        local = math.prod(leaf.sharding.shard_shape(leaf.shape))
        if leaf.size >= LARGE and local * parts > leaf.size:
            yield f"{jax.tree_util.keystr(path)} is not split over fsdp and tensor"


def _unexpected(text, params, mesh, updated):
    """What travels but is neither a layer's parameters or gradients, nor features, nor small."""
    layers = {
        math.prod(shape)
        for leaf in jax.tree.leaves(params)
        for shape in (leaf.shape, leaf.shape[1:])  # of one layer, where layers are stacked
        if math.prod(shape) <= 4 * WIDTH * WIDTH or shape[0] != LAYERS
    }
    shards, tensor = sharding.batch_shards(mesh), mesh.shape["tensor"]
    # what an optimizer that is split over more devices has made of them
    updates = {math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(params)}
    for array in collectives(text):
        kind, size = array.made_by.removesuffix("-start"), array.size
        features = size <= ROWS * MODEL.embed_dim
        small = size <= LARGE or not array.floating
        parameter = any(size * part in layers for part in range(1, 9))
        # where devices share a layer, they sum what each of them made of its part
        shared = tensor > 1 and array.shape[:1] == (ROWS // shards,) and kind == "all-reduce"
        embedded = TOKENS in array.shape and size <= ROWS * TOKENS * WIDTH / shards
        expected = {
            "all-gather": parameter or features or embedded or (updated and size in updates),
            "all-reduce": parameter or features or shared,
            "reduce-scatter": parameter or features,
            "all-to-all": embedded,
        }
        if not small and not expected.get(kind, False):
            yield f"unexpected: {array}"


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_nothing_is_replicated_by_accident(shape):
    assert not list(faults(shape))


@pytest.mark.parametrize("shape", MESHES[1:], ids=str)
def test_nor_where_the_table_of_tokens_stays_where_it_lies(shape, monkeypatch):
    monkeypatch.setattr(sharding, "LANES", 1)
    assert not list(faults(shape))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        dict(accumulate=2, objective=Contrastive("blockwise")),
        dict(sharded_optimizer=True, objective=Contrastive("ring")),
    ],
    ids=["in parts, blockwise", "sharded optimizer, ring"],
)
def test_nothing_is_replicated_with_other_step_options(options):
    assert not list(faults(dict(data=2, fsdp=4), **options))


@pytest.mark.parametrize("axis", [axis for axis, names in sharding.RULES.items() if names])
def test_a_rule_that_is_removed_is_missed(monkeypatch, axis):
    mesh = mesh_of(MESHES[2])
    monkeypatch.setitem(sharding.RULES, axis, ())
    assert list(_unsplit(train_step.abstract_state(MODEL, GRADIENTS, mesh).params, 4))


@pytest.mark.slow
@pytest.mark.parametrize("axes", [("width", "hidden"), ("hidden", "width")], ids=["fc", "proj"])
def test_a_replicated_matrix_is_detected_in_the_program(monkeypatch, axes):
    """One matrix of the MLPs is on every device; the other has its shape and should not be."""
    partition, shapes = sharding.partition, []

    def without_one(spec, shape, mesh):
        if tuple(spec.axes)[-2:] != axes:
            return partition(spec, shape, mesh)
        shapes.append(shape)
        return sharding.P()

    monkeypatch.setattr(sharding, "partition", without_one)
    assert any(fault.startswith("every layer") for fault in faults(MESHES[2]))
    assert shapes


def test_a_constraint_that_is_removed_is_missed(monkeypatch):
    monkeypatch.setattr(sharding, "constrain_rows", lambda x: x)
    assert any(fault.startswith("unexpected") for fault in faults(MESHES[2]))


def test_the_optimizer_lies_over_the_data_axis_by_choice():
    mesh = mesh_of(dict(data=8))
    for sharded, parts in ((False, 1), (True, 8)):
        like = train_step.abstract_state(
            MODEL, GRADIENTS, mesh, train_step.StateOptions(sharded_optimizer=sharded)
        )
        for leaf in jax.tree.leaves(like.opt_state):
            if leaf.size >= LARGE:
                local = math.prod(leaf.sharding.shard_shape(leaf.shape))
                assert local * parts == leaf.size
        assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(like.params))
