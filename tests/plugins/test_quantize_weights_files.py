"""`quantize.weights` on models in files and from end to end; conformance of the passes that need no data."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_quantize_weights import IDS, REGISTRY, RUNTIME, context, encoder_like

import attar
from attar import graph
from attar.errors import InputError
from attar.testing import conformance
from attar.testing.build import Net
from attar_quantize import Dynamic, Half, Weights, storage
from attar_quantize.storage import is_mapped


@conformance(
    Weights(),
    Weights(type="int4", block=8, method="hqq"),
    models=["encoder", "unet", "weight_in_if", "quantized"],
)
def test_conformance_of_weights() -> None: ...


@conformance(
    Dynamic(plan="everything"), models=["encoder", "mlp", "shared_weight", "quantized", "weight_is_output"]
)
def test_conformance_of_dynamic() -> None: ...


@conformance(
    Half(compute="half"), Half(compute="float32"), models=["encoder", "residual_cnn", "weight_in_if", "half"]
)
def test_conformance_of_half() -> None: ...


@pytest.mark.slow
@conformance(
    Weights(),
    Weights(type="int2", block=4),
    Dynamic(plan="everything"),
    Half(compute="half"),
    Half(type="bfloat16"),
)
def test_conformance_of_every_model() -> None: ...


# -- size --------------------------------------------------------------------------------------------------


def large(path: Path, layers: int, width: int) -> None:
    net = Net("large")
    x = net.input("x", 1, width)
    for i in range(layers):
        x = net.op("Relu", net.op("MatMul", x, net.weight(width, width, name=f"w{i}")))
    graph.save(net.model(y=x), path, external_data=True)


def test_models_in_files_are_quantized_one_weight_at_a_time(tmp_path: Path) -> None:
    layers, width = 10, 768
    large(tmp_path / "large.onnx", layers, width)
    model = graph.read_model(tmp_path / "large.onnx")
    one = 4 * width * width
    gc.collect()
    tracemalloc.start()
    Weights(type="int4", block=32, method="nearest").apply(model, context())
    graph.save(model, tmp_path / "small.onnx", external_data=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * one  # of 10
    stored = [v.const_value for n, v in model.graph.initializers.items() if n.endswith("_scale")]
    assert all(is_mapped(tensor) for tensor in stored if tensor is not None)
    feeds = {"x": np.ones((1, width), np.float32)}
    expected = RUNTIME.open(graph.read_model(tmp_path / "small.onnx")).run(feeds)[0]
    np.testing.assert_allclose(RUNTIME.open(model).run(feeds)[0], expected)
    copy = graph.clone(model)
    del model, stored
    gc.collect()
    np.testing.assert_allclose(RUNTIME.open(copy).run(feeds)[0], expected)


def test_a_full_disk_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    large(tmp_path / "large.onnx", 1, 512)
    model = graph.read_model(tmp_path / "large.onnx")

    def full(**options: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.tempfile, "TemporaryFile", full)
    with pytest.raises(InputError, match="No space left") as caught:
        Weights(type="int4", block=32).apply(model, context())
    assert "TMPDIR" in str(caught.value.hint)


def test_the_same_model_whether_in_a_file_or_in_memory(tmp_path: Path) -> None:
    large(tmp_path / "large.onnx", 2, 256)
    for options in ({"type": "int4", "block": 32}, {}, {"type": "int2", "block": 32}):
        mapped = graph.read_model(tmp_path / "large.onnx")
        loaded = graph.from_proto(graph.to_proto(mapped))
        for model in (mapped, loaded):
            Weights(**options).apply(model, context())
        assert graph.fingerprint(mapped) == graph.fingerprint(loaded)


def test_compress_hands_over_a_smaller_model_and_says_what_it_is() -> None:
    model = encoder_like(wide=256)
    result = attar.compress(model, "int4-weights", inputs=IDS)
    assert result.report.verdict == "accepted"
    assert result.report.after.bytes < 0.25 * result.report.before.bytes
    assert "% of the size" in result.report.headline


def test_the_shipped_table_knows_kernels_on_few_bits() -> None:
    costs = REGISTRY.get_target("cpu-vnni").costs
    for kind in ("matmul.row", "matmul.rows"):
        for name in ("nbits4/32", "nbits4/128", "nbits8/32", "nbits8/128"):
            assert costs.estimate(kind, name, macs=10**6, elements=10**4) is not None
