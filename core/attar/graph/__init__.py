"""What onnx-ir lacks: strict shapes, safe saving, borrowed weights, and the normal form that every pass may
rely on.

A model is an `onnx_ir.Model`. Its weights are replaced, never edited in place, because clones share them.
"""

from attar.graph.concrete import concrete_shapes
from attar.graph.constants import (
    add_initializer,
    borrow,
    byte_size,
    const_array,
    fresh_name,
    replace_weight,
    taken_names,
)
from attar.graph.fingerprint import fingerprint, saved_size
from attar.graph.learned import is_learned, mark_learned, unmark_learned
from attar.graph.normal_form import check, normalize
from attar.graph.opset import to_opset
from attar.graph.read import from_proto, parse, read_model
from attar.graph.save import save, to_bytes, to_proto
from attar.graph.shapes import refresh_shapes
from attar.graph.structure import all_nodes, all_values, clone, provenance, set_provenance, tidy

__all__ = [
    "add_initializer",
    "all_nodes",
    "all_values",
    "borrow",
    "byte_size",
    "check",
    "clone",
    "concrete_shapes",
    "const_array",
    "fingerprint",
    "fresh_name",
    "from_proto",
    "is_learned",
    "mark_learned",
    "normalize",
    "parse",
    "provenance",
    "read_model",
    "refresh_shapes",
    "replace_weight",
    "save",
    "saved_size",
    "set_provenance",
    "taken_names",
    "tidy",
    "to_bytes",
    "to_opset",
    "to_proto",
    "unmark_learned",
]
