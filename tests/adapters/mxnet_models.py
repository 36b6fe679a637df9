"""Models to write as MXNet, and comparing what was written with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from attar import graph
from attar.adapters import Exported
from attar.registry import default_registry
from attar.runtime import OnnxRuntime
from attar_mxnet.writing import write_symbol

Array = np.ndarray[Any, Any]


def normal(seed: int, *shape: int, scale: float = 1.0) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[Any, Sequence[Any]]],
    outputs: Sequence[str],
    weights: Mapping[str, Array] | None = None,
    opset: int = 21,
) -> ir.Model:
    """A model in normal form; `inputs` are name -> (element type, shape)."""
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(np.dtype(t)), list(s))
        for n, (t, s) in inputs.items()
    ]
    constants = [
        numpy_helper.from_array(np.ascontiguousarray(a).reshape(a.shape), n)
        for n, a in (weights or {}).items()
    ]
    heads = [helper.make_empty_tensor_value_info(n) for n in outputs]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", infos, heads, constants),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10,
    )
    proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    model = graph.from_proto(proto)
    graph.normalize(model)
    return model


def one(
    op: str, inputs: Sequence[Any], feeds: int = 1, outputs: int = 1, dynamic: bool = True, **attrs: Any
) -> ir.Model:
    """A node `n`; the first `feeds` arrays are inputs `i0`, ..., the others weights, None is absent."""
    names = ["" if a is None else f"i{k}" for k, a in enumerate(inputs)]
    given = {}
    for name, array in list(zip(names, inputs, strict=True))[:feeds]:
        shape: list[Any] = list(array.shape)
        if dynamic and name == "i0" and shape:
            shape[0] = "batch"
        given[name] = (array.dtype, shape)
    weights = {n: a for n, a in list(zip(names, inputs, strict=True))[feeds:] if a is not None}
    made = [f"o{k}" for k in range(outputs)]
    return model_of([helper.make_node(op, names, made, name="n", **attrs)], given, made, weights)


def written(model: ir.Model) -> Exported:
    return write_symbol(model, registry=default_registry())


def same_as_onnx(model: ir.Model, *feeds: Mapping[str, Array], rel: float = 1e-5) -> Exported:
    """Every output equals ONNX Runtime's: type, shape, and value within `rel` of the largest magnitude."""
    exported, session = written(model), OnnxRuntime().open(model, optimize=False)
    for fed in feeds:
        wanted, got = session.run(dict(fed)), exported.run(fed)
        assert len(wanted) == len(got)
        for a, b in zip(wanted, got, strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            if a.dtype.kind != "f":
                assert np.array_equal(a, b)
                continue
            error = np.abs(a.astype(np.float64) - b.astype(np.float64)).max()
            assert error <= rel * max(float(np.abs(a).max()), 1e-6)
    return exported


def convolutional(seed: int = 0) -> ir.Model:
    """Convolution, batch normalization, a residual, pooling and a dense layer, with a dynamic batch."""
    n = helper.make_node
    nodes = [
        n("Conv", ["x", "c1.weight", "c1.bias"], ["a"], name="c1", pads=[1, 1, 1, 1]),
        n(
            "BatchNormalization",
            ["a", "bn.weight", "bn.bias", "bn.mean", "bn.var"],
            ["b"],
            name="bn",
            epsilon=1e-5,
        ),
        n("Relu", ["b"], ["r"], name="relu"),
        n("Conv", ["r", "c2.weight"], ["d"], name="c2", pads=[0, 0, 2, 2]),
        n("Add", ["d", "r"], ["s"], name="residual"),
        n("PRelu", ["s", "slope"], ["p"], name="prelu"),
        n("GlobalAveragePool", ["p"], ["g"], name="pool"),
        n("Flatten", ["g"], ["f"], name="flatten"),
        n("Gemm", ["f", "fc.weight", "fc.bias"], ["y"], name="fc", transB=1),
    ]
    weights = {
        "c1.weight": normal(seed, 6, 3, 3, 3, scale=0.3),
        "c1.bias": normal(seed + 1, 6),
        "bn.weight": normal(seed + 2, 6) + 2,
        "bn.bias": normal(seed + 3, 6),
        "bn.mean": normal(seed + 4, 6),
        "bn.var": np.abs(normal(seed + 5, 6)) + 0.5,
        "c2.weight": normal(seed + 6, 6, 6, 3, 3, scale=0.2),
        "slope": np.abs(normal(seed + 7, 6, 1, 1)),
        "fc.weight": normal(seed + 8, 4, 6),
        "fc.bias": normal(seed + 9, 4),
    }
    return model_of(nodes, {"x": (np.float32, ["batch", 3, 8, 8])}, ["y"], weights)


def encoder(seed: int = 0) -> ir.Model:
    """One attention layer with plain MatMul weights, LayerNormalization and GELU; the batch is dynamic."""
    n = helper.make_node
    nodes = [
        n("Gather", ["table", "ids"], ["e"], name="embed"),
        n("Add", ["e", "position"], ["x"], name="place"),
    ]
    for head in "qkv":
        nodes += [
            n("MatMul", ["x", f"{head}.weight"], [f"{head}m"], name=f"{head}.matmul"),
            n("Add", [f"{head}m", f"{head}.bias"], [f"{head}b"], name=f"{head}.add"),
            n("Reshape", [f"{head}b", "split"], [f"{head}r"], name=f"{head}.split"),
            n(
                "Transpose",
                [f"{head}r"],
                [f"{head}t"],
                name=f"{head}.turn",
                perm=[0, 2, 3, 1] if head == "k" else [0, 2, 1, 3],
            ),
        ]
    nodes += [
        n("MatMul", ["qt", "kt"], ["scores"], name="scores"),
        n("Mul", ["scores", "factor"], ["scaled"], name="scale"),
        n("Softmax", ["scaled"], ["share"], name="softmax", axis=-1),
        n("MatMul", ["share", "vt"], ["mixed"], name="mix"),
        n("Transpose", ["mixed"], ["turned"], name="back", perm=[0, 2, 1, 3]),
        n("Reshape", ["turned", "join"], ["joined"], name="join"),
        n("MatMul", ["joined", "out.weight"], ["o"], name="out"),
        n("Add", ["o", "x"], ["sum"], name="residual"),
        n("LayerNormalization", ["sum", "ln.weight", "ln.bias"], ["y"], name="ln", axis=-1),
        n("Gelu", ["y"], ["z"], name="gelu"),
    ]
    weights = {
        "table": normal(seed, 20, 8),
        "position": normal(seed + 1, 5, 8, scale=0.1),
        "factor": np.float32(0.5) * np.ones((), np.float32),
        "split": np.array([0, 0, 2, 4]),
        "join": np.array([0, 0, 8]),
        "ln.weight": normal(seed + 2, 8) + 1,
        "ln.bias": normal(seed + 3, 8),
        "out.weight": normal(seed + 4, 8, 8, scale=0.3),
    }
    for place, head in enumerate("qkv"):  # softmax cancels a bias of the keys, so that it would never learn
        weights[f"{head}.weight"] = normal(seed + 10 + place, 8, 8, scale=0.3)
        weights[f"{head}.bias"] = normal(seed + 20 + place, 8) if head != "k" else np.zeros((), np.float32)
    return model_of(nodes, {"ids": (np.int64, ["batch", 5])}, ["z"], weights)


def recurrent(seed: int = 0, kind: str = "LSTM") -> ir.Model:
    """A bidirectional recurrent layer without initial states: those follow the dynamic batch."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    n = helper.make_node
    more = {"linear_before_reset": 1} if kind == "GRU" else {}
    nodes = [
        n(kind, ["x", "W", "R", "B"], ["y"], name="layer", hidden_size=5, direction="bidirectional", **more),
        n("Transpose", ["y"], ["t"], name="turn", perm=[2, 0, 1, 3]),
        n("ReduceMean", ["t", "axes"], ["m"], name="mean", keepdims=0),
        n("MatMul", ["m", "head"], ["z"], name="head"),
    ]
    weights = {
        "W": normal(seed, 2, gates * 5, 3, scale=0.4),
        "R": normal(seed + 1, 2, gates * 5, 5, scale=0.4),
        "B": normal(seed + 2, 2, gates * 10, scale=0.2),
        "axes": np.array([1, 2]),
        "head": normal(seed + 3, 5, 2),
    }
    return model_of(nodes, {"x": (np.float32, [6, "batch", 3])}, ["z"], weights)
