"""The operators that training puts into a model, as ONNX sees them.

A constraint is part of the graph while a model is trained, so that every framework that can write the graph
trains under it. Four operators of the domain `attar.train` say all that is held:

    FakeQuantize(x, scale, zero_point[, gain[, shift]]) = DequantizeLinear(QuantizeLinear(x))
    FakeBias(b, s_x[, s_w[, gain_x[, gain_w]]]) = b in whole multiples of the product of the scales
    Masked(x, mask[, scores]) = x where mask is not zero, else zero; scores gather movement
    Shared(codebook, indices) = an array of a few shared numbers

They are in no finished model. ONNX is told their types and shapes (`register`), so that shapes behind them
are known; the torch forms are in `attar_train.lowering`.
"""

from __future__ import annotations

from typing import Any

DOMAIN = "attar.train"
VERSION = 1
FAKE_QUANTIZE, FAKE_BIAS, MASKED, SHARED = "FakeQuantize", "FakeBias", "Masked", "Shared"
NOTE = "attar.train"
"""Metadata of a node or value of a constrained model: JSON of what takes its place when it is released."""
GAINS = (0.125, 8.0)
"""Gains count as no less and no more: a scale that strays further is none that kernels compute with."""
MOST_BIAS = 2147483520
"""The largest code of a bias: the last float32 below 2^31."""

FLOATS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(double)"]
_ANY = [*FLOATS, *(f"tensor({s}int{b})" for s in ("", "u") for b in (4, 8, 16, 32, 64)), "tensor(bool)"]


def register() -> None:
    """Tell the onnx package the schemas; once a process, however often it is called."""
    import onnx.defs

    for schema, infer in _schemas():
        if not onnx.defs.has(schema.name, DOMAIN):
            schema.set_type_and_shape_inference_function(infer)
            onnx.defs.register_schema(schema)


def _schemas() -> list[tuple[Any, Any]]:
    from onnx.defs import OpSchema

    parameter, option = OpSchema.FormalParameter, OpSchema.FormalParameterOption

    def maybe(name: str, kind: str) -> Any:
        return parameter(name, kind, param_option=option.Optional)

    def number(name: str, kind: Any = OpSchema.AttrType.INT, required: bool = False) -> Any:
        return OpSchema.Attribute(name, kind, "", required=required)

    floats = ("T", FLOATS, "floating types")
    attributes = [number(name, required=True) for name in ("qmin", "qmax", "type")]
    attributes += [number(name) for name in ("axis", "block_size", "weight")]
    attributes += [number("gradient", OpSchema.AttrType.STRING)]
    return [
        (
            OpSchema(
                FAKE_QUANTIZE, DOMAIN, VERSION, "QuantizeLinear and DequantizeLinear in one, with gradients.",
                inputs=[
                    parameter("x", "T"), parameter("scale", "T"), maybe("zero_point", "Z"),
                    maybe("gain", "T"), maybe("shift", "T"),
                ],
                outputs=[parameter("y", "T")],
                type_constraints=[floats, ("Z", _ANY, "types of zero points")],
                attributes=attributes,
            ),
            _like_first,
        ),
        (
            OpSchema(
                FAKE_BIAS, DOMAIN, VERSION, "A bias as the integers of an accumulator stand for it.",
                inputs=[
                    parameter("b", "T"), parameter("scale_x", "T"), maybe("scale_w", "T"),
                    maybe("gain_x", "T"), maybe("gain_w", "T"),
                ],
                outputs=[parameter("y", "T")],
                type_constraints=[floats],
            ),
            _like_first,
        ),
        (
            OpSchema(
                MASKED, DOMAIN, VERSION, "The input where the mask is not zero, else zero.",
                inputs=[parameter("x", "T"), parameter("mask", "M"), maybe("scores", "T")],
                outputs=[parameter("y", "T")],
                type_constraints=[floats, ("M", _ANY, "any type")],
            ),
            _like_first,
        ),
        (
            OpSchema(
                SHARED, DOMAIN, VERSION, "codebook[indices], or codebook[c, indices[c]] by channel.",
                inputs=[parameter("codebook", "T"), parameter("indices", "I")],
                outputs=[parameter("y", "T")],
                type_constraints=[floats, ("I", _ANY, "types of indices")],
                attributes=[number("axis")],
            ),
            _like_second,
        ),
    ]  # fmt: skip


def _like_first(ctx: Any) -> None:
    _infer(ctx, 0, 0)


def _like_second(ctx: Any) -> None:
    _infer(ctx, 0, 1)


def _infer(ctx: Any, type_from: int, shape_from: int) -> None:
    """The output has the element type of one input and the shape of another."""
    import onnx

    kind, shape = ctx.get_input_type(type_from), ctx.get_input_type(shape_from)
    if kind is None:
        return
    made = onnx.TypeProto()
    made.tensor_type.elem_type = kind.tensor_type.elem_type
    if shape is not None and shape.tensor_type.HasField("shape"):
        made.tensor_type.shape.CopyFrom(shape.tensor_type.shape)
    ctx.set_output_type(0, made)
