"""What can be computed before the model runs: done by TensorFlow's own kernels, one operation at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from attar_tensorflow.reading.values import Const
from attar_tensorflow.reading.view import OpView

LARGEST = 1 << 24
"""Elements of a result that is computed whatever it is made from."""

# Pure functions of their inputs. Nothing that reads files, draws random numbers or calls back is here.
PURE = frozenset(
    [
        "Abs",
        "Acos",
        "Acosh",
        "Add",
        "AddN",
        "AddV2",
        "All",
        "Any",
        "ArgMax",
        "ArgMin",
        "Asin",
        "Asinh",
        "Atan",
        "Atan2",
        "Atanh",
        "BatchMatMul",
        "BatchMatMulV2",
        "BatchMatMulV3",
        "BatchToSpaceND",
        "BiasAdd",
        "BroadcastArgs",
        "BroadcastTo",
        "Cast",
        "Ceil",
        "ClipByValue",
        "ConcatV2",
        "ConjugateTranspose",
        "Cos",
        "Cosh",
        "Cross",
        "Cumprod",
        "Cumsum",
        "DepthToSpace",
        "Diag",
        "DiagPart",
        "Div",
        "DivNoNan",
        "DynamicStitch",
        "Einsum",
        "Elu",
        "Equal",
        "Erf",
        "Erfc",
        "Exp",
        "ExpandDims",
        "Expm1",
        "Eye",
        "Fill",
        "Floor",
        "FloorDiv",
        "FloorMod",
        "Gather",
        "GatherNd",
        "GatherV2",
        "Greater",
        "GreaterEqual",
        "Inv",
        "InvertPermutation",
        "IsFinite",
        "IsInf",
        "IsNan",
        "L2Loss",
        "LeakyRelu",
        "Less",
        "LessEqual",
        "LinSpace",
        "Log",
        "Log1p",
        "LogSoftmax",
        "LogicalAnd",
        "LogicalNot",
        "LogicalOr",
        "MatMul",
        "MatrixBandPart",
        "MatrixDiag",
        "MatrixDiagV3",
        "MatrixSetDiagV3",
        "Max",
        "Maximum",
        "Mean",
        "Min",
        "Minimum",
        "MirrorPad",
        "Mod",
        "Mul",
        "Neg",
        "NotEqual",
        "OneHot",
        "OnesLike",
        "Pack",
        "Pad",
        "PadV2",
        "Pow",
        "Prod",
        "Range",
        "Rank",
        "RealDiv",
        "Reciprocal",
        "Relu",
        "Relu6",
        "Reshape",
        "ResizeBilinear",
        "ResizeNearestNeighbor",
        "Reverse",
        "ReverseV2",
        "Rint",
        "Roll",
        "Round",
        "Rsqrt",
        "ScatterNd",
        "Select",
        "SelectV2",
        "Selu",
        "Shape",
        "ShapeN",
        "Sigmoid",
        "Sign",
        "Sin",
        "Sinh",
        "Size",
        "Slice",
        "Softmax",
        "Softplus",
        "Softsign",
        "SpaceToBatchND",
        "SpaceToDepth",
        "Split",
        "SplitV",
        "Sqrt",
        "Square",
        "SquaredDifference",
        "Squeeze",
        "StridedSlice",
        "Sub",
        "Sum",
        "Tan",
        "Tanh",
        "TensorScatterUpdate",
        "Tile",
        "TopKV2",
        "Transpose",
        "TruncateDiv",
        "Unpack",
        "Where",
        "Xdivy",
        "Xlogy",
        "ZerosLike",
        "BitwiseAnd",
        "BitwiseOr",
        "BitwiseXor",
        "Invert",
        "LeftShift",
        "RightShift",
    ]
)


def fold(view: OpView) -> tuple[Const, ...] | None:
    """The outputs of an operation all of whose inputs are constant; None if it is not to be computed now."""
    if view.op not in PURE or not all(isinstance(x, Const) for x in view.inputs):
        return None
    given = sum(x.array.size for x in view.inputs)
    for k in range(len(view.operation.outputs)):
        shape = view.out_shape(k)
        if shape is None or any(d is None for d in shape):
            if view.op in (
                "Fill",
                "Range",
                "Tile",
                "BroadcastTo",
                "Eye",
                "OneHot",
                "LinSpace",
                "Pad",
                "PadV2",
            ):
                return None  # how large it gets is in the data: not before it is known to be small
        elif math.prod(shape) > max(LARGEST, 4 * given):  # type: ignore[arg-type]
            return None
    arrays = _run(view)
    if arrays is None:
        return None
    # A rearranged parameter is still that parameter.
    name = (
        view.inputs[0].name if view.op in ("Transpose", "Reshape", "ExpandDims", "Squeeze", "Cast") else None
    )
    return tuple(Const(a, name, view.op, tuple(view.inputs)) for a in arrays)


def _run(view: OpView) -> list[Any] | None:
    import tensorflow as tf
    from tensorflow.python.eager import context, execute

    attributes: list[Any] = []
    for definition in view.operation.op_def.attr:
        value = view.operation.get_attr(definition.name)
        attributes += [definition.name, _plain(value, definition.type)]
    try:
        with tf.device("/CPU:0"):
            results = execute.execute(
                view.op.encode(),
                len(view.operation.outputs),
                _inputs(view),
                tuple(attributes),
                context.context(),
            )
    except (
        Exception
    ):  # a kernel that is not there, or bad data: the operation is lifted, or refused, as it is
        return None
    return [np.asarray(r) for r in results]


def _inputs(view: OpView) -> list[Any]:
    import tensorflow as tf

    return [
        tf.constant(x.array, dtype=t.dtype) for x, t in zip(view.inputs, view.operation.inputs, strict=True)
    ]


def _plain(value: Any, kind: str) -> Any:
    if kind == "type":
        return value.as_datatype_enum
    if kind == "list(type)":
        return [v.as_datatype_enum for v in value]
    if kind == "shape":
        return None if value.rank is None else [-1 if d is None else d for d in value.as_list()]
    return value
