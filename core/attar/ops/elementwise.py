"""Channel flow of operators that keep the positions of their elements: elementwise ones, with broadcasting,
and normalisations, whose outputs correspond to their inputs but depend on more than those."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx_ir as ir

from attar.ops.rule import AxisLink, Links
from attar.ops.shapes import alike, axes_of, axis_of, dims, in_dims, int_of, ints_of, out_dims, rank_of


def aligned(
    node: ir.Node, inputs: Iterable[int], *, output: int = 0, inexact: Iterable[int] = ()
) -> list[AxisLink]:
    """Links of numpy broadcasting: axes are aligned from the right, an axis of length 1 that is spread has no
    link.

    `inexact` are the output axes along which elements influence each other.
    """
    links: list[AxisLink] = []
    out, loose = out_dims(node, output), frozenset(inexact)
    for index in inputs:
        shape = in_dims(node, index)
        if shape is None or out is None or len(shape) > len(out):
            continue
        shift = len(out) - len(shape)
        for axis, dim in enumerate(shape):
            if alike(dim, out[axis + shift]):
                target = axis + shift
                links.append(AxisLink(index, axis, output, target, exact=target not in loose))
    return links


def unary(node: ir.Node) -> list[AxisLink]:
    """Every axis to itself; true whatever the dimensions, so it holds for unknown ones too."""
    rank = rank_of(node)
    return [] if rank is None else [AxisLink(0, a, 0, a) for a in range(rank)]


def dropout(node: ir.Node) -> list[AxisLink]:
    """As unary; the mask is a second output."""
    links = unary(node)
    if len(node.outputs) > 1:
        links += [AxisLink(k.input, k.input_axis, 1, k.output_axis) for k in links]
    return links


def broadcasting(node: ir.Node) -> list[AxisLink]:
    return aligned(node, range(len(node.inputs)))


def clip(node: ir.Node) -> list[AxisLink]:
    """Only the data has axes; min and max are scalars."""
    return unary(node)


def within(axes: Callable[[ir.Node, int], Iterable[int] | None]) -> Links:
    """A rule for operators that mix elements along some axes but keep their positions (Softmax, LRN,
    CumSum)."""

    def flow(node: ir.Node) -> list[AxisLink]:
        rank = rank_of(node)
        mixed = None if rank is None else axes(node, rank)
        if rank is None or mixed is None:
            return []
        loose = frozenset(mixed)
        return [AxisLink(0, a, 0, a, exact=a not in loose) for a in range(rank)]

    return flow


def softmax_axes(node: ir.Node, rank: int) -> tuple[int, ...]:
    """One axis since opset 13; before, everything from it on (default 1) is flattened into one."""
    graph = node.graph
    version = 13 if graph is None else graph.opset_imports.get("", 13)
    if version < 13:
        return tuple(range(axis_of(node, 1, rank), rank))
    return (axis_of(node, -1, rank),)


def lp_axes(node: ir.Node, rank: int) -> tuple[int, ...]:
    return (axis_of(node, -1, rank),)


def mvn_axes(node: ir.Node, rank: int) -> tuple[int, ...]:
    axes = ints_of(node, "axes")
    return (0, 2, 3) if axes is None else tuple(a % rank for a in axes)


def lrn_axes(node: ir.Node, rank: int) -> tuple[int, ...]:
    return (1,)


def last_two(node: ir.Node, rank: int) -> tuple[int, ...]:
    return (rank - 2, rank - 1)


def cumsum_axes(node: ir.Node, rank: int) -> tuple[int, ...] | None:
    from attar.ops.shapes import constant_ints

    axes = constant_ints(node, 1)
    return None if axes is None else tuple(a % rank for a in axes)


def layer_norm(node: ir.Node) -> list[AxisLink]:
    """Axes from `axis` on are normalised together; scale and bias are aligned from the right."""
    rank = rank_of(node)
    if rank is None:
        return []
    mixed = range(axis_of(node, -1, rank), rank)
    links = [AxisLink(0, a, 0, a, exact=a not in mixed) for a in range(rank)]
    return links + aligned(node, range(1, min(3, len(node.inputs))))


def batch_norm(node: ir.Node) -> list[AxisLink]:
    """Channels are axis 1; scale, bias, mean and variance are [C]. In training mode the batch is mixed."""
    rank = rank_of(node)
    if rank is None:
        return []
    training = bool(int_of(node, "training_mode", 0))
    links = [AxisLink(0, a, 0, a, exact=not training or a == 1) for a in range(rank)]
    return links + [AxisLink(i, 0, 0, 1) for i in range(1, len(node.inputs)) if rank > 1]


def instance_norm(node: ir.Node) -> list[AxisLink]:
    """Mean and variance over the spatial axes of each channel; scale and bias are [C]."""
    rank = rank_of(node)
    if rank is None:
        return []
    links = [AxisLink(0, a, 0, a, exact=a < 2) for a in range(rank)]
    return links + [AxisLink(i, 0, 0, 1) for i in (1, 2) if i < len(node.inputs)]


def group_norm(node: ir.Node) -> list[AxisLink]:
    """Channels are mixed inside a group; scale and bias are [C] since opset 21."""
    rank = rank_of(node)
    if rank is None:
        return []
    links = [AxisLink(0, a, 0, a, exact=a == 0) for a in range(rank)]
    channels = (in_dims(node, 0) or (None, None))[1]
    for i in (1, 2):
        shape = in_dims(node, i)
        if shape and alike(shape[0], channels):
            links.append(AxisLink(i, 0, 0, 1))
    return links


def prelu(node: ir.Node) -> list[AxisLink]:
    return unary(node) + aligned(node, [1])


def quantize(node: ir.Node) -> list[AxisLink]:
    """Scale and zero point: none per tensor, [C] at `axis` per channel; blockwise ones stay pinned."""
    links, rank = unary(node), rank_of(node)
    for i in (1, 2):
        shape = in_dims(node, i)
        if rank is not None and shape is not None and len(shape) == 1 and shape != (1,):
            links.append(AxisLink(i, 0, 0, axis_of(node, 1, rank)))
    return links


def reduce(node: ir.Node) -> list[AxisLink]:
    """Axes that are not reduced go on; reduced ones end here. Axes come from input 1 (opset 18) or the
    attribute."""
    rank = rank_of(node)
    axes = None if rank is None else axes_of(node, rank)
    if rank is None or axes is None:
        return []
    if not axes:
        if int_of(node, "noop_with_empty_axes", 0):
            return unary(node)
        axes = tuple(range(rank))
    return _surviving(rank, axes, keep=bool(int_of(node, "keepdims", 1)))


def arg_reduce(node: ir.Node) -> list[AxisLink]:
    rank = rank_of(node)
    if rank is None:
        return []
    return _surviving(rank, (axis_of(node, 0, rank),), keep=bool(int_of(node, "keepdims", 1)))


def _surviving(rank: int, gone: Iterable[int], *, keep: bool) -> list[AxisLink]:
    removed = frozenset(gone)
    stay = [a for a in range(rank) if a not in removed]
    return [AxisLink(0, a, 0, a if keep else k) for k, a in enumerate(stay)]


def top_k(node: ir.Node) -> list[AxisLink]:
    rank = rank_of(node)
    if rank is None:
        return []
    axis = axis_of(node, -1, rank)
    return [AxisLink(0, a, o, a) for o in range(len(node.outputs)) for a in range(rank) if a != axis]


def leading(axes: int) -> Links:
    """The first `axes` axes of input 0 go on unchanged (pooling: batch and channel); the rest end here."""

    def flow(node: ir.Node) -> list[AxisLink]:
        shape = in_dims(node, 0)
        if shape is None:
            return []
        outputs = [o for o, value in enumerate(node.outputs) if o == 0 or value.name]
        return [AxisLink(0, a, o, a) for o in outputs for a in range(min(axes, len(shape)))]

    return flow


def resize(node: ir.Node) -> list[AxisLink]:
    """An axis that keeps its length keeps its elements (not under tf_crop_and_resize, which cuts)."""
    from attar.ops.shapes import constant, string_of

    if string_of(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return []
    shape, out = in_dims(node, 0), dims(node.outputs[0])
    if shape is None or out is None:
        return []
    axes = ints_of(node, "axes") or tuple(range(len(shape)))
    # A scale near 1 may leave the length and still move the sampling points; `sizes` (scale = new/old)
    # cannot.
    scales = constant(node, 2 if node.op_type == "Resize" else 1)
    scale_of = dict(zip(axes, scales.reshape(-1), strict=False)) if scales is not None else {}
    return [
        AxisLink(0, a, 0, a)
        for a in range(len(shape))
        if (alike(shape[a], out[a]) and scale_of.get(a, 1) == 1) or (a not in axes and a not in scale_of)
    ]
