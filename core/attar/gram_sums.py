"""Gram matrices of weights that several layers read: the sums over all their inputs."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

from attar.gram import Gram, LayerInput

if TYPE_CHECKING:
    import onnx_ir as ir

    from attar.context import Context

Key = TypeVar("Key", bound=Hashable)


def summed(
    model: ir.Model, inputs: Mapping[Key, Iterable[LayerInput]], ctx: Context
) -> Iterator[tuple[Key, Gram]]:
    """Each key with the Gram matrices of its inputs over the calibration data, summed.

    Those of one input come as `Context.grams` gives them; sums have no halves. Use each as it comes. Keys
    without inputs do not come.

    Args:
        inputs: key -> from `attar.gram.layer_input`; those named twice count once.
    """
    waiting = {key: set(items) for key, items in inputs.items()}
    sums: dict[Key, Gram] = {}
    # Not in the order of the sets, which changes from run to run.
    wanted = [item for items in inputs.values() for item in items]
    for item, gram in ctx.grams(model, wanted):
        for key in [one for one, items in waiting.items() if item in items]:
            if key in sums:
                both = Gram(sums[key].matrix, sums[key].total, sums[key].count)
                both.merge(gram)
                sums[key] = both
            else:
                sums[key] = gram
            waiting[key].discard(item)
            if not waiting[key]:
                del waiting[key]
                yield key, sums.pop(key)
