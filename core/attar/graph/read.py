"""Reading protobufs that nobody vouches for: what the IR would drop is refused, and sizes are checked before
use."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from attar.errors import InputError


def read_model(path: str | Path) -> ir.Model:
    """Read an ONNX file as it is; `normalize` is the next step. External weights are mapped, not read.

    Raises:
        InputError: the file is missing, broken or too large, or its external data are missing, too short or
        elsewhere
            than in the model's folder.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder, not an ONNX file")
    try:
        size = path.stat().st_size
        if size >= 1 << 31:
            raise InputError(f"{path} has {size / 2**30:.1f} GB; an ONNX file ends at 2 GB")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    return from_proto(parse(content, str(path)), path.parent, str(path))


def parse(content: bytes, source: str = "the given bytes") -> Any:
    """The `onnx.ModelProto` in `content`.

    Raises:
        InputError: `content` is not one.
    """
    if not content:
        raise InputError(f"{source} is empty, not an ONNX model")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except Exception as error:  # protobuf's DecodeError is not exported under one name in all versions
        raise InputError(f"{source} is not an ONNX model, or it is damaged or cut short ({error})") from error
    return proto


def from_proto(proto: Any, base_dir: Path | None = None, source: str = "the model") -> ir.Model:
    """The IR of an `onnx.ModelProto`, which must not be changed afterwards.

    Args:
        base_dir: the folder that external data must lie in; None allows none.
        source: what to call the model in errors.

    Raises:
        InputError: the model uses what the IR cannot hold (sparse initializers, training information), is not
            well-formed, or its weights are not what it declares.
    """
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise InputError(f"{source} is not an ONNX model: it has no graph")
    _refuse_lossy(proto, source)
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # onnx-ir raises whatever the malformed part leads to
        raise InputError(f"{source} is not a valid ONNX model: {_first_cause(error)}") from error
    assert isinstance(model, ir.Model)
    _check_wiring(model, source)
    files = _Files(base_dir, source)
    for graph in (*model.graphs(), *(f.graph for f in model.functions.values())):
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = files.settled(value.const_value, value.name or "?")
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    owner = next((v.name for v in node.outputs if v.name), None) or node.name or "?"
                    node.attributes[name] = ir.AttrTensor(
                        name, files.settled(attribute.as_tensor(), owner), attribute.doc_string
                    )
    return model


