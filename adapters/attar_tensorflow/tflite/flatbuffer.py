"""Reads flatbuffers by `schema`, trusting nothing: every offset, length and count is held against the file
first."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import numpy as np

from attar.errors import InputError
from attar_tensorflow.tflite import schema

SCALARS = {
    "bool": ("<B", 1, np.uint8),
    "i8": ("<b", 1, np.int8),
    "u8": ("<B", 1, np.uint8),
    "u16": ("<H", 2, np.uint16),
    "i32": ("<i", 4, np.int32),
    "u32": ("<I", 4, np.uint32),
    "i64": ("<q", 8, np.int64),
    "u64": ("<Q", 8, np.uint64),
    "f32": ("<f", 4, np.float32),
}


class Reader:
    """One flatbuffer in memory.

    Records come out as `SimpleNamespace` with every field of the schema; absent tables and vectors are None,
    absent
    scalars have their default. Vectors of scalars are arrays, `bytes` are views of the file.

    Args:
        data: the whole file.
        what: what to call it in errors.
    """

    def __init__(self, data: bytes, what: str) -> None:
        self._data, self._what = memoryview(data), what
        # Nothing in an honest file is reached twice, so what is decoded cannot exceed what is there; shared
        # offsets in
        # a forged one could multiply without end.
        self._budget = len(data) + 4096

    def root(self, table: str) -> SimpleNamespace:
        """The root table.

        Raises:
            InputError: an offset or length leads outside of the file, or the identifier is another one.
        """
        if len(self._data) < 8 or bytes(self._data[4:8]) != schema.IDENTIFIER:
            raise InputError(
                f"{self._what} is not a TFLite file: it does not bear the mark {schema.IDENTIFIER.decode()}"
            )
        return self._table(table, self._scalar("u32", 0))

    def bad(self, why: str) -> InputError:
        return InputError(f"{self._what} is damaged: {why}")

    def slice(self, start: int, length: int) -> memoryview:
        """Bytes of the file.

        Raises:
            InputError: it has no such bytes.
        """
        if start < 0 or length < 0 or start + length > len(self._data):
            raise self.bad(f"{length} bytes are expected at {start}, the file has {len(self._data)}")
        return self._data[start : start + length]

    def _scalar(self, kind: str, position: int) -> Any:
        code, size, _ = SCALARS[kind]
        return struct.unpack(code, self.slice(position, size))[0]

    def _spend(self, amount: int) -> None:
        self._budget -= amount
        if self._budget < 0:
            raise self.bad("its tables are reached more often than the file is long")

    def _table(self, name: str, position: int) -> SimpleNamespace:
        self._spend(4)
        vtable = position - self._scalar("i32", position)
        size = self._scalar("u16", vtable)
        if size < 4 or size % 2:
            raise self.bad(f"a table {name} has an impossible layout")
        slots = struct.unpack(f"<{size // 2}H", self.slice(vtable, size))[2:]
        record: dict[str, Any] = {}
        for field in schema.fields(name):
            offset = slots[field.slot] if field.slot < len(slots) else 0
            record[field.name] = self._field(field, position + offset if offset else 0, record)
        return SimpleNamespace(**record)

    def _field(self, field: schema.Field, position: int, before: dict[str, Any]) -> Any:
        if field.kind in SCALARS and not field.vector:
            value = self._scalar(field.kind, position) if position else field.default
            return bool(value) if field.kind == "bool" else value
        if not position:
            return None
        target = position + self._scalar("u32", position)
        if field.kind.startswith("union:"):
            return self._union(field, target, before)
        if field.kind == "string":
            return bytes(self._vector(target, 1)).decode("utf-8", "replace")
        if field.kind == "bytes":
            return self._vector(target, 1)
        if field.kind in SCALARS:
            _, size, dtype = SCALARS[field.kind]
            return np.frombuffer(self._vector(target, size), np.dtype(dtype).newbyteorder("<")).astype(dtype)
        if not field.vector:
            return self._table(field.kind, target)
        places = self._vector(target, 4)
        offsets = np.frombuffer(places, "<u4")
        return [self._table(field.kind, target + 4 + 4 * i + int(o)) for i, o in enumerate(offsets)]

    def _union(self, field: schema.Field, target: int, before: dict[str, Any]) -> Any:
        kinds = schema.UNIONS[field.kind.partition(":")[2]]
        which = before[f"{field.name}_type"]
        # Options of operators newer than the schema here are not read; such operators are refused by name.
        return self._table(kinds[which], target) if 0 < which < len(kinds) else None

    def _vector(self, position: int, size: int) -> memoryview:
        """The bytes of a vector of elements of `size` bytes."""
        length = self._scalar("u32", position) * size
        self._spend(4 + length)
        return self.slice(position + 4, length)
