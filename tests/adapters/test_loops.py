"""Loops in every framework: as loops where it has them, written out where their rounds are known."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

import attar
from attar import graph
from attar.conversion import prepare
from attar.errors import ConversionError
from attar.registry import default_registry
from attar.runtime import OnnxRuntime

Array = np.ndarray[Any, np.dtype[Any]]
EPSILON = np.finfo(np.float32).eps

LOOP = """<ir_version: 10, opset_import: ["" : 21]> decay (float[N, 3] x)
    => (float[N, 3] last, float[L, N, 3] all)
  <int64 rounds = {ROUNDS}, bool yes = {1}, float half = {0.5}>
  { last, all = Loop (rounds, yes, x) <body = turn (int64 i, bool go, float[N, 3] s)
      => (bool again, float[N, 3] next, float[N, 3] kept)
      { again = Identity(go)  f = Cast <to = 1> (i)  t = Add(s, f)  next = Mul(t, half)
        kept = Sub(next, s) }> }"""
SCAN = """<ir_version: 10, opset_import: ["" : 21]> sums (float[N, 4, 3] x)
    => (float[N, 3] last, float[N, 4, 3] all)
  <int64[1] axis = {1}>
  { start = ReduceMin <keepdims = 0> (x, axis)
    last, all = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
      scan_input_directions = [1], scan_output_directions = [1], body = turn (float[N, 3] s, float[N, 3] one)
      => (float[N, 3] next, float[N, 3] kept) { next = Add(s, one)  kept = Tanh(next) }> (start, x) }"""


def model_of(text: str) -> Any:
    return graph.from_proto(onnx.parser.parse_model(text))


def images(*shape: int) -> Array:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def close(ours: Array, theirs: Array) -> None:
    """Within eight roundings of float32 of the largest value: the loops here make a few sums, each once."""
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=8 * EPSILON * np.abs(theirs).max())


def same(model: Any, framework: str, x: Array) -> Any:
    registry = default_registry()
    exported = registry.get_adapter(framework).write(model, registry=registry)
    wanted = OnnxRuntime().open(model).run({"x": x})
    for ours, theirs in zip(exported.run({"x": x}), wanted, strict=True):
        close(ours, theirs)
    return exported.native


@pytest.mark.parametrize("framework", ["torch", "tensorflow", "mxnet", "tflite"])
@pytest.mark.parametrize(
    ("text", "shape"), [(LOOP.replace("ROUNDS", "4"), (2, 3)), (SCAN, (2, 4, 3))], ids=["loop", "scan"]
)
def test_a_known_number_of_rounds(framework: str, text: str, shape: tuple[int, ...]) -> None:
    if importlib.util.find_spec({"tflite": "tensorflow"}.get(framework, framework)) is None:
        pytest.skip(f"runs in {framework}")
    same(model_of(text), framework, images(*shape))


def test_what_is_written_out_keeps_the_interface_and_the_model() -> None:
    model = model_of(LOOP.replace("ROUNDS", "4"))
    before = graph.to_bytes(model)
    known = {"Add", "Mul", "Sub", "Unsqueeze", "Concat", "Identity"}
    ready = prepare(model, known, "some framework", registry=default_registry())
    assert graph.to_bytes(model) == before
    assert [v.name for v in ready.graph.outputs] == ["last", "all"]
    assert [n.op_type for n in ready.graph].count("Mul") == 4
    assert {n.op_type for n in ready.graph} <= known


@pytest.mark.parametrize("rounds", ["0", "100000"])
def test_loops_of_no_or_very_many_rounds_stay(rounds: str) -> None:
    with pytest.raises(ConversionError) as told:
        prepare(model_of(LOOP.replace("ROUNDS", rounds)), {"Add", "Mul"}, "it", registry=default_registry())
    assert "Loop" in told.value.missing


def test_rounds_that_depend_on_data_are_a_loop_of_torch() -> None:
    torch = pytest.importorskip("torch")
    text = LOOP.replace("int64 rounds = {ROUNDS}, ", "").replace(
        "last, all = Loop",
        "count = Shape <start = 0, end = 1> (x)  rounds = Squeeze(count)  last, all = Loop",
    )
    model = model_of(text)
    module = same(model, "torch", images(3, 3))
    for n in (1, 5):
        same(model, "torch", images(n, 3))
    assert [tuple(t.shape) for t in module(torch.zeros(0, 3))] == [(0, 3), (0, 0, 3)]


def test_a_scan_of_any_length() -> None:
    torch = pytest.importorskip("torch")
    model = model_of(SCAN.replace("[N, 4, 3]", "[N, L, 3]"))
    module = same(model, "torch", images(2, 4, 3))
    for n in (1, 7):
        same(model, "torch", images(2, n, 3))
    scan = next(m for m in module.modules() if type(m).__name__ == "Sweep")
    found = scan(torch.zeros(2, 3), torch.zeros(2, 0, 3))
    assert [tuple(t.shape) for t in found] == [(2, 3), (2, 0, 3)]


def test_sizes_that_are_computed_for_the_batch_alone_become_numbers() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[N, 3, 8, 8] x) => (float[N, 3, 5, 7] y)
      <int64[2] hw = {5, 7}>
      { lead = Shape <start = 0, end = 2> (x)  sizes = Concat <axis = 0> (lead, hw)
        y = Resize <mode = "linear"> (x, , , sizes) }"""
    model = model_of(text)
    ready = prepare(model, {"Resize"}, "it", registry=default_registry())
    (node,) = ready.graph
    assert node.attributes["axes"].as_ints() == (2, 3)
    assert graph.const_array(node.inputs[3]).tolist() == [5, 7]
    for framework in ("torch", "tensorflow", "mxnet"):
        if importlib.util.find_spec(framework) is not None:
            same(model, framework, images(2, 3, 8, 8))


def test_masked_recurrent_layers_of_keras_go_to_torch() -> None:
    torch, keras = pytest.importorskip("torch"), pytest.importorskip("keras")
    layers = keras.layers
    net = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            layers.Embedding(20, 6, mask_zero=True),
            layers.Bidirectional(layers.LSTM(5)),
        ]
    )
    tokens = np.random.default_rng(0).integers(1, 20, (3, 9)).astype(np.int32)
    tokens[0, 6:] = tokens[1, 2:] = 0
    model = attar.load(net, inputs=tokens)
    module = attar.export(model, "torch", inputs=tokens)
    shorter = tokens[:2, :4]
    wanted = net(shorter).numpy()
    close(module(torch.tensor(shorter)).detach().numpy(), wanted)
    again = attar.export(model, "tensorflow", inputs=tokens)
    assert again.trainable_variables
