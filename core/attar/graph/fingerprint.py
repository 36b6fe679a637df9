"""A name for a model's content, and the size of the file that it would make."""

from __future__ import annotations

import hashlib

import onnx_ir as ir

from attar.graph.constants import borrow, tensor_bytes
from attar.graph.light import light_proto

_CHUNK = 1 << 26


def fingerprint(model: ir.Model) -> str:
    """BLAKE2b of structure and weights, hexadecimal. Weights are read one by one, so that large models stay
    mapped."""
    proto, heavy = light_proto(model)
    digest = hashlib.blake2b(proto.SerializeToString(deterministic=True), digest_size=16)
    for name, tensor in sorted(heavy.items()):
        digest.update(f"{name}:{tensor.dtype}:{tensor.shape.numpy()}".encode())
        if tensor.dtype == ir.DataType.STRING:
            digest.update(repr(tensor.numpy().tolist()).encode())
            continue
        with borrow(tensor) as array:
            flat = array.reshape(-1).view("u1")
            for start in range(0, flat.size, _CHUNK):
                digest.update(flat[start : start + _CHUNK].tobytes())
    return digest.hexdigest()


def saved_size(model: ir.Model) -> int:
    """Bytes that the model takes on disk, weights in the file or beside it."""
    proto, heavy = light_proto(model)
    return int(proto.ByteSize()) + sum(tensor_bytes(t) + len(name) + 16 for name, t in heavy.items())
