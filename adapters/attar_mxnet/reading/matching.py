"""Weights under structural names (`features.0.weight`), as `save_parameters` writes them, for a symbol's
variables.

The names of a symbol do not tell the structure of the block. An assignment is made only where it is the
only one that the kinds and shapes of the arrays allow; anything else would be a guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attar.errors import InputError
from attar_mxnet.reading.inputs import is_parameter, reachable
from attar_mxnet.reading.operation import Operation
from attar_mxnet.reading.values import to_ints
from attar_mxnet.symbol_json import SymbolGraph

Array = np.ndarray[Any, np.dtype[Any]]
Pattern = tuple[int | None, ...]  # the sizes that are known; None fits any

_KINDS = ("weight", "bias", "gamma", "beta", "running_mean", "running_var", "alpha")
_SYNONYMS = {"moving_mean": "running_mean", "moving_var": "running_var"}
_HINT = (
    "build the block in Gluon, call load_parameters and then export, which writes names that fit; or give "
    "params={name: array} with the symbol's names"
)


def matched(symbol: SymbolGraph, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """`arrays` by the names of the symbol's variables.

    Raises:
        InputError: the assignment is not the only one possible.
    """
    names = [symbol.nodes[n].name for n in reachable(symbol) if symbol.nodes[n].is_variable]
    wanted = [
        symbol.nodes[n].name
        for n in reachable(symbol)
        if symbol.nodes[n].is_variable and is_parameter(symbol.nodes[n])
    ]
    if all(name in arrays for name in wanted):
        return {name: arrays[name] for name in names if name in arrays}
    known = {name: arrays[name] for name in names if name in arrays}
    if known or not any("." in name for name in arrays):
        return known  # ordinary names of which some are missing: reported where they are needed
    shapes = _known_shapes(symbol)
    result: dict[str, Array] = {}
    for kind in {_kind(name) for name in wanted}:
        variables = [n for n in wanted if _kind(n) == kind]
        stored = [n for n in arrays if _kind(n) == kind]
        if len(stored) < len(variables):
            raise InputError(
                f"the symbol has {len(variables)} parameters of the kind {kind!r}, the file {len(stored)}",
                hint=_HINT,
            )
        for name in variables:
            fitting = [s for s in stored if _fits(arrays[s].shape, shapes.get(name))]
            rivals = [n for n in variables if any(_fits(arrays[s].shape, shapes.get(n)) for s in fitting)]
            if len(fitting) != 1 or len(rivals) != 1:
                raise InputError(
                    f"the parameters have the structural names of save_parameters, and {name!r} could be "
                    f"{' or '.join(map(repr, fitting[:3])) or 'none of them'}"
                    + (
                        f", as could {rivals[0] if rivals[0] != name else rivals[1]!r}"
                        if len(rivals) > 1
                        else ""
                    ),
                    hint=_HINT,
                )
            result[name] = arrays[fitting[0]]
    return result


def _kind(name: str) -> str:
    for old, new in _SYNONYMS.items():
        name = name.replace(old, new)
    return next((k for k in _KINDS if name.endswith(k)), name.rsplit(".", 1)[-1])


def _fits(shape: Sequence[int], pattern: Pattern | None) -> bool:
    if pattern is None:
        return True
    return len(shape) == len(pattern) and all(p in (None, s) for s, p in zip(shape, pattern, strict=True))


def _known_shapes(symbol: SymbolGraph) -> dict[str, Pattern]:
    """What the symbol says of the shapes of its parameters."""
    found: dict[str, Pattern] = {}
    for number in reachable(symbol):
        node = symbol.nodes[number]
        if node.is_variable:
            try:
                dims = to_ints(node.attrs.get("__shape__", ""))
            except ValueError:
                dims = ()
            if dims:
                found.setdefault(node.name, tuple(d if d > 0 else None for d in dims))
            continue
        op = Operation(node, [])
        patterns: dict[int, Pattern] = {}
        if node.op in ("Convolution", "_npx_convolution"):
            out = op.whole("num_filter")
            if (op.text("layout") or "NC").startswith("NC"):
                patterns = {1: (out, None, *op.wholes("kernel"))}
            patterns[2] = (out,)
        elif node.op in ("FullyConnected", "_npx_fully_connected"):
            patterns = {1: (op.whole("num_hidden"), None), 2: (op.whole("num_hidden"),)}
        elif node.op in ("Embedding", "_npx_embedding"):
            patterns = {1: (op.whole("input_dim"), op.whole("output_dim"))}
        for place, pattern in patterns.items():
            if place < len(node.inputs):
                name = symbol.nodes[node.inputs[place].node].name
                old = found.get(name)
                if old is not None and len(old) == len(pattern):
                    found[name] = tuple(a if a is not None else b for a, b in zip(old, pattern, strict=True))
                else:
                    found[name] = pattern
    return found
