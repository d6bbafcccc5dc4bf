"""ONNX files of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from clip_jax.inference.onnx.graph import Graph, Node, Tensor, is_symbolic
from clip_jax.version import __version__

OPSET = 20  # Gelu; ONNX 1.15 and ONNX Runtime 1.17 have it
_IR_VERSION = 9


def model_proto(
    graph: Graph, inputs: Sequence[Tensor], outputs: dict[str, Tensor], metadata: dict[str, str]
) -> onnx.ModelProto:
    """Returns a graph as ONNX's message, checked.

    Args:
      graph: the graph.
      inputs: its inputs.
      outputs: its outputs by name.
      metadata: what the file says about itself.
    """
    names = {tensor.name: name for name, tensor in outputs.items()}
    nodes = [_node(node, names) for node in graph.nodes]
    body = helper.make_graph(
        nodes,
        "clip_jax",
        [_info(tensor.name, tensor) for tensor in inputs],
        [_info(name, tensor) for name, tensor in outputs.items()],
        [numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in graph.constants.items()],
    )
    model = helper.make_model(
        body,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="clip_jax",
        producer_version=__version__,
    )
    helper.set_model_props(model, metadata)
    return model


def _node(node: Node, names: dict[str, str]) -> onnx.NodeProto:
    attributes = dict(node.attributes)
    if "to" in attributes:
        attributes["to"] = helper.np_dtype_to_tensor_dtype(attributes["to"])
    return helper.make_node(
        node.operator,
        [names.get(tensor.name, tensor.name) for tensor in node.inputs],
        [names.get(tensor.name, tensor.name) for tensor in node.outputs],
        **attributes,
    )


def _info(name: str, tensor: Tensor) -> Any:
    shape = ["batch" if is_symbolic(dim) else dim for dim in tensor.shape]
    kind = helper.np_dtype_to_tensor_dtype(tensor.dtype)
    return helper.make_tensor_value_info(name, kind, shape)
