"""Sizes that are computed only because the batch is dynamic, said by numbers alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from attar.graph import add_initializer, all_nodes, refresh_shapes, tidy
from attar.rewrite.shape_values import new_sizes


def fix_sizes(model: ir.Model) -> bool:
    """Give, in place, each Resize whose sizes are numbers beside its input's own the numbers and their axes.

    Readers write all sizes, because ONNX Runtime loses those of `axes` where a Transpose stands before; a
    framework that takes numbers only could then not say the node.

    Returns:
        Whether there were any.
    """
    done = False
    for node in list(all_nodes(model)):
        found = new_sizes(node) if node.op_type == "Resize" and node.domain == "" else None
        if found is None:
            continue
        axes, sizes = found
        numbers = add_initializer(model.graph, f"{node.name}_sizes", np.array(sizes, np.int64))
        node.replace_input_with(3, numbers)
        node.attributes["axes"] = ir.AttrInt64s("axes", axes)
        done = True
    if done:
        tidy(model)
        refresh_shapes(model)
    return done
