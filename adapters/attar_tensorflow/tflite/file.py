"""The checked content of a `.tflite` file: tensors, operators and graphs, with every index and size
verified."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from attar.errors import InputError
from attar_tensorflow.tflite import schema
from attar_tensorflow.tflite.flatbuffer import Reader
from attar_tensorflow.tflite.sparse import densify

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES = {
    "FLOAT32": np.float32, "FLOAT16": np.float16, "FLOAT64": np.float64, "INT8": np.int8, "UINT8": np.uint8,
    "INT16": np.int16, "UINT16": np.uint16, "INT32": np.int32, "UINT32": np.uint32, "INT64": np.int64,
    "UINT64": np.uint64, "BOOL": np.bool_, "INT4": np.int8, "UINT4": np.uint8,
}  # fmt: skip
_ELEMENTS = 1 << 40  # more than any tensor has; products of 32-bit dimensions stay exact in Python anyway


@dataclass(frozen=True)
class Quantization:
    """`real = scale (code - zero_point)`; scalars, or one each along `axis`."""

    scale: Array
    zero_point: Array
    axis: int | None = None


@dataclass(frozen=True)
class Tensor:
    """One tensor of a graph.

    Attributes:
        shape: numbers; None for a dimension that the caller may choose.
        type: as in `schema.TYPES`.
        array: the content of a constant; 4-bit types are unpacked to 8.
        variable: a state that operators change.
    """

    index: int
    name: str
    shape: tuple[int | None, ...]
    type: str
    quantization: Quantization | None = None
    array: Array | None = None
    variable: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type; object for strings, resources and complex numbers."""
        return np.dtype(DTYPES.get(self.type, np.object_))


@dataclass(frozen=True)
class Operator:
    """One operator; `inputs` holds -1 where an optional one is left out."""

    index: int
    kind: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: SimpleNamespace


@dataclass(frozen=True)
class Graph:
    """A graph in topological order. `input_names` and `output_names` are those of its signature, else of its
    tensors."""

    name: str
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]


@dataclass(frozen=True)
class File:
    """A whole file; the first graph is the one that runs, the others are bodies of control flow."""

    graphs: tuple[Graph, ...]
    description: str = ""
    notes: tuple[str, ...] = field(default=())


def parse(data: bytes, what: str) -> File:
    """The content of a `.tflite` file.

    Raises:
        InputError: it is none, is damaged, or says impossible things.
    """
    reader = Reader(data, what)
    try:
        model = reader.root("Model")
        return _file(model, reader)
    except InputError:
        raise
    except (ValueError, IndexError, TypeError, OverflowError, AttributeError) as error:
        raise reader.bad(f"{type(error).__name__}: {str(error)[:200]}") from error


def _file(model: SimpleNamespace, reader: Reader) -> File:
    if model.version != schema.VERSION:
        raise reader.bad(f"it is of version {model.version} of the format; only version 3 exists today")
    if not model.subgraphs:
        raise reader.bad("it holds no graph")
    buffers = [_content(b, reader) for b in model.buffers or ()]
    kinds = [_kind(code, reader) for code in model.operator_codes or ()]
    signatures = {s.subgraph_index: s for s in reversed(model.signature_defs or ())}
    graphs = tuple(
        _graph(
            g,
            signatures.get(i) if len(signatures) == len(model.signature_defs or ()) else None,
            kinds,
            buffers,
            reader,
        )
        for i, g in enumerate(model.subgraphs)
    )
    return File(graphs, model.description or "")


def _content(buffer: SimpleNamespace, reader: Reader) -> memoryview | None:
    if buffer.offset > 1:  # files above 2 GB keep their weights behind the flatbuffer
        return reader.slice(buffer.offset, buffer.size)
    return buffer.data if buffer.data is not None and len(buffer.data) else None


def _kind(code: SimpleNamespace, reader: Reader) -> tuple[str, int]:
    number = max(code.builtin_code, code.deprecated_builtin_code)  # the old field holds codes up to 127
    if not 0 <= number < len(schema.OPERATORS):
        return f"operator {number}", code.version
    kind = schema.OPERATORS[number]
    return (f"CUSTOM:{code.custom_code or '?'}" if kind == "CUSTOM" else kind), code.version


