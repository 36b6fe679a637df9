"""What every pass promises, kept by low rank and depthwise separable reconstruction."""

from __future__ import annotations

import numpy as np
import pytest
from test_factor import apply, cnn, images, noise

from attar import graph
from attar.testing import conformance
from attar_factor import LowRank, Separable

MODELS = ["residual_cnn", "shared_weight", "attention", "conv1d", "weight_in_if", "weight_is_output"]


@conformance(LowRank(energy=0.7), models=[*MODELS, "quantized", "unnamed_nodes"])
def test_conformance() -> None: ...


@conformance(LowRank(rank=2, force=True, method="cp"), models=["residual_cnn", "depthwise_cnn"])
def test_conformance_of_cp() -> None: ...


@conformance(Separable(max_error=1.0), models=["residual_cnn", "conv1d"])
def test_conformance_of_separable() -> None: ...


@pytest.mark.slow
@conformance(
    LowRank(energy=0.8),
    LowRank(rank=1, force=True, data_aware=False),
    LowRank(rank=2, force=True, method="tucker", refit="once"),
    Separable(max_error=1.0, multiplier=2),
)
def test_conformance_of_every_model() -> None: ...


def test_separable_only_where_it_fits() -> None:
    model, seen, unseen = cnn(), images(12, 0), np.concatenate(images(4, 99))
    result, record = apply(model, Separable(max_error=1.0), seen)
    kinds = [(n.op_type, n.attributes["group"].value) for n in result.graph if n.op_type == "Conv"]
    assert ("Conv", 16) in kinds
    assert ("Conv", 32) in kinds
    assert graph.byte_size(result) < 0.5 * graph.byte_size(model)
    wider, _ = apply(model, Separable(max_error=1.0, multiplier=4), seen)
    assert noise(model, wider, unseen) < noise(model, result, unseen)
    _, record = apply(model, Separable(max_error=0.0), seen)
    assert "more than max_error" in (record.refused or "")
    # With as many kernels as taps nothing is lost, and nothing gained.
    _, record = apply(model, Separable(max_error=1.0, multiplier=9), seen)
    assert record.refused
    assert "would be no gain" in " ".join(s.reason for s in record.skipped)
