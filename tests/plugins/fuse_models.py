"""Before-and-after checks for fusing: models as text, compared on the runtime with optimizations off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir

from attar.context import Context
from attar.graph import clone, refresh_shapes, to_bytes
from attar.passes import Pass
from attar.registry import Registry
from attar.report import Step
from attar.runtime import OnnxRuntime
from attar.targets import builtin_targets
from attar_fuse import Fuse

RNG = np.random.default_rng(7)


def w(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


def positive(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return RNG.uniform(0.5, 1.5, shape).astype(dtype)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def f32(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def model_of(signature: str, body: str, opset: int = 21, **constants: np.ndarray) -> ir.Model:
    """A model from `(inputs) => (outputs)` and its nodes as ONNX text; `constants` become initializers."""
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : {opset}]> g {signature} {{ {body} }}'
    )
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in constants.items())
    model = ir.from_proto(proto)
    refresh_shapes(model)
    return model


def context() -> Context:
    return Context(
        registry=Registry(), target=builtin_targets()[0], runtime=OnnxRuntime(), step=Step("fuse", {})
    )


def ops(model: ir.Model) -> Counter[str]:
    return Counter(n.op_type for n in ir.traversal.RecursiveGraphIterator(model.graph))


def feeds_of(model: ir.Model, seed: int = 0, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng, feeds = np.random.default_rng(seed), {}
    for value in model.graph.inputs:
        shape = [d if isinstance(d, int) else 2 for d in value.shape]
        kind = value.dtype.numpy()
        if kind == np.bool_:
            feeds[value.name] = rng.integers(0, 2, shape).astype(bool)
        elif kind.kind in "iu":
            feeds[value.name] = rng.integers(0, 4, shape).astype(kind)
        else:
            feeds[value.name] = (rng.standard_normal(shape) * scale).astype(kind)
    return feeds


def run(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return OnnxRuntime().open(model, optimize=False).run(feeds)


def difference(wanted: np.ndarray, got: np.ndarray) -> float:
    """Largest difference relative to the largest magnitude."""
    assert wanted.shape == got.shape
    assert wanted.dtype == got.dtype
    a, b = wanted.astype(np.float64), got.astype(np.float64)
    return float(np.abs(a - b).max(initial=0) / max(np.abs(a).max(initial=0), 1e-30))


def interface(model: ir.Model) -> list[tuple[str | None, ir.DataType | None, ir.Shape | None]]:
    return [(v.name, v.dtype, v.shape) for v in (*model.graph.inputs, *model.graph.outputs)]


def fused(
    model: ir.Model, step: Pass | None = None, *, tolerance: float = 1e-5, scale: float = 3.0
) -> tuple[ir.Model, Step]:
    """`model` after the pass, with everything checked that holds for every rule.

    The result equals the original on two sets of random inputs, has its interface, leaves the original
    untouched, and a second application finds nothing to do.
    """
    step = step or Fuse()
    original = to_bytes(model)
    result, ctx = clone(model), context()
    step.apply(result, ctx)
    assert to_bytes(model) == original
    assert interface(result) == interface(model)
    for seed in (0, 1):
        feeds = feeds_of(model, seed, scale)
        for wanted, got in zip(run(model, feeds), run(result, feeds), strict=True):
            assert difference(wanted, got) <= tolerance
    again, second = clone(result), context()
    step.apply(again, second)
    assert second.step.changes == []
    assert to_bytes(again) == to_bytes(result)
    return result, ctx.step


def reasons(step: Step) -> str:
    return "; ".join(f"{s.op}: {s.reason}" for s in step.skipped)
