"""A few lines of shorthand for writing small models by hand: `Net` collects nodes and weights and gives an
`ir.Model`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

OPSET = 21
IR_VERSION = 10

FLOAT, HALF, INT64, BOOL = (
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.INT64,
    ir.DataType.BOOL,
)


class Net:
    """A graph under construction. Every weight comes from one seeded generator, so a model is the same each
    time.

    Args:
        name: name of the graph.
        seed: seed of the weights.
        dtype: element type of the weights made by `weight` and of the inputs.
    """

    def __init__(self, name: str, seed: int = 0, dtype: ir.DataType = FLOAT) -> None:
        self.name, self.dtype = name, dtype
        self.rng = np.random.default_rng(seed)
        self.inputs: list[ir.Value] = []
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []
        self.functions: list[ir.Function] = []
        self._count = 0

    def input(self, name: str, *shape: int | str, dtype: ir.DataType | None = None) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype or self.dtype))
        self.inputs.append(value)
        return value

    def const(self, array: npt.ArrayLike, name: str = "") -> ir.Value:
        """An initializer with exactly this content (and the dtype that numpy gives it)."""
        self._count += 1
        name = name or f"const_{self._count}"
        value = constant_value(np.asarray(array), name)
        self.initializers.append(value)
        return value

    def ints(self, numbers: Sequence[int], name: str = "") -> ir.Value:
        """An int64 vector: shapes, axes, pads, sizes."""
        return self.const(np.array(numbers, np.int64), name)

    def array(self, *shape: int, gain: float = 1.0) -> np.ndarray[Any, Any]:
        """Normal weights scaled by 1/sqrt(fan in), so that activations keep their size through the layers."""
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else shape[0]
        drawn = self.rng.standard_normal(shape) * (gain / np.sqrt(max(fan_in, 1)))
        weights: np.ndarray[Any, Any] = drawn.astype(self.dtype.numpy())
        return weights

    def weight(self, *shape: int, name: str = "", gain: float = 1.0) -> ir.Value:
        return self.const(self.array(*shape, gain=gain), name)

    def vector(self, size: int, low: float, high: float, name: str = "") -> ir.Value:
        """A uniformly drawn vector: biases, BatchNorm statistics, scales."""
        return self.const(self.rng.uniform(low, high, size).astype(self.dtype.numpy()), name)

    def ops(self, kind: str, *inputs: ir.Value | None, count: int, **attributes: Any) -> Sequence[ir.Value]:
        """Append a node of several outputs. An attribute `domain` is the operator's domain; None is an empty
        input.
        """
        self._count += 1
        domain = attributes.pop("domain", "")
        node = ir.node(
            kind, inputs, attributes, domain=domain, num_outputs=count, name=f"{kind.lower()}_{self._count}"
        )
        for i, out in enumerate(node.outputs):
            out.name = f"{node.name}_out" if count == 1 else f"{node.name}_out{i}"
        self.nodes.append(node)
        return node.outputs

    def op(self, kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Append a node of one output."""
        return self.ops(kind, *inputs, count=1, **attributes)[0]

    # -- layers ----------------------------------------------------------------------------------------------

    def conv(
        self, x: ir.Value, c_in: int, c_out: int, kernel: Sequence[int] = (3, 3), **options: Any
    ) -> ir.Value:
        """A convolution that keeps the size at stride 1. Options: stride, group, bias (default True)."""
        stride, group, bias = options.get("stride", 1), options.get("group", 1), options.get("bias", True)
        self._count += 1
        tag = f"layer{self._count}"
        weight = self.weight(c_out, c_in // group, *kernel, name=f"{tag}.weight", gain=1.4)
        inputs = [x, weight] + ([self.vector(c_out, -0.3, 0.3, f"{tag}.bias")] if bias else [])
        pads = [k // 2 for k in kernel]
        return self.op(
            "Conv",
            *inputs,
            kernel_shape=list(kernel),
            strides=[stride] * len(kernel),
            pads=pads + pads,
            dilations=[1] * len(kernel),
            group=group,
        )

    def batch_norm(self, x: ir.Value, channels: int) -> ir.Value:
        return self.op(
            "BatchNormalization",
            x,
            self.vector(channels, 0.5, 1.5),
            self.vector(channels, -0.3, 0.3),
            self.vector(channels, -0.3, 0.3),
            self.vector(channels, 0.5, 1.5),
            epsilon=1e-5,
        )

    def dense(self, x: ir.Value, n_in: int, n_out: int, *, gemm: bool = True) -> ir.Value:
        """A fully connected layer: Gemm with a transposed weight, or MatMul and Add for any rank."""
        self._count += 1
        tag = f"layer{self._count}"
        bias = self.vector(n_out, -0.3, 0.3, f"{tag}.bias")
        if gemm:
            return self.op("Gemm", x, self.weight(n_out, n_in, name=f"{tag}.weight"), bias, transB=1)
        kernel = np.ascontiguousarray(self.array(n_out, n_in).T)
        return self.op("Add", self.op("MatMul", x, self.const(kernel, f"{tag}.weight")), bias)

    def pooled(self, x: ir.Value) -> ir.Value:
        """Global average pooling and Flatten: [N, C, ...] -> [N, C]."""
        return self.op("Flatten", self.op("GlobalAveragePool", x), axis=1)

    # -- the result ------------------------------------------------------------------------------------------

    def model(self, opset: int = OPSET, **outputs: ir.Value) -> ir.Model:
        """The finished model with strictly inferred shapes. Outputs take the names of the keywords."""
        for name, value in outputs.items():
            value.name = name
        graph = ir.Graph(
            self.inputs,
            list(outputs.values()),
            nodes=self.nodes,
            initializers=self.initializers,
            opset_imports={"": opset} | {f.domain: 1 for f in self.functions},
            name=self.name,
        )
        model = ir.Model(
            graph, ir_version=IR_VERSION, functions=self.functions, producer_name="attar.testing"
        )
        infer(model)
        return model


def constant_value(array: np.ndarray[Any, Any], name: str) -> ir.Value:
    """An initializer value over its own copy of `array`."""
    tensor = ir.tensor(np.array(array, copy=True, order="C"), name=name)
    return ir.Value(
        name=name, shape=ir.Shape(list(array.shape)), type=ir.TensorType(tensor.dtype), const_value=tensor
    )


def infer(model: ir.Model) -> None:
    """Write strictly inferred types and shapes onto the values of the main graph, leaving the weights as they
    are.

    Raises:
        onnx.shape_inference.InferenceError: the model does not fit together.
    """
    import onnx

    inferred = onnx.shape_inference.infer_shapes(
        ir.to_proto(model), check_type=True, strict_mode=True, data_prop=True
    )
    infos = {v.name: v for v in [*inferred.graph.value_info, *inferred.graph.output]}
    for value in [v for node in model.graph for v in node.outputs] + list(model.graph.outputs):
        if value.name in infos and value.const_value is None:
            typed = ir.serde.deserialize_value_info_proto(infos[value.name], None)
            value.type, value.shape = typed.type, typed.shape


def branch(net: Net, outputs: Mapping[str, ir.Value]) -> ir.Graph:
    """The nodes and weights of `net` as the body of an If or Loop; `outputs` must be typed by the caller."""
    for name, value in outputs.items():
        value.name = name
    return ir.Graph(
        net.inputs, list(outputs.values()), nodes=net.nodes, initializers=net.initializers, name=net.name
    )
