"""Matrix products, softmax and normalisations, and the passage between real numbers and codes."""

from __future__ import annotations

import numpy as np

from attar_tensorflow.tflite.liftop import Op


def fully_connected(op: Op) -> None:
    """x (..., in), flattened to rows, times weights (out, in) transposed."""
    if op.option("weights_format"):
        raise op.refuse("its weights are shuffled for one processor")
    if op.rank(1) != 2:
        raise op.refuse("its weights are not a matrix")
    columns, depth = op.shape(1)
    rank, keep = op.rank(0), bool(op.option("keep_num_dims"))
    x = op.real(0)
    constant = op.array(1) is not None
    if keep and rank != 2 and op.quantized(0) is None:
        if op.shape(0)[-1] != depth:
            raise op.refuse("its input does not fit its weights")
        weight = op.weight(1, (1, 0)) if constant else op.emit("Transpose", [op.real(1)], perm=[1, 0])
        value = op.emit("MatMul", [x, weight])
        bias = op.bias(2, 1)
        op.give(value if bias is None else op.emit("Add", [value, bias]))
        return
    flat = rank == 2 and op.shape(0)[1] == depth
    if not flat:
        if depth is None:
            raise op.refuse("the size of its weights is not known")
        x = op.settled(op.emit("Reshape", [x, np.asarray([-1, depth])]), 0)
    weight = op.weight(1, (0, 1)) if constant else op.real(1)
    bias = op.bias(2, 1)
    value = op.emit("Gemm", [x, weight, *([] if bias is None else [bias])], transB=1)
    if keep and rank != 2:
        shape = [0 if d is None else d for d in op.shape(0)[:-1]]  # 0 would copy from the flattened tensor
        if shape.count(0) > 1:
            raise op.refuse("more than one of its dimensions is dynamic")
        value = op.emit("Reshape", [op.rounded(value), np.asarray([d or -1 for d in shape] + [columns])])
    op.give(value)


def batch_matmul(op: Op) -> None:
    operands = []
    for i, name in enumerate(("adj_x", "adj_y")):
        value, rank = op.real(i), op.rank(i)
        if op.option(name):
            order = [*range(rank - 2), rank - 1, rank - 2]
            value = op.settled(op.emit("Transpose", [value], perm=order), i)
        operands.append(value)
    op.give(op.emit("MatMul", operands))


def embedding_lookup(op: Op) -> None:
    """Rows of the table (input 1) at the indices (input 0)."""
    table = op.weight(1, range(op.rank(1))) if op.array(1) is not None else op.real(1)
    op.give(op.emit("Gather", [table, op.raw(0)], axis=0))


def softmax(op: Op) -> None:
    first, rank, beta = op.is_first(0), op.rank(0), op.option("beta", 1.0)
    x = op.real(0, first)
    if beta != 1.0:
        x = op.emit("Mul", [x, np.float32(beta)])
    op.give(op.emit("Softmax", [x], axis=1 if first and rank > 2 else -1), first=first)


def log_softmax(op: Op) -> None:
    first = op.is_first(0)
    op.give(
        op.emit("LogSoftmax", [op.real(0, first)], axis=1 if first and op.rank(0) > 2 else -1), first=first
    )


def l2_normalization(op: Op) -> None:
    """x / max(norm over the last axis, 1e-6)."""
    first = op.is_first(0)
    x = op.real(0, first)
    norm = op.emit("ReduceL2", [x, np.asarray([1 if first and op.rank(0) > 2 else -1])], keepdims=1)
    op.give(op.emit("Div", [x, op.emit("Max", [norm, np.float32(1e-6)])]), first=first)


def quantize(op: Op) -> None:
    """Real numbers to codes, or codes to codes of another scale."""
    first = op.is_first(0)
    op.give(op.real(0, first), first=first)


def dequantize(op: Op) -> None:
    """Codes, or half precision constants, to real numbers."""
    array, q = op.array(0), op.quantized(0)
    if array is not None and array.dtype.kind == "f":
        op.fold(array.astype(np.float32))
        return
    if q is None and op.tensor(0).type != "FLOAT16":
        raise op.refuse("its input has no scale")
    first = op.is_first(0)
    value = op.real(0, first)
    op.give(value if q is not None else op.emit("Cast", [value], to=1), first=first)


def fake_quant(op: Op) -> None:
    """Rounds to the grid of a range, nudged so that zero lies on it (TensorFlow's
    `FakeQuantWithMinMaxArgs`)."""
    bits, low, high = op.option("num_bits", 8), float(op.option("min")), float(op.option("max"))
    if bits != 8 or not low <= 0.0 <= high or low == high:
        raise op.refuse("it is not an 8-bit range around zero")
    least = 1 if op.option("narrow_range") else 0
    scale = (high - low) / (255 - least)
    zero = int(np.clip(np.floor(least - low / scale + 0.5), least, 255))
    first = op.is_first(0)
    value = op.real(0, first)
    if least:
        value = op.emit("Max", [value, np.float32((least - zero) * scale)])
    pair = [np.float32(scale), np.uint8(zero)]
    codes = op.emit("QuantizeLinear", [value, *pair])
    op.give(op.emit("DequantizeLinear", [codes, *pair]), first=first)


def densify(op: Op) -> None:
    """A sparse constant; it was made dense when the file was read."""
    array = op.need(0, "the sparse tensor")
    op.fold(array)


LIFTINGS = {
    "FULLY_CONNECTED": fully_connected,
    "BATCH_MATMUL": batch_matmul,
    "EMBEDDING_LOOKUP": embedding_lookup,
    "SOFTMAX": softmax,
    "LOG_SOFTMAX": log_softmax,
    "L2_NORMALIZATION": l2_normalization,
    "QUANTIZE": quantize,
    "DEQUANTIZE": dequantize,
    "FAKE_QUANT": fake_quant,
    "DENSIFY": densify,
}
