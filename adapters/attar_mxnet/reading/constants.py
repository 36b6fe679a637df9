"""Tensors made from nothing, or from nothing but a shape."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from attar_mxnet.reading.builder import Builder
from attar_mxnet.reading.dims import Dim, product
from attar_mxnet.reading.operation import Operation
from attar_mxnet.reading.reshaping import expanded
from attar_mxnet.reading.table import Lift, Table

table = Table()
_LARGEST = 1 << 16  # elements that are stored; beyond that they are computed


def _filled(ctx: Builder, op: Operation, number: float, dtype: np.dtype[Any]) -> ir.Value:
    """A tensor of one number. Outside numpy's shapes a size of 0 is unknown; MXNet finds it by looking at
    the users, and in practice it is the batch size of an initial state."""
    shape: list[Dim] = list(op.wholes("shape", ()))
    if not shape and not op.np_shape:
        shape = [1]
    if (not op.np_shape and 0 in shape) or -1 in shape:
        batch = ctx.batch
        if batch is None or number != 0:
            raise op.refuse(f"its shape {shape} is open")
        shape = [batch if d in (0, -1) else d for d in shape]
    value = filled(ctx, shape, number, dtype)
    if number == 0:
        ctx.zeros.add(value.name or "")
    return value


def filled(ctx: Builder, shape: list[Dim], number: float, dtype: np.dtype[Any]) -> ir.Value:
    if all(isinstance(d, int) for d in shape) and math.prod(int(d) for d in shape) <= _LARGEST:
        return ctx.const(np.full([int(d) for d in shape], number).astype(dtype), name="constant")
    return expanded(ctx, ctx.const(np.array(number).astype(dtype)), shape)


def _full(number: float | None) -> Lift:
    def lift(ctx: Builder, op: Operation) -> ir.Value:
        value = op.number("value") if number is None else number
        return _filled(ctx, op, value, op.dtype("dtype", np.dtype(np.float32)))

    return lift


table("_zeros", "_npi_zeros", "_zeros_without_dtype")(_full(0.0))
table("_ones", "_npi_ones")(_full(1.0))
table("_full", "_npi_full")(_full(None))


def _like(number: float | None) -> Lift:
    def lift(ctx: Builder, op: Operation) -> ir.Value:
        x = op.input(0)
        value = op.number("fill_value") if number is None else number
        dtype = op.dtype("dtype", ctx.dtype(x))
        made = filled(ctx, list(ctx.shape(x)), value, dtype)
        if value == 0:
            ctx.zeros.add(made.name or "")
        return made

    return lift


table("zeros_like", "_sparse_zeros_like")(_like(0.0))
table("ones_like")(_like(1.0))
table("_npi_full_like")(_like(None))


@table("_arange", "_npi_arange")
def arange(ctx: Builder, op: Operation) -> ir.Value:
    start, step, repeat = op.number("start", 0.0), op.number("step", 1.0), op.whole("repeat", 1)
    stop = op.number("stop", None)
    if op.flag("infer_range"):
        raise op.refuse("infer_range: its length follows from its users")
    if stop is None:
        start, stop = 0.0, start
    if step == 0 or not math.isfinite((stop - start) / step):
        raise op.refuse(f"from {start} to {stop} in steps of {step}")
    count = max(0, math.ceil((stop - start) / step))
    if count * repeat > 1 << 24:
        raise op.refuse(f"{count * repeat} numbers")
    numbers = np.repeat(start + step * np.arange(count), repeat)
    return ctx.const(numbers.astype(op.dtype("dtype", np.dtype(np.float32))), name="range")


@table("_contrib_arange_like", "_npx_arange_like")
def arange_like(ctx: Builder, op: Operation) -> ir.Value:
    """start, start + step, ... as many as there are elements along `axis`, or in all."""
    x = op.input(0)
    start, step, repeat = op.number("start", 0.0), op.number("step", 1.0), op.whole("repeat", 1)
    shape = ctx.shape(x)
    dims: list[Dim] = [shape[op.whole("axis")]] if op.has("axis") else list(shape)
    count = product(dims)
    if repeat != 1:
        if not isinstance(count, int):
            raise op.refuse("repeat on an axis of unknown size")
        numbers = start + step * (np.arange(count) // repeat)
        return ctx.reshape(ctx.const(numbers.astype(ctx.dtype(x))), dims)
    if isinstance(count, int):
        return ctx.reshape(
            ctx.const((start + step * np.arange(count)).astype(ctx.dtype(x)), name="range"), dims
        )
    size = ctx.reshape(ctx.size(count), [])
    places = ctx.emit("Range", ctx.const(0, np.int64), size, ctx.const(1, np.int64), shape=[count])
    y = ctx.cast(places, ctx.dtype(x))
    if step != 1:
        y = ctx.emit("Mul", y, ctx.scalar(step, y))
    if start:
        y = ctx.emit("Add", y, ctx.scalar(start, y))
    return ctx.reshape(y, dims)


@table("_linspace", "_npi_linspace")
def linspace(ctx: Builder, op: Operation) -> ir.Value:
    if not op.has("num") or op.has("repeat"):
        raise op.refuse("without a count")
    numbers = np.linspace(op.number("start"), op.number("stop"), op.whole("num"), op.flag("endpoint", True))
    return ctx.const(numbers.astype(op.dtype("dtype", np.dtype(np.float32))), name="range")


@table("_eye", "_npi_eye", "_npi_identity")
def eye(ctx: Builder, op: Operation) -> ir.Value:
    if op.op == "_npi_identity":
        rows = columns = op.wholes("shape")[0]
    else:
        rows = op.whole("N")
        columns = op.whole("M", 0) or rows
    if rows * columns > 1 << 24:
        raise op.refuse(f"a matrix of {rows} x {columns}")
    matrix = np.eye(rows, columns, op.whole("k", 0))
    return ctx.const(matrix.astype(op.dtype("dtype", np.dtype(np.float32))), name="eye")


@table("_npi_tril")
def tril(ctx: Builder, op: Operation) -> ir.Value:
    return ctx.emit("Trilu", op.input(0), ctx.const(op.whole("k", 0), np.int64), upper=0)
