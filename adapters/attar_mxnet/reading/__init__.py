"""Reading: from a symbol and its parameters to the IR.

A lifting is `lift(ctx, op)`. It looks at the node `op` (`attar_mxnet.reading.operation.Operation`: typed
attributes, inputs, `refuse`), writes ONNX by `ctx` (`attar_mxnet.reading.builder.Builder`: `emit`, `const`,
`reshape`, shapes and types of all values) and gives the node's output, or a sequence of them.
"""

from attar_mxnet.reading import (
    activations,
    constants,
    detection,
    elementwise,
    indexing,
    joining,
    layers,
    norms,
    pooling,
    products,
    recurrent,
    reductions,
    reshaping,
    scalars,
    sorting,
    suppression,
)
from attar_mxnet.reading.table import Lift

_FAMILIES = (
    activations.table,
    constants.table,
    detection.table,
    elementwise.table,
    indexing.table,
    joining.table,
    layers.table,
    norms.table,
    pooling.table,
    products.table,
    recurrent.table,
    reductions.table,
    reshaping.table,
    scalars.table,
    sorting.table,
    suppression.table,
)

LIFTINGS: dict[str, Lift] = {name: lift for family in _FAMILIES for name, lift in family.items()}
"""Every operator that is read, by MXNet's names of it, old spellings included."""


__all__ = ["LIFTINGS"]
