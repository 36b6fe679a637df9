"""The promises of a pass, kept by what looks at Gram matrices, over small models of every kind."""

from __future__ import annotations

import pytest

from attar.testing import conformance
from attar_quantize import Static, Weights

MODELS = ["shared_weight", "weight_is_output", "residual_cnn", "depthwise_cnn", "attention", "conv1d"]


@conformance(
    Static(plan="everything", weight_bits=4, observer="minmax"),
    Static(plan="everything", rounding="hessian", granularity="per_tensor", observer="minmax"),
    models=MODELS,
)
def test_conformance_of_hessian_rounding() -> None: ...


@conformance(
    Weights(type="int4", block=8, method="gptq"),
    Weights(method="awq"),
    models=["encoder", "unet", "weight_in_if", "quantized", "shared_weight"],
)
def test_conformance_of_weights() -> None: ...


@pytest.mark.slow
@conformance(
    Static(plan="everything", weight_bits=4, rounding="adaround", observer="minmax"),
    Static(plan="everything", rounding="hessian", sequential=True, observer="minmax"),
    Weights(type="int4", block=4, method="gptq"),
    Weights(type="int2", block=4, method="awq"),
)
def test_conformance_of_every_model() -> None: ...
