"""If, Loop and Scan. Only a `tf.Module` can say them: a Keras model has no branches."""

from __future__ import annotations

import tensorflow as tf

from attar_tensorflow.writing.context import Ctx, Lowering, Tensor, View
from attar_tensorflow.writing.tensors import axis_of, dims


def _if(ctx: Ctx, view: View) -> tuple[Tensor, ...]:
    then, other = view.graph_attr("then_branch"), view.graph_attr("else_branch")
    run = _runner(ctx, view)
    found = tf.cond(
        tf.reshape(ctx[0], []),
        lambda: tuple(map(tf.identity, run(then, []))),
        lambda: tuple(map(tf.identity, run(other, []))),
    )
    return found if isinstance(found, tuple) else tuple(found)


def _runner(ctx: Ctx, view: View):
    if ctx.subgraph is None:
        raise view.refuse("a Keras layer holds no subgraph")
    return ctx.subgraph


def _loop(ctx: Ctx, view: View) -> tuple[Tensor, ...]:
    body, run = view.graph_attr("body"), _runner(ctx, view)
    carried = list(ctx.tensors[2:])
    count = len(body.outputs) - 1 - len(carried)
    limit = tf.constant(2**31 - 1, tf.int64) if ctx[0] is None else tf.reshape(tf.cast(ctx[0], tf.int64), [])
    alive = tf.constant(True) if ctx[1] is None else tf.reshape(ctx[1], [])
    kinds = [tf.as_dtype(v.dtype.numpy()) for v in body.outputs[1 + len(carried) :]]
    arrays = [tf.TensorArray(k, 0, dynamic_size=True, infer_shape=False) for k in kinds]

    def step(t: Tensor, alive: Tensor, arrays: list, state: list) -> tuple:
        results = run(body, [t, alive, *state])
        written = [
            a.write(tf.cast(t, tf.int32), r) for a, r in zip(arrays, results[1 + len(state) :], strict=True)
        ]
        return t + 1, tf.reshape(results[0], []), written, list(results[1 : 1 + len(state)])

    pairs = zip(body.outputs[1:], carried, strict=False)
    loose = [tf.TensorShape(None) if _changes(v, t) else t.shape for v, t in pairs]
    unknown = [tf.TensorShape(None)] * count
    _, _, arrays, state = tf.while_loop(
        lambda t, alive, *_: alive & (t < limit),
        step,
        (tf.constant(0, tf.int64), alive, arrays, carried),
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([]), unknown, loose),
    )
    scans = []
    for array, value in zip(arrays, body.outputs[1 + len(carried) :], strict=True):
        stacked = array.stack()
        if value.shape is not None:
            stacked.set_shape([None, *(d if isinstance(d, int) else None for d in value.shape)])
        scans.append(stacked)
    return *state, *scans


def _changes(value: object, tensor: Tensor) -> bool:
    """Whether a carried value may change its shape from turn to turn."""
    shape = getattr(value, "shape", None)
    if shape is None or tensor.shape.rank is None or len(shape) != tensor.shape.rank:
        return True
    return [d if isinstance(d, int) else None for d in shape] != tensor.shape.as_list()


def _scan(ctx: Ctx, view: View) -> tuple[Tensor, ...]:
    body, run = view.graph_attr("body"), _runner(ctx, view)
    if view.opset < 9:
        raise view.refuse("the batched form of opset 8")
    m = view.attr("num_scan_inputs")
    n = len(ctx) - m
    state, scanned = list(ctx.tensors[:n]), list(ctx.tensors[n:])
    outs = len(body.outputs) - n
    axes, backward = view.attr("scan_input_axes") or [0] * m, view.attr("scan_input_directions") or [0] * m
    moved = []
    for x, where, reverse in zip(scanned, axes, backward, strict=True):
        axis = axis_of(where, x.shape.rank)
        turned = tf.transpose(x, [axis, *(a for a in range(x.shape.rank) if a != axis)])
        moved.append(tf.reverse(turned, [0]) if reverse else turned)
    steps = dims(moved[0])[0]
    arrays = [
        tf.TensorArray(tf.as_dtype(v.dtype.numpy()), steps, infer_shape=False) for v in body.outputs[n:]
    ]

    shapes: list[tf.TensorShape] = []

    def step(t: Tensor, arrays: list, state: list) -> tuple:
        results = run(body, [*state, *(x[t] for x in moved)])
        shapes[:] = [r.shape for r in results[n:]]
        new = list(results[:n])
        for tensor, old in zip(new, state, strict=True):
            tensor.set_shape(old.shape)
        return t + 1, [a.write(t, r) for a, r in zip(arrays, results[n:], strict=True)], new

    _, arrays, state = tf.while_loop(lambda t, *_: t < steps, step, (tf.constant(0), arrays, state))
    out_axes = view.attr("scan_output_axes") or [0] * outs
    reverse = view.attr("scan_output_directions") or [0] * outs
    results = []
    for array, shape, where, back in zip(arrays, shapes, out_axes, reverse, strict=True):
        if shape.rank is None:
            raise view.refuse("the rank of a scanned output is unknown")
        y = array.stack()
        y.set_shape([None, *shape.as_list()])
        y = tf.reverse(y, [0]) if back else y
        axis = axis_of(where, y.shape.rank)
        rest = list(range(1, y.shape.rank))
        results.append(tf.transpose(y, [*rest[:axis], 0, *rest[axis:]]))
    return *state, *results


LOWERINGS: dict[str, Lowering] = {"If": _if, "Loop": _loop, "Scan": _scan}
