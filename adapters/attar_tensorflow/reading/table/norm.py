"""Normalizations. Keras writes BatchNormalization and LayerNormalization as x * a + b, with a and b computed
from the
statistics: they are recognised by how a and b came about.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attar_tensorflow.reading.lifter import Lift, Lifter
from attar_tensorflow.reading.values import Const, Tensor, channels_first
from attar_tensorflow.reading.view import OpView

_WRAPS = ("Reshape", "ExpandDims", "Identity", "Cast", "BroadcastTo")


def affine(ctx: Lifter, view: OpView, a: Any, b: Any) -> Tensor | None:
    """The normalization that ends with this addition, or None."""
    for product, shift in ((a, b), (b, a)):
        if isinstance(product, Tensor) and product.op == "Mul":
            for x, scale in (product.args, product.args[::-1]):
                made = _batch_norm(ctx, x, scale, shift) or _layer_norm(ctx, x, scale, shift)
                if made is not None:
                    return made
    return None


# -- batch normalization -------------------------------------------------------------------------------------


def _batch_norm(ctx: Lifter, x: Any, scale: Any, shift: Any) -> Tensor | None:
    """x * scale + shift with scale = gamma / sqrt(variance + epsilon), shift = beta - mean * scale."""
    if (
        not (isinstance(x, Tensor) and isinstance(scale, Const) and isinstance(shift, Const))
        or x.shape is None
    ):
        return None
    found = _scale_of(scale)
    if found is None:
        return None
    gamma, variance, epsilon = found
    shifted = _shift_of(shift, scale)
    if shifted is None:
        return None
    beta, mean = shifted
    axis = _channel_axis(x, scale)
    if axis is None or x.shape[axis] is None or (len(x.shape) == 3 and x.order is None and axis == 2):
        return None
    count = int(x.shape[axis])  # type: ignore[arg-type]
    stats = [gamma, beta, mean, variance]
    if any(c is not None and c.array.size != count for c in stats):
        return None
    ones, zeros = np.ones(count, x.dtype), np.zeros(count, x.dtype)
    filled = [
        c if c is not None else Const(d) for c, d in zip(stats, (ones, zeros, zeros, ones), strict=True)
    ]
    return batch_norm(ctx, x, axis, filled, epsilon)


def batch_norm(ctx: Lifter, x: Tensor, axis: int, stats: list[Const], epsilon: float) -> Tensor:
    """BatchNormalization over `axis` with gamma, beta, mean, variance."""
    rank = x.rank or 0
    order = None if axis == 1 else channels_first(rank) if axis == rank - 1 else None
    values = [ctx.constant(_vector(ctx, c)) for c in stats]
    made = ctx.node("BatchNormalization", [ctx.stored(x, order), *values], epsilon=float(epsilon))[0]
    return Tensor(made, x.dtype, x.shape, order)


def _vector(ctx: Lifter, c: Const) -> Const:
    return c if c.array.ndim == 1 else ctx.derived(c, "vector", lambda a: a.reshape(-1))


def _bare(c: Any) -> Any:
    """A constant without the reshapes around it."""
    while isinstance(c, Const) and c.op in _WRAPS and isinstance(c.args[0], Const):
        if c.op == "Cast" and c.args[0].dtype != c.dtype:
            break
        c = c.args[0]
    return c


def _scale_of(scale: Const) -> tuple[Const | None, Const, float] | None:
    scale = _bare(scale)
    candidates = [(scale, None)]
    if scale.op == "Mul":
        candidates = [scale.args, scale.args[::-1]]
    for wrapped, gamma in candidates:
        root = _bare(wrapped)
        if not (isinstance(root, Const) and root.op == "Rsqrt"):
            continue
        total = _bare(root.args[0])
        if total.op in ("AddV2", "Add"):
            for variance, epsilon in (total.args, total.args[::-1]):
                if epsilon.array.size == 1 and variance.array.size > 0 and epsilon.name is None:
                    return (
                        (None if gamma is None else _bare(gamma)),
                        _bare(variance),
                        float(epsilon.array.reshape(())),
                    )
    return None


def _shift_of(shift: Const, scale: Const) -> tuple[Const | None, Const] | None:
    shift = _bare(shift)
    if shift.op == "Neg":
        beta, product = None, _bare(shift.args[0])
    elif shift.op == "Sub":
        beta, product = _bare(shift.args[0]), _bare(shift.args[1])
    elif shift.op == "Mul":
        for wrapped, factor in (shift.args, shift.args[::-1]):
            minus = _bare(wrapped)
            if minus.op == "Neg" and (factor is scale or _bare(factor) is _bare(scale)):
                return None, _bare(minus.args[0])
        return None
    else:
        return None
    if not (isinstance(product, Const) and product.op == "Mul"):
        return None
    for mean, factor in (product.args, product.args[::-1]):
        if _bare(factor) is _bare(scale) or factor is scale:
            return beta, _bare(mean)
    return None


def _channel_axis(x: Tensor, scale: Const) -> int | None:
    rank = x.rank or 0
    full = (1,) * (rank - scale.array.ndim) + scale.array.shape
    wide = [axis for axis, d in enumerate(full) if d != 1] or [rank - 1]
    if rank < 2 or len(full) != rank or len(wide) != 1 or wide[0] not in (1, rank - 1):
        return None
    return wide[0]


def fused_batch_norm(ctx: Lifter, view: OpView) -> tuple[Any, ...]:
    """FusedBatchNorm in its three versions, at inference. Only the first output exists then."""
    if view.attr("is_training", True):
        raise view.refuse("it normalizes with the statistics of the batch (training mode)")
    x = view.input(0)
    rank = view.rank(0)
    stats = [view.input(k) for k in range(1, 5)]
    if not isinstance(x, Tensor) or not all(isinstance(c, Const) for c in stats):
        raise view.refuse("scale, offset, mean and variance must be constant")
    axis = 1 if str(view.attr("data_format", "NHWC")).startswith("NC") else rank - 1
    out = batch_norm(ctx, x, axis, stats, float(view.attr("epsilon", 1e-4)))
    return (out, *([None] * (len(view.operation.outputs) - 1)))


# -- layer normalization -------------------------------------------------------------------------------------


def _layer_norm(ctx: Lifter, x: Any, scale: Any, shift: Any) -> Tensor | None:
    """x * s + (beta - mean * s), s = gamma / sqrt(variance + epsilon), with the statistics of x's last
    axes.
    """
    if (
        not (isinstance(x, Tensor) and isinstance(scale, Tensor) and isinstance(shift, Tensor))
        or x.shape is None
    ):
        return None
    gamma: Any = None
    root = scale
    if scale.op == "Mul":
        root, gamma = scale.args if isinstance(scale.args[1], Const) else scale.args[::-1]
    if not (isinstance(root, Tensor) and root.op == "Rsqrt") or not (
        gamma is None or isinstance(gamma, Const)
    ):
        return None
    total = root.args[0]
    if not (isinstance(total, Tensor) and total.op in ("AddV2", "Add") and isinstance(total.args[1], Const)):
        return None
    variance, epsilon = total.args
    parts = _parts(shift, scale)
    if parts is None or not isinstance(variance, Tensor) or epsilon.array.size != 1:
        return None
    beta, mean = parts
    axes = _reduced(mean, x)
    if axes is None or not _is_variance(variance, x, mean, axes):
        return None
    rank = len(x.shape)
    if axes != list(range(axes[0], rank)):
        return None
    sizes = [x.shape[a] for a in axes]
    if any(d is None for d in sizes):
        return None
    ones = gamma if gamma is not None else Const(np.ones(sizes, x.dtype))  # type: ignore[arg-type]
    weights = [c for c in (ones, beta) if c is not None]
    if any(_trailing(c.array.shape) != tuple(sizes) for c in weights):
        return None
    flat = [ctx.derived(_bare(c), ("norm", tuple(sizes)), lambda a: a.reshape(sizes)) for c in weights]  # type: ignore[arg-type]
    values = [ctx.constant(c) for c in flat]
    made = ctx.node(
        "LayerNormalization",
        [ctx.plain(x), *values],
        axis=axes[0] - rank,
        epsilon=float(epsilon.array.reshape(())),
    )[0]
    return Tensor(made, x.dtype, x.shape)


def _trailing(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the axes of 1 at its front."""
    lead = next((k for k, d in enumerate(shape) if d != 1), len(shape) - 1)
    return shape[max(lead, 0) :]


