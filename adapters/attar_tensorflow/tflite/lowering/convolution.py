"""Convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from attar_tensorflow.tflite.emit import Params, Slot
from attar_tensorflow.tflite.lowering.windows import SAME, VALID, is_same, padded, pads_of
from attar_tensorflow.tflite.outop import Lowering, OutOp


def weight(op: OutOp, i: int, order: tuple[int, ...], shape: tuple[int, ...] | None = None) -> Slot:
    """A constant weight with its axes in `order`, codes as codes; first reshaped to `shape`, which may only
    add ones."""
    known = op.w.constant(op.value(i))
    name = op.value(i).name or "weight"
    if known is None:
        raise op.refuse("its weight is computed while the model runs")
    array, params = known
    if shape is not None:
        if params is not None and params.axis is not None:
            params = Params(params.scale, params.zero, _kept(array.shape, shape, params.axis))
        array = array.reshape(shape)
    if params is None:
        if array.dtype != np.float32:
            raise op.refuse(f"its weight is {array.dtype}")
        return op.const(np.transpose(array, order), name)
    slot = op.w.codes_of(array, params, name.removesuffix("_dequantized"), order)
    return slot if op.integer else op.dequantized(slot)


def _kept(old: tuple[int, ...], new: tuple[int, ...], axis: int) -> int:
    """Where `axis` is after ones were put in."""
    places, position = [], 0
    for n in old:
        while new[position] != n:
            position += 1
        places.append(position)
        position += 1
    return places[axis]


def bias(op: OutOp, value: ir.Value | None, x: Slot, w: Slot, count: int) -> Slot | None:
    """A bias vector; for codes int32 (int64 behind 16-bit activations) with the scales of input times
    weight."""
    if value is None:
        return None
    known = op.w.constant(value)
    name = (value.name or "bias").removesuffix("_dequantized")
    if known is None:
        raise op.refuse("its bias is computed while the model runs")
    array, params = known
    array = np.broadcast_to(array.reshape(-1), (count,)) if array.size == 1 else array.reshape(-1)
    if len(array) != count:
        raise op.refuse("its bias is no vector of one number an output")
    if not op.integer:
        if params is not None:
            array = ((array.astype(np.float64) - params.zero) * params.scale).astype(np.float32)
        return op.const(array.astype(np.float32), name)
    wide = np.int64 if x.dtype == np.int16 else np.int32
    if params is not None and array.dtype in (np.int32, np.int64) and not np.any(params.zero):
        axis = 0 if np.ndim(params.scale) else None
        return op.const(array.astype(wide), name, Params(params.scale, params.zero, axis))
    real = array.astype(np.float64)
    if params is not None:
        real = (real - params.zero) * params.scale
    assert x.params is not None
    assert w.params is not None
    scale = np.asarray(np.float64(x.params.scale) * np.asarray(w.params.scale, np.float64))
    limits = np.iinfo(np.int32)
    codes = np.clip(np.rint(real / scale), limits.min, limits.max).astype(wide)
    scale32 = scale.astype(np.float32)
    return op.const(
        codes, name, Params(scale32, np.zeros(scale32.shape, np.int64), 0 if scale32.ndim else None)
    )


def integer_weights(op: OutOp, i: int) -> bool:
    """Whether TFLite's integer kernels take this weight: symmetric int8, or uint8 of one scale in old
    files."""
    known = op.w.constant(op.view.input(i))
    if known is None or known[1] is None or known[0].dtype.itemsize != 1:
        return False
    params, dtype, _ = op.w.settled(known[1], known[0].dtype)
    activations = op.params(0)
    if op.w.unsigned:
        return dtype == np.uint8 and params.axis is None and activations.axis is None
    return dtype == np.int8 and not np.any(params.zero)


def conv(op: OutOp) -> None:
    """One, two or three spatial axes; one axis is written as two."""
    rank = op.rank()
    kernel_dims = [int(d or 0) for d in op.dims(1)]
    out, per_group, kernel = kernel_dims[0], kernel_dims[1], kernel_dims[2:]
    if rank not in (3, 4, 5) or min(kernel_dims) < 1:
        raise op.refuse(f"it has {rank - 2} spatial axes")
    op.integer = op.integer and rank < 5 and integer_weights(op, 1)
    strides = [int(s) for s in op.view.attr("strides") or [1] * (rank - 2)]
    dilations = [int(d) for d in op.view.attr("dilations") or [1] * (rank - 2)]
    groups = int(op.view.attr("group", 1))
    x = op.operand(0, last=True)
    pads = pads_of(op, x.dims[1:-1], kernel, strides, dilations)
    if rank == 3:
        kernel, strides, dilations = [1, *kernel], [1, *strides], [1, *dilations]
        pads = [0, pads[0], 0, pads[1]]
        dims = (x.dims[0], 1, *x.dims[1:])
        x = op.make("EXPAND_DIMS", [x, op.ints(1, "axis")], dims, dtype=x.dtype, params=x.params)
    padding = VALID
    if any(pads):
        if is_same(x.dims[1:-1], kernel, strides, dilations, pads):
            padding = SAME
        else:
            x = padded(op, x, pads)
    depthwise = groups > 1 and per_group == 1 and x.dims[-1] == groups and rank < 5
    shape = (out, per_group, *kernel) if rank == 3 else None
    if rank == 5:
        w = weight(op, 1, (2, 3, 4, 1, 0))
        names = "dhw"
    else:
        w = weight(op, 1, (1, 2, 3, 0) if depthwise else (0, 2, 3, 1), shape)
        names = "hw"
    options: dict[str, Any] = {"padding": padding, "fused_activation_function": op.activation()}
    for letter, stride, dilation in zip(names, strides, dilations, strict=True):
        options[f"stride_{letter}"] = stride
        options[f"dilation_{letter}_factor"] = dilation
    kind = "DEPTHWISE_CONV_2D" if depthwise else "CONV_3D" if rank == 5 else "CONV_2D"
    if depthwise:
        options["depth_multiplier"] = out // groups
    added = bias(op, op.view.input(2), x, w, out)
    if added is None:  # some kernels insist on one
        zero = np.zeros(out, np.float32)
        name = f"{op.label}_bias"
        added = op.const(zero, name) if not op.integer else _no_bias(op, x, w, out, name)
    if rank != 3:
        op.result(kind, [x, w, added], options, last=True)
        return
    final = op.fresh(0, last=True)
    wide = op.w.emitter.tensor(
        f"{op.label}_wide", (final.dims[0], 1, *final.dims[1:]), final.dtype, final.params
    )
    op.w.emitter.operator(kind, [x, w, added], [wide], options)
    op.w.emitter.operator("SQUEEZE", [wide], [final], {"squeeze_dims": [1]})
    op.give(final, last=True)


def _no_bias(op: OutOp, x: Slot, w: Slot, count: int, name: str) -> Slot:
    assert x.params is not None
    assert w.params is not None
    scale = np.asarray(x.params.scale * w.params.scale, np.float32)
    axis = 0 if scale.ndim else None
    wide = np.int64 if x.dtype == np.int16 else np.int32
    return op.const(np.zeros(count, wide), name, Params(scale, np.zeros(scale.shape, np.int64), axis))


def conv_transpose(op: OutOp) -> None:
    """Two spatial axes without groups; the padding is written as that of the convolution that it turns
    round."""
    rank = op.rank()
    if rank != 4 or int(op.view.attr("group", 1)) != 1:
        raise op.refuse("it has groups, or not two spatial axes")
    op.integer = op.integer and integer_weights(op, 1) and not op.w.unsigned
    _, out, *kernel = (int(d or 0) for d in op.dims(1))
    strides = [int(s) for s in op.view.attr("strides") or [1, 1]]
    if any(int(d) != 1 for d in op.view.attr("dilations") or [1]):
        raise op.refuse("it is dilated")
    x = op.operand(0, last=True)
    goal = [op.out_dims()[a] for a in (2, 3)]
    if None in goal or None in x.dims[1:3]:
        raise op.refuse("its sizes are not known")
    full = [(int(n or 0) - 1) * s + k for n, s, k in zip(x.dims[1:3], strides, kernel, strict=True)]
    pads = [int(p) for p in op.view.attr("pads") or [0] * 4]
    if op.view.attr("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or op.view.attr("output_shape"):
        totals = [max(f - int(g or 0), 0) for f, g in zip(full, goal, strict=True)]
        lower = op.view.attr("auto_pad", "NOTSET") == "SAME_LOWER"
        begin = [t - t // 2 if lower else t // 2 for t in totals]
        pads = [*begin, *(t - b for t, b in zip(totals, begin, strict=True))]
    w = weight(op, 1, (1, 2, 3, 0))
    inputs = [x, bias(op, op.view.input(2), x, w, out)]
    options = {"stride_h": strides[0], "stride_w": strides[1]}
    sizes = [int(g or 0) for g in goal]
    totals = [f - g for f, g in zip(full, sizes, strict=True)]
    same = all(t >= 0 for t in totals) and pads[:2] == [t // 2 for t in totals]
    same = same and all(-(-g // s) == n for g, s, n in zip(sizes, strides, x.dims[1:3], strict=True))
    whole = sizes if same or not any(pads) else full
    if not same and not any(pads) and any(t > 0 for t in totals):
        raise op.refuse("its output is cut off")
    if not same and any(g + b > f for g, b, f in zip(sizes, pads[:2], full, strict=True)):
        raise op.refuse("its output is padded beyond what its weights reach")
    options["padding"] = SAME if same else VALID
    shape = _shape(op, x, [*whole, out])
    direct = same or whole == sizes
    dims = (x.dims[0], *whole, out)
    final = op.fresh(0, last=True, dims=dims)
    op.w.emitter.operator(
        "TRANSPOSE_CONV", [shape, w, *inputs[: 1 + (inputs[1] is not None)]], [final], options
    )
    if not direct:  # explicit pads cut the edges off
        begin = op.ints([0, pads[0], pads[1], 0], "begin")
        cut = op.w.emitter.tensor(f"{op.label}_cut", (x.dims[0], *sizes, out), final.dtype, final.params)
        op.w.emitter.operator("SLICE", [final, begin, op.ints([-1, *sizes, -1], "size")], [cut])
        final = cut
    op.give(final, last=True)


def _shape(op: OutOp, x: Slot, rest: list[int]) -> Slot:
    """The shape (batch, rest...) as a tensor."""
    if x.dims[0] is not None:
        return op.ints([x.dims[0], *rest], "shape")
    shape = op.make("SHAPE", [x], (len(x.dims),), {"out_type": 2}, dtype=np.int32)
    one = [op.ints([0], "zero"), op.ints([1], "one"), op.ints([1], "one")]
    batch = op.make("STRIDED_SLICE", [shape, *one], (1,), dtype=np.int32)
    return op.make(
        "CONCATENATION", [batch, op.ints(rest, "rest")], (len(rest) + 1,), {"axis": 0}, dtype=np.int32
    )


LOWERINGS = {
    "Conv": Lowering(conv, "arithmetic", (0, 1), fuses=True),
    "ConvTranspose": Lowering(conv_transpose, "arithmetic", (0, 1)),
}
