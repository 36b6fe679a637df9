"""The top-level functions besides `compress`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from spine_models import cnn, images, mlp

import attar
from attar import graph
from attar.adapters import Adapter, Loaded
from attar.errors import InputError, VerifyError
from attar.hooks import hookimpl
from attar.registry import Registry
from attar.runtime import OnnxRuntime


def labelled(batches: int = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(x, rng.integers(0, 10, len(x))) for x in images(batches)]


def test_load_never_changes_what_it_is_given(tmp_path: Path) -> None:
    model = cnn(8)
    before = graph.to_bytes(model)
    loaded = attar.load(model)
    assert graph.to_bytes(model) == before
    weight = next(iter(loaded.graph.initializers.values()))
    array = graph.const_array(weight)
    assert array is not None
    graph.replace_weight(weight, array * 0)
    assert graph.to_bytes(model) == before
    attar.save(model, tmp_path / "m.onnx")
    for source in (tmp_path / "m.onnx", str(tmp_path / "m.onnx"), before, graph.to_proto(model)):
        again = attar.load(source)
        np.testing.assert_array_equal(
            OnnxRuntime().open(again)(images(1)[0])[0], OnnxRuntime().open(model)(images(1)[0])[0]
        )


def test_a_model_keeps_its_origin_when_it_is_loaded_again() -> None:
    model = attar.load(cnn(8))
    graph.set_provenance(model, framework="torch", passes="fuse.inference")
    again = attar.load(model)
    assert graph.provenance(again)["framework"] == "torch"
    assert graph.provenance(again)["passes"] == "fuse.inference"


class Liar(Adapter):
    """Reads `Foreign` and says that it computes something else."""

    name = "liar"

    def __init__(self, factor: float, shape: tuple[int, ...] | None = None) -> None:
        self.factor, self.shape = factor, shape

    def recognises(self, source: Any) -> bool:
        return source == "foreign" or isinstance(source, Foreign)

    def load(self, source: Any, *, inputs: Any = None, **options: Any) -> Loaded:
        model = mlp()
        example = {"x": np.ones((2, 16), np.float32)}

        def reference(feeds: Any) -> list[np.ndarray]:
            out = OnnxRuntime().open(model).run(feeds)[0] * self.factor
            return [out if self.shape is None else out.reshape(self.shape)]

        return Loaded(model, reference=reference, example=example, notes=("a note",))


class Foreign:
    """A model of a framework that nobody has."""


def liars(factor: float, shape: tuple[int, ...] | None = None) -> Registry:
    class Plugin:
        @hookimpl
        def attar_adapters(self) -> list[Adapter]:
            return [Liar(factor, shape)]

    registry = Registry.discover()
    registry.register(Plugin(), name="liar")
    return registry


def test_a_source_that_computes_something_else_is_an_error() -> None:
    assert attar.load(Foreign(), registry=liars(1.0))
    assert attar.load(Foreign(), registry=liars(1.0005))
    with pytest.raises(VerifyError, match=r"differs from its liar source by 0\.0[\s\S]*verify=False"):
        attar.load(Foreign(), registry=liars(1.01))
    assert attar.load(Foreign(), registry=liars(1.01), verify=False)
    with pytest.raises(VerifyError, match=r"output 'y' of the liar model .* has shape \[2, 4\], not \[8\]"):
        attar.load(Foreign(), registry=liars(1.0, (8,)))
    with pytest.raises(VerifyError, match=r"differs"):
        attar.load(Foreign(), registry=liars(np.nan))


def test_what_nobody_reads_names_the_adapters() -> None:
    with pytest.raises(InputError, match=r"no adapter reads builtins\.int[\s\S]*onnx"):
        attar.load(3)
    with pytest.raises(InputError, match=r"no such file"):
        attar.load("nothing.onnx")


def test_evaluate_is_the_share_of_hits() -> None:
    data = labelled()
    session = OnnxRuntime().open(cnn(8))
    hits = sum(int((session(x)[0].argmax(1) == y).sum()) for x, y in data)
    assert attar.evaluate(cnn(8), data) == pytest.approx(hits / 12)
    top5 = sum(int((np.argsort(session(x)[0], 1)[:, -5:] == y[:, None]).sum()) for x, y in data)
    assert attar.evaluate(cnn(8), data, "top5") == pytest.approx(top5 / 12)
    assert attar.evaluate(cnn(8), data, lambda outputs, labels: (len(labels), 2)) == 2.0


@pytest.mark.parametrize(
    ("data", "metric", "told"),
    [
        (images(), "top1", "needs labels"),
        (labelled(), "top11", r"unknown metric 'top11'[\s\S]*top1"),
        ([], "top1", "empty|no "),
        ([(np.ones((1, 4), "f"), np.zeros(1, int))], "top1", "x"),
    ],
)
def test_evaluate_names_what_is_wrong(data: Any, metric: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        attar.evaluate(cnn(8), data, metric)


def test_preprocess_reaches_folders_of_images_and_only_them(tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for label in range(10):
        (tmp_path / f"c{label}").mkdir()
        Image.fromarray(rng.integers(0, 255, (30, 30, 3), np.uint8)).save(tmp_path / f"c{label}" / "a.png")
    value = attar.evaluate(cnn(8), tmp_path, preprocess={"size": 24})
    assert value in {i / 10 for i in range(11)}
    result = attar.compress(
        cnn(8),
        calibration=tmp_path,
        evaluate=(tmp_path, "top1"),
        preprocess={"size": 24},
        max_drop=1.0,
    )
    assert result.report.before.metric == value
    labels = [note for note in result.report.notes if "by folder" in note]
    assert len(labels) == 1, (
        result.report.notes
    )  # once, though both the calibration and the evaluation say it


def test_profile_times_the_whole_and_the_parts() -> None:
    found = attar.profile(cnn(), runs=5)
    assert found.latency_ms > 0
    assert found.shapes == {"x": (1, 3, 24, 24)}
    timed = [k for k in found.kernels if k.compute]
    assert len(timed) == 4
    assert all(k.milliseconds is not None for k in timed)
    json.dumps(found.to_dict(), allow_nan=False)
    assert attar.profile(cnn(), runs=3, inputs=images(1, 2)[0]).shapes == {"x": (2, 3, 24, 24)}
    assert attar.profile(cnn(), runs=3, inputs={"x": images(1, 3)[0]}).shapes == {"x": (3, 3, 24, 24)}


def test_compare_two_models() -> None:
    found = attar.compare(cnn(8), cnn(16), runs=12)
    assert found.before.bytes < found.after.bytes
    assert found.speed.runs <= 12
    assert found.outputs[0].sqnr_db < 20
    assert attar.compare(cnn(8), cnn(8), runs=10).outputs[0].sqnr_db == np.inf
    json.dumps(found.to_dict(), allow_nan=False)


def test_compare_on_data() -> None:
    found = attar.compare(cnn(8), cnn(8, seed=1), data=images(3), runs=10)
    a, b = OnnxRuntime().open(cnn(8)), OnnxRuntime().open(cnn(8, seed=1))
    x, y = (np.concatenate([s(i)[0] for i in images(3)]).astype(np.float64) for s in (a, b))
    assert found.outputs[0].max_abs == pytest.approx(np.abs(x - y).max(), rel=1e-6)
    assert found.outputs[0].samples == 12


def test_compare_needs_the_same_interface() -> None:
    with pytest.raises(InputError, match=r"inputs differ|input 'x' has shape"):
        attar.compare(cnn(8), mlp())
    renamed = mlp()
    renamed.graph.inputs[0].name = "other"
    with pytest.raises(InputError, match=r"inputs differ: x: float32\[N, 16\] and other: float32\[N, 16\]"):
        attar.compare(mlp(), renamed)
    outputs = mlp()
    outputs.graph.outputs[0].name = "z"
    with pytest.raises(InputError, match=r"outputs differ: y and z"):
        attar.compare(mlp(), outputs)


def test_save_to_a_place_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write"):
        attar.save(mlp(), tmp_path / "none" / "m.onnx")


def test_ir_is_a_model_of_its_own() -> None:
    assert isinstance(attar.load(cnn(8)), ir.Model)
