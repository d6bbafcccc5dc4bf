"""The mesh and the table of rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.distributed import sharding
from clip_jax.distributed.global_batch import global_batch
from clip_jax.distributed.param_spec import SCALAR, ParamSpec, param_specs
from clip_jax.errors import UserError
from clip_jax.models.architectures import ARCHITECTURES
from clip_jax.models.clip import abstract_model


def test_minus_one_takes_what_is_left():
    assert dict(sharding.make_mesh(dict(data=-1)).shape) == dict(data=8, fsdp=1, tensor=1)
    mesh = sharding.make_mesh(dict(data=-1, fsdp=2, tensor=2))
    assert dict(mesh.shape) == dict(data=2, fsdp=2, tensor=2)
    assert sharding.batch_shards(mesh) == 4


@pytest.mark.parametrize(
    "shape", [dict(data=3), dict(data=-1, fsdp=3), dict(data=-1, fsdp=-1), dict(data=0), {}]
)
def test_a_mesh_that_does_not_cover_the_devices_is_refused(shape):
    with pytest.raises(UserError, match=r"config\.mesh .* 8 devices"):
        sharding.make_mesh(shape)


def test_every_matrix_of_a_model_has_a_rule_of_its_own():
    mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
    model = abstract_model(ARCHITECTURES["ViT-B/16"], "float32", "none")
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    specs = param_specs(model)
    large = {
        jax.tree_util.keystr(path): layout.spec
        for (path, leaf), layout in zip(
            jax.tree_util.tree_flatten_with_path(params)[0],
            jax.tree.leaves(sharding.shardings(params, specs, mesh)),
            strict=True,
        )
        if leaf.size > 100_000
    }
    assert len(large) >= 10
    assert all(any(axis for axis in spec) for spec in large.values()), large


def test_an_axis_that_does_not_divide_is_left_out():
    mesh = sharding.make_mesh(dict(data=1, fsdp=4, tensor=2))
    fc = ParamSpec(("width", "hidden"), decay=True)
    assert sharding.partition(fc, (8, 6), mesh) == P("fsdp", "tensor")
    assert sharding.partition(fc, (6, 5), mesh) == P(None, None)
    projection = ParamSpec(("inputs", "outputs"), decay=True)
    assert sharding.partition(projection, (16, 6), mesh) == P(("tensor", "fsdp"), None)
    assert sharding.partition(projection, (6, 6), mesh) == P("tensor", None)
    assert sharding.partition(SCALAR, (), mesh) == P()
    stacked = ParamSpec(("layers", "heads", "width"), decay=True)
    assert sharding.partition(stacked, (4, 8, 8), mesh) == P(None, "tensor", "fsdp")
    assert sharding.partition(stacked.in_layer(), (8, 8), mesh) == P("tensor", "fsdp")


def test_an_unknown_logical_axis_is_refused():
    mesh = sharding.make_mesh(dict(data=8))
    with pytest.raises(UserError, match=r"logical axis 'breadth'.*known: width, heads"):
        sharding.partition(ParamSpec(("breadth",), decay=False), (8,), mesh)


def test_arrays_that_belong_to_no_parameter_are_replicated():
    """An optimizer's state holds moments, which repeat the parameters' paths, and counts."""
    mesh = sharding.make_mesh(dict(fsdp=8))
    specs = {"text/fc/kernel": ParamSpec(("width", "hidden"), decay=True)}
    kernel = np.zeros((16, 4))
    state = {
        "0": {"mu": {"text": {"fc": {"kernel": kernel}}}, "count": np.zeros(8), "kernel": kernel}
    }
    shardings = sharding.shardings(state, specs, mesh)["0"]
    assert shardings["mu"]["text"]["fc"]["kernel"].spec == P("fsdp", "tensor")
    assert shardings["count"].spec == shardings["kernel"].spec == P()
    rows = {"mu": {"text": {"fc": {"kernel": np.zeros(16)}}}}
    assert jax.tree.leaves(sharding.shardings(rows, specs, mesh))[0].spec == P(), "factored"


def test_a_batch_is_split_over_its_axes():
    mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
    rows = np.arange(8, dtype=np.int32)[:, None]
    array = global_batch({"tokens": rows}, mesh)["tokens"]
    np.testing.assert_array_equal(array, rows)
    assert {shard.data.shape for shard in array.addressable_shards} == {(2, 1)}


@pytest.mark.parametrize("lanes", [1, 128])
def test_tokens_are_looked_up_alike_wherever_the_table_lies(lanes, monkeypatch):
    monkeypatch.setattr(sharding, "LANES", lanes)
    table = jax.random.normal(jax.random.key(0), (11, 8))
    tokens = jax.random.randint(jax.random.key(1), (16, 5), 0, 11)
    mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2), jax.devices()[:8])

    def value(table):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            rows = sharding.embed_tokens(table, tokens, jnp.float32)
        return jnp.sum(rows * jnp.arange(8)), rows

    placed = jax.device_put(table, NamedSharding(mesh, P(None, ("fsdp", "tensor"))))
    gradient, embedded = jax.jit(jax.grad(value, has_aux=True))(placed)
    np.testing.assert_array_equal(embedded, table[tokens])
    counts = np.bincount(np.asarray(tokens).ravel(), minlength=11)
    np.testing.assert_array_equal(gradient, counts[:, None] * np.arange(8.0))


def test_a_token_that_is_everywhere_has_the_sum_of_its_gradients():
    """1,000 ones in bfloat16 add up to 256."""
    mesh = sharding.make_mesh(dict(data=1), jax.devices()[:1])

    def value(table):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            rows = sharding.embed_tokens(table, jnp.zeros((10, 100), jnp.int32), jnp.bfloat16)
        return rows.astype(jnp.float32).sum()

    assert jax.jit(jax.grad(value))(jnp.ones((2, 4)))[0, 0] == 1000
