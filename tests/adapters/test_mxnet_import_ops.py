"""Every kind of operator of MXNet, read natively, against MXNet 1.9.1 itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import onnx_ir as ir
import pytest
from mxnet_cases import Array, Case, build, compare
from mxnet_cases_arrays import ARRAYS
from mxnet_cases_elements import ELEMENTS
from mxnet_cases_layers import LAYERS
from mxnet_nets import with_mxnet

from attar.adapters import Loaded
from attar.errors import ConversionError, InputError
from attar.registry import Registry

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mxnet") is None, reason="compares with MXNet")


@pytest.fixture(scope="module")
def registry() -> Registry:
    return with_mxnet()


NEEDS_SIZES = {
    "GroupNorm",
    "Pooling",
    "UpSampling",
    "diag",
    "gather_nd",
    "SliceChannel",
    "Crop",
    "_split_v2",
    "_np_roll",
    "_npi_var",
    "_contrib_AdaptiveAvgPooling2D",
    "_contrib_BilinearResize2D",
    "_contrib_MultiBoxPrior",
    "_contrib_interleaved_matmul_selfatt_qk",
    "_contrib_interleaved_matmul_selfatt_valatt",
    "_contrib_interleaved_matmul_encdec_qk",
    "_contrib_interleaved_matmul_encdec_valatt",
}
LABELLED = {
    "SoftmaxOutput",
    "LogisticRegressionOutput",
    "LinearRegressionOutput",
    "MAERegressionOutput",
    "SVMOutput",
}
CASES = [*LAYERS, *ELEMENTS, *ARRAYS]


def _ids(cases: list[Case]) -> list[str]:
    return [f"{n:03d}-{c.op}" for n, c in enumerate(cases)]


@pytest.mark.parametrize("case", CASES, ids=_ids(CASES))
def test_operator_matches_mxnet(case: Case, tmp_path: Path, registry: Registry) -> None:
    path, feeds = build(case, tmp_path)
    loaded = registry.get_adapter("mxnet").load(path, registry=registry, inputs=feeds, dynamic=None)
    compare(loaded, feeds)


def _open(case: Case, folder: Path, registry: Registry) -> tuple[Loaded, dict[str, Array]]:
    """The network of one operator, read with no size of its inputs known."""
    path, feeds = build(case, folder)
    shapes = {n: tuple(f"{n}_axis{i}" for i in range(a.ndim)) for n, a in feeds.items()}
    types = {n: a.dtype for n, a in feeds.items()}
    return registry.get_adapter("mxnet").load(path, registry=registry, shapes=shapes, dtypes=types), feeds


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=_ids(CASES))
def test_operator_on_inputs_of_unknown_sizes(case: Case, tmp_path: Path, registry: Registry) -> None:
    """Right at every size, or refused when it is read: never wrong, and never an error of the runtime."""
    if case.op in LABELLED:
        pytest.skip("its label is no input")
    try:
        loaded, feeds = _open(case, tmp_path, registry)
    except (ConversionError, InputError):
        assert case.op in NEEDS_SIZES
        return
    assert all(isinstance(d, ir.SymbolicDim) for v in loaded.model.graph.inputs for d in v.shape or ())
    compare(loaded, feeds)
