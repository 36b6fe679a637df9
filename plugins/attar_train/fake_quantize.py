"""Quantization that trains: the exact forward of ONNX's QuantizeLinear and DequantizeLinear, with gradients.

With v = x / s, lo = qmin - z and hi = qmax - z the forward is

    y = s clip(round(v), lo, hi)

rounded half to even, which equals DequantizeLinear(QuantizeLinear(x)) bit for bit in float32: codes and zero
points are small integers, so moving z under the clip is exact. Rounding has no derivative, so each method
says what stands for one:

- x, all methods: dy/dx = 1 for lo <= v <= hi, else 0 (straight-through with clipping). At the ends
  themselves the inner derivative is taken: ranges are made from extremes, so weights lie there to begin with,
  or beside them by the rounding of code times scale.
- s, "lsq" (Esser et al. 2020, arXiv:1902.08153, equation 3): dy/ds = round(v) - v inside, lo below, hi
  above, and the gradient is scaled by g = 1 / sqrt(N Q), N elements sharing a scale (activations: of one
  sample), Q the largest code less the zero point.
- s, "pact" (Choi et al. 2018, arXiv:1805.06085, equation 3): with alpha = hi s the clipping level,
  dy/dalpha = 1 above it, else 0.
- z (Bhalgat et al. 2020, arXiv:2004.09576, "LSQ+"): dy/dz = 0 inside, -s outside; z itself is rounded, so
  that zero stays exact.
- "ste": s and z stay as they are.

Scales lie many orders of magnitude apart, which optimizers with normalized steps cannot know. What is learned
is therefore a factor of the scale, the gain (1 at first): s = s0 gain. Its gradient is g (dL/ds) / s0, so
that a step of gradient descent moves s as the papers' does, and a step of Adam moves it by so many percent.
"""

from __future__ import annotations

from typing import Any

import torch

from attar_train.operators import GAINS, MOST_BIAS

_TINY = 1e-18  # scales whose square would leave float32


class _FakeQuantize(torch.autograd.Function):
    """`(x, s, z)`, s and z of shapes that broadcast against x, or z a number."""

    @staticmethod
    def forward(ctx: Any, x: Any, scale: Any, zero: Any, qmin: int, qmax: int, method: str) -> Any:  # noqa: PLR0917
        y = (x / scale).round_().clamp_(qmin - zero, qmax - zero).mul_(scale)
        whole = not isinstance(zero, torch.Tensor)
        ctx.quick = whole and scale.dim() == 0 and x.device.type == "cpu" and method != "pact"
        learns = ctx.needs_input_grad[1]
        ctx.save_for_backward(x, scale, *([] if whole else [zero]), *([y] if ctx.quick and learns else []))
        ctx.zero, ctx.qmin, ctx.qmax, ctx.method = zero if whole else None, qmin, qmax, method
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        if ctx.quick:
            return (*_quick_backward(ctx, grads[0]), None, None, None, None)
        (grad,), (x, scale, *rest) = grads, ctx.saved_tensors
        zero = rest[0] if rest else ctx.zero
        low, high = ctx.qmin - zero, ctx.qmax - zero
        ratio = x / scale
        slack = _slack(ctx)
        inside = (ratio >= low - slack) & (ratio <= high + slack)
        grad_x = grad_scale = grad_zero = None
        if ctx.needs_input_grad[1]:
            if ctx.method == "pact":
                part = torch.where(ratio >= high, grad, 0.0) * high
            else:
                part = ratio.round().clamp_(low, high).sub_(torch.where(inside, ratio, 0.0)).mul_(grad)
            grad_scale = part.sum_to_size(scale.shape)
        if rest and ctx.needs_input_grad[2]:
            grad_zero = (torch.where(inside, 0.0, grad) * -scale).sum_to_size(zero.shape)
        if ctx.needs_input_grad[0]:
            grad_x = torch.where(inside, grad, 0.0)
        return grad_x, grad_scale, grad_zero, None, None, None


