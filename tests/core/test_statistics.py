"""Statistics of values over data, against numpy on the values themselves."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from attar import graph
from attar.calibration import as_data
from attar.errors import InputError
from attar.runtime import OnnxRuntime
from attar.specs import input_specs
from attar.statistics import Statistics, collect
from attar.testing import ZOO
from attar.testing.build import Net

Array = np.ndarray[Any, Any]
RUNTIME = OnnxRuntime()


def shaped(*shape: int | str, operator: str = "Neg") -> ir.Model:
    """A model whose value `middle` is made from the input `x` by one operator."""
    net = Net("shaped")
    x = net.input("x", *shape)
    middle = net.op(operator, x)
    model = net.model(y=net.op("Abs", middle))
    middle.name = "middle"
    return model


def batches(*shape: int, count: int = 3, seed: int = 0) -> list[dict[str, Array]]:
    """Batches whose extremes are lone elements in awkward places, as a strided sample would miss them."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        x = rng.standard_normal(shape).astype(np.float32)
        flat = x.reshape(-1)
        flat[rng.integers(0, flat.size)] = 50 + i
        flat[rng.integers(0, flat.size)] = -60 - i
        found.append({"x": x})
    return found


def of(model: ir.Model, wanted: dict[str, int | None], feeds: Any) -> dict[str, Statistics]:
    return collect(model, wanted, as_data(feeds, input_specs(model)), RUNTIME)


SHAPES: list[tuple[tuple[int | str, ...], tuple[int, ...]]] = [
    (("N",), (7,)),
    (("N", 5000), (3, 5000)),
    (("N", 300, 200), (2, 300, 200)),
    (("N", "S", 200), (2, 300, 200)),
    (("N", 8, 96, 96), (2, 8, 96, 96)),
    (("N", 8, "H", "W"), (2, 8, 61, 47)),
    (("N", 4, 12, 40, 40), (2, 4, 12, 40, 40)),
    (("N", "C", "D", "H", "W"), (2, 3, 12, 20, 20)),
    ((2, 16, 64, 64), (2, 16, 64, 64)),
]


@pytest.mark.parametrize(("shape", "sizes"), SHAPES, ids=str)
def test_extremes_are_exact(shape: tuple[int | str, ...], sizes: tuple[int, ...]) -> None:
    feeds = batches(*sizes)
    model = shaped(*shape)
    before = graph.to_bytes(model)
    found = of(model, {"x": None, "middle": None, "y": None}, feeds)
    assert graph.to_bytes(model) == before
    x = np.stack([f["x"] for f in feeds])
    for name, data in (("x", x), ("middle", -x), ("y", np.abs(x))):
        histogram = found[name].histogram
        assert (histogram.low, histogram.high) == (data.min(), data.max()), name
        assert 0 < histogram.total <= data.size


def test_small_values_are_looked_at_whole() -> None:
    feeds = batches(4, 5, 6, 7)
    found = of(shaped("N", 5, 6, 7), {"middle": 1}, feeds)["middle"]
    data = -np.concatenate([f["x"] for f in feeds])
    assert found.histogram.total == data.size
    assert found.mean is not None
    np.testing.assert_allclose(found.mean, data.mean(axis=(0, 2, 3), dtype=np.float64), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        (("N", 40), (20, 40)),
        (("N", "S", 64), (3, 500, 64)),
        (("N", 6, 200, 210), (2, 6, 200, 210)),
        (("N", 4, 12, 40, 40), (2, 4, 12, 40, 40)),
    ],
    ids=str,
)
def test_means_are_those_of_the_channels(
    shape: tuple[int | str, ...], sizes: tuple[int, ...], axis: int
) -> None:
    rng = np.random.default_rng(3)
    channels = sizes[axis]
    view = [1] * len(sizes)
    view[axis] = channels
    level = np.arange(channels).reshape(view)
    feeds = [{"x": (level + rng.standard_normal(sizes) * 0.1).astype(np.float32)} for _ in range(2)]
    statistics = of(shaped(*shape), {"x": axis}, feeds)["x"]
    found, count = statistics.mean, statistics.mean_count
    if shape == ("N", 4, 12, 40, 40) or (shape[1] == "S" and axis == 1) or (len(shape) == 4 and axis == -1):
        # The sample is strided along this axis, or the means are not per channel: only the total is known.
        assert found is None or np.isfinite(found).all()
        if found is None or len(found) != channels:
            return
    assert found is not None
    data = np.concatenate([f["x"] for f in feeds]).astype(np.float64)
    others = tuple(a for a in range(data.ndim) if a != axis % data.ndim)
    # A sample's mean is known to five deviations of 0.1 / sqrt(n); a whole one to the rounding of float32.
    whole = data.size // channels
    noise = 5 * 0.1 / np.sqrt(count) if count < whole else 0.0
    assert noise < 0.049
    np.testing.assert_allclose(found, data.mean(axis=others), rtol=0, atol=noise + 1e-6 * channels)


