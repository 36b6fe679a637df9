"""Statistics of a model's values over data: asked for by passes, gathered in one streaming run.

The model is copied and small reducing operators are appended to it, so that what leaves the runtime is a few
numbers and a strided sample of each value rather than the value itself: ONNX Runtime keeps its fused and
blocked kernels and reuses its buffers, and memory does not grow with the data. Extremes are exact; histograms
and means are of the sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.errors import InputError
from attar.feeds import pieces
from attar.histogram import Histogram
from attar.progress import Progress, Silent

if TYPE_CHECKING:
    from attar.calibration import Data
    from attar.runtime import Runtime

Array = np.ndarray[Any, np.dtype[Any]]
# Elements of one value that are worth a histogram over all data, and at least and at most so many of each
# sample; more adds time, not information.
_ENOUGH, _FEW, _SAMPLE = 1 << 19, 1024, 8192


@dataclass
class Statistics:
    """What is known of one value.

    Attributes:
        histogram: of a strided sample; its `low` and `high` are exact over all data.
        mean_sum, mean_count: sum and number of sampled elements per channel, along `axis`.
        square_sum: sum of squares of the same elements.
        reach: largest magnitude among them.
        axis: channel axis of the means; None if they were not asked for.
        finite: whether all values were; batches with infinite ones (masks) are not in the histogram.
    """

    axis: int | None = None
    histogram: Histogram = field(default_factory=Histogram)
    mean_sum: Array | None = None
    square_sum: Array | None = None
    reach: Array | None = None
    mean_count: int = 0
    finite: bool = True

    @property
    def mean(self) -> Array | None:
        """Mean per channel, float64, or None if it was not asked for."""
        return None if self.mean_sum is None else self.mean_sum / max(1, self.mean_count)

    @property
    def power(self) -> Array | None:
        """Mean square per channel, float64, or None if means were not asked for."""
        return None if self.square_sum is None else self.square_sum / max(1, self.mean_count)

    def merge(self, other: Statistics) -> None:
        """Take in statistics of the same value over other data."""
        self.finite &= other.finite
        self.histogram.merge(other.histogram)
        if other.mean_sum is not None:
            self._count(other.mean_sum, other.square_sum, other.reach, other.mean_count)

    def add(self, sample: Array, low: float, high: float) -> None:
        """Count one batch's sample, with the exact extremes of the batch."""
        if not (math.isfinite(low) and math.isfinite(high)):
            self.finite = False
            return
        self.histogram.add(sample, low, high)
        if self.axis is not None and sample.ndim > self.axis:
            self._count(*_by_channel(sample, self.axis), sample.size // max(1, sample.shape[self.axis]))

    def _count(self, sums: Array, squares: Array | None, reach: Array | None, count: int) -> None:
        assert squares is not None
        assert reach is not None
        if self.mean_sum is None or self.square_sum is None or self.reach is None:
            self.mean_sum, self.square_sum, self.reach = sums, squares, reach
        else:
            self.mean_sum = self.mean_sum + sums
            self.square_sum = self.square_sum + squares
            self.reach = np.maximum(self.reach, reach)
        self.mean_count += count


def collect(
    model: ir.Model,
    wanted: Mapping[str, int | None],
    data: Data,
    runtime: Runtime,
    *,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, Statistics]:
    """Run `data` through `model` once and gather statistics of the float values named in `wanted`.

    Args:
        wanted: value name -> channel axis for means, or None. Names must be of the main graph.
        data: calibration data.

    Raises:
        InputError: a name is unknown, or a value became NaN (named, with the batch).
    """
    if not wanted:
        return {}
    each = max(_FEW, min(_SAMPLE, _ENOUGH // max(1, data.count() or 1)))
    copy, taps = _instrument(model, wanted, each)
    session = runtime.open(copy, threads=threads)
    place = {name: i for i, name in enumerate(session.outputs)}
    found = {name: Statistics(axis) for name, axis in wanted.items()}
    with (progress or Silent()).task("calibrating", data.count()) as task:
        for number, batch in enumerate(data):
            for feeds in pieces(batch.inputs, data.specs):
                results = session.run(feeds)
                for name, tap in taps.items():
                    sample = results[place[tap.sample]]
                    low = results[place[tap.low]].min() if tap.low else sample.min(initial=math.inf)
                    high = results[place[tap.high]].max() if tap.high else sample.max(initial=-math.inf)
                    if np.isnan(low) or np.isnan(high):
                        raise InputError(
                            f"value {name!r} becomes NaN on calibration batch {number}",
                            hint="the model fails on this input; check the data's preprocessing",
                        )
                    found[name].add(sample, float(low), float(high))
            task.advance(batch.size)
    return found


@dataclass(frozen=True)
class _Tap:
    """Names of the outputs that report on one value; an empty name: take it from the sample."""

    sample: str
    low: str = ""
    high: str = ""


def _by_channel(sample: Array, axis: int) -> tuple[Array, Array, Array]:
    """Sums, sums of squares and largest magnitudes of each channel."""
    axis %= sample.ndim
    if axis == 1 and sample.ndim > 2:
        # Rows of memory, one for each sample and channel: sums of some dozens in float32 are exact enough.
        rows = sample.reshape(-1, math.prod(sample.shape[2:]))
        few = sample.shape[:2]
        if not rows.shape[1]:
            return np.zeros(few[1]), np.zeros(few[1]), np.zeros(few[1])
        sums = rows.sum(axis=1).reshape(few).sum(axis=0, dtype=np.float64)
        squares = np.einsum("ci,ci->c", rows, rows).reshape(few).sum(axis=0, dtype=np.float64)
        reach = np.maximum(rows.max(axis=1), -rows.min(axis=1)).reshape(few).max(axis=0, initial=0.0)
        return sums, squares, reach
    channels = np.moveaxis(sample, axis, 0).reshape(sample.shape[axis], -1)
    sums = channels.sum(axis=1, dtype=np.float64)
    squares = np.einsum("ci,ci->c", channels, channels, dtype=np.float64)
    return sums, squares, np.abs(channels).max(axis=1, initial=0.0)


def _instrument(
    model: ir.Model, wanted: Mapping[str, int | None], each: int
) -> tuple[ir.Model, dict[str, _Tap]]:
    """A copy that reports on the values, by about `each` elements of each sample."""
    copy = graph.clone(model)
    main = copy.graph
    values = {v.name: v for v in main.inputs}
    for node in main:
        values.update({v.name: v for v in node.outputs})
    previous = list(main.outputs)
    taps: dict[str, _Tap] = {}
    new_outputs: list[ir.Value] = []
    taken = graph.taken_names(main)

    def tap(operator: str, value: ir.Value, *more: ir.Value, **attributes: Any) -> str:
        node = ir.node(operator, [value, *more], attributes=attributes)
        out = node.outputs[0]
        out.name = graph.fresh_name(main, f"{value.name}/{operator}", taken)
        out.type = ir.TensorType(value.dtype or ir.DataType.FLOAT)
        main.append(node)
        new_outputs.append(out)
        return out.name

    for name, channels in wanted.items():
        value = values.get(name)
        if value is None:
            raise InputError(f"the model has no value {name!r} to observe")
        rank = None if value.shape is None else len(value.shape)
        axis = _thinned(rank or 0, channels)
        step = _step(value, each, axis)
        if rank is None or rank < 3 or step == 1:
            # Small enough to look at whole.
            taps[name] = _Tap(tap("Identity", value))
            continue
        # A 1x1 max-pool with a stride is a strided slice that ONNX Runtime does inside its blocked layout.
        if rank == 4:
            sample = tap("MaxPool", value, kernel_shape=[1, 1], strides=[step, step])
        else:
            constants = [
                graph.add_initializer(main, f"attar.{k}{v}", np.array([v], np.int64), taken)
                for k, v in (("start", 0), ("end", np.iinfo(np.int64).max), ("axis", axis), ("step", step))
            ]
            sample = tap("Slice", value, *constants)
        high = tap("GlobalMaxPool", value)
        low = "" if _never_negative(value) else tap("ReduceMin", value, keepdims=0)
        taps[name] = _Tap(sample, low, high)
    main.outputs.clear()
    main.outputs.extend(new_outputs)
    del previous
    graph.tidy(copy)
    return copy, taps


def _thinned(rank: int, channels: int | None) -> int:
    """The axis along which a value that is no image is sampled: tokens or time, never the channels."""
    return rank - 1 if channels is not None and rank and channels % rank == rank - 2 else rank - 2


def _step(value: ir.Value, each: int, axis: int) -> int:
    """Stride of the sample: about `each` elements of each sample of the batch."""
    if value.shape is None or len(value.shape) < 3:
        return 1
    sizes = [d if isinstance(d, int) else 0 for d in value.shape][1:]
    plane = sizes[-2:] if len(sizes) == 3 else [sizes[axis - 1]]
    if any(s == 0 for s in plane):
        return 4 if len(sizes) == 3 else 2  # dynamic; small planes stay well covered
    excess = math.prod(s or 1 for s in sizes) / each
    if excess <= 1.5:
        return 1
    step = math.isqrt(math.ceil(excess) - 1) + 1 if len(sizes) == 3 else math.ceil(excess)
    # An odd stride does not beat with the even structure of images and tokens; at least 3 positions an axis
    # remain.
    return max(1, min(step | 1, min(plane) // 3))


def _never_negative(value: ir.Value) -> bool:
    """Whether the value's minimum need not be measured: behind Relu and its kin the sample's zero is exact
    enough."""
    node = value.producer()
    for _ in range(4):
        if node is None:
            return False
        if node.op_type in ("Relu", "Sigmoid", "Softmax", "HardSigmoid"):
            return True
        if node.op_type == "Clip":
            low = graph.const_array(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else None
            return low is not None and float(low.reshape(-1)[0]) >= 0
        if node.op_type not in ("MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"):
            return False
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return False