def _quick_backward(ctx: Any, grad: Any) -> tuple[Any, Any]:
    """The gradients of x and of one scale in few passes over memory, which on a CPU are what it costs.

    dL/ds = sum g (y - x [inside]) / s = (g . (y - x) + (g - dL/dx) . x) / s, where the second part is not
    zero for clipped numbers alone.
    """
    x, scale, *rest = ctx.saved_tensors
    step, slack = float(scale), _slack(ctx)
    low, high = (step * (end - ctx.zero) for end in (ctx.qmin - slack, ctx.qmax + slack))
    grad_x = torch.ops.aten.hardtanh_backward(grad, x, low, high)
    if not rest:
        return grad_x, None
    flat = grad.reshape(-1)
    inner = torch.dot(flat, (rest[0] - x).reshape(-1))
    outer = torch.dot((grad - grad_x).reshape(-1), x.reshape(-1))
    return grad_x, ((inner + outer) / scale).reshape(scale.shape)


def _slack(ctx: Any) -> float:
    """What the rounding of code times scale may put a number beyond the end that it stands for, in steps."""
    return float((ctx.qmax - ctx.qmin) * 2.0**-22)


class _Learned(torch.autograd.Function):
    """A parameter within bounds, whose gradient is multiplied by a factor of its own shape."""

    @staticmethod
    def forward(ctx: Any, value: Any, factor: Any, low: float, high: float) -> Any:
        ctx.factor = factor
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        return grads[0] * ctx.factor, None, None, None


class _Rounded(torch.autograd.Function):
    """Rounding to even that lets the gradient through."""

    @staticmethod
    def forward(ctx: Any, value: Any) -> Any:
        return value.round()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        return grads


def fake_quantize(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | float = 0,
    gain: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    *,
    qmin: int,
    qmax: int,
    axis: int = 0,
    block: int = 0,
    method: str = "lsq",
    per_sample: bool = True,
) -> torch.Tensor:
    """`x` as its quantized form says it, float32, with gradients for x, gain and shift.

    Args:
        x: floats of any shape.
        scale: a scalar, one for each entry of `axis`, or (`block`) one for each run of that many along it.
        zero_point: as scale, or a number.
        gain: what is learned of the scale, of its shape; scale * gain is used.
        shift: what is learned of the zero point, of its shape: round(zero_point + (qmax - qmin) shift).
        qmin, qmax: the first and the last code.
        method: "lsq", "pact" or "ste".
        per_sample: axis 0 of x is the batch (an activation), so it does not count as elements.
    """
    wide = x.float()
    with torch.autocast(x.device.type, enabled=False):
        if not isinstance(zero_point, int | float):
            zero_point = zero_point.float()
        s, z = scale.float(), zero_point
        if gain is not None:
            s = s * _Learned.apply(gain, _gain_factor(wide, s, z, qmin, qmax, method, per_sample), *GAINS)
        if shift is not None:
            span = qmax - qmin
            # dL/dbeta with beta = -s z moves as LSQ+ has it: d shift = g (dL/dz) / (s^2 span).
            factor = _lsq(wide, s, z, qmin, qmax, per_sample) / (s.detach().clamp_min(_TINY) ** 2 * span**2)
            moved = z + span * _Learned.apply(shift, factor, -1.0, 1.0)
            z = _Rounded.apply(moved.clamp(qmin, qmax))
        s = _spread(s, wide, axis, block)
        if isinstance(z, torch.Tensor):
            z = _spread(z, wide, axis, block)
        return _FakeQuantize.apply(wide, s, z, qmin, qmax, method)  # type: ignore[no-any-return]


class _FakeBias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bias: Any, scale: Any) -> Any:
        return (bias / scale).round_().clamp_(-MOST_BIAS, MOST_BIAS).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        return grads[0], None


