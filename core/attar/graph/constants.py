"""Weights and constants: reading them without holding memory, replacing them, adding new ones under fresh
names."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from attar.errors import VerifyError

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]


def const_array(value: ir.Value | None) -> Array | None:
    """The constant behind `value` as a read-only array, or None if it is not a constant.

    Constants are initializers that a caller cannot override, and outputs of Constant nodes. The array may be
    mapped from a file; use `borrow` where many large ones are read one after the other.
    """
    tensor = const_tensor(value)
    if tensor is None:
        return None
    return _read_only(tensor.numpy())


def const_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor behind a constant `value`; None if it is not a constant. Reads no data."""
    if value is None or value.is_graph_input():
        return None
    node = value.producer()
    if node is None:
        return value.const_value
    if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
        return ir.convenience.get_const_tensor(value)
    return None


@contextlib.contextmanager
def borrow(tensor: ir.TensorProtocol) -> Iterator[Array]:
    """A read-only numpy view of `tensor` whose file pages are given back at the end of the block.

    A tensor that lives in a file is mapped for the block only and takes no lasting memory, whatever the size
    of the model. A view that outlives the block stays right: it is read from the file again when it is
    touched.
    """
    if isinstance(tensor, ir.ExternalTensor):
        # A handle of our own: releasing the shared one would pull the data from under other readers.
        mine = ir.ExternalTensor(
            tensor.location,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=tensor.shape,
            name=tensor.name,
            base_dir=tensor.base_dir,
        )
        array = mine.numpy()
        raw = mine.raw
        try:
            yield _read_only(array)
        finally:
            if raw is not None and hasattr(raw, "madvise"):
                raw.madvise(mmap.MADV_DONTNEED)
            del array, raw
            with contextlib.suppress(BufferError):  # a view outlives the block; the mapping goes with it
                mine.release()
        return
    array = tensor.numpy()
    try:
        yield _read_only(array)
    finally:
        _give_back_pages(tensor.numpy_packed() if isinstance(tensor, ir.PackedTensor) else array)


def replace_weight(value: ir.Value, array: Array | ir.TensorProtocol) -> None:
    """Give the weight `value` new content; its element type and shape follow.

    The old tensor is untouched, so clones that share it keep what they had. `array` now belongs to the model:
    do not write to it.

    Raises:
        VerifyError: `value` is neither an initializer nor the output of a Constant node.
    """
    tensor = ir.tensor(array, name=value.name) if isinstance(array, np.ndarray) else array
    node = value.producer()
    if node is not None and node.op_type == "Constant":
        node.attributes.clear()
        node.attributes["value"] = ir.AttrTensor("value", tensor)
        value.const_value = None
    elif value.is_initializer():
        value.const_value = tensor
    else:
        raise VerifyError(f"{value.name!r} is not a weight, so its content cannot be replaced")
    # A fresh type object: `value.dtype = ...` would write into the one that clones share.
    value.type = ir.TensorType(tensor.dtype)
    value.shape = ir.Shape(tensor.shape.numpy())


def add_initializer(
    graph: ir.Graph, base_name: str, array: Array | ir.TensorProtocol, taken: set[str] | None = None
) -> ir.Value:
    """Add a constant under a fresh name made from `base_name`. `array` now belongs to the model: do not write
    to it.

    Args:
        taken: names in use, as for `fresh_name`.
    """
    name = fresh_name(graph, base_name, taken)
    tensor = ir.tensor(array, name=name) if isinstance(array, np.ndarray | np.generic) else array
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def taken_names(graph: ir.Graph) -> set[str]:
    """Names of all values and nodes of `graph`, of its subgraphs, and of what it uses from outside."""
    names = {v.name for v in (*graph.inputs, *graph.initializers.values()) if v.name}
    for node in ir.traversal.RecursiveGraphIterator(graph):
        if node.name:
            names.add(node.name)
        names.update(v.name for v in (*node.inputs, *node.outputs) if v is not None and v.name)
    for inner in graph.subgraphs():
        names.update(v.name for v in (*inner.inputs, *inner.initializers.values()) if v.name)
    return names


def fresh_name(graph: ir.Graph, base: str, taken: set[str] | None = None) -> str:
    """`base`, or `base_1`, `base_2`, ... if that is taken. Give the main graph, so that no subgraph shadows
    the name.

    Args:
        taken: names in use, as `taken_names` gives them; the new name is added. Saves the walk over the
        graph, which is
            O(nodes), to a pass that makes many names.
    """
    names = taken_names(graph) if taken is None else taken
    name, count = base, 0
    while name in names:
        count += 1
        name = f"{base}_{count}"
    if taken is not None:
        taken.add(name)
    return name


def byte_size(model: ir.Model) -> int:
    """Bytes of all weights as they are stored: initializers of all graphs and tensors of Constant nodes."""
    total = 0
    for graph in model.graphs():
        total += sum(tensor_bytes(v.const_value) for v in graph.initializers.values() if v.const_value)
        for node in graph:
            if node.op_type == "Constant" and "value" in node.attributes:
                total += tensor_bytes(node.attributes["value"].as_tensor())
    return total


def tensor_bytes(tensor: ir.TensorProtocol) -> int:
    """Stored bytes of one tensor; strings count their characters."""
    if tensor.dtype == ir.DataType.STRING:
        return sum(len(s) for s in np.asarray(tensor.numpy()).ravel())
    return int(tensor.nbytes)


def _read_only(array: Array) -> Array:
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view


def _give_back_pages(array: Array) -> None:
    """Tell the kernel that the file pages under `array` are not needed, if it is a view of a file."""
    base: Any = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    if not isinstance(base, mmap.mmap) or not hasattr(base, "madvise"):
        return
    start = array.ctypes.data - np.frombuffer(base, np.uint8).ctypes.data
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages only: neighbours may be in use
    last = (start + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        base.madvise(mmap.MADV_DONTNEED, first, last - first)