def _graph(
    graph: SimpleNamespace,
    signature: SimpleNamespace | None,
    kinds: Sequence[tuple[str, int]],
    buffers: Sequence[memoryview | None],
    reader: Reader,
) -> Graph:
    tensors = tuple(_tensor(i, t, buffers, reader) for i, t in enumerate(graph.tensors or ()))
    inputs, outputs = (
        _indices(x, len(tensors), "the interface", reader) for x in (graph.inputs, graph.outputs)
    )
    operators = []
    for index, op in enumerate(graph.operators or ()):
        if op.opcode_index >= len(kinds):
            raise reader.bad(
                f"operator {index} is of kind {op.opcode_index}, of which there are {len(kinds)}"
            )
        kind, version = kinds[op.opcode_index]
        ins = _indices(op.inputs, len(tensors), f"{kind} {index}", reader, least=-1)
        outs = _indices(op.outputs, len(tensors), f"{kind} {index}", reader)
        options = op.builtin_options or SimpleNamespace()
        operators.append(Operator(index, kind, version, ins, outs, options))
    tensors = _with_empty(tensors, operators, inputs)
    _check_order(tensors, operators, inputs, outputs, reader)
    names = [
        _names(signature and getattr(signature, part), places, tensors)
        for part, places in (("inputs", inputs), ("outputs", outputs))
    ]
    return Graph(graph.name or "", tensors, tuple(operators), inputs, outputs, *names)


def _with_empty(
    tensors: tuple[Tensor, ...], operators: Sequence[Operator], inputs: Sequence[int]
) -> tuple[Tensor, ...]:
    """Constants without elements: their buffers look like those of tensors that are computed."""
    made = {*inputs} | {i for op in operators for i in op.outputs}
    return tuple(
        replace(t, array=np.zeros([d or 0 for d in t.shape], t.dtype))
        if t.array is None and 0 in t.shape and t.index not in made and t.type in DTYPES
        else t
        for t in tensors
    )


def _indices(array: Array | None, count: int, where: str, reader: Reader, least: int = 0) -> tuple[int, ...]:
    found = () if array is None else tuple(int(i) for i in array)
    if wrong := [i for i in found if not least <= i < count]:
        raise reader.bad(f"{where} names tensor {wrong[0]}, of which there are {count}")
    return found


def _names(mapping: Any, places: Sequence[int], tensors: Sequence[Tensor]) -> tuple[str, ...]:
    """Names of the interface: a signature's where it names each tensor once, else the tensors' own; never one
    twice."""
    given = {m.tensor_index: m.name for m in mapping or () if m.name}
    if len(set(given.values())) != len(places) or set(given) != set(places):
        given = {}
    found: list[str] = []
    for i in places:
        base = given.get(i) or tensors[i].name or f"tensor_{i}"
        name, count = base, 0
        while name in found:
            count += 1
            name = f"{base}_{count}"
        found.append(name)
    return tuple(found)


def _check_order(
    tensors: Sequence[Tensor],
    operators: Sequence[Operator],
    inputs: Sequence[int],
    outputs: Sequence[int],
    reader: Reader,
) -> None:
    known = {*inputs, -1} | {t.index for t in tensors if t.array is not None or t.variable}
    for op in operators:
        for i in op.inputs:
            if i not in known:
                raise reader.bad(
                    f"{op.kind} {op.index} reads {tensors[i].name!r}, which nothing before it has made"
                )
        if twice := [i for i in op.outputs if i in known]:
            raise reader.bad(f"{op.kind} {op.index} writes {tensors[twice[0]].name!r}, which exists already")
        known.update(op.outputs)
    if lost := [i for i in outputs if i not in known]:
        raise reader.bad(f"nothing makes the output {tensors[lost[0]].name!r}")