def fake_bias(bias: torch.Tensor, scale: torch.Tensor, *factors: torch.Tensor) -> torch.Tensor:
    """A bias in whole steps of an integer kernel's accumulator, straight-through.

    Args:
        scale: of the layer's input.
        factors: what `scale` is multiplied with: the scale of the weight, the gain of the input's scale, that
            of the weight's.
    """
    with torch.autocast(bias.device.type, enabled=False):
        step = scale.detach()
        if factors:
            weight, *gains = (f.detach() for f in factors)
            gains = [g.clamp(*GAINS) for g in gains]
            step = (step * gains[0] if gains else step) * (weight * gains[1] if gains else weight)
        least = torch.finfo(torch.float32).tiny
        return _FakeBias.apply(bias.float(), step.float().clamp_min(least))  # type: ignore[no-any-return]


def masked(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`x` where `mask` is set, else zero, which no gradient reaches."""
    return torch.where(mask.bool(), x, 0.0)


class _Scored(torch.autograd.Function):
    """Movement pruning (Sanh et al. 2020, arXiv:2005.07683): S = -sum of dL/dW' W over the steps, where W'
    are the masked weights. It grows where a weight moves away from zero, masked or not."""

    @staticmethod
    def forward(ctx: Any, x: Any, mask: Any, scores: Any) -> Any:
        ctx.save_for_backward(x, mask)
        ctx.scores = scores
        return torch.where(mask.bool(), x, 0.0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        x, mask = ctx.saved_tensors
        ctx.scores.addcmul_(grads[0], x, value=-1)
        return torch.where(mask.bool(), grads[0], 0.0), None, None


def scored(x: torch.Tensor, mask: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """`masked`, which gathers movement in `scores` on the way back."""
    return _Scored.apply(x, mask, scores)  # type: ignore[no-any-return]


def shared(codebook: torch.Tensor, indices: torch.Tensor, counts: torch.Tensor, axis: int) -> torch.Tensor:
    """`codebook[indices]`; with a codebook of two axes, entry c of `axis` takes its numbers from row c.

    Args:
        counts: how often each number of the codebook is used. The gradient of a number is the mean over its
            users: gradient descent on all weights, projected onto those that share, at their learning rate.
    """
    book = _Learned.apply(codebook, 1.0 / counts.clamp_min(1), -torch.inf, torch.inf)
    places = indices.long()
    if codebook.dim() == 2:
        rows = torch.arange(codebook.size(0), device=codebook.device)
        places = places + (rows * codebook.size(1)).reshape(
            [-1 if a == axis else 1 for a in range(indices.dim())]
        )
    return book.reshape(-1)[places]  # type: ignore[no-any-return]


def _gain_factor(x: Any, s: Any, z: Any, qmin: int, qmax: int, method: str, per_sample: bool) -> Any:  # noqa: PLR0917
    """What the gradient of a gain is multiplied with: g / s0^2, autograd's own being s0 dL/ds."""
    square = s.detach().clamp_min(_TINY) ** 2
    if method == "pact":
        return 1 / (square * (qmax - z) ** 2)
    return _lsq(x, s, z, qmin, qmax, per_sample) / square


def _lsq(x: Any, s: Any, z: Any, qmin: int, qmax: int, per_sample: bool) -> Any:  # noqa: PLR0917
    """1 / sqrt(N Q): see the module."""
    count = x.numel() / max(1, s.numel()) / (max(1, x.size(0)) if per_sample and x.dim() > 1 else 1)
    reach = (
        (qmax - z).clamp_min((qmax - qmin) // 2)
        if isinstance(z, torch.Tensor)
        else max(qmax - z, (qmax - qmin) // 2)
    )
    return (max(1.0, count) * reach) ** -0.5


def _spread(vector: torch.Tensor, x: torch.Tensor, axis: int, block: int) -> torch.Tensor:
    """Scales or zero points against `x`."""
    if block and vector.dim() == x.dim():
        return vector.repeat_interleave(block, axis).narrow(axis, 0, x.size(axis))
    if vector.numel() == 1 and vector.dim() < 2:
        return vector.reshape(())
    shape = [1] * x.dim()
    shape[axis] = -1
    return vector.reshape(shape)