def proto_graphs(graph: Any) -> Iterator[Any]:
    """The `onnx.GraphProto` given and those inside it, each before what it holds."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from proto_graphs(attribute.g)
            for inner in attribute.graphs:
                yield from proto_graphs(inner)


def _refuse_lossy(proto: Any, source: str) -> None:
    if proto.training_info:
        raise InputError(
            f"{source} carries training information (training_info), which would be lost",
            hint="export the model for inference",
        )
    for graph in proto_graphs(proto.graph):
        for sparse in graph.sparse_initializer:
            raise InputError(
                f"{source} has the sparse initializer {sparse.values.name!r}, which would be lost",
                hint="store it as a dense initializer",
            )
    nodes: Iterable[Any] = (n for g in proto_graphs(proto.graph) for n in g.node)
    for node in (*nodes, *(n for f in proto.functions for n in f.node)):
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise InputError(
                    f"{source}: {node.op_type} {node.name or node.output[0]!r} holds a sparse tensor",
                    hint="store it as a dense tensor",
                )


def _check_wiring(model: ir.Model, source: str) -> None:
    """Every value that is used must come from somewhere; onnx-ir only logs it."""
    known = {id(v) for g in model.graphs() for v in (*g.inputs, *g.initializers.values())}
    for graph in model.graphs():
        for node in graph:
            for value in node.inputs:
                if value is not None and value.producer() is None and id(value) not in known:
                    raise InputError(
                        f"{source}: node {node.name or node.op_type!r} reads {value.name!r}, "
                        "which nothing makes"
                    )
        for value in graph.outputs:
            if value.producer() is None and id(value) not in known:
                raise InputError(f"{source}: nothing makes the output {value.name!r}")


def _first_cause(error: BaseException) -> str:
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


class _Files:
    """Maps the files that hold external data, each once, and checks every tensor against what is there.

    Mapping by file instead of by name keeps loaded models right when their files are replaced or removed.
    """

    def __init__(self, folder: Path | None, source: str) -> None:
        self.folder = folder
        self.source = source
        self.maps: dict[str, mmap.mmap | None] = {}

    def settled(self, tensor: ir.TensorProtocol, owner: str) -> ir.TensorProtocol:
        """`tensor` as an array in memory or in a mapped file, free of the protobuf it came from."""
        if any(d < 0 for d in tensor.shape.numpy()):
            raise InputError(f"{self.source}: tensor {owner!r} has a negative dimension: {tensor.shape}")
        if tensor.dtype == ir.DataType.UNDEFINED:
            raise InputError(f"{self.source}: tensor {owner!r} has no element type")
        if isinstance(tensor, ir.ExternalTensor):
            return self._mapped(tensor, owner)
        if tensor.dtype == ir.DataType.STRING:
            return tensor
        try:
            array = tensor.numpy()
            if array.shape != tensor.shape.numpy():
                raise ValueError(f"holds {array.shape}")
        except Exception as error:
            raise InputError(
                f"{self.source}: tensor {owner!r} does not hold the {tensor.dtype} {tensor.shape} "
                "that it declares "
                f"({_first_cause(error)})"
            ) from error
        return ir.Tensor(array, dtype=tensor.dtype, name=tensor.name)

    def _mapped(self, tensor: ir.ExternalTensor, owner: str) -> ir.TensorProtocol:
        where = f"{self.source}: the external data of tensor {owner!r}"
        shape = tensor.shape.numpy()
        size = -(-math.prod(shape) * tensor.dtype.bitwidth // 8)
        path = self._path(os.fspath(tensor.location), where)
        offset, length = tensor.offset or 0, tensor.length
        if offset < 0 or (length is not None and length < size):
            raise InputError(f"{where} are declared as {length} bytes from {offset}, but {size} are needed")
        try:
            there = path.stat().st_size
        except OSError as error:
            raise InputError(
                f"{where} cannot be read from {path}: {error.strerror or error}",
                hint="keep the data file beside the model file",
            ) from error
        if not path.is_file():
            raise InputError(f"{where} lie in {path}, which is not a file")
        if offset + size > there:
            raise InputError(
                f"{where} need bytes {offset} to {offset + size} of {path}, which has only {there}",
                hint="the data file is cut short or belongs to another model",
            )
        if size == 0:
            return ir.Tensor(np.empty(shape, tensor.dtype.numpy()), dtype=tensor.dtype, name=tensor.name)
        data = np.frombuffer(self._map(path), np.uint8, count=size, offset=offset)
        if tensor.dtype.bitwidth < 8:
            return ir.PackedTensor(data, tensor.dtype, shape=ir.Shape(shape), name=tensor.name)
        array = data.view(np.dtype(tensor.dtype.numpy()).newbyteorder("<")).reshape(shape)
        return ir.Tensor(array, dtype=tensor.dtype, name=tensor.name)

    def _path(self, location: str, where: str) -> Path:
        if self.folder is None:
            raise InputError(
                f"{where} lie in the file {location!r}, but the model was not given as a path",
                hint="give the path of the model file, or load the weights into it first",
            )
        folder = os.path.realpath(self.folder)
        target = os.path.realpath(os.path.join(folder, location))  # noqa: PTH118
        inside = os.path.commonpath([folder, target]) == folder and target != folder
        if not location or os.path.isabs(location) or not inside:  # noqa: PTH117
            raise InputError(f"{where} lie outside the model's folder: {location!r}", hint="nothing was read")
        return Path(target)

    def _map(self, path: Path) -> mmap.mmap:
        key = str(path)
        if key not in self.maps:
            with contextlib.ExitStack() as stack:
                try:
                    file = stack.enter_context(path.open("rb"))
                    self.maps[key] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                except (OSError, ValueError) as error:
                    raise InputError(f"{self.source}: cannot read {path}: {error}") from error
        mapped = self.maps[key]
        assert mapped is not None
        return mapped