def _tensor(index: int, t: SimpleNamespace, buffers: Sequence[memoryview | None], reader: Reader) -> Tensor:
    name = t.name or f"tensor_{index}"
    if not 0 <= t.type < len(schema.TYPES):
        raise reader.bad(f"tensor {name!r} is of the unknown type {t.type}")
    if t.buffer >= max(len(buffers), 1):
        raise reader.bad(f"tensor {name!r} is in buffer {t.buffer}, of which there are {len(buffers)}")
    if t.external_buffer:
        raise InputError(f"tensor {name!r} is kept in another file, which is not supported")
    kind = schema.TYPES[t.type]
    shape = tuple(int(d) for d in (() if t.shape is None else t.shape))
    if any(d < 0 for d in shape) or math.prod(shape) > _ELEMENTS:
        raise reader.bad(f"tensor {name!r} has the impossible shape {list(shape)}")
    content = buffers[t.buffer] if buffers and t.buffer else None
    array = None if content is None else _array(name, kind, shape, t.sparsity, content, reader)
    quantization = _quantization(name, t.quantization, shape, reader)
    dims: tuple[int | None, ...] = shape
    if array is None and t.shape_signature is not None and len(t.shape_signature) == len(shape):
        dims = tuple(None if s < 0 else d for s, d in zip(t.shape_signature, shape, strict=True))
    return Tensor(index, name, dims, kind, quantization, array, bool(t.is_variable))


def _array(  # noqa: PLR0917
    name: str,
    kind: str,
    shape: tuple[int, ...],
    sparsity: SimpleNamespace | None,
    content: memoryview,
    reader: Reader,
) -> Array | None:
    if kind not in DTYPES:
        return np.frombuffer(content, np.uint8)  # strings and resources: whoever uses them is refused
    dtype = np.dtype(DTYPES[kind])
    if sparsity is not None:
        values = np.frombuffer(content, dtype.newbyteorder("<")).astype(dtype)
        return densify(values, shape, sparsity, lambda why: reader.bad(f"tensor {name!r}: {why}"))
    count = math.prod(shape)
    four = kind in ("INT4", "UINT4")
    expected = (count + 1) // 2 if four else count * dtype.itemsize
    if len(content) != expected:
        raise reader.bad(
            f"tensor {name!r} is {kind.lower()}{list(shape)}, which takes {expected} bytes; "
            f"there are {len(content)}"
        )
    if four:
        packed = np.frombuffer(content, np.uint8)
        nibbles = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[:count]
        codes = np.where(nibbles > 7, nibbles.astype(np.int16) - 16, nibbles) if kind == "INT4" else nibbles
        return codes.astype(dtype).reshape(shape)
    return np.frombuffer(content, dtype.newbyteorder("<")).astype(dtype).reshape(shape)


def _quantization(
    name: str, q: SimpleNamespace | None, shape: tuple[int, ...], reader: Reader
) -> Quantization | None:
    if q is None or q.scale is None or not len(q.scale):
        return None
    scale = q.scale.astype(np.float32)
    if not np.isfinite(scale).all() or (scale < 0).any():
        raise reader.bad(f"tensor {name!r} has a scale that is negative or not finite")
    if not scale.any():
        return None  # some writers say "not quantized" so
    zero = np.zeros(len(scale), np.int64) if q.zero_point is None or not len(q.zero_point) else q.zero_point
    if q.details_type:
        raise InputError(
            f"tensor {name!r} is quantized in blocks or in a way of its own, which is not supported"
        )
    if len(scale) == 1:
        return Quantization(scale[0], np.asarray(zero[0]))
    axis = int(q.quantized_dimension)
    if not 0 <= axis < len(shape) or shape[axis] != len(scale):
        raise reader.bad(f"tensor {name!r} has {len(scale)} scales along axis {axis} of {list(shape)}")
    if len(zero) == 1:
        zero = np.repeat(zero, len(scale))
    if len(zero) != len(scale):
        raise reader.bad(f"tensor {name!r} has {len(scale)} scales and {len(zero)} zero points")
    return Quantization(scale, zero, axis)
