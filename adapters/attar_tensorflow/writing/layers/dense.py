"""Dense, embedding and normalization layers."""

from __future__ import annotations

import keras
import numpy as np

from attar_tensorflow.writing.context import View
from attar_tensorflow.writing.layers.made import Made, Maker, keras_type, named


def _dense(kernel: np.ndarray, bias: np.ndarray | None, dtype: str, sources: tuple[int, ...]) -> Made:
    layer = named(
        "dense",
        keras.layers.Dense,
        units=kernel.shape[1],
        use_bias=bias is not None,
        kernel_initializer="zeros",
        dtype=dtype,
    )
    weights = {"kernel": kernel} | ({} if bias is None else {"bias": bias})
    return Made(layer, weights, sources=sources, key=bias is None)


def _gemm(view: View) -> Made | None:
    w, dtype = view.const(1), keras_type(view)
    if w is None or dtype is None or view.attr("transA", 0) or not view.is_const(1):
        return None
    kernel = w.T if view.attr("transB", 0) else w
    alpha, beta = view.attr("alpha", 1.0), view.attr("beta", 1.0)
    bias = None
    if view.has(2):
        bias = view.const(2)
        if bias is None or bias.size not in (1, kernel.shape[1]) or (bias.ndim == 2 and bias.shape[0] != 1):
            return None
        if bias.ndim == 2 and bias.shape[1] != kernel.shape[1]:
            return None
        bias = np.broadcast_to(bias.reshape(-1), [kernel.shape[1]])
        bias = bias if beta == 1 else (bias * np.asarray(beta, bias.dtype))
    if alpha != 1:
        kernel = kernel * np.asarray(alpha, kernel.dtype)
    made = _dense(kernel, bias, dtype, (1, 2) if bias is not None else (1,))
    made.key = (alpha, beta, view.attr("transB", 0), bias is None)
    return made


def _matmul(view: View) -> Made | None:
    w, dtype, rank = view.const(1), keras_type(view), view.rank(0)
    if w is None or dtype is None or w.ndim != 2 or rank is None or rank < 2 or view.is_const(0):
        return None
    if not isinstance((view.shape(0) or [None])[-1], int):
        return None
    return _dense(w, None, dtype, (1,))


def _dense_node(view: View) -> Made | None:
    """attar's own operator: MatMul and the bias added to it."""
    return _dense(view.const(1), view.const(2), str(view.dtype(0)), (1, 2))


def _batch_norm(view: View) -> Made | None:
    arrays, dtype = [view.const(i) for i in range(1, 5)], keras_type(view)
    rank = view.rank(0)
    if (
        any(a is None for a in arrays)
        or dtype is None
        or rank is None
        or rank < 2
        or view.attr("training_mode", 0)
    ):
        return None
    if rank > 2 and not view.last:
        return None
    if sum(view.wants(k) for k in range(len(view.outputs))) > 1:
        return None
    layer = named(
        "norm",
        keras.layers.BatchNormalization,
        axis=-1,
        epsilon=view.attr("epsilon", 1e-5),
        momentum=view.attr("momentum", 0.9),
        dtype=dtype,
    )
    weights = dict(zip(("gamma", "beta", "moving_mean", "moving_variance"), arrays, strict=True))
    return Made(layer, weights, sources=(1, 2, 3, 4), key=view.attr("epsilon", 1e-5))


def _layer_norm(view: View) -> Made | None:
    scale, dtype, rank = view.const(1), keras_type(view), view.rank(0)
    bias = view.const(2) if view.has(2) else None
    if scale is None or dtype != "float32" or rank is None or (view.has(2) and bias is None):
        return None
    if any(view.wants(k) for k in range(1, len(view.outputs))):
        return None
    axis = view.attr("axis", -1) % rank
    sizes = (view.shape(0) or ())[axis:]
    if axis == 0 or tuple(sizes) != scale.shape or (bias is not None and bias.shape != scale.shape):
        return None
    layer = named(
        "norm",
        keras.layers.LayerNormalization,
        axis=list(range(axis, rank)) if rank - axis > 1 else -1,
        epsilon=view.attr("epsilon", 1e-5),
        center=bias is not None,
        dtype=dtype,
    )
    weights = {"gamma": scale} | ({} if bias is None else {"beta": bias})
    return Made(layer, weights, sources=(1, 2) if bias is not None else (1,), key=view.attr("epsilon", 1e-5))


def _group_norm(view: View) -> Made | None:
    groups = -1 if view.node.op_type == "InstanceNormalization" else view.attr("num_groups")
    scale, bias, dtype = view.const(1), view.const(2), keras_type(view)
    channels = (view.shape(0) or (None,))[-1]
    if not view.last or scale is None or bias is None or dtype != "float32" or scale.shape != (channels,):
        return None
    layer = named(
        "norm",
        keras.layers.GroupNormalization,
        groups=groups,
        axis=-1,
        epsilon=view.attr("epsilon", 1e-5),
        dtype=dtype,
    )
    return Made(
        layer, {"gamma": scale, "beta": bias}, sources=(1, 2), key=(groups, view.attr("epsilon", 1e-5))
    )


def _embedding(view: View) -> Made | None:
    if not view.is_const(0) or view.is_const(1) or view.attr("axis", 0) != 0:
        return None
    table = view.const(0)
    if table.ndim != 2 or table.dtype != np.float32 or view.rank(1) in (None, 0):
        return None
    layer = named(
        "embedding",
        keras.layers.Embedding,
        input_dim=table.shape[0],
        output_dim=table.shape[1],
        embeddings_initializer="zeros",
        dtype="float32",
    )
    return Made(layer, {"embeddings": table}, inputs=(1,), sources=(0,))


MAKERS: dict[str, Maker] = {
    "BatchNormalization": _batch_norm,
    "Gather": _embedding,
    "Gemm": _gemm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
    "attar::Dense": _dense_node,
}
