"""A name for a model's content, and the size of the file that it would make."""

from __future__ import annotations

import hashlib

import onnx_ir as ir

from attar.graph.constants import borrow, tensor_bytes
from attar.graph.light import light_proto
from attar.graph.structure import all_nodes, clone

_CHUNK = 1 << 26


def fingerprint(model: ir.Model, *, annotations: bool = True) -> str:
    """BLAKE2b of structure and weights, hexadecimal. Weights are read one by one, so that large models stay
    mapped.

    Args:
        annotations: False leaves out the metadata of the model and of its nodes.
    """
    if not annotations:
        model = clone(model)
        model.metadata_props.clear()
        for node in all_nodes(model):
            node.metadata_props.clear()
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
    """Bytes that `save` would write, weights in the file or beside it, without reading the weights.

    Exact for a model in one file, but for a few bytes for each large weight that is annotated or lies in a
    subgraph. Weights in a data file are counted without the padding to the next page.
    """
    proto, heavy = light_proto(model)
    # light_proto declares them as inputs, which takes what their entries in value_info take when saved.
    body = proto.graph.ByteSize()
    around = proto.ByteSize() - _field(body)
    return int(around + _field(body + sum(_field(_proto_size(n, t)) for n, t in heavy.items())))


def _proto_size(name: str, tensor: ir.TensorProtocol) -> int:
    """Bytes of a TensorProto: its head, and the data as one raw field."""
    import onnx

    head = onnx.TensorProto(dims=tensor.shape.numpy(), data_type=tensor.dtype.value, name=name)
    if tensor.doc_string:
        head.doc_string = tensor.doc_string
    return int(head.ByteSize()) + _field(tensor_bytes(tensor))


def _field(length: int) -> int:
    """Bytes of a length-delimited protobuf field: one of tag, the length in base 128, the content."""
    return 1 + max(1, -(-length.bit_length() // 7)) + length
