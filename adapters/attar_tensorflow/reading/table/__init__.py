"""TensorFlow operator -> the function that writes it in the IR.

A lifting is `lift(ctx, view)`: `ctx` (a `Lifter`) appends nodes, `view` (an `OpView`) is the operation with
its
lifted inputs. It gives a `Tensor` or a `Const`, or a tuple of them for several outputs; `raise
view.refuse(...)` says
why it cannot. Images are held in NCHW: `ctx.op` takes and gives tensors in TensorFlow's layout, `ctx.map`
computes
elementwise in the layout that its operands are in.
"""

from __future__ import annotations

from attar_tensorflow.reading.table import (
    arrange,
    control,
    conv,
    elementwise,
    image,
    index,
    lists,
    matrix,
    norm,
    pool,
    reduce,
    select,
    shape,
)

LIFTINGS = {
    **elementwise.LIFTINGS,
    **matrix.LIFTINGS,
    **conv.LIFTINGS,
    **norm.LIFTINGS,
    **pool.LIFTINGS,
    **reduce.LIFTINGS,
    **shape.LIFTINGS,
    **arrange.LIFTINGS,
    **select.LIFTINGS,
    **index.LIFTINGS,
    **image.LIFTINGS,
    **control.LIFTINGS,
    **lists.LIFTINGS,
}
