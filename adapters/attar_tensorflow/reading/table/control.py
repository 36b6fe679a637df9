"""What passes tensors on: identities, variables, function calls, conditions and loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from attar_tensorflow.reading.lifter import Body, Lift, Lifter
from attar_tensorflow.reading.loops import Loop
from attar_tensorflow.reading.values import Const, Tensor, Variable
from attar_tensorflow.reading.view import OpView


class Dead:
    """The side of a Switch that is not taken."""


def same(ctx: Lifter, view: OpView) -> Any:
    return view.inputs[0]


def all_same(ctx: Lifter, view: OpView) -> Any:
    return tuple(view.inputs)


def constant(ctx: Lifter, view: OpView) -> Const:
    """Const. What is large has a name of its own: in a frozen graph it is a weight."""
    import tensorflow as tf

    array = tf.make_ndarray(view.operation.node_def.attr["value"].tensor)
    name = ctx.weight_name(view.name) if array.ndim and array.dtype.kind == "f" and array.size > 1 else None
    return Const(array, name)


def read_variable(ctx: Lifter, view: OpView) -> Any:
    variable = view.inputs[0]
    if isinstance(variable, Variable):
        return variable.read()
    return variable


def variable_shape(ctx: Lifter, view: OpView) -> Const:
    return Const(np.array(view.inputs[0].read().shape, view.out_dtype()))


def nothing(ctx: Lifter, view: OpView) -> Any:
    return (None,) * len(view.operation.outputs)


def call(ctx: Lifter, view: OpView) -> Any:
    """PartitionedCall: the function's body takes its place."""
    return tuple(ctx.call(ctx.function(view, "f"), view.inputs))


def while_loop(ctx: Lifter, view: OpView) -> Any:
    """While and StatelessWhile. A loop variable that the body hands on unchanged is seen from inside as it
    is.
    """
    body, cond = ctx.function(view, "body"), ctx.function(view, "cond")
    loop = Loop(
        name=view.name,
        start=list(view.inputs),
        shapes=[_shape(t) for t in body.inputs],
        invariant=[_passes(body, k) for k in range(len(view.inputs))],
        cond=lambda values: ctx.call(cond, values)[0],
        body=lambda values: ctx.call(body, values),
    )
    return tuple(loop.lift(ctx))


def _shape(tensor: Any) -> tuple[int | None, ...] | None:
    return None if tensor.shape.rank is None else tuple(tensor.shape.as_list())


def _passes(body: Body, k: int) -> bool:
    tensor = body.outputs[k]
    while tensor.op.type == "Identity":
        tensor = tensor.op.inputs[0]
    return tensor is body.inputs[k]


def condition(ctx: Lifter, view: OpView) -> Any:
    """If and StatelessIf; the branch is chosen now where the condition is constant."""
    chosen = view.const(0)
    arms = [ctx.function(view, f"{arm}_branch") for arm in ("then", "else")]
    if chosen is not None:
        return tuple(ctx.call(arms[0 if bool(chosen.reshape(-1)[0]) else 1], view.inputs[1:]))
    pred = view.input(0)
    if view.dtype(0) != np.bool_:
        pred = ctx.op("Cast", pred, dtype=bool, to=9)
    graphs, kinds = [], []
    for arm, name in zip(arms, ("then", "else"), strict=True):
        with ctx.inside() as nodes:
            results = ctx.call(arm, view.inputs[1:])
            if not all(isinstance(r, Tensor | Const) for r in results):
                raise view.refuse("a branch gives something other than tensors of numbers")
            values = [ctx.node("Identity", [r])[0] for r in results]
        for v, r in zip(values, results, strict=True):
            v.type = ir.TensorType(ir.DataType.from_numpy(r.dtype))
        graphs.append(ir.Graph([], values, nodes=nodes, name=f"{view.name}/{name}"))
        kinds = [r.dtype for r in results]
    made = ctx.node("If", [pred], outputs=len(kinds), then_branch=graphs[0], else_branch=graphs[1])
    return tuple(Tensor(v, d, view.out_shape(k)) for k, (v, d) in enumerate(zip(made, kinds, strict=True)))


def switch(ctx: Lifter, view: OpView) -> Any:
    """The conditions of TensorFlow 1, where the choice is known."""
    chosen = view.const(1)
    if chosen is None:
        raise view.refuse(
            "a condition of TensorFlow 1 that is computed while the model runs has no counterpart"
        )
    taken = bool(chosen.reshape(-1)[0])
    return (Dead() if taken else view.inputs[0], view.inputs[0] if taken else Dead())


def merge(ctx: Lifter, view: OpView) -> Any:
    alive = [k for k, x in enumerate(view.inputs) if not isinstance(x, Dead)]
    if len(alive) != 1:
        raise view.refuse("both sides of a condition are alive")
    return view.inputs[alive[0]], Const(np.array(alive[0], np.int32))


def placeholder(ctx: Lifter, view: OpView) -> Any:
    raise view.refuse("the outputs need it, but it is not among the inputs")


LIFTINGS: dict[str, Lift] = {
    **dict.fromkeys(
        ("Identity", "StopGradient", "PreventGradient", "CheckNumerics", "Snapshot", "EnsureShape"), same
    ),
    **dict.fromkeys(("PlaceholderWithDefault",), same),
    **{"IdentityN": all_same, "Const": constant, "NoOp": nothing, "Assert": nothing},
    **dict.fromkeys(("ReadVariableOp",), read_variable),
    **{"VariableShape": variable_shape, "Switch": switch, "Merge": merge, "Placeholder": placeholder},
    **dict.fromkeys(("PartitionedCall", "StatefulPartitionedCall"), call),
    **dict.fromkeys(("While", "StatelessWhile"), while_loop),
    **dict.fromkeys(("If", "StatelessIf"), condition),
}
