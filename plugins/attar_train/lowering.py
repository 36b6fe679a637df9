"""The operators of training in torch. Given to the adapter by the hook `attar_lowerings`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from attar_train.operators import DOMAIN, FAKE_BIAS, FAKE_QUANTIZE, MASKED, SHARED, register


def lowerings(framework: str) -> Mapping[str, Callable[..., Any]]:
    """Operator -> function that writes it in `framework`; ONNX learns of the operators at the same time."""
    if framework != "torch":
        return {}
    register()
    return {
        f"{DOMAIN}::{FAKE_QUANTIZE}": _fake_quantize,
        f"{DOMAIN}::{FAKE_BIAS}": _fake_bias,
        f"{DOMAIN}::{MASKED}": _masked,
        f"{DOMAIN}::{SHARED}": _shared,
    }


def _fake_quantize(ctx: Any, view: Any) -> Any:
    from attar_train.fake_quantize import fake_quantize

    zero = view.const(2) if view.has(2) else None
    # A number is clipped with faster than a tensor.
    plain = not view.has(2) or (zero is not None and (zero == zero.reshape(-1)[0]).all())
    axis, rank = view.attr("axis", 1), view.rank(0)
    if axis < 0 and rank is None:
        raise view.refuse("the rank of its input is unknown")
    return ctx.call(
        fake_quantize,
        ctx.parameter(view, 0),
        ctx.tensor(view, 1),
        (0 if zero is None else int(zero.reshape(-1)[0])) if plain else ctx.tensor(view, 2),
        ctx.parameter(view, 3) if view.has(3) else None,
        ctx.parameter(view, 4) if view.has(4) else None,
        qmin=view.attr("qmin"),
        qmax=view.attr("qmax"),
        axis=axis if axis >= 0 else axis + rank,
        block=view.attr("block_size", 0),
        method=_text(view.attr("gradient", "lsq")),
        per_sample=not view.attr("weight", 0),
    )


def _fake_bias(ctx: Any, view: Any) -> Any:
    from attar_train.fake_quantize import fake_bias

    factors = [ctx.tensor(view, k) for k in range(1, 5) if view.has(k)]
    return ctx.call(fake_bias, ctx.parameter(view, 0), *factors)


def _masked(ctx: Any, view: Any) -> Any:
    from attar_train.fake_quantize import masked, scored

    if view.has(2):
        return ctx.call(scored, ctx.parameter(view, 0), ctx.tensor(view, 1), ctx.tensor(view, 2))
    return ctx.call(masked, ctx.parameter(view, 0), ctx.tensor(view, 1))


def _shared(ctx: Any, view: Any) -> Any:
    from attar_train.fake_quantize import shared

    indices = view.need_const(1, "its indices")
    axis, length = view.attr("axis", 0), view.shape(0)[-1]
    if view.rank(0) == 2:
        rows = np.moveaxis(indices, axis, 0).reshape(indices.shape[axis], -1)
        counts = np.stack([np.bincount(row, minlength=length) for row in rows])
    else:
        counts = np.bincount(indices.reshape(-1), minlength=length)
    return ctx.call(
        shared,
        ctx.parameter(view, 0),
        ctx.tensor(view, 1),
        ctx.own(view, "counts", counts.astype(np.float32)),
        axis,
    )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
