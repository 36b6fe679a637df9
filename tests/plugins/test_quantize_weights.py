"""`quantize.weights`: methods, what is written, what the target makes of it, and models of any size."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attar import graph
from attar.context import Context
from attar.errors import RecipeError, Refused
from attar.lowering import lower
from attar.registry import default_registry
from attar.run import run_pass
from attar.runtime import OnnxRuntime
from attar.testing import ZOO
from attar.testing.build import Net
from attar_quantize.methods import METHODS, Layer, error_of
from attar_quantize.scheme import QType, weight_params
from attar_quantize.weights import Weights

Array = np.ndarray[Any, Any]
RUNTIME, REGISTRY = OnnxRuntime(), default_registry()
seeds = st.integers(0, 2**32 - 1)


def context(feeds: dict[str, Array] | None = None, target: str = "cpu-vnni") -> Context:
    return Context(REGISTRY, REGISTRY.get_target(target), RUNTIME, feeds=feeds)


def outlying(seed: int, *shape: int) -> Array:
    """Weights as networks have them: mostly small, some large."""
    rng = np.random.default_rng(seed)
    return (rng.standard_t(4, shape) * 0.05).astype(np.float32)


def encoder_like(rows: int = 4, *, wide: int = 64) -> ir.Model:
    """A table, MatMul, Gemm of either layout and a Conv."""
    net = Net("small", 3)
    table = net.weight(50, wide, name="table")
    x = net.op("Gather", table, net.input("ids", rows, dtype=ir.DataType.INT64))
    x = net.op("Relu", net.op("MatMul", x, net.weight(wide, wide, name="first")))
    x = net.op("Relu", net.op("Gemm", x, net.weight(wide, wide, name="second")))
    x = net.op("Gemm", x, net.weight(16, wide, name="third"), net.vector(16, -1, 1), transB=1)
    return net.model(y=x)


IDS = {"ids": np.array([3, 49, 0, 3])}


def dequantizers(model: ir.Model) -> dict[str, ir.Node]:
    """Weight name -> its DequantizeLinear."""
    return {
        (n.inputs[0].name or "").removesuffix("_quantized"): n
        for n in graph.all_nodes(model)
        if n.op_type == "DequantizeLinear" and n.inputs[0] is not None
    }


def kinds(model: ir.Model) -> dict[str, str]:
    return {k: n.inputs[0].dtype.name for k, n in dequantizers(model).items() if n.inputs[0].dtype}


# -- methods -------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    seeds,
    st.sampled_from(["int4", "uint4", "int2", "int8", "uint3"]),
    st.sampled_from([(0, 0), (1, 0), (0, 4), (1, 4), (2, 5)]),
    st.booleans(),
)
def test_nearest_is_the_float64_definition(
    seed: int, name: str, where: tuple[int, int], symmetric: bool
) -> None:
    axis, block = where
    weight = outlying(seed, 9, 8, 7)
    qtype = QType.of(name, block=block, symmetric=symmetric)
    codes, params = METHODS["nearest"](Layer(weight, qtype, axis))
    expected = weight_params(weight, qtype, axis)
    np.testing.assert_array_equal(params.scale, expected.scale)
    np.testing.assert_array_equal(params.zero_point, expected.zero_point)
    exact = expected.quantize(weight).astype(int)
    # float32 may fall to the other side of a tie, and nowhere else.
    off = np.abs(codes.astype(int) - exact)
    ratio = weight / np.broadcast_to(expected._along(weight.shape)[0], weight.shape)
    assert (off <= (np.abs(ratio - np.rint(ratio)) > 0.4999)).all()


@settings(deadline=None, max_examples=30)
@given(seeds, st.sampled_from(["int4", "uint4", "uint2", "int3", "int8"]), st.sampled_from([0, 8, 16]))
def test_methods_never_do_worse_than_nearest_by_their_own_measure(seed: int, name: str, block: int) -> None:
    weight = outlying(seed, 32, 6)
    qtype = QType.of(name, block=block, symmetric=name.startswith("i"))
    errors = {}
    for method in ("nearest", "mse", "hqq"):
        codes, params = METHODS[method](Layer(weight, qtype, 0 if block else 1))
        assert codes.shape == weight.shape
        assert codes.min() >= qtype.qmin
        assert codes.max() <= qtype.qmax
        difference = np.abs(params.dequantize(codes) - weight)
        errors[method] = (float((difference**2).sum()), float(np.sqrt(difference).sum()))
    assert errors["mse"][0] <= errors["nearest"][0] * (1 + 1e-5)
    # HQQ starts from a few shrunk ranges and keeps the best of the root norm.
    assert errors["hqq"][1] <= errors["nearest"][1] * (1 + 1e-5)


@pytest.mark.parametrize("method", ["nearest", "mse", "hqq"])
@pytest.mark.parametrize("name", ["int4", "uint4", "int8", "float8e4m3fn"])
def test_extreme_weights_stay_finite(method: str, name: str) -> None:
    weight = np.zeros((4, 16), np.float32)
    weight[1] = 3e38 * np.linspace(-1, 1, 16)
    weight[2] = np.float32(1e-45)
    weight[3, 0] = 1.0
    for block in (0, 4):
        layer = Layer(weight, QType.of(name, block=block, symmetric=name != "uint4"), 1 if block else 0)
        codes, params = METHODS[method](layer)
        back = params.dequantize(codes)
        assert np.isfinite(back).all()
        assert not back[0].any()
        assert np.abs(back[1] - weight[1]).max() <= 3e38 * (0.15 if block else 0.3)
        assert back[3, 0] == pytest.approx(1.0, rel=0.1)


def test_few_bits_gain_from_shrinking_and_from_forgiving_outliers() -> None:
    weight = outlying(1, 256, 64)
    layer = Layer(weight, QType.of("int3", symmetric=True, block=64), 0)
    squares = {m: error_of(layer, *METHODS[m](layer)) for m in METHODS if m in ("nearest", "mse", "hqq")}
    assert squares["mse"] < 0.8 * squares["nearest"]
    assert squares["hqq"] < 0.85 * squares["nearest"]


# -- what is written -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"type": "int4", "block": 16}, {"type": "int2", "block": 16}])
def test_weights_become_integers_and_outputs_follow_from_them_exactly(options: dict[str, Any]) -> None:
    model = encoder_like()
    result, _ = run_pass(Weights(**options), model, context(IDS), IDS)
    found = dequantizers(result)
    assert set(found) == {"table", "first", "second", "third"}
    # The same network with the dequantized numbers written back as floats.
    twin = encoder_like()
    for name, node in found.items():
        copy = graph.clone(result)
        value = next(v for n in copy.graph for v in n.outputs if v.name == node.outputs[0].name)
        copy.graph.outputs.append(value)
        numbers = RUNTIME.open(copy, optimize=False).run(IDS)[-1]
        stored = twin.graph.initializers[name]
        graph.replace_weight(stored, numbers.T.copy() if name == "third" else numbers)
    expected = RUNTIME.open(twin, optimize=False).run(IDS)[0]
    np.testing.assert_allclose(
        RUNTIME.open(result, optimize=False).run(IDS)[0], expected, rtol=1e-5, atol=1e-5
    )


def test_gemm_weights_are_stored_as_kernels_want_them() -> None:
    result, _ = run_pass(Weights(type="int4", block=32), encoder_like(), context(IDS), IDS)
    node = dequantizers(result)["third"]
    assert node.inputs[0] is not None
    assert node.inputs[0].shape == ir.Shape([64, 16])
    users = [u for u, _ in node.outputs[0].uses()]
    assert all(u.attributes["transB"].value == 0 for u in users)


@pytest.mark.parametrize(("bits", "opset"), [("int8", 21), ("int4", 21), ("int2", 25)])
def test_opset_and_bytes(bits: str, opset: int) -> None:
    model = encoder_like(wide=256)
    result, step = run_pass(Weights(type=bits, block=64), model, context(IDS), IDS)
    assert result.opset_imports[""] == opset
    before, after = graph.byte_size(model), graph.byte_size(result)
    share = (int(bits[3:]) + 32 / 64 + (0 if bits == "int8" else int(bits[3:]) / 64)) / 32
    assert after == pytest.approx(before * share, rel=0.03)
    assert f"{before} -> {after}" in step.changes[-1]


def test_overrides_mix_types_by_name() -> None:
    step = Weights(type="int4", block=16, overrides=("table=int8/0", "second=float", "*gemm*=uint8/32"))
    result, record = run_pass(step, encoder_like(), context(IDS), IDS)
    assert kinds(result) == {"table": "INT8", "first": "UINT4", "third": "UINT8"}
    assert "block_size" not in dequantizers(result)["table"].attributes
    assert dequantizers(result)["third"].attributes["block_size"].value == 32
    assert [(s.name, s.reason) for s in record.skipped] == [("second", "kept in float by option overrides")]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"type": "int99"}, "1 to 16 bits"),
        ({"type": "flaot8"}, "no type"),
        ({"type": "float4e2m1"}, "no kernel"),
        ({"method": "magic"}, "unknown method"),
        ({"operators": ("Relu",)}, "whose weights are not known"),
        ({"overrides": ("nothing",)}, "pattern=type"),
        ({"overrides": ("x=int4/k",)}, "no block size"),
        ({"overrides": ("x=int0",)}, "1 to 16 bits"),
    ],
)
def test_wrong_options_name_themselves(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Weights(**options)


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(RecipeError, match="matches no weight or node"):
        run_pass(Weights(overrides=("encoder.*=int8",)), encoder_like(), context(IDS), IDS)


def test_what_cannot_be_quantized_is_told() -> None:
    net = Net("odd")
    x = net.input("x", 2, 64)
    broken = net.array(64, 64)
    broken[3, 5] = np.nan
    x = net.op("MatMul", x, net.const(broken, "broken"))
    turned = net.op("Gemm", net.input("t", 64, 2), net.weight(64, 64, name="turned"), transA=1)
    small = net.op("MatMul", net.input("z", 2, 4), net.weight(4, 4, name="small"))
    model = net.model(y=x, t2=turned, s=small)
    with pytest.raises(Refused) as caught:
        Weights().apply(model, context())
    said = dict(caught.value.nodes)
    assert "NaN" in said["broken"]
    assert "transA" in said["turned"]
    assert "too small" in said["small"]


def test_shared_and_tied_weights_keep_one_copy() -> None:
    net = Net("tied", 5)
    table = net.weight(40, 32, name="table")
    x = net.op("Gather", table, net.input("ids", 3, dtype=ir.DataType.INT64))
    again = net.weight(32, 32, name="again")
    x = net.op("MatMul", net.op("MatMul", x, again), again)
    model = net.model(y=net.op("MatMul", x, net.op("Transpose", table, perm=[1, 0])))
    feeds = {"ids": np.array([0, 5, 39])}
    result, _ = run_pass(Weights(), model, context(feeds), feeds)
    assert kinds(result) == {"table": "INT8", "again": "INT8"}
    before, after = (RUNTIME.open(m).run(feeds)[0] for m in (model, lower(result, context().target)[0]))
    assert np.abs(before - after).max() < 0.03 * np.abs(before).max()


# -- what the target makes of it -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["encoder", "conv3d", "lstm", "unet", "embedding", "tied_embedding"])
@pytest.mark.parametrize(
    "options", [{}, {"type": "int4", "block": 5}, {"type": "int2", "block": 4}, {"symmetric": False}], ids=str
)
def test_lowered_models_compute_the_same_without_dequantizing_at_run_time(
    name: str, options: dict[str, Any]
) -> None:
    model = ZOO[name].build()
    graph.normalize(model)
    feeds = ZOO[name].inputs(seed=1)
    result, _ = run_pass(Weights(**options), model, context(feeds), feeds)
    lowered, done = lower(result, context().target)
    assert done
    plain, quick = RUNTIME.open(result, optimize=False), RUNTIME.open(lowered)
    for a, b in zip(plain.run(feeds), quick.run(feeds), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert not {k.op for k in quick.kernels()} & {"DequantizeLinear", "MatMulNBits"}


def test_rows_of_a_table_are_gathered_as_integers() -> None:
    for symmetric in (True, False):
        step = Weights(operators=("Gather",), symmetric=symmetric)
        result, _ = run_pass(step, encoder_like(), context(IDS), IDS)
        lowered, done = lower(result, context().target)
        assert "rows-of-tables (1)" in done
        codes = next(v for n, v in lowered.graph.initializers.items() if n.startswith("table_quantized"))
        assert [u.op_type for u, _ in codes.uses()] == ["Gather"]
        got, expected = (RUNTIME.open(m, optimize=False).run(IDS)[0] for m in (lowered, result))
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_few_rows_are_left_to_the_kernel_on_few_bits_where_the_table_says_so() -> None:
    def marks(rows: int, target: str = "cpu-vnni", **options: Any) -> dict[str, str]:
        net = Net("wide")
        x = net.op("MatMul", net.input("x", rows, 1024), net.weight(1024, 1024, name="w"))
        feeds = {"x": np.ones((rows, 1024), np.float32)}
        result, _ = run_pass(Weights(**options), net.model(y=x), context(feeds, target), feeds)
        lowered, _ = lower(result, context().target)
        ops = {k.op for k in RUNTIME.open(lowered).kernels()}
        assert ("MatMulNBits" in ops) == (
            dequantizers(result)["w"].metadata_props["attar.weights"] == "kernel"
        )
        return {k: n.metadata_props["attar.weights"] for k, n in dequantizers(result).items()}

    assert marks(1, type="int4", block=32) == {"w": "kernel"}
    assert marks(1, type="int8", block=128) == {"w": "kernel"}
    assert marks(1, type="int8") == {"w": "load"}  # no kernel takes a scale a channel
    assert marks(1, type="int2", block=32) == {"w": "load"}  # slower than float
