"""Storing codes: packed as ONNX packs them, and in a file of our own where there are many."""

from __future__ import annotations

import mmap
import tempfile
from typing import IO, Any

import numpy as np
import onnx_ir as ir

from attar.errors import InputError
from attar_quantize.scheme import Array, QType

_INLINE = 1 << 16
_PAGE = mmap.PAGESIZE


def packed(codes: Array, stored: ir.DataType) -> Array:
    """Codes of 2 or 4 bits as bytes, the first code in the lowest bits, the last byte filled with zeros.

    This is how ONNX stores sub-byte types (`TensorProto.raw_data`).
    """
    each = 8 // stored.bitwidth
    flat = codes.reshape(-1).view(np.uint8)
    if flat.size % each:
        flat = np.concatenate([flat, np.zeros(-flat.size % each, np.uint8)])
    mask = np.uint8((1 << stored.bitwidth) - 1)
    out = flat[0::each] & mask
    for i in range(1, each):
        out |= (flat[i::each] & mask) << np.uint8(i * stored.bitwidth)
    return out


def is_mapped(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor reads from a file rather than from memory."""
    if isinstance(tensor, ir.ExternalTensor):
        return True
    base: Any = tensor.raw if isinstance(tensor, ir.Tensor) else None
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    return isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)


class Store:
    """Makes tensors of codes. Large ones go to a temporary file without a name and are mapped from there, so
    that memory stays bounded whatever the size of the model; the file goes with the last tensor.

    Args:
        room: bytes that the file may take at most; 0 keeps everything in memory.
    """

    def __init__(self, *, room: int = 0) -> None:
        self._room, self._used = room, 0
        self._file: IO[bytes] | None = None
        self._map: mmap.mmap | None = None

    def tensor(self, codes: Array, qtype: QType, name: str) -> ir.TensorProtocol:
        """The tensor of `codes` in the type's stored form."""
        stored, shape = qtype.stored, codes.shape
        if stored.bitwidth < 8 and not qtype.format:
            return ir.PackedTensor(
                self._kept(packed(codes, stored)), stored, shape=ir.Shape(shape), name=name
            )
        return ir.Tensor(self._kept(np.ascontiguousarray(codes)), dtype=stored, name=name)

    def array(self, array: Array, name: str) -> ir.TensorProtocol:
        """The tensor of an ordinary array, such as scales."""
        return ir.tensor(self._kept(np.ascontiguousarray(array)), name=name)

    def _kept(self, array: Array) -> Array:
        """`array`, or what it is in the file."""
        start = -(-self._used // _PAGE) * _PAGE
        if array.nbytes < _INLINE or start + array.nbytes > self._room:
            return array
        try:
            if self._file is None:
                # Its length is that of the room, but what is not written takes no space.
                self._file = tempfile.TemporaryFile(prefix="attar-weights-")  # noqa: SIM115
                self._file.truncate(self._room)
                self._map = mmap.mmap(self._file.fileno(), self._room, access=mmap.ACCESS_READ)
            self._file.seek(start)
            # Written, not stored through the map: a full disk is then an error and no signal.
            self._file.write(array.reshape(-1).view(np.uint8).data)
            self._file.flush()
        except OSError as error:
            raise InputError(
                f"no room for the quantized weights in {tempfile.gettempdir()}: {error.strerror or error}",
                hint="set TMPDIR to a folder with more space",
            ) from error
        self._used = start + array.nbytes
        assert self._map is not None
        view = np.frombuffer(self._map, np.uint8, array.nbytes, start)
        return view.view(array.dtype).reshape(array.shape)
