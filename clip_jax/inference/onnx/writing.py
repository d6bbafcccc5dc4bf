"""ONNX's messages of a graph, and their files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from clip_jax.inference.onnx.graph import Graph, Node, Tensor
from clip_jax.version import __version__

OPSET = 20  # Gelu; ONNX 1.15 and ONNX Runtime 1.17 have it
_IR_VERSION = 9
_LARGE = 1 << 30  # bytes of constants; a message has at most 2 GiB
_APART = 1 << 10  # bytes of a constant from which on it stands in the second file, if there is one


def model_proto(
    graph: Graph, inputs: Sequence[Tensor], outputs: dict[str, Tensor]
) -> onnx.ModelProto:
    """Returns a graph as ONNX's message, still without its constants.

    Args:
      graph: the graph.
      inputs: its inputs.
      outputs: its outputs by name.
    """
    names = {tensor.name: name for name, tensor in outputs.items()}
    body = helper.make_graph(
        [_node(node, names) for node in graph.nodes],
        "clip_jax",
        [_info(tensor.name, tensor) for tensor in inputs],
        [_info(name, tensor) for name, tensor in outputs.items()],
    )
    return helper.make_model(
        body,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="clip_jax",
        producer_version=__version__,
    )


def save(model: onnx.ModelProto, graph: Graph, path: Path) -> list[Path]:
    """Writes a message with the constants of its graph; large ones go into a second file.

    Returns:
      The files: `path`, and `path` + `.data` if the constants are too large for one message.
    """
    size = sum(array.nbytes for array in graph.constants.values())
    data = path.with_name(path.name + ".data")
    if size < _LARGE:
        model.graph.initializer.extend(_tensor(*item) for item in graph.constants.items())
        path.write_bytes(model.SerializeToString())
        return [path]
    with data.open("wb") as out:
        for name, array in graph.constants.items():
            if array.nbytes < _APART:
                model.graph.initializer.append(_tensor(name, array))
                continue
            proto = model.graph.initializer.add(
                name=name,
                data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
                dims=array.shape,
                data_location=onnx.TensorProto.EXTERNAL,
            )
            place = {"location": data.name, "offset": out.tell(), "length": array.nbytes}
            for key, value in place.items():
                proto.external_data.add(key=key, value=str(value))
            out.write(np.ascontiguousarray(array).tobytes())
    path.write_bytes(model.SerializeToString())
    return [path, data]


def _tensor(name: str, array: np.ndarray) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.asarray(array, order="C"), name)


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
    shape = [dim if isinstance(dim, int) else str(dim) for dim in tensor.shape]
    kind = helper.np_dtype_to_tensor_dtype(tensor.dtype)
    return helper.make_tensor_value_info(name, kind, shape)
