"""Writes ONNX node by node and knows every value's type and shape as soon as it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnx
import onnx.helper
import onnx.shape_inference
import onnx_ir as ir

from attar.errors import InputError
from attar_mxnet.reading.dims import Dim, safe_name, split_dim

OPSET = 21
_SMALL = 1024  # elements of constants that inference may need to look at
_IMPORTS = [onnx.helper.make_opsetid("", OPSET)]
_IR_VERSION = 10
_WINDOWED = frozenset(("Conv", "MaxPool", "AveragePool", "LpPool"))
_SHAPES = "give the shapes that the network was made for by inputs=... or shapes={...}"

Array = np.ndarray[Any, np.dtype[Any]]
Input = ir.Value | Array | Sequence[int] | None


class Builder:
    """The graph in the making. Every size of every value is a number or a name
    (`attar_mxnet.reading.dims`), and every name is that of a size that can be computed when the model runs.

    Attributes:
        nodes: the nodes so far, in order.
        initializers: constants by name.
        here: name of the MXNet node that is being read; new nodes are called after it.
        demands: (size, number) pairs: a size that depends on the inputs and must be this number.
        batch: the size of the batch, as far as the inputs tell.
        zeros: names of values that are known to hold nothing but zeros.
    """

    def __init__(self, np_shape: bool = False) -> None:
        self.np_shape = np_shape
        self.demands: list[tuple[Dim, int]] = []
        self.zeros: set[str] = set()
        self.batch: Dim | None = None
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self.here = ""
        self._sources: dict[str, tuple[ir.Value, int]] = {}
        self._sizes: dict[Dim, ir.Value] = {}
        self._small: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._names: set[str] = set()

    # -- constants and inputs --------------------------------------------------------------------------------

    def input(self, name: str, dtype: np.dtype[Any], shape: Sequence[Dim]) -> ir.Value:
        """A new graph input. Names of sizes may be in several inputs: they are the same size then."""
        value = ir.Value(name=self._fresh(name), type=ir.TensorType(ir.DataType.from_numpy(dtype)))
        value.shape = ir.Shape(list(shape))
        self._know(value)
        if self.batch is None or (self.batch != "batch" and "batch" in shape):
            self.batch = "batch" if "batch" in shape else next(iter(shape), None)
        return value

    def weight(self, name: str, array: Array) -> ir.Value:
        """A weight under its own name."""
        return self._add(self._fresh(name), array)

    def const(self, content: Any, dtype: Any = None, name: str = "const") -> ir.Value:
        """A constant; small ones of the same content are shared."""
        array = np.asarray(content, dtype)
        if array.size > _SMALL:
            return self._add(self._fresh(f"{self.here}_{name}"), array)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._small:
            self._small[key] = self._add(self._fresh(f"{self.here}_{name}"), array)
        return self._small[key]

    def scalar(self, number: float, like: ir.Value) -> ir.Value:
        """A number of the type of `like`."""
        return self.const(np.array(number).astype(self.dtype(like)))

    def array(self, value: ir.Value) -> Array | None:
        """The content of a constant."""
        if value.name in self.initializers and value.const_value is not None:
            return cast(Array, value.const_value.numpy())
        return None

    def folded(self, value: ir.Value) -> Array | None:
        """The content of a value that is computed from constants alone, else None."""
        node = value.producer()
        if node is None:
            return self.array(value)
        feeds = {v.name: self.folded(v) for v in node.inputs if v is not None}
        if not feeds or any(a is None for a in feeds.values()):
            return None
        from onnx.reference import ReferenceEvaluator

        found = ReferenceEvaluator(ir.to_proto(node), opsets={"": OPSET}).run([value.name], feeds)
        return cast(Array, found[0])

    # -- what is known of values -----------------------------------------------------------------------------

    def dtype(self, value: ir.Value) -> np.dtype[Any]:
        assert value.dtype is not None
        return np.dtype(value.dtype.numpy())

    def shape(self, value: ir.Value) -> tuple[Dim, ...]:
        assert value.shape is not None, value.name
        return tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)

    def rank(self, value: ir.Value) -> int:
        return len(self.shape(value))

    def is_float(self, value: ir.Value) -> bool:
        return value.dtype is not None and value.dtype.is_floating_point()

    # -- nodes -----------------------------------------------------------------------------------------------

    def emit(self, op: str, *inputs: Input, shape: Sequence[Dim] | None = None, **attrs: Any) -> ir.Value:
        """A node with one output. `shape` is what the caller knows of the output where inference may not."""
        return self.emit_many(op, *inputs, outputs=1, shapes=[shape] if shape is not None else None, **attrs)[
            0
        ]

    def emit_many(
        self,
        op: str,
        *inputs: Input,
        outputs: int,
        shapes: Sequence[Sequence[Dim] | None] | None = None,
        **attrs: Any,
    ) -> tuple[ir.Value, ...]:
        """A node with several outputs. Arrays and lists among `inputs` become constants."""
        values = [self._input(i) for i in inputs]
        if op in _WINDOWED and values[0] is not None:
            self._check_windows(self.shape(values[0]), attrs)
        given = {k: v for k, v in attrs.items() if v is not None}
        attributes = ir.convenience.convert_attributes(given)
        node = ir.Node("", op, values, attributes, num_outputs=outputs, name=self._fresh(self._node_name(op)))
        found = self._infer(node)
        for index, value in enumerate(node.outputs):
            value.name = self._fresh(f"{node.name}_output{index if outputs > 1 else ''}")
            value.type, known = found[index]
            if shapes is not None and shapes[index] is not None:
                known = _merged(shapes[index] or (), known)
            if known is None:
                raise InputError(f"the shape of {self.here!r} does not follow from the inputs")
            value.shape = ir.Shape(known)
            self._know(value)
        self.nodes.append(node)
        return tuple(node.outputs)

    def cast(self, value: ir.Value, dtype: Any) -> ir.Value:
        """`value` as `dtype`; itself where it is that."""
        dtype = np.dtype(dtype)
        if self.dtype(value) == dtype:
            return value
        return self.emit("Cast", value, to=ir.DataType.from_numpy(dtype))

    def reshape(self, value: ir.Value, dims: Sequence[Dim]) -> ir.Value:
        """`value` in the shape `dims`, whose sizes may be names."""
        old = self.shape(value)
        if tuple(dims) == old:
            return value
        if len(dims) == 0 or (0 in dims and all(isinstance(d, int) for d in dims)):
            return self.emit("Reshape", value, self.const(list(dims), np.int64), shape=dims, allowzero=1)
        wanted = [
            d if isinstance(d, int) else 0 if i < len(old) and old[i] == d else None
            for i, d in enumerate(dims)
        ]
        if wanted.count(None) <= 1:
            return self.emit("Reshape", value, [-1 if d is None else d for d in wanted], shape=dims)
        # A size that no value has yet is what is left over.
        new = [d for d in dims if isinstance(d, str) and not self._known(d)]
        return self.emit("Reshape", value, self.sizes([-1 if d in new else d for d in dims]), shape=dims)

    def _known(self, dim: str) -> bool:
        return all(name in self._sources for name in split_dim(dim)[1])

    def sizes(self, dims: Sequence[Dim]) -> ir.Value:
        """`dims` as an int64 vector, computed where they are names."""
        if all(isinstance(d, int) for d in dims):
            return self.const(list(dims), np.int64, "shape")
        return self.emit("Concat", *(self.size(d) for d in dims), axis=0)

    def size(self, dim: Dim) -> ir.Value:
        """One size as an int64 vector of one element."""
        if isinstance(dim, int):
            return self.const([dim], np.int64, "size")
        if dim in self._sizes:
            return self._sizes[dim]
        number, names = split_dim(dim)
        parts = [self._source(name) for name in names.elements()]
        if number != 1:
            parts.append(self.const([number], np.int64, "size"))
        result = parts[0]
        for part in parts[1:]:
            result = self.emit("Mul", result, part)
        self._sizes[dim] = result
        return result

    # -- internals -------------------------------------------------------------------------------------------

    def _source(self, name: str) -> ir.Value:
        value, axis = self._sources[name]
        if name not in self._sizes:
            self._sizes[name] = self.emit("Shape", value, start=axis, end=axis + 1)
        return self._sizes[name]

    def _input(self, given: Input) -> ir.Value | None:
        if given is None or isinstance(given, ir.Value):
            return given
        if isinstance(given, np.ndarray):
            return self.const(given)
        return self.const(list(given), np.int64)

    def _check_windows(self, shape: Sequence[Dim], attrs: Mapping[str, Any]) -> None:
        """Hold windows against the image; shape inference lets some pass that are too large."""
        kernel = attrs["kernel_shape"]
        count = len(kernel)
        pads, dilations = attrs.get("pads") or [0] * 2 * count, attrs.get("dilations") or [1] * count
        for axis, (size, k, d) in enumerate(zip(shape[2:], kernel, dilations, strict=False)):
            if isinstance(size, int) and size + pads[axis] + pads[axis + count] < (k - 1) * d + 1:
                raise InputError(
                    f"{self.here!r}: the window {list(kernel)} is larger than its input {list(shape)}",
                    hint=_SHAPES,
                )

    def _infer(self, node: ir.Node) -> list[tuple[ir.TypeProtocol, list[Any] | None]]:
        proto = ir.to_proto(node) if node.outputs[0].name else _named_proto(node)
        types, data = {}, {}
        for value in node.inputs:
            if value is None:
                continue
            assert value.dtype is not None
            types[value.name] = onnx.helper.make_tensor_type_proto(int(value.dtype), list(self.shape(value)))
            array = self.array(value)
            if array is not None and array.size <= _SMALL:
                data[value.name] = ir.to_proto(ir.tensor(array))
        schema = onnx.defs.get_schema(node.op_type, OPSET, "")
        try:
            found = onnx.shape_inference.infer_node_outputs(
                schema, proto, types, data, opset_imports=_IMPORTS, ir_version=_IR_VERSION
            )
        except Exception as error:  # the C++ library raises several types, none of them ours
            shapes = ", ".join(f"{v.dtype.name}{list(self.shape(v))}" for v in node.inputs if v and v.dtype)
            why = str(error).split("): ")[-1].strip()
            raise InputError(
                f"{self.here!r} does not fit its inputs ({node.op_type} of {shapes}): {why}",
                hint=_SHAPES,
            ) from error
        result: list[tuple[ir.TypeProtocol, list[Any] | None]] = []
        for index in range(len(node.outputs)):
            kind = found[f"o{index}"]
            tensor = ir.serde.deserialize_type_proto_for_type(kind)
            shape = ir.serde.deserialize_type_proto_for_shape(kind)
            assert tensor is not None
            dims = None if shape is None else [d if isinstance(d, int) else d.value for d in shape]
            result.append((tensor, dims))
        return result

    def _know(self, value: ir.Value) -> None:
        """Name the unknown sizes of `value`, and remember where named ones can be had."""
        dims: list[Dim] = []
        assert value.shape is not None
        assert value.name
        for axis, dim in enumerate(value.shape):
            size = dim if isinstance(dim, int) else dim.value
            if size is None:
                size = safe_name(f"{value.name}.{axis}")
            if isinstance(size, str) and "*" not in size and size not in self._sources:
                self._sources[size] = (value, axis)
            dims.append(size)
        value.shape = ir.Shape(dims)

    def _add(self, name: str, array: Array) -> ir.Value:
        tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        self.initializers[name] = value
        return value

    def _node_name(self, op: str) -> str:
        return f"{self.here}.{op.lower()}"

    def _fresh(self, base: str) -> str:
        name, count = base, 0
        while name in self._names:
            count += 1
            name = f"{base}_{count}"
        self._names.add(name)
        return name


def _merged(told: Sequence[Dim], inferred: Sequence[Any] | None) -> list[Any]:
    """What the caller knows of a shape, with inferred numbers where there are any."""
    if inferred is None or len(inferred) != len(told):
        return list(told)
    return [b if isinstance(b, int) else a for a, b in zip(told, inferred, strict=True)]


def _named_proto(node: ir.Node) -> Any:
    proto = onnx.helper.make_node(node.op_type, [v.name if v is not None else "" for v in node.inputs], [])
    proto.output.extend(f"o{i}" for i in range(len(node.outputs)))
    proto.attribute.extend(ir.to_proto(a) for a in node.attributes.values())
    return proto
