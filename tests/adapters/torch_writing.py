"""Writing single operators and whole models as torch modules, and comparing them with ONNX Runtime."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from attar import graph  # noqa: E402
from attar.adapters import Exported  # noqa: E402
from attar.registry import Registry, default_registry  # noqa: E402
from attar.runtime import OnnxRuntime  # noqa: E402
from attar_torch.adapter import TorchAdapter  # noqa: E402

ADAPTER = TorchAdapter()


def write(model: ir.Model, registry: Registry | None = None) -> Exported:
    return ADAPTER.write(model, registry=registry or default_registry())


def one_node(
    op: str,
    inputs: Mapping[str, np.ndarray],
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    order: Sequence[str] | None = None,
    outputs: Sequence[str] = ("y",),
    shapes: Mapping[str, Sequence[Any]] | None = None,
    domain: str = "",
    **attributes: Any,
) -> ir.Model:
    """A model of one node. `order` names its inputs, "" for one left out."""
    constants = dict(constants or {})
    names = list(order) if order is not None else [*inputs, *constants]
    node = onnx.helper.make_node(op, names, list(outputs), domain=domain, **attributes)
    kinds = {n: onnx.helper.np_dtype_to_tensor_dtype(a.dtype) for n, a in inputs.items()}
    fed = [
        onnx.helper.make_tensor_value_info(n, kinds[n], (shapes or {}).get(n, a.shape))
        for n, a in inputs.items()
    ]
    made = [onnx.ValueInfoProto(name=n) for n in outputs if n]
    weights = [onnx.numpy_helper.from_array(a, n) for n, a in constants.items()]
    proto = onnx.helper.make_model(
        onnx.helper.make_graph([node], "one", fed, made, weights),
        opset_imports=[
            onnx.helper.make_opsetid("", 21),
            *([onnx.helper.make_opsetid(domain, 1)] if domain else []),
        ],
        ir_version=10,
    )
    return graph.from_proto(onnx.shape_inference.infer_shapes(proto))


def agree(model: ir.Model, feeds: Mapping[str, np.ndarray], rel: float = 1e-5) -> Exported:
    """Write `model` and hold it against ONNX Runtime."""
    exported = write(model)
    same(exported, model, feeds, rel)
    return exported


def same(exported: Exported, model: ir.Model, feeds: Mapping[str, np.ndarray], rel: float = 1e-5) -> None:
    wanted = OnnxRuntime().open(model).run(feeds)
    got = exported.run(feeds)
    assert len(got) == len(wanted)
    for ours, theirs in zip(got, wanted, strict=True):
        close(ours, theirs, rel)


def close(ours: np.ndarray, theirs: np.ndarray, rel: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    if theirs.dtype.kind not in "fc":
        np.testing.assert_array_equal(ours, theirs)
        return
    finite = theirs[np.isfinite(theirs)]
    reach = float(np.abs(finite).max(initial=0.0))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=rel * max(reach, 1e-6), equal_nan=True)


def train(module: Any, inputs: Sequence[Any], steps: int = 8, rate: float = 0.05) -> list[float]:
    """Losses of gradient steps towards a target that the module does not give yet."""
    module.train()
    with torch.no_grad():
        target = _first(module(*inputs)) * 0.5 + 0.3
    optimizer = torch.optim.Adam(module.parameters(), rate)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = ((_first(module(*inputs)) - target) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


def _first(result: Any) -> Any:
    return result[0] if isinstance(result, tuple) else result


@functools.cache
def seeded(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
