"""What every pass that trains does around the loop: hold what must stay, train, put the numbers back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar.errors import ConversionError, Refused
from attar_train.callback import Callback
from attar_train.constrain import Constrained, constrain
from attar_train.loop import History, fit
from attar_train.module import Trainable, need_torch, trainable
from attar_train.options import Training

Array = np.ndarray[Any, np.dtype[Any]]


def train(
    step: Training,
    model: ir.Model,
    ctx: Context,
    loss: Callable[[Trainable], Any],
    *,
    hold: Callable[[ir.Model], Constrained] | None = None,
    callbacks: Callable[[Trainable], Sequence[Callback]] | None = None,
) -> History | None:
    """Train `model` in place, by the options of `step`.

    The same training of the same model in one `compress` is done once, however often its result is asked for.

    Args:
        loss: gives the loss for the module.
        hold: how the model is made one that keeps what it must; zeros, patterns, shared values and
            quantization unless given.
        callbacks: gives the callbacks for the module.

    Returns:
        What came of it; None where the result was there already, or nobody will keep it.
    """
    need_torch()
    data = ctx.training
    key = ("train", str(step), graph.fingerprint(model))
    if key in ctx.cache:
        done, notes = ctx.cache[key]
        take_over(model, graph.clone(done))
        for note in notes:
            ctx.note(note)
        return None
    if ctx.probing:  # the result is looked at and thrown away
        return None
    held = hold(model) if hold is not None else constrain(model, latent=latent(ctx), registry=ctx.registry)
    try:
        module = trainable(held.model, ctx.registry)
    except ConversionError as error:
        raise Refused(f"PyTorch cannot train this model: {error.message}", hint=error.hint) from error
    module.release = held.release
    if step.only:
        module.freeze(step.only, others=True)
    if step.freeze:
        module.freeze(step.freeze)
    noted = len(ctx.step.changes)
    history = fit(
        module, data, loss(module), step.settings(), ctx=ctx, name=step.name,
        callbacks=() if callbacks is None else callbacks(module),
    )  # fmt: skip
    _tell(history, held, ctx)
    for note in data.notes:
        ctx.note(note)
    done = module.finish()
    take_over(model, graph.clone(done))
    ctx.cache[key] = (done, tuple(ctx.step.changes[noted:]))
    return history


def take_over(model: ir.Model, other: ir.Model) -> None:
    """Make `model`, which passes change in place, what `other` is; `other` is used up."""
    model.graph = other.graph
    model.functions.clear()
    model.functions.update(other.functions)


def latent(ctx: Context) -> Mapping[str, Array]:
    """The float weights of the model before it was quantized, or as it came."""
    found: dict[str, Array] = {}
    for model in (ctx.original, ctx.unquantized):
        if model is None:
            continue
        for value in model.graph.initializers.values():
            array = graph.const_array(value) if value.dtype == ir.DataType.FLOAT else None
            if array is not None and array.ndim and value.name:
                found[value.name] = array
    return found


def _tell(history: History, held: Constrained, ctx: Context) -> None:
    first, last = history.losses[0][1], history.losses[-1][1]
    kept = f", holding {held}" if str(held) != "nothing held" else ""
    again = f", of which {history.resumed} before it was taken up again" if history.resumed else ""
    ctx.note(
        f"trained {history.steps} steps{again} ({history.epochs} epochs, {history.seconds:.0f} s){kept}: "
        f"loss {first:.4g} -> {last:.4g}"
    )
    if history.best is not None and ctx.evaluation is not None:
        value, at = history.best
        ctx.note(f"kept the weights of step {at}, with the best {ctx.evaluation.name}: {value:.4g}")
    if history.stopped:
        ctx.note(history.stopped)
