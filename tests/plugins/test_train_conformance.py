"""Every promise of the passes that train, on the models of the kit; those of a quantized model on its models
after quantization."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from train_data import context, one_thread  # noqa: E402, F401

from attar import graph  # noqa: E402
from attar.run import run_pass  # noqa: E402
from attar.testing import ZOO, ZooModel, conformance  # noqa: E402
from attar_quantize import Static  # noqa: E402
from attar_train import Gradual, Qat, Sparsify, Student  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

# Float16 is not quantized by this pass.
QUANTIZABLE = [name for name in ZOO if name != "half"]
SOME = ["residual_cnn", "lstm", "weight_in_if", "half"]


def quantized(name: str) -> ZooModel:
    """A model of the kit in integers, wherever they can be had."""
    zoo = ZOO[name]

    @cache
    def made() -> ir.Model:
        model = zoo.build()
        graph.normalize(model)
        ctx = context(model, calibration=[zoo.inputs(seed=seed) for seed in range(4)])
        return run_pass(Static(plan="everything", observer="minmax"), model, ctx)[0]

    def build() -> ir.Model:
        return graph.clone(made())

    build.__doc__ = f"In integers: {zoo.about}"
    return replace(zoo, build=build)


INTEGERS = [quantized(name) for name in QUANTIZABLE]
FEW_INTEGERS = [m for m in INTEGERS if m.name in {"depthwise_cnn", "encoder", "quantized", "empty_optional"}]
QAT = (Qat(steps=2), Qat(steps=2, scales="pact", offsets=True))
GRADUAL = (
    Gradual(steps=4, ratio=0.5),
    Gradual(steps=4, ratio=0.5, method="movement", scope="layer", depth=1),
)
SPARSIFY = (Sparsify(steps=2), Sparsify(steps=2, penalty="group"))
STUDENTS = (
    Student(steps=2, block=1),
    Student(steps=2, width=1.0, separable=True),
    Student(steps=2, width=1.0, drop=0.3),
    Student(steps=2, width=1.0, resolution=0.6),
)


@conformance(*QAT, models=FEW_INTEGERS)
def test_passes_conform_on_integers() -> None: ...


@conformance(*GRADUAL, *SPARSIFY, models=SOME)
def test_passes_conform() -> None: ...


@conformance(*STUDENTS, models=["residual_cnn", "quantized", "half"])
def test_students_conform() -> None: ...


@pytest.mark.slow
@conformance(*QAT, *GRADUAL, models=INTEGERS)
def test_passes_conform_on_integers_everywhere() -> None: ...


@pytest.mark.slow
@conformance(*GRADUAL, *SPARSIFY, *STUDENTS)
def test_passes_conform_everywhere() -> None: ...
