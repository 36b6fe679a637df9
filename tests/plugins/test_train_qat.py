"""`train.qat`: a quantized model trained through its rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import attar
from attar import graph
from attar.calibration import as_data
from attar.context import Context
from attar.errors import InputError, Refused
from attar.registry import default_registry
from attar.run import run_pass
from attar.runtime import OnnxRuntime
from attar.specs import input_specs
from attar.testing.build import Net
from attar.training import as_training

torch = pytest.importorskip("torch")
from quantize_models import Array, constant, run, small_cnn, sqnr  # noqa: E402

from attar_quantize import Static  # noqa: E402
from attar_train import Qat  # noqa: E402
from attar_train.constrain import constrain  # noqa: E402
from attar_train.qat import FrozenNorms, fewest_bits, rate_for  # noqa: E402

REGISTRY, RUNTIME = default_registry(), OnnxRuntime()
RNG = np.random.default_rng(0)
TRAIN = RNG.standard_normal((256, 3, 8, 8)).astype(np.float32)
TEST = RNG.standard_normal((500, 3, 8, 8)).astype(np.float32)


def context(model: ir.Model, x: Array = TRAIN, labels: Any = None, **more: Any) -> Context:
    specs = input_specs(model)
    return Context(
        REGISTRY, REGISTRY.get_target("cpu"), RUNTIME, as_data(x[:64], specs),
        training_data=as_training(x if labels is None else (x, labels), specs), original=model, **more,
    )  # fmt: skip


def quantized(model: ir.Model, ctx: Context, **options: Any) -> ir.Model:
    return run_pass(Static(plan="everything", **{"observer": "mse", **options}), model, ctx)[0]


def near(model: ir.Model, original: ir.Model) -> float:
    """Decibels of the outputs on inputs that took no part in the training."""
    return sqnr(run(original, {"x": TEST})[0], run(model, {"x": TEST})[0])


@pytest.mark.parametrize("scales", ["lsq", "pact", "ste"])
def test_it_comes_nearer_to_the_original_without_labels(scales: str) -> None:
    model = small_cnn()
    ctx = context(model)
    integers = quantized(model, ctx, weight_bits=2, activation_bits=4, rounding="nearest")
    before = near(integers, model)
    result, record = run_pass(
        Qat(scales=scales, loss="mse", steps=40, batch_size=64, lr=3e-3, threads=1), integers, ctx
    )
    assert near(result, model) > before + 2.0
    assert "holding 4 quantized weights, 8 quantized activations" in record.changes[-1]
    assert [n.op_type for n in result.graph] == [n.op_type for n in integers.graph]
    assert set(result.graph.initializers) == set(integers.graph.initializers)


def test_the_result_is_the_same_each_time_and_the_input_untouched() -> None:
    model = small_cnn()
    ctx = context(model)
    integers = quantized(model, ctx)
    before = graph.fingerprint(integers)
    made = []
    for _ in range(2):
        ctx.cache.clear()
        step = Qat(steps=4, batch_size=32, threads=1)
        made.append(graph.fingerprint(run_pass(step, integers, ctx)[0]))
    assert made[0] == made[1] != before
    assert graph.fingerprint(integers) == before


def test_float_models_are_refused() -> None:
    model = small_cnn()
    with pytest.raises(Refused, match="nothing quantized") as error:
        run_pass(Qat(steps=1), model, context(model))
    assert "quantize.static" in str(error.value.hint)


def test_training_data_are_asked_for() -> None:
    with pytest.raises(InputError, match="training"):
        attar.compress(small_cnn(), [Static(), Qat(steps=1)], calibration=TRAIN[:32])


def test_labels_can_take_part() -> None:
    model = small_cnn()
    labels = run(model, {"x": TRAIN})[0].argmax(1)
    ctx = context(model, labels=labels)
    integers = quantized(model, ctx, weight_bits=4, rounding="nearest")
    result, _ = run_pass(Qat(labels=1.0, steps=40, batch_size=64, lr=3e-3, threads=1), integers, ctx)
    truth = run(model, {"x": TEST})[0].argmax(1)
    assert (run(result, {"x": TEST})[0].argmax(1) == truth).mean() > 0.9


def test_the_rate_goes_by_the_bits() -> None:
    model = small_cnn()
    ctx = context(model)
    assert fewest_bits(constrain(quantized(model, ctx)).model) == 8
    few = constrain(quantized(model, ctx, weight_bits=5, activation_bits=4, rounding="nearest")).model
    assert fewest_bits(few) == 4
    assert rate_for(4, "adamw") > rate_for(8, "adamw")


def with_norm() -> ir.Model:
    """A quantized convolution with a BatchNormalization behind it that nothing folded."""
    net = Net("norm", 3)
    s, z = net.const(np.float32(0.03)), net.const(np.uint8(128))
    x = net.op("DequantizeLinear", net.op("QuantizeLinear", net.input("x", "N", 3, 8, 8), s, z), s, z)
    codes = net.const(RNG.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8))
    weight = net.op("DequantizeLinear", codes, net.const(np.float32(0.002)), net.const(np.int8(0)))
    y = net.op("Conv", x, weight, kernel_shape=[3, 3])
    y = net.op(
        "BatchNormalization", y, net.vector(4, 0.5, 1.5), net.vector(4, -1, 1), net.vector(4, -0.1, 0.1),
        net.vector(4, 0.5, 2.0),
    )  # fmt: skip
    return net.model(y=net.dense(net.pooled(net.op("Relu", y)), 4, 3))


def statistics(model: ir.Model) -> list[Array]:
    (norm,) = (n for n in model.graph if n.op_type == "BatchNormalization")
    return [constant(v) for v in norm.inputs[3:]]


def test_norms_that_are_left_are_re_estimated_then_frozen() -> None:
    model = with_norm()
    ctx = context(model)
    result, _ = run_pass(Qat(steps=6, batch_size=64, threads=1), model, ctx)
    assert not np.array_equal(statistics(result)[0], statistics(model)[0])
    still, _ = run_pass(Qat(steps=6, batch_size=64, norms=0.0, threads=1), model, ctx)
    assert np.array_equal(statistics(still)[0], statistics(model)[0])
    norm = torch.nn.BatchNorm2d(2).train()
    callback = FrozenNorms([norm], 0.5)
    seen = []
    for step in range(4):
        norm.train()
        callback.before_step(step, 4)
        seen.append(norm.training)
    assert seen == [True, True, False, False]


def test_what_gets_no_gradient_is_told() -> None:
    net = Net("odd", 1)
    x = net.input("x", "N", 3, 8, 8)
    scale = net.op("Add", net.op("ReduceMax", x, keepdims=0), net.const(np.float32(9)))
    z = net.const(np.uint8(128))
    x = net.op("DequantizeLinear", net.op("QuantizeLinear", x, scale, z), scale, z)
    codes = net.const(RNG.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8))
    weight = net.op("DequantizeLinear", codes, net.const(np.float32(0.01)), net.const(np.int8(0)))
    model = net.model(y=net.pooled(net.op("Conv", x, weight, kernel_shape=[3, 3])))
    _, record = run_pass(Qat(steps=2, batch_size=32, loss="mse", threads=1), model, context(model))
    assert any("its scale is computed" in change for change in record.changes)


@pytest.mark.slow
def test_digits_with_two_bit_weights_are_read_again() -> None:
    from importlib.resources import as_file, files

    from attar.demo.digits import digits

    x, _ = digits("train")
    xs, ys = digits("test")
    with as_file(files("attar.demo").joinpath("digits.onnx")) as path:
        model = attar.load(path)
    ctx = context(model, x)
    integers = quantized(model, ctx, weight_bits=2, activation_bits=4, rounding="nearest")
    ctx.unquantized = model
    result, _ = run_pass(Qat(steps=80, batch_size=32), integers, ctx)
    before, after = (attar.evaluate(m, (xs, ys)) for m in (integers, result))
    assert after > before
    assert after > 0.95
