"""How much the loss would miss a unit, by gradients: importances for `prune.channels`.

With g_w = dL/dw, removing the weights S of a unit changes the loss by about -sum g_w w (first order), so

    taylor   mean over batches of (sum over S of g_w w)^2    Molchanov et al. 2019, arXiv:1906.10771
    hessian  1/2 sum over S of F_w w^2, F_w = E[g_w^2]        LeCun et al. 1990, with Fisher's information
                                                              for the Hessian's diagonal (Theis et al. 2018,
                                                              arXiv:1801.05787)
    snip     sum over S of |E[g_w] w|                         Lee et al. 2019, arXiv:1810.02340

The loss is that of the labels, where the data have some. Else labels are drawn from what the network itself
says (its Fisher information), or, where it gives no classes, its outputs are projected at random, which gives
the diagonal of the Gauss-Newton matrix.

An importance is a function `(groups, model, ctx) -> [scores of the units of each group]`. Of a group it asks
`size`, `name` and `makers()`; of each of those `part`, with `value`, `axis`, `places` and `units`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar.errors import Refused
from attar_train.batches import Batches, Samples, number
from attar_train.losses import Labels, as_logits, end_of
from attar_train.module import Trainable, trainable
from attar_train.options import Options

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, np.dtype[Any]]
_BATCHES, _SIZE = 16, 32


def taylor(groups: Sequence[Any], model: ir.Model, ctx: Context) -> list[Array]:
    """Squared first-order change of the loss, mean over batches."""
    return _mean(groups, model, ctx, lambda group, products: _by_unit(group, products) ** 2)


def hessian(groups: Sequence[Any], model: ir.Model, ctx: Context) -> list[Array]:
    """Second-order change of the loss by the diagonal of the Fisher information."""
    return _mean(
        groups, model, ctx,
        lambda group, products: _by_unit(group, {n: 0.5 * p**2 for n, p in products.items()}),
    )  # fmt: skip


def snip(groups: Sequence[Any], model: ir.Model, ctx: Context) -> list[Array]:
    """Sensitivity of the connections: magnitudes of the first-order changes."""
    total: dict[str, Array] = {}
    for products in gradient_products(model, ctx):
        for name, product in products.items():
            total[name] = total.get(name, 0.0) + product
    return [_by_unit(group, {n: np.abs(p) for n, p in total.items()}) for group in groups]


IMPORTANCES: Mapping[str, Callable[..., Any]] = {"taylor": taylor, "hessian": hessian, "snip": snip}


def gradient_products(model: ir.Model, ctx: Context) -> Iterator[dict[str, Array]]:
    """Gradient times weight, of each weight in its own layout, float64, batch by batch.

    Raises:
        Refused: the model cannot be trained.
        InputError: there are neither training nor calibration data.
    """
    module = trainable(graph.clone(model), ctx.registry).eval()
    loss = _loss(module, ctx)
    with ctx.progress.task("gradients", _BATCHES) as task:
        for index, samples in enumerate(_samples(ctx)):
            module.module.zero_grad(set_to_none=True)
            outputs = module.forward(samples.inputs, loss.taps)
            loss(outputs, samples, number(ctx.seed, "gradients", index)).backward()
            yield _products(module)
            task.advance()


def _products(module: Trainable) -> dict[str, Array]:
    found = {}
    parameters = dict(module.module.named_parameters())
    for name, places in module.places.items():
        value = module.model.graph.initializers[name]
        array = graph.const_array(value)
        assert array is not None
        made = np.zeros(array.size)
        for place in places:
            parameter = parameters.get(place.path)
            if parameter is None or parameter.grad is None:
                continue
            product = (parameter.grad * parameter.detach()).double().numpy().reshape(-1)
            if place.change is None:
                made += product
            else:
                made[place.change(np.arange(array.size).reshape(array.shape)).reshape(-1)] += product
        found[name] = made.reshape(array.shape)
    return found


class _Own:
    """The loss where there are no labels."""

    def __init__(self, module: Trainable) -> None:
        self._end = end_of(module)
        self.taps = (self._end.value,)

    def __call__(self, outputs: Any, samples: Samples, seed: int) -> torch.Tensor:
        import torch
        from torch.nn import functional

        drawn = torch.Generator().manual_seed(seed % (1 << 63))
        scores = as_logits(outputs, self._end)
        if scores.dim() == 2 and scores.shape[1] > 1:
            labels = torch.multinomial(scores.detach().softmax(1), 1, generator=drawn)[:, 0]
            return functional.cross_entropy(scores, labels)
        return (scores * torch.randn(scores.shape, generator=drawn)).sum() / samples.size**0.5


class _Labelled(Labels):
    def __call__(self, outputs: Any, samples: Samples, seed: int = 0) -> torch.Tensor:
        return super().__call__(outputs, samples)


def _loss(module: Trainable, ctx: Context) -> Any:
    labelled = ctx.training_data is not None and ctx.training_data.labelled
    return _Labelled(module) if labelled else _Own(module)


def _samples(ctx: Context) -> Iterator[Samples]:
    import torch

    if ctx.training_data is not None:
        source: Any = Batches(ctx.training_data, Options(batch_size=_SIZE), ctx.seed)
        stream, place = source.epoch(0), source
        for index in range(_BATCHES):
            batch = next(stream, None)
            if batch is None:
                return
            yield place.on(batch, "cpu", 0, index)
        return
    for batch in ctx.calibration.take(_BATCHES * _SIZE):
        inputs = {n: torch.from_numpy(np.array(a)) for n, a in batch.inputs.items()}
        yield Samples(inputs, None, batch.size)


def _mean(
    groups: Sequence[Any], model: ir.Model, ctx: Context, judge: Callable[[Any, Mapping[str, Array]], Array]
) -> list[Array]:
    found = [[judge(group, products) for group in groups] for products in gradient_products(model, ctx)]
    return [np.mean(scores, axis=0) for scores in zip(*found, strict=True)]


def _by_unit(group: Any, products: Mapping[str, Array]) -> Array:
    """Sums over the weights that make each unit.

    Raises:
        Refused: no gradient reaches them.
    """
    scores, seen = np.zeros(group.size), set()
    for use in group.makers():
        part = use.part
        product = products.get(part.value.name)
        if product is None or (part.value.name, part.axis) in seen:
            continue
        seen.add((part.value.name, part.axis))
        rows = np.moveaxis(product, part.axis, 0)
        np.add.at(scores, part.units, rows.reshape(len(rows), -1).sum(axis=1)[part.places])
    if not seen:
        raise Refused(
            f"no gradient reaches the weights that make {group.name!r}", hint="another importance, such as l2"
        )
    return scores
