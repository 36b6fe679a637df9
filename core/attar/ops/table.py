"""The operators of the default ONNX domain that convolutional networks, transformers and recurrent networks
are made of."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from attar.ops import compute, elementwise, layout, macs
from attar.ops.rule import OpRule
from attar.ops.shapes import constant, input_at, string_of

EVERY = (-1,)

BUILTIN: dict[str, OpRule] = {}


def _add(names: str, **facts: Any) -> None:
    for name in names.split():
        BUILTIN[name] = OpRule(name, **facts)


def _pads_with_zero(node: ir.Node) -> bool:
    if string_of(node, "mode", "constant") != "constant" or input_at(node, 2) is None:
        return True
    value = constant(node, 2)
    return value is not None and not value.any()


def _is_inference(node: ir.Node) -> bool:
    """A Dropout that is certainly off."""
    mode = constant(node, 2)
    return input_at(node, 2) is None or (mode is not None and not mode.any())


def _is_nearest(node: ir.Node) -> bool:
    if string_of(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return False  # it may write extrapolation_value
    return string_of(node, "mode", "nearest") == "nearest"


# -- weights -------------------------------------------------------------------------------------------------
_add(
    "Conv",
    weights=(1,),
    bias=2,
    macs=macs.conv,
    flow=compute.conv,
    contractions=compute.conv_contractions,
    quantizable=(0, 1),
)
_add("DeformConv", weights=(1,), bias=3, macs=macs.deform_conv, quantizable=(0, 1))
_add(
    "ConvTranspose",
    weights=(1,),
    bias=2,
    weight_axis=compute.conv_transpose_weight_axis,
    macs=macs.conv_transpose,
    flow=compute.conv_transpose,
    contractions=compute.conv_transpose_contractions,
    quantizable=(0, 1),
)
_add("ConvInteger", weights=(1,), macs=macs.conv, contractions=compute.conv_contractions)
_add(
    "QLinearConv",
    weights=(3,),
    bias=8,
    macs=macs.qlinear_conv,
    flow=compute.qlinear_conv,
    contractions=compute.qlinear_conv_contractions,
)
_add(
    "Gemm",
    weights=(1,),
    bias=2,
    weight_axis=compute.gemm_weight_axis,
    macs=macs.gemm,
    flow=compute.gemm,
    contractions=compute.gemm_contractions,
    quantizable=(0, 1),
)
_add(
    "MatMul",
    weights=(1, 0),
    weight_axis=compute.matmul_weight_axis,
    macs=macs.matmul,
    flow=compute.matmul,
    contractions=compute.matmul_contractions,
    quantizable=(0, 1),
)
_add(
    "MatMulInteger",
    weights=(1, 0),
    weight_axis=compute.matmul_weight_axis,
    macs=macs.matmul,
    flow=compute.matmul,
    contractions=compute.matmul_contractions,
)
_add(
    "QLinearMatMul",
    weights=(3,),
    weight_axis=compute.qlinear_matmul_weight_axis,
    macs=macs.qlinear_matmul,
    flow=compute.qlinear_matmul,
    contractions=compute.qlinear_matmul_contractions,
)
_add(
    "Einsum",
    weights=(1, 0),
    macs=macs.einsum,
    flow=compute.einsum,
    contractions=compute.einsum_contractions,
    quantizable=EVERY,
)
_add(
    "LSTM GRU RNN",
    weights=(1, 2),
    bias=3,
    macs=macs.lstm,
    flow=compute.recurrent,
    contractions=compute.recurrent_contractions,
    quantizable=(0, 1, 2),
)
for _name in ("LSTM", "GRU", "RNN"):  # [directions, gates * hidden, ...]
    BUILTIN[_name] = OpRule(**{**vars(BUILTIN[_name]), "weight_axis": lambda node: 1})
_add(
    "Attention",
    macs=macs.attention,
    flow=compute.attention,
    contractions=compute.attention_contractions,
    quantizable=(0, 1, 2),
)

# -- elementwise ---------------------------------------------------------------------------------------------
_add(
    "Relu LeakyRelu Elu Selu Celu ThresholdedRelu Sigmoid HardSigmoid HardSwish Swish Mish Softplus Softsign "
    "Tanh Gelu Erf Exp Log Sqrt Reciprocal Abs Neg Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh "
    "Shrink Sign Floor Ceil Round",
    flow=elementwise.unary,
    quantizable=(0,),
    elementwise=True,
    activation=True,
)
_add("Clip", flow=elementwise.clip, quantizable=(0,), elementwise=True, activation=True)
_add("PRelu", weights=(1,), flow=elementwise.prelu, quantizable=(0,), elementwise=True, activation=True)
_add(
    "Add Sub Mul Div Max Min Sum Mean Pow", flow=elementwise.broadcasting, quantizable=EVERY, elementwise=True
)
_add(
    "Mod And Or Xor BitShift BitwiseAnd BitwiseOr BitwiseXor Equal Greater GreaterOrEqual Less LessOrEqual",
    flow=elementwise.broadcasting,
    elementwise=True,
)
_add("Not BitwiseNot IsNaN IsInf Cast CastLike", flow=elementwise.unary, elementwise=True)
_add("Where", flow=elementwise.broadcasting, quantizable=(1, 2), keeps_values=True, elementwise=True)
_add("Identity", flow=elementwise.unary, quantizable=(0,), keeps_values=True, elementwise=True)
_add(
    "Dropout",
    flow=elementwise.dropout,
    quantizable=(0,),
    keeps_values=True,
    elementwise=True,
    keeps=_is_inference,
)
_add("QuantizeLinear DequantizeLinear", flow=elementwise.quantize, elementwise=True)
_add("DynamicQuantizeLinear", elementwise=False)

# -- normalisation -------------------------------------------------------------------------------------------
_add("BatchNormalization", flow=elementwise.batch_norm, quantizable=(0,))
_add("InstanceNormalization", flow=elementwise.instance_norm, quantizable=(0,))
_add("GroupNormalization", flow=elementwise.group_norm, quantizable=(0,))
_add("LayerNormalization RMSNormalization", flow=elementwise.layer_norm, quantizable=(0,))
_add("LRN", flow=elementwise.within(elementwise.lrn_axes), quantizable=(0,))
_add("LpNormalization", flow=elementwise.within(elementwise.lp_axes), quantizable=(0,))
_add("MeanVarianceNormalization", flow=elementwise.within(elementwise.mvn_axes), quantizable=(0,))
_add("Softmax LogSoftmax Hardmax", flow=elementwise.within(elementwise.softmax_axes), quantizable=(0,))
_add("CumSum CumProd", flow=elementwise.within(elementwise.cumsum_axes), quantizable=(0,))

# -- pooling and reductions ----------------------------------------------------------------------------------
_add("AveragePool LpPool GlobalAveragePool GlobalLpPool", flow=elementwise.leading(2), quantizable=(0,))
_add("MaxPool GlobalMaxPool", flow=elementwise.leading(2), quantizable=(0,), keeps_values=True)
_add("MaxRoiPool RoiAlign MaxUnpool Col2Im", quantizable=(0,))
_add(
    "ReduceMean ReduceSum ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceSumSquare",
    flow=elementwise.reduce,
    quantizable=(0,),
)
_add("ReduceMax ReduceMin", flow=elementwise.reduce, quantizable=(0,), keeps_values=True)
_add("ArgMax ArgMin", flow=elementwise.arg_reduce)
_add("TopK", flow=elementwise.top_k, quantizable=(0,), keeps_values=True)

# -- layout --------------------------------------------------------------------------------------------------
_add("Transpose", flow=layout.transpose, quantizable=(0,), keeps_values=True)
_add("Reshape Flatten", flow=layout.reshape, quantizable=(0,), keeps_values=True)
_add("Squeeze", flow=layout.squeeze, quantizable=(0,), keeps_values=True)
_add("Unsqueeze", flow=layout.unsqueeze, quantizable=(0,), keeps_values=True)
_add("Concat", flow=layout.concat, quantizable=EVERY, keeps_values=True)
_add("Split", flow=layout.split, quantizable=(0,), keeps_values=True)
_add("Slice", flow=layout.slice_, quantizable=(0,), keeps_values=True)
_add("Gather", weights=(0,), flow=layout.gather, quantizable=(0,), keeps_values=True)
_add("GatherElements GatherND Compress ReverseSequence", quantizable=(0,), keeps_values=True)
_add(
    "ScatterElements ScatterND",
    quantizable=(0, 2),
    keeps_values=True,
    keeps=lambda node: string_of(node, "reduction", "none") == "none",
)
_add("Expand", flow=layout.expand, quantizable=(0,), keeps_values=True)
_add("Tile", flow=layout.tile, quantizable=(0,), keeps_values=True)
_add("Pad", flow=layout.pad, quantizable=(0,), keeps_values=True, keeps=_pads_with_zero)
_add("DepthToSpace", flow=layout.depth_to_space, quantizable=(0,), keeps_values=True)
_add("SpaceToDepth", flow=layout.space_to_depth, quantizable=(0,), keeps_values=True)
_add("Resize Upsample", flow=elementwise.resize, quantizable=(0,), keeps_values=True, keeps=_is_nearest)
_add("Trilu", flow=elementwise.unary, quantizable=(0,), keeps_values=True)
_add("CenterCropPad", quantizable=(0,), keeps_values=True)
_add("GridSample AffineGrid", quantizable=(0,))

# -- values about shapes, and makers of constants ------------------------------------------------------------
_add(
    "Shape Size Constant ConstantOfShape Range NonZero OneHot EyeLike Unique NonMaxSuppression Det DFT STFT "
    "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli Multinomial HannWindow "
    "HammingWindow BlackmanWindow MelWeightMatrix"
)
