"""Metadata of parameters: present everywhere, and kept by stacks, splits and merges."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from clip_jax.distributed import param_spec
from clip_jax.distributed.param_spec import VECTOR, ParamSpec, param_specs
from clip_jax.errors import UserError
from clip_jax.models.architectures import ARCHITECTURES
from clip_jax.models.clip import abstract_model, specs_of, variables
from clip_jax.models.initializers import TORCH
from clip_jax.models.layers import linear
from clip_jax.models.stack import stack

KNOWN = ["ViT-B/32", "RN50", "align-base", "siglip-b16"]


@pytest.mark.parametrize("name", KNOWN)
def test_every_parameter_has_metadata_of_its_shape(name):
    model = abstract_model(ARCHITECTURES[name])
    specs, params = param_specs(model), variables(model)[0]
    shapes = {
        param_spec.path_name(path): leaf.shape
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }
    assert specs.keys() == shapes.keys()
    assert all(len(spec.axes) == len(shapes[path]) for path, spec in specs.items())


@pytest.mark.parametrize("name", KNOWN)
def test_muon_takes_the_kernels_of_linear_layers(name):
    for path, spec in specs_of(ARCHITECTURES[name]).items():
        convolution = len(spec.axes) - spec.stacked == 4
        assert spec.matrix == (path.endswith("/kernel") and not convolution), path


@pytest.mark.parametrize("name", KNOWN)
def test_decayed_parameters_have_two_axes(name):
    for path, spec in specs_of(ARCHITECTURES[name]).items():
        assert spec.decay is not spec.is_vector, path


def test_a_stack_adds_an_axis_that_a_layer_takes_away():
    def make(rngs):
        return linear(
            4,
            6,
            init=TORCH,
            dtype=jnp.float32,
            axes=("width", "heads"),
            bias_axis="heads",
            rngs=rngs,
        )

    alone, layers = make(nnx.Rngs(0)), stack(make, 3, nnx.Rngs(0))
    assert layers.kernel.shape == (3, 4, 6)
    specs = param_specs(layers)
    axes = ("layers", "width", "heads")
    assert specs["kernel"] == ParamSpec(axes, True, True, gather=False, inside=1)
    assert {path: spec.in_layer() for path, spec in specs.items()} == param_specs(alone)
    graph, state = nnx.split(layers)
    assert param_specs(nnx.merge(graph, nnx.to_pure_dict(state))) == specs


class Tower(nnx.Module):
    def __init__(self, **metadata):
        self.inner = nnx.Linear(2, 3, rngs=nnx.Rngs(0), bias_metadata={"spec": VECTOR}, **metadata)


def test_a_parameter_without_metadata_is_named():
    with pytest.raises(UserError, match=r"parameter inner/kernel has no metadata: .*ParamSpec"):
        param_specs(Tower())


def test_metadata_for_another_number_of_axes_is_refused():
    with pytest.raises(UserError, match=r"inner/kernel has the shape \(2, 3\) .* 1 axes"):
        param_specs(Tower(kernel_metadata={"spec": VECTOR}))
