"""Layers with weights: convolutions, products, normalizations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from attar.conversion import NodeView
from attar_mxnet.symbol_json import Entry
from attar_mxnet.writing.borders import padded
from attar_mxnet.writing.context import Array, Lowering, WriteContext
from attar_mxnet.writing.shaping import known_shape


def floats_only(view: NodeView) -> None:
    if view.dtype().kind != "f":
        raise view.refuse(f"MXNet computes it in floating point, the input is {view.dtype()}")


def spatial_pads(
    view: NodeView, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial axis, from `pads` or `auto_pad`."""
    rank, mode = len(kernel), view.attr("auto_pad", "NOTSET")
    if mode == "VALID":
        return [0] * rank, [0] * rank
    if mode == "NOTSET":
        pads = [int(p) for p in view.attr("pads", None) or [0] * (2 * rank)]
        return pads[:rank], pads[rank:]
    begin, end = [], []
    for axis in range(rank):
        reach = (kernel[axis] - 1) * dilation[axis] + 1
        size = known_shape(view)[axis + 2]
        if stride[axis] == 1:
            total = reach - 1
        elif isinstance(size, int):
            total = max((-(-size // stride[axis]) - 1) * stride[axis] + reach - size, 0)
        else:
            raise view.refuse(f"auto_pad={mode} needs the sizes of the spatial axes")
        small, large = total // 2, total - total // 2
        begin.append(small if mode == "SAME_UPPER" else large)
        end.append(large if mode == "SAME_UPPER" else small)
    return begin, end


def kernel_of(view: NodeView, index: int = 1) -> list[int]:
    """The spatial shape of the weight, input `index`."""
    shape = known_shape(view, index)
    given = view.attr("kernel_shape", None) or shape[2:]
    if any(not isinstance(d, int) for d in given) or not 1 <= len(given) <= 3:
        raise view.refuse(f"the kernel {list(given)} is not a fixed one of 1 to 3 axes")
    return [int(d) for d in given]


def has_bias(view: NodeView) -> bool:
    return view.has(2)


def conv(ctx: WriteContext, view: NodeView) -> Entry:
    floats_only(view)
    inputs = [ctx.get(view), ctx.weight(view, 1)] + ([ctx.weight(view, 2)] if has_bias(view) else [])
    return convolution(ctx, view, inputs)


def convolution(ctx: WriteContext, view: NodeView, inputs: Sequence[Entry], index: int = 1) -> Entry:
    """Convolution by the attributes of the node.

    Args:
        inputs: the image, the weight, and the bias if there is one.
        index: the input of the node that is the weight.
    """
    kernel = kernel_of(view, index)
    rank = len(kernel)
    stride = view.attr("strides", None) or [1] * rank
    dilation = view.attr("dilations", None) or [1] * rank
    begin, end = spatial_pads(view, kernel, stride, dilation)
    filters = known_shape(view, index)[0]
    if not isinstance(filters, int):
        raise view.refuse("the number of filters is not fixed")
    x, *weights = inputs
    if begin != end:
        x, begin = padded(ctx, x, [0, 0, *begin], [0, 0, *end]), [0] * rank
    return ctx.op(
        "Convolution",
        x,
        *weights,
        kernel=tuple(kernel),
        stride=tuple(stride),
        dilate=tuple(dilation),
        pad=tuple(begin),
        num_filter=filters,
        num_group=view.attr("group", 1),
        no_bias=len(weights) == 1,
    )


def conv_transpose(ctx: WriteContext, view: NodeView) -> Entry:
    """Deconvolution. Where MXNet's symmetric padding cannot say it, the whole result is computed and cut."""
    floats_only(view)
    kernel, group = kernel_of(view), view.attr("group", 1)
    rank = len(kernel)
    stride = view.attr("strides", None) or [1] * rank
    dilation = view.attr("dilations", None) or [1] * rank
    extra = view.attr("output_padding", None) or [0] * rank
    if rank == 3 and set(dilation) != {1}:
        raise view.refuse("MXNet's Deconvolution has no dilation in three dimensions")
    begin, end = _transposed_pads(view, kernel, stride, dilation, extra)
    each = known_shape(view, 1)[1]
    if not isinstance(each, int):
        raise view.refuse("the number of filters is not fixed")
    plain = begin == end and all(e < s for e, s in zip(extra, stride, strict=True)) and min(begin) >= 0
    bias = [ctx.weight(view, 2)] if has_bias(view) else []
    made = ctx.op(
        "Deconvolution",
        ctx.get(view),
        ctx.weight(view, 1),
        *(bias if plain else []),
        kernel=tuple(kernel),
        stride=tuple(stride),
        dilate=tuple(dilation),
        pad=tuple(begin) if plain else (0,) * rank,
        adj=tuple(extra) if plain else (0,) * rank,
        num_filter=each * group,
        num_group=group,
        no_bias=not (bias and plain),
    )
    if plain:
        return made
    # The whole result reaches from 0 to its size; wanted is from `begin` to the size less `end` plus `extra`.
    cut = [e - o for e, o in zip(end, extra, strict=True)]
    made = padded(ctx, made, [0, 0, *(max(-b, 0) for b in begin)], [0, 0, *(max(-c, 0) for c in cut)])
    if any(b > 0 for b in begin) or any(c > 0 for c in cut):
        made = ctx.op(
            "slice",
            made,
            begin=(None, None, *(max(b, 0) for b in begin)),
            end=(None, None, *(-c if c > 0 else None for c in cut)),
        )
    if not bias:
        return made
    return ctx.op("broadcast_add", made, ctx.per_channel(bias[0], rank + 2))


def _transposed_pads(
    view: NodeView, kernel: list[int], stride: list[int], dilation: list[int], extra: list[int]
) -> tuple[list[int], list[int]]:
    rank, mode = len(kernel), view.attr("auto_pad", "NOTSET")
    wanted = view.attr("output_shape", None)
    if mode in ("SAME_UPPER", "SAME_LOWER") or wanted:
        begin, end = [], []
        for axis in range(rank):
            whole = (kernel[axis] - 1) * dilation[axis] + 1 + extra[axis]
            if wanted:
                size = known_shape(view)[axis + 2]
                if not isinstance(size, int):
                    raise view.refuse("output_shape needs the sizes of the spatial axes")
                total = stride[axis] * (size - 1) + whole - wanted[len(wanted) - rank + axis]
            else:  # the output is the input times the stride
                total = whole - stride[axis]
            if total < 0 and not wanted:
                raise view.refuse(f"auto_pad={mode} with strides that leave gaps")
            # A negative total is output beyond the last element.
            half = total // 2
            first = 0 if total < 0 else half if mode == "SAME_UPPER" else total - half
            begin.append(first)
            end.append(total - first)
        return begin, end
    return spatial_pads(view, kernel, stride, dilation)


def _transposed(array: Array) -> Array:
    return np.ascontiguousarray(array.T)


def sole(ctx: WriteContext, view: NodeView, index: int) -> bool:
    """Whether only this node uses input `index`."""
    value = view.input(index)
    return value is not None and len(value.uses()) == 1 and not value.is_graph_output()


def dense(
    ctx: WriteContext, view: NodeView, index: int, x: Entry, *, transposed: bool, bias: Entry | None = None
) -> Entry:
    """`x` times the constant matrix that is input `index`, as FullyConnected, whose weight is (out, in)."""
    array = ctx.array(view, index)
    assert array is not None
    units = array.shape[0] if transposed else array.shape[1]
    if transposed:
        weight = ctx.weight(view, index)
    elif sole(ctx, view, index):
        weight = ctx.weight(view, index, _transposed, "transposed")
    else:  # the parameter is shared with others that want it as it is
        weight = ctx.transpose(ctx.weight(view, index), (1, 0))
    extra = [] if bias is None else [bias]
    return ctx.op("FullyConnected", x, weight, *extra, num_hidden=units, no_bias=bias is None, flatten=False)


def gemm(ctx: WriteContext, view: NodeView) -> Entry:
    floats_only(view)
    alpha, beta = view.attr("alpha", 1.0), view.attr("beta", 1.0)
    left, right = view.attr("transA", 0), view.attr("transB", 0)
    x, weight, bias = ctx.get(view), ctx.array(view, 1), ctx.array(view, 2)
    done = not view.has(2) or beta == 0
    if weight is not None:
        x = ctx.transpose(x, (1, 0)) if left else x
        units = weight.shape[0] if right else weight.shape[1]
        fits = not done and bias is not None and bias.shape == (units,) and alpha == 1 and beta == 1
        y = dense(ctx, view, 1, x, transposed=bool(right), bias=ctx.weight(view, 2) if fits else None)
        done = done or fits
    else:
        other = ctx.get(view, 1)
        y = ctx.op("dot", x, other, transpose_a=bool(left), transpose_b=bool(right))
    y = y if alpha == 1 else ctx.scalar("_mul_scalar", y, alpha)
    if done:
        return y
    c = ctx.weight(view, 2) if bias is not None and bias.size > 1 else ctx.get(view, 2)
    c = c if beta == 1 else ctx.scalar("_mul_scalar", c, beta)
    return ctx.op("broadcast_add", y, ctx.lift(c, ctx.rank(view, 2), 2))


def matmul(ctx: WriteContext, view: NodeView) -> Entry:
    """FullyConnected for a constant matrix; else `dot`, `batch_dot` or, with other batches, `_npi_matmul`."""
    floats_only(view)
    left, right = view.need_rank(0), view.need_rank(1)
    weight = ctx.array(view, 1)
    if weight is not None and weight.ndim == 2 and ctx.array(view, 0) is None:
        if left == 1:
            row = dense(ctx, view, 1, ctx.op("expand_dims", ctx.get(view), axis=0), transposed=False)
            return ctx.reshape(row, (-1,))
        return dense(ctx, view, 1, ctx.get(view), transposed=False)
    a, b = (_factor(ctx, view, i) for i in (0, 1))
    if left == 1:
        a = ctx.op("expand_dims", a, axis=0)
    if right == 1:
        b = ctx.op("expand_dims", b, axis=1)
    y = _product(ctx, view, a, b)
    if left == 1 and right == 1:
        return ctx.reshape(y, (1,))
    if left == 1 or right == 1:
        rank = max(left, right)
        return ctx.op("squeeze", y, axis=(rank - 2 if left == 1 else rank - 1,))
    return y


def _factor(ctx: WriteContext, view: NodeView, index: int) -> Entry:
    array = ctx.array(view, index)
    return ctx.get(view, index) if array is None or array.size < 2 else ctx.weight(view, index)


def _product(ctx: WriteContext, view: NodeView, a: Entry, b: Entry) -> Entry:
    """The product of matrices, or stacks of them: of operands that have two axes at least."""
    left, right = (max(view.need_rank(i), 2) for i in (0, 1))
    if left == 2 and right == 2:
        return ctx.op("dot", a, b)
    if view.dtype() == np.float64 and left == right == 3:
        return ctx.op("_npi_matmul", a, b)
    batches = known_shape(view, 0)[:-2], known_shape(view, 1)[:-2]
    same = batches[0] == batches[1] and None not in batches[0]
    if same and left == right == 3:
        return ctx.op("batch_dot", a, b)
    if same and left == right:
        return ctx.op("linalg_gemm2", a, b)
    return ctx.op("_npi_matmul", a, b)


TABLE: dict[str, Lowering] = {"Conv": conv, "ConvTranspose": conv_transpose, "Gemm": gemm, "MatMul": matmul}