def test_the_sample_is_drawn_from_the_values() -> None:
    """Every bin that has a count has a value in it, and the shape of the distribution is kept."""
    feeds = [{"x": np.random.default_rng(4).gamma(2.0, size=(4, 8, 100, 100)).astype(np.float32)}]
    histogram = of(shaped("N", 8, 100, 100), {"x": None}, feeds)["x"].histogram
    x = feeds[0]["x"].reshape(-1)
    assert 8000 < histogram.total < x.size
    edges = (histogram.first + np.arange(len(histogram.counts) + 1)) * histogram.width
    whole = np.histogram(x, edges)[0]
    assert (whole[histogram.counts > 0] > 0).all()
    distance = np.abs(np.cumsum(histogram.counts) / histogram.total - np.cumsum(whole) / x.size).max()
    assert distance < 1.63 / np.sqrt(histogram.total), "Kolmogorov-Smirnov, 1 %"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sizes", [(2, 6), (2, 300, 200), (2, 8, 96, 96)], ids=str)
def test_a_value_that_is_not_finite_is_noticed(bad: float, sizes: tuple[int, ...]) -> None:
    """Log of 0 in one element of many, off the sample's grid; Log of a negative number in one channel (the
    runtime's minima and maxima pass over a lone NaN)."""
    feeds = [{"x": np.ones(sizes, np.float32)} for _ in range(3)]
    if np.isnan(bad):
        feeds[2]["x"][1, 1] = -1.0
    else:
        feeds[2]["x"][(1, *[1] * (len(sizes) - 1))] = 0.0
    net = Net("overflow")
    middle = net.op("Log", net.input("x", "N", *sizes[1:]))
    if bad == np.inf:
        middle = net.op("Neg", middle)
    model = net.model(y=net.op("Abs", middle))
    middle.name = "middle"
    if np.isnan(bad):
        with pytest.raises(InputError, match="'middle' becomes NaN on calibration batch 2"):
            of(model, {"middle": None}, feeds)
        return
    found = of(model, {"middle": None}, feeds)["middle"]
    assert not found.finite
    # The two whole batches were counted, the one with the infinity was not.
    assert found.histogram.total > 0
    assert (found.histogram.low, found.histogram.high) == (0.0, 0.0)


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(InputError, match="no value 'muddle'"):
        of(shaped("N", 3), {"muddle": None}, batches(2, 3))


def test_nothing_wanted_runs_nothing() -> None:
    def explode() -> Iterator[dict[str, Array]]:
        raise AssertionError("the data was read")
        yield {}

    model = shaped("N", 3)
    assert collect(model, {}, as_data(explode, input_specs(model)), RUNTIME) == {}


