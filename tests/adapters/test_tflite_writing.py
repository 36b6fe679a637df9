"""`.tflite` files out: ONNX's own tests, exact quantization parameters, microcontroller files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow")
torch = pytest.importorskip("torch")

from onnx_cases import every, one_each  # noqa: E402
from tflite_functions import convert, functions  # noqa: E402

import attar  # noqa: E402
import attar_tensorflow  # noqa: E402
from attar import graph  # noqa: E402
from attar.calibration import as_data  # noqa: E402
from attar.context import Context  # noqa: E402
from attar.errors import ConversionError, InputError  # noqa: E402
from attar.hooks import hookimpl  # noqa: E402
from attar.registry import Registry  # noqa: E402
from attar.report import Step  # noqa: E402
from attar.runtime import OnnxRuntime  # noqa: E402
from attar.specs import input_specs  # noqa: E402
from attar.targets import CPU_INTEGER_OPS, IntegerOp, Target  # noqa: E402
from attar.testing.node_suite import run_suite  # noqa: E402
from attar_tensorflow.tflite.adapter import TFLiteAdapter  # noqa: E402
from attar_tensorflow.tflite.file import parse  # noqa: E402

ADAPTER = TFLiteAdapter()


class Microcontroller:
    """A target on which every operator gives codes."""

    @hookimpl
    def attar_targets(self) -> list[Target]:
        ops = {k: replace(v, float_output=False) for k, v in CPU_INTEGER_OPS.items()}
        ops["Softmax"] = IntegerOp("arithmetic")
        return [Target("micro", "all operators on int8", activation_type="int8", integer_ops=ops)]


@pytest.fixture(scope="module")
def registry() -> Registry:
    found = Registry.discover()
    if "tflite" not in found.adapters:
        found.register(attar_tensorflow, name="tensorflow-for-tests")
    found.register(Microcontroller(), name="micro")
    return found


def test_each_operator_is_right_or_refused(registry: Registry) -> None:
    tally = run_suite(ADAPTER, one_each(), registry=registry)
    assert [(o.case.name, o.detail) for o in tally.of("wrong", "broken")] == []
    assert tally.count("passed") >= 90


@pytest.mark.slow
def test_never_a_wrong_answer(registry: Registry) -> None:
    tally = run_suite(ADAPTER, every(), registry=registry)
    assert [(o.case.name, o.detail) for o in tally.of("wrong", "broken")] == []
    assert tally.count("passed") >= 510
    assert tally.count("passed", core=True) >= 490


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, stride=2, padding=1), torch.nn.BatchNorm2d(16), torch.nn.ReLU6(),
        torch.nn.Conv2d(16, 16, 3, padding=1, groups=16), torch.nn.ReLU(), torch.nn.AvgPool2d(2),
        torch.nn.Conv2d(16, 24, 1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(24, 10),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(64, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def model(registry: Registry):  # type: ignore[no-untyped-def]
    return attar.load(net(), inputs=torch.randn(2, 3, 32, 32), registry=registry)


@pytest.mark.parametrize("layout", ["source", "channels_last"])
def test_a_float_network_computes_the_same(model, images, layout, registry) -> None:  # type: ignore[no-untyped-def]
    exported = ADAPTER.write(model, registry=registry, layout=layout)
    name = model.graph.inputs[0].name
    wanted = OnnxRuntime().open(model).run({name: images})[0]
    np.testing.assert_allclose(exported.run({name: images})[0], wanted, atol=1e-5 * np.abs(wanted).max())
    main = parse(exported.native, "it").graphs[0]
    assert main.tensors[main.inputs[0]].shape[-1] == (3 if layout == "channels_last" else 32)
    assert [o.kind for o in main.operators].count("TRANSPOSE") == (layout == "source")


@pytest.mark.parametrize("int8_io", [True, False])
def test_every_operator_of_a_microcontroller_file_is_integer(model, images, int8_io, registry) -> None:  # type: ignore[no-untyped-def]
    from attar_quantize import Static

    batches = [images[i : i + 16] for i in range(0, 64, 16)]
    quantized = graph.clone(model)
    name = quantized.graph.inputs[0].name
    target = registry.get_target("micro")
    data = as_data([{name: b} for b in batches], input_specs(quantized))
    step = Step("quantize.static", {})
    ctx = Context(registry=registry, target=target, runtime=OnnxRuntime(), data=data, step=step)
    registry.get_pass("fuse.inference")().apply(quantized, ctx)
    Static(plan="everything").apply(quantized, ctx)
    graph.tidy(quantized)
    graph.refresh_shapes(quantized)
    exported = ADAPTER.write(quantized, registry=registry, int8_io=int8_io)
    main = parse(exported.native, "it").graphs[0]
    kinds = {o.kind for o in main.operators}
    real = {t.type for t in main.tensors if t.type.startswith("FLOAT")}
    assert bool(real) is not int8_io
    assert ("DEQUANTIZE" in kinds) is not int8_io
    wanted = OnnxRuntime().open(quantized).run({name: images})[0]
    got = exported.run({name: images})[0]
    assert (got.argmax(1) == wanted.argmax(1)).mean() >= 0.98
    # The same rounding in both: nearly every output is the same code.
    assert np.isclose(got, wanted, atol=1e-6).mean() >= 0.98


@pytest.mark.parametrize("name", ["conv_same", "depthwise", "residual", "concat", "dense"])
def test_reading_and_writing_keeps_every_scale_and_weight(name: str, registry: Registry) -> None:
    function, shape = functions()[name]
    data = convert(function, shape, "int8")
    again = ADAPTER.write(ADAPTER.load(data, registry=registry).model, registry=registry).native

    def facts(content: bytes) -> list:
        found = []
        for t in parse(content, "it").graphs[0].tensors:
            if t.quantization is not None:
                q = t.quantization
                stored = None if t.array is None else t.array.tobytes()
                found.append((t.type, np.ravel(q.scale).tolist(), np.ravel(q.zero_point).tolist(), stored))
        return sorted(found, key=repr)

    assert facts(again) == facts(data)


def test_gelu_by_its_error_function_becomes_one_operator(registry: Registry) -> None:
    import onnx
    import onnx.parser

    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[4, 8] x) => (float[4, 8] y)
      <float root = {1.4142135}, float one = {1.0}, float half = {0.5}>
      { a = Div(x, root) b = Erf(a) c = Add(one, b) d = Mul(x, c) y = Mul(half, d) }"""
    loaded = attar.load(onnx.parser.parse_model(text), registry=registry)
    exported = ADAPTER.write(loaded, registry=registry)
    assert [o.kind for o in parse(exported.native, "it").graphs[0].operators] == ["GELU"]
    x = np.linspace(-4, 4, 32, dtype=np.float32).reshape(4, 8)
    wanted = OnnxRuntime().open(loaded).run({"x": x})[0]
    np.testing.assert_allclose(exported.run({"x": x})[0], wanted, atol=1e-6)


def test_everything_that_cannot_be_said_is_listed(registry: Registry) -> None:
    import onnx.parser

    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[4, 8] x) => (float[4, 8] y)
      { a = Atan(x) b = Asinh(a) y = Erf(b) }"""
    with pytest.raises(ConversionError) as caught:
        ADAPTER.write(attar.load(onnx.parser.parse_model(text), registry=registry), registry=registry)
    assert set(caught.value.missing) == {"Atan", "Asinh", "Erf"}


def test_files_and_options(model, tmp_path: Path, registry: Registry) -> None:  # type: ignore[no-untyped-def]
    exported = ADAPTER.write(model, registry=registry)
    (path,) = ADAPTER.save(exported, tmp_path / "net.tflite")
    assert path.read_bytes() == exported.native
    assert ADAPTER.load(path, registry=registry).model.graph.inputs[0].name == model.graph.inputs[0].name
    with pytest.raises(InputError, match=r"\.tflite"):
        ADAPTER.save(exported, tmp_path / "net.onnx")
    with pytest.raises(InputError, match="layuot"):
        ADAPTER.write(model, registry=registry, layuot="source")
    with pytest.raises(InputError, match="layout"):
        ADAPTER.write(model, registry=registry, layout="last")
