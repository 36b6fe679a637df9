"""A bias that is added behind a layer becomes the layer's own."""

from __future__ import annotations

from attar_tensorflow.reading.lifter import Lifter
from attar_tensorflow.reading.values import Const, Tensor
from attar_tensorflow.reading.view import OpView

_LAYERS = ("Conv", "ConvTranspose", "MatMul")


def with_bias(ctx: Lifter, view: OpView) -> Tensor | None:
    """The layer with the bias inside, if one operand is a layer that nothing else uses, and the other holds
    one
    number a channel.

    BiasAdd with `data_format` NCHW adds to axis 1, everything else broadcasts from the last axis.
    """
    first = view.op == "BiasAdd" and str(view.attr("data_format", "NHWC")).startswith("NC")
    for k in (0, 1):
        x, c = view.inputs[k], view.inputs[1 - k]
        if not isinstance(x, Tensor) or not isinstance(c, Const) or x.shape is None:
            continue
        if first:
            tail = (1,) * (len(x.shape) - 2)
            c = ctx.derived(c, ("second", len(tail)), lambda a, tail=tail: a.reshape(-1, *tail))
        return _inside(ctx, view, k, x, c) or (ctx.map("Add", x, c) if first else None)
    return None


def _inside(ctx: Lifter, view: OpView, k: int, x: Tensor, c: Const) -> Tensor | None:
    node = x.value.producer()
    channels: tuple[int, int] | None = x.facts.get(
        "channels"
    )  # how many, and on which axis in TensorFlow's layout
    if (
        node is None
        or node.op_type not in _LAYERS
        or channels is None
        or len(node.inputs) > 2
        or not view.alone(k)
    ):
        return None
    assert x.shape is not None
    rank, full = len(x.shape), (1,) * (len(x.shape) - c.array.ndim) + c.array.shape
    count, axis = channels[0], channels[1] % rank
    if len(full) > rank or full[axis] != count or any(d != 1 for a, d in enumerate(full) if a != axis):
        return None
    kind = node.op_type
    if kind == "MatMul":
        if rank != 2:
            return None
        kind = "Gemm"
    bias = c if c.array.ndim == 1 else ctx.derived(c, "flat", lambda a: a.reshape(-1))
    attributes = {a.name: a.value for a in node.attributes.values()}
    label, ctx.label = ctx.label, node.name or ctx.label
    made = ctx.node(kind, [*node.inputs[:2], ctx.constant(bias)], **attributes)[0]
    ctx.label = label
    return Tensor(made, x.dtype, x.shape, x.order)