@pytest.mark.parametrize(
    "name", ["concat_split", "depthwise_cnn", "conv1d", "conv3d", "attention", "several_ports"]
)
def test_extremes_of_every_float_value_of_a_network(name: str) -> None:
    """Against a model with every value as an output, run without optimizations."""
    zoo = ZOO[name]
    model = zoo.build()
    graph.normalize(model)
    feeds = [zoo.inputs(seed=i) for i in range(3)]
    every = graph.clone(model)
    shown = [v for n in every.graph for v in n.outputs if v.dtype == ir.DataType.FLOAT]
    every.graph.outputs.extend(v for v in shown if not v.is_graph_output())
    session = RUNTIME.open(every, optimize=False)
    data: dict[str, list[Array]] = {}
    for feed in feeds:
        for output, array in zip(session.outputs, session.run(feed), strict=True):
            data.setdefault(output, []).append(array)
    names = [v.name for v in shown if v.name]
    found = of(model, dict.fromkeys(names), feeds)
    assert set(found) == set(names)
    for key in names:
        low, high = min(a.min() for a in data[key]), max(a.max() for a in data[key])
        histogram = found[key].histogram
        # Fused kernels add in another order: some float32 roundings of the largest value.
        rounding = min(1e-5, 16 * np.finfo(np.float32).eps * max(abs(low), abs(high), 1))
        # What is never negative may report a minimum that the sample saw: ranges begin at zero anyhow.
        assert min(histogram.low, 0) == pytest.approx(min(low, 0), abs=rounding)
        assert histogram.high == pytest.approx(high, abs=rounding)


def test_merging_is_seeing_all() -> None:
    feeds = batches(2, 6, 30, 30, count=4)
    model = shaped("N", 6, 30, 30)
    whole = of(model, {"middle": 1}, feeds)["middle"]
    left, right = (of(model, {"middle": 1}, part)["middle"] for part in (feeds[:1], feeds[1:]))
    left.merge(right)
    assert (left.histogram.low, left.histogram.high) == (whole.histogram.low, whole.histogram.high)
    assert left.histogram.total == whole.histogram.total
    assert left.mean_count == whole.mean_count
    assert left.mean is not None
    assert whole.mean is not None
    np.testing.assert_allclose(left.mean, whole.mean, rtol=1e-12)


def test_memory_does_not_grow_with_the_data() -> None:
    """400 MB of values pass through; the peak of this process stays far below."""
    rng = np.random.default_rng(5)
    model = shaped("N", 16, 64, 64)
    x = rng.standard_normal((8, 16, 64, 64)).astype(np.float32)

    def stream(count: int) -> Any:
        return lambda: ({"x": x} for _ in range(count))

    of(model, {"middle": 1, "y": None}, stream(5))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    of(model, {"middle": 1, "y": None}, stream(100))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < 40e6


def test_batches_of_different_sizes_count_by_element() -> None:
    rng = np.random.default_rng(6)
    feeds = [{"x": rng.standard_normal((n, 5)).astype(np.float32) + n} for n in (1, 7, 2)]
    found = of(shaped("N", 5), {"x": 1}, feeds)["x"]
    data = np.concatenate([f["x"] for f in feeds])
    assert found.mean is not None
    assert found.histogram.total == data.size
    np.testing.assert_allclose(found.mean, data.mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((2, 128, 4000), 1), ((2, 4000, 128), -1), ((2, 4000, 128), 2), ((2, 96, 9, 30, 30), 1)],
    ids=["sound", "tokens", "tokens from the front", "volumes"],
)
def test_long_values_are_sampled_along_them_and_not_along_their_channels(
    shape: tuple[int, ...], axis: int
) -> None:
    rng = np.random.default_rng(0)
    level = [1] * len(shape)
    level[axis] = shape[axis]
    x = (0.1 * rng.standard_normal(shape) + np.arange(shape[axis]).reshape(level)).astype(np.float32)
    found = of(shaped("N", *shape[1:]), {"middle": axis}, [{"x": x}])["middle"]
    exact = -x.mean(axis=tuple(a for a in range(len(shape)) if a != axis % len(shape)), dtype=np.float64)
    assert found.mean is not None
    assert 0 < found.mean_count < x.size // shape[axis]  # otherwise it was not sampled
    # A mean of n numbers of deviation 0.1 is known to 0.1 / sqrt(n); neighbours are 1 apart.
    np.testing.assert_allclose(found.mean, exact, rtol=0, atol=5 * 0.1 / np.sqrt(found.mean_count))
    assert 5 * 0.1 / np.sqrt(found.mean_count) < 0.06
