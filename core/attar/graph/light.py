"""A protobuf of a model without its large weights, for the onnx library's C++ functions, which cannot take
over 2 GB."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir

from attar.graph.constants import tensor_bytes

SMALL = 4096
"""Constants up to this many bytes stay: shape inference reads axes, shapes, pads and scales."""


def light_proto(model: ir.Model) -> tuple[Any, dict[str, ir.TensorProtocol]]:
    """An `onnx.ModelProto` of `model` in which every large weight is one more input of the main graph, and
    those weights.

    Value names must be unique over all scopes. Nothing of `model` changes, and no large weight is read.
    """
    copy = model.clone()
    heavy: dict[str, ir.TensorProtocol] = {}
    infos = []
    for graph in copy.graphs():
        for name, value in list(graph.initializers.items()):
            tensor = value.const_value
            if tensor is None:
                continue
            if tensor_bytes(tensor) > SMALL:
                heavy[name] = tensor
                del graph.initializers[name]
                infos.append(
                    onnx.helper.make_tensor_value_info(name, tensor.dtype.value, tensor.shape.numpy())
                )
            elif isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=name)
    proto = ir.to_proto(copy)
    assert isinstance(proto, onnx.ModelProto)
    proto.graph.input.extend(infos)
    return proto, heavy