def _parts(shift: Tensor, scale: Tensor) -> tuple[Const | None, Tensor] | None:
    """Beta and mean of `beta - mean * scale`, in the ways that Keras 2 and Keras 3 write it."""
    if shift.op == "Sub" and isinstance(shift.args[0], Const):
        beta, product, negative = shift.args[0], shift.args[1], False
    elif shift.op in ("AddV2", "Add"):
        product, beta = shift.args if isinstance(shift.args[1], Const) else shift.args[::-1]
        negative = True
    elif shift.op == "Mul":
        beta, product, negative = None, shift, True
    elif shift.op == "Neg":
        beta, product, negative = None, shift.args[0], False
    else:
        return None
    if not (isinstance(product, Tensor) and product.op == "Mul") or not (
        beta is None or isinstance(beta, Const)
    ):
        return None
    for mean, factor in (product.args, product.args[::-1]):
        if factor is scale and isinstance(mean, Tensor):
            if not negative:
                return beta, mean
            if mean.op == "Neg" and isinstance(mean.args[0], Tensor):
                return beta, mean.args[0]
    return None


def _reduced(mean: Any, x: Any) -> list[int] | None:
    """The axes over which `mean` is the mean of `x`, with the axes kept."""
    if not (isinstance(mean, Tensor) and mean.op == "Mean" and mean.args[0] is x) or x.shape is None:
        return None
    if mean.shape is None or len(mean.shape) != len(x.shape):
        return None
    return sorted(int(a) % len(x.shape) for a in np.asarray(mean.args[1].array).reshape(-1))


def _is_variance(variance: Tensor, x: Tensor, mean: Tensor, axes: list[int]) -> bool:
    if variance.op != "Mean":
        return False
    square = variance.args[0]
    if (
        not isinstance(square, Tensor)
        or _reduced(variance, square) != axes
        or square.op != "SquaredDifference"
    ):
        return False
    return {id(square.args[0]), id(square.args[1])} == {id(x), id(mean)}


LIFTINGS: dict[str, Lift] = dict.fromkeys(
    ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"), fused_batch_norm
)
