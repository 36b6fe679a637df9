"""Saving that never leaves a half-written file and never damages a file that a live tensor reads from."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnx_ir as ir

from attar.errors import InputError
from attar.files import place, replacing, write_atomic
from attar.graph.constants import borrow, byte_size, tensor_bytes
from attar.graph.structure import clone

SINGLE_FILE_LIMIT = 1 << 30
"""Weights of more bytes than this go to a file of their own: a protobuf ends at 2 GB, and parsing one copies
it."""

_INLINE = 1024  # smaller tensors stay in the model file, where shape inference can read them
_ALIGN = 4096  # page, so that runtimes can map each tensor


def save(model: ir.Model, path: str | Path, *, external_data: bool | None = None) -> tuple[Path, ...]:
    """Write `model` to `path`, which keeps its old content until the new one is complete.

    Weights go to a file beside it, named `<name>.data`, if they exceed 1 GB or `external_data` is true; they
    are streamed, one in memory at a time. A data file that is already there is never overwritten, because
    models in memory and the old model file still read from it: the new one is then called `<name>.1.data` and
    so on, and the old one is removed once the new model is in place.

    Args:
        external_data: True or False decides; None lets the size decide.

    Returns:
        The files written, the model first.

    Raises:
        InputError: the place cannot be written, or the model is too large for one file.
    """
    path = place(path)
    if external_data is None:
        external_data = byte_size(model) > SINGLE_FILE_LIMIT
    stale = _own_data_files(path)
    if not external_data:
        write_atomic(path, to_bytes(model))
        written: tuple[Path, ...] = (path,)
    else:
        data = _free_data_path(path)
        try:
            with replacing(data) as part, part.open("wb") as file:
                light = _moved_out(model, file, data.name)
            write_atomic(path, _serialize(light))  # the commit: until here the old pair is whole
        except BaseException:
            data.unlink(missing_ok=True)
            raise
        written = (path, data)
    _keep_readable(model, stale)
    for old in stale:
        if old not in written:
            try:
                old.unlink()
            except OSError:  # in use on systems that lock files; it is only litter
                continue
    return written


def to_bytes(model: ir.Model) -> bytes:
    """The whole model, weights included, as the bytes of a protobuf.

    Raises:
        InputError: it exceeds the 2 GB that a protobuf can hold.
    """
    return _serialize(_materialized(model))


def to_proto(model: ir.Model) -> Any:
    """The whole model, weights included, as an `onnx.ModelProto`.

    Raises:
        InputError: it exceeds the 2 GB that a protobuf can hold.
    """
    return ir.to_proto(_materialized(model))


def _materialized(model: ir.Model) -> ir.Model:
    size = byte_size(model)
    if size >= (1 << 31) - (1 << 20):
        raise InputError(
            f"the weights take {size / 2**30:.1f} GB, more than one protobuf can hold",
            hint="save with external_data=True",
        )
    copy = clone(model)
    for graph in copy.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _in_memory(value.const_value)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    tensor = attribute.as_tensor()
                    if isinstance(tensor, ir.ExternalTensor):
                        node.attributes[name] = ir.AttrTensor(name, _in_memory(tensor))
    return copy


def _in_memory(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    with borrow(tensor) as array:
        return ir.tensor(array.copy(), dtype=tensor.dtype, name=tensor.name)


def _serialize(model: ir.Model) -> bytes:
    try:
        return bytes(ir.to_proto(model).SerializeToString())
    except ValueError as error:  # protobuf's own limit, for what byte_size does not count
        raise InputError(
            f"the model is too large for one file: {error}", hint="save with external_data=True"
        ) from error


def _moved_out(model: ir.Model, file: BinaryIO, location: str) -> ir.Model:
    """A copy of `model` whose larger weights were written to `file` and are declared to lie at `location`."""
    copy = clone(model)
    places: dict[int, tuple[int, int]] = {}  # one tensor object, one place: shared weights are written once
    for graph in copy.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.dtype == ir.DataType.STRING:
                continue
            size = tensor_bytes(tensor)
            if size < _INLINE:
                if isinstance(tensor, ir.ExternalTensor):
                    value.const_value = _in_memory(tensor)
                continue
            if id(tensor) not in places:
                offset = -(-file.tell() // _ALIGN) * _ALIGN
                file.seek(offset)
                with borrow(tensor) as array:
                    if tensor.dtype.bitwidth >= 8 and array.flags.c_contiguous:
                        file.write(array.reshape(-1).view(np.uint8).data)
                    elif isinstance(tensor, ir.ExternalTensor):
                        # From the borrowed view: its own tobytes() would keep the numbers in memory.
                        file.write(ir.Tensor(array, dtype=tensor.dtype).tobytes())
                    else:
                        file.write(tensor.tobytes())
                places[id(tensor)] = (offset, size)
            offset, length = places[id(tensor)]
            value.const_value = ir.ExternalTensor(
                location,
                offset,
                length,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=value.name or "",
            )
    return copy


def _own_data_files(path: Path) -> list[Path]:
    """Data files that an earlier `save` made for the model now at `path`; anything else in the folder is not
    ours."""
    pattern = re.compile(re.escape(path.name) + r"(\.\d+)?\.data")
    if not path.is_file():
        return []
    found = [p for p in path.parent.iterdir() if pattern.fullmatch(p.name) and p.is_file()]
    if not found:
        return []
    try:
        old = onnx.load_model(path, load_external_data=False)
    except Exception:  # not a model, so nothing is known of what it reads
        return []
    pairs = (e for t in old.graph.initializer for e in t.external_data)
    read = {e.value for e in pairs if e.key == "location"}
    return [p for p in found if p.name in read]


def _free_data_path(path: Path) -> Path:
    data, count = path.with_name(f"{path.name}.data"), 0
    while data.exists():
        count += 1
        data = path.with_name(f"{path.name}.{count}.data")
    return data


def _keep_readable(model: ir.Model, going: list[Path]) -> None:
    """Map what `model` reads from files that are about to go; a mapping outlives the file's name."""
    doomed = {os.path.realpath(p) for p in going}
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and os.path.realpath(tensor.path) in doomed:
                tensor.numpy()
