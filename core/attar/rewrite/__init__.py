"""Local rewriting: rules that look at one node and its neighbours, applied until nothing changes."""

from attar.rewrite.edit import Array, Edit, Rule, at, dims, float_of, int_of, ints_of, is_float, string_of
from attar.rewrite.engine import rewrite

__all__ = [
    "Array",
    "Edit",
    "Rule",
    "at",
    "dims",
    "float_of",
    "int_of",
    "ints_of",
    "is_float",
    "rewrite",
    "string_of",
]
