"""Layers with weights: convolutions, fully connected layers, embeddings."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from attar.errors import InputError
from attar_mxnet.reading.builder import Builder
from attar_mxnet.reading.dims import Dim, product
from attar_mxnet.reading.operation import Operation
from attar_mxnet.reading.table import Table

table = Table()


def channels_first(ctx: Builder, op: Operation, value: ir.Value) -> tuple[ir.Value, tuple[int, ...] | None]:
    """`value` with channels on axis 1, and the permutation that undoes it (None if nothing was to do)."""
    layout = op.text("layout")
    if not layout or layout.startswith("NC"):
        return value, None
    if layout not in ("NWC", "NHWC", "NDHWC") or ctx.rank(value) != len(layout):
        raise op.refuse(f"layout {layout} of {ctx.rank(value)} axes")
    rank = len(layout)
    moved = ctx.emit("Transpose", value, perm=[0, rank - 1, *range(1, rank - 1)])
    return moved, (0, *range(2, rank), 1)


def spatial(op: Operation, name: str, count: int, default: int) -> list[int]:
    """An attribute with a number for each spatial axis; empty stands for the default."""
    numbers = list(op.wholes(name, ())) or [default] * count
    if len(numbers) != count:
        raise op.refuse(f"{name} has {len(numbers)} numbers for {count} spatial axes")
    return numbers


@table("Convolution", "Convolution_v1", "_npx_convolution")
def convolution(ctx: Builder, op: Operation) -> ir.Value:
    x, back = channels_first(ctx, op, op.input(0))
    weight = op.input(1)
    if back is not None:  # MXNet's weight is (out, *kernel, in) then
        rank = ctx.rank(weight)
        weight = ctx.emit("Transpose", weight, perm=[0, rank - 1, *range(1, rank - 1)])
    kernel = op.wholes("kernel")
    count = len(kernel)
    _check_rows(ctx, op, op.input(1), "num_filter")
    bias = None if op.flag("no_bias") else op.input(2)
    pad = spatial(op, "pad", count, 0)
    y = ctx.emit(
        "Conv",
        x,
        weight,
        bias,
        kernel_shape=list(kernel),
        strides=spatial(op, "stride", count, 1),
        dilations=spatial(op, "dilate", count, 1),
        pads=[*pad, *pad],
        group=op.whole("num_group", 1),
    )
    return y if back is None else ctx.emit("Transpose", y, perm=back)


@table("Deconvolution", "_npx_deconvolution")
def deconvolution(ctx: Builder, op: Operation) -> ir.Value:
    if (op.text("layout") or "NC").startswith("NC") is False:
        raise op.refuse(f"layout {op.text('layout')}")
    x, weight = op.input(0), op.input(1)
    kernel = op.wholes("kernel")
    count = len(kernel)
    stride, dilate = spatial(op, "stride", count, 1), spatial(op, "dilate", count, 1)
    pad, adj = spatial(op, "pad", count, 0), spatial(op, "adj", count, 0)
    before, after = pad, list(pad)
    target = op.wholes("target_shape", ())
    if any(target):
        # As DeconvolutionParam::InferPad: what the full output is too long is cut, the odd one at the start.
        sizes = ctx.shape(x)[2:]
        if not all(isinstance(s, int) for s in sizes) or len(target) != count:
            raise op.refuse("target_shape on an input of unknown size")
        reach = [d * (k - 1) + 1 for d, k in zip(dilate, kernel, strict=True)]
        total = [s * (int(n) - 1) + r for s, n, r in zip(stride, sizes, reach, strict=True)]
        cut = [t - w for t, w in zip(total, target, strict=True)]
        if any(c < 0 for c in cut):
            raise op.refuse(f"target_shape {target} is larger than the output can be")
        before, adj = [(c + 1) // 2 for c in cut], [c % 2 for c in cut]
        after = list(before)
    bias = None if op.flag("no_bias", True) else op.input(2)
    return ctx.emit(
        "ConvTranspose",
        x,
        weight,
        bias,
        kernel_shape=list(kernel),
        strides=stride,
        dilations=dilate,
        pads=[*before, *after],
        output_padding=adj,
        group=op.whole("num_group", 1),
    )


@table("FullyConnected", "_npx_fully_connected", "_sparse_FullyConnected")
def fully_connected(ctx: Builder, op: Operation) -> ir.Value:
    x, weight = op.input(0), op.input(1)
    bias = None if op.flag("no_bias") else op.input(2)
    _check_rows(ctx, op, weight, "num_hidden")
    flatten = op.flag("flatten", True)
    shape = ctx.shape(x)
    if len(shape) == 1 and not flatten:
        raise op.refuse("a vector as input")
    if flatten and len(shape) != 2:
        x = flat(ctx, x)
    wanted = ctx.shape(weight)[1]
    got = ctx.shape(x)[-1]
    if isinstance(got, str) and isinstance(wanted, int):
        ctx.demands.append((got, wanted))
    if ctx.rank(x) == 2:
        return ctx.emit("Gemm", x, weight, bias, transB=1)
    y = ctx.emit("MatMul", x, ctx.emit("Transpose", weight, perm=[1, 0]))
    return y if bias is None else ctx.emit("Add", y, bias)


def _check_rows(ctx: Builder, op: Operation, weight: ir.Value, name: str) -> None:
    """Hold the number of outputs that the node names against its weight."""
    rows, wanted = ctx.shape(weight)[0], op.whole(name)
    if rows != wanted:
        raise InputError(
            f"{op.op} {op.name!r} has {name} {wanted}, but its weight {weight.name!r} has {rows} rows",
            hint="the parameters are those of another network",
        )


def flat(ctx: Builder, x: ir.Value) -> ir.Value:
    """All axes but the first as one."""
    shape = ctx.shape(x)
    if len(shape) == 2:
        return x
    return ctx.emit("Flatten", x, axis=1, shape=[shape[0], product(shape[1:])])


@table("Embedding", "_npx_embedding", "_contrib_SparseEmbedding", "_sparse_Embedding")
def embedding(ctx: Builder, op: Operation) -> ir.Value:
    """Indices outside the table are clipped to it, as MXNet's `take` does."""
    weight = op.input(1)
    return gather(ctx, op, weight, op.input(0))


def gather(
    ctx: Builder, op: Operation, data: ir.Value, indices: ir.Value, *, axis: int = 0, mode: str = "clip"
) -> ir.Value:
    """`take`: indices of any type, clipped or wrapped around."""
    places = ctx.cast(indices, np.int64)
    size: Dim = ctx.shape(data)[axis]
    if mode == "clip":
        last = ctx.const(size - 1, np.int64) if isinstance(size, int) else _last(ctx, size)
        known = ctx.array(indices)
        if known is None or (
            isinstance(size, int) and (known.min(initial=0) < 0 or known.max(initial=0) >= size)
        ):
            places = ctx.emit("Max", places, ctx.const(0, np.int64))
            places = ctx.emit("Min", places, last)
    elif mode == "wrap":
        count = ctx.const(size, np.int64) if isinstance(size, int) else ctx.reshape(ctx.size(size), [])
        places = ctx.emit("Mod", places, count)
    else:
        raise op.refuse(f"mode {mode}, which raises an error while the model runs")
    return ctx.emit("Gather", data, places, axis=axis)


def _last(ctx: Builder, size: Dim) -> ir.Value:
    return ctx.reshape(ctx.emit("Sub", ctx.size(size), [1]), [])
