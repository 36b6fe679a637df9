"""Writes flatbuffers by `schema`: parents before children, so that every offset points forward."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attar.errors import InputError
from attar_tensorflow.tflite import schema
from attar_tensorflow.tflite.flatbuffer import SCALARS

_LIMIT = (1 << 31) - 1  # offsets are of 32 bits, and those to vtables signed
_WEIGHTS = 16  # bytes; the schema wants the content of buffers aligned so


def build(model: Mapping[str, Any]) -> bytes:
    """The bytes of a `Model` record: tables are mappings, vectors sequences or arrays.

    Raises:
        InputError: it does not fit into 2 GB.
    """
    return bytes(_Builder().root("Model", model))


class _Builder:
    def __init__(self) -> None:
        self._out = bytearray()
        self._vtables: dict[bytes, int] = {}

    def root(self, name: str, record: Mapping[str, Any]) -> bytearray:
        self._out += struct.pack("<I", 0) + schema.IDENTIFIER
        position = self._table(name, record)
        if len(self._out) > _LIMIT:
            raise InputError("the model does not fit into the 2 GB of a .tflite file")
        struct.pack_into("<I", self._out, 0, position)
        return self._out

    def _align(self, to: int, after: int = 0) -> None:
        """Pad so that what comes `after` bytes later is aligned."""
        self._out += bytes(-(len(self._out) + after) % to)

    def _table(self, name: str, record: Mapping[str, Any]) -> int:
        known = {f.name for f in schema.fields(name)}
        assert set(record) <= known, (name, set(record) - known)
        present = [f for f in schema.fields(name) if self._is_there(f, record.get(f.name))]
        sizes = {f: SCALARS[f.kind][1] if f.kind in SCALARS and not f.vector else 4 for f in present}
        places: dict[schema.Field, int] = {}
        end = 4  # behind the offset to the vtable
        for field in sorted(present, key=lambda f: -sizes[f]):
            end += -end % sizes[field]
            places[field] = end
            end += sizes[field]
        slots = [0] * (max((f.slot for f in present), default=-1) + 1)
        for field, place in places.items():
            slots[field.slot] = place
        vtable = struct.pack(f"<{2 + len(slots)}H", 4 + 2 * len(slots), end, *slots)
        if vtable not in self._vtables:
            self._align(2)
            self._vtables[vtable] = len(self._out)
            self._out += vtable
        self._align(8)
        start = len(self._out)
        self._out += struct.pack("<i", start - self._vtables[vtable]) + bytes(end - 4)
        for field in present:
            place, value = start + places[field], record[field.name]
            if field.kind in SCALARS and not field.vector:
                struct.pack_into(SCALARS[field.kind][0], self._out, place, value)
            else:
                struct.pack_into("<I", self._out, place, self._child(field, value) - place)
        return start

    @staticmethod
    def _is_there(field: schema.Field, value: Any) -> bool:
        return value is not None and not (
            field.kind in SCALARS and not field.vector and value == field.default
        )

    def _child(self, field: schema.Field, value: Any) -> int:
        if field.kind == "string":
            text = value.encode("utf-8")
            return self._vector(len(text), text + b"\0", 4)
        if field.kind == "bytes":
            return self._vector(len(value), value, _WEIGHTS)
        if field.kind in SCALARS:
            _, size, dtype = SCALARS[field.kind]
            array = np.asarray(value, dtype)
            return self._vector(
                len(array), array.astype(array.dtype.newbyteorder("<")).tobytes(), max(size, 4)
            )
        if field.kind.startswith("union:"):
            kind, content = value  # (name of the table, its record)
            return self._table(kind, content)
        return self._tables(field.kind, value) if field.vector else self._table(field.kind, value)

    def _vector(self, length: int, content: bytes | memoryview, align: int) -> int:
        self._align(align, after=4)
        start = len(self._out)
        self._out += struct.pack("<I", length)
        self._out += content
        return start

    def _tables(self, kind: str, records: Sequence[Mapping[str, Any]]) -> int:
        start = self._vector(len(records), bytes(4 * len(records)), 4)
        for i, record in enumerate(records):
            place = start + 4 + 4 * i
            struct.pack_into("<I", self._out, place, self._table(kind, record) - place)
        return start
