"""From a symbol and its parameters to the IR: the walk over the nodes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from attar import graph as irgraph
from attar.errors import AttarError, ConversionError, InputError
from attar_mxnet.reading.builder import OPSET, Array, Builder
from attar_mxnet.reading.dims import Dim, safe_name
from attar_mxnet.reading.inputs import BATCH, guessed_shape, is_parameter, reachable
from attar_mxnet.reading.operation import Operation, Unreadable
from attar_mxnet.reading.values import DTYPE_CODES, to_dtype
from attar_mxnet.symbol_json import Entry, SymbolGraph, SymbolNode


@dataclass(frozen=True)
class Given:
    """What the caller says of the inputs: shapes by name, with names for dynamic sizes, and element types."""

    shapes: Mapping[str, Sequence[Dim]] = field(default_factory=dict)
    dtypes: Mapping[str, np.dtype[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Read:
    """The model, not yet in normal form.

    Attributes:
        demands: (size, number) pairs: a size that depends on the inputs and must be this number.
    """

    model: ir.Model
    demands: Sequence[tuple[Dim, int]]


def read_graph(
    symbol: SymbolGraph, params: Mapping[str, Array], table: Mapping[str, Callable[..., Any]], given: Given
) -> Read:
    """The IR of `symbol`.

    Args:
        params: weights and states by the names of their variables.
        table: operator -> lifting, see `attar_mxnet.reading.table`.

    Raises:
        ConversionError: operators without counterpart; all of them are listed.
        InputError: parameters are missing, shapes are unknown or do not fit.
    """
    order = reachable(symbol)
    _all_known([symbol.nodes[n] for n in order], table)
    walk = _Walk(symbol, params, table, given)
    for number in order:
        walk.visit(number)
    if walk.refused:
        raise _refusal(walk.refused)
    return walk.finish()


def _all_known(nodes: Sequence[SymbolNode], table: Mapping[str, Callable[..., Any]]) -> None:
    missing: dict[str, list[str]] = {}
    for node in nodes:
        if not node.is_variable and node.op not in table:
            missing.setdefault(node.op, []).append(node.name)
    if not missing:
        return
    custom = {"Custom", "_CustomFunction", "_Native", "_NDArray", "_npi_Custom"} & set(missing)
    hint = "a plugin can bring a lifting for an operator by the hook attar_liftings"
    if custom:
        hint = "operators written in Python are in no file, so they cannot be read; " + hint
    raise ConversionError("operators of MXNet without counterpart in ONNX:", missing=missing, hint=hint)


def _refusal(refused: Sequence[Unreadable]) -> ConversionError:
    missing: dict[str, list[str]] = {}
    for error in refused:
        missing.setdefault(error.op, []).append(f"{error.node} ({error.reason})")
    return ConversionError("nodes that ONNX cannot say exactly:", missing=missing)


class _Walk:
    def __init__(
        self,
        symbol: SymbolGraph,
        params: Mapping[str, Array],
        table: Mapping[str, Callable[..., Any]],
        given: Given,
    ) -> None:
        self.symbol, self.params, self.table, self.given = symbol, params, table, given
        self.ctx = Builder(symbol.np_shape)
        self.outputs: dict[int, Sequence[ir.Value]] = {}
        self.data: dict[int, ir.Value] = {}
        self.weights: dict[str, ir.Value] = {}
        self.refused: list[Unreadable] = []
        self.unclear: set[int] = set()
        self._inputs_first()

    def _inputs_first(self) -> None:
        """Make the data inputs whose shapes are known: sizes of one name are taken from the first that has
        it.
        """
        for number in reachable(self.symbol):
            node = self.symbol.nodes[number]
            if not node.is_variable or node.name in self.params:
                continue
            if is_parameter(node) and node.name not in self.given.shapes:
                continue
            same = next((v for n, v in self.data.items() if self.symbol.nodes[n].name == node.name), None)
            shape = self.given.shapes.get(node.name) or guessed_shape(self.symbol, number, self.params)
            if same is not None:
                self.data[number] = same
            elif shape is not None:
                if self.data and node.name not in self.given.shapes:  # two images may differ in size
                    prefix = safe_name(node.name)
                    shape = [d if isinstance(d, int) or d == BATCH else f"{prefix}_{d}" for d in shape]
                self.data[number] = self.ctx.input(node.name, self._dtype(node), shape)

    def _dtype(self, node: SymbolNode) -> np.dtype[Any]:
        if node.name in self.given.dtypes:
            return self.given.dtypes[node.name]
        hint = node.attrs.get("__dtype__", "")
        try:
            return to_dtype(hint) if hint else DTYPE_CODES[0]
        except ValueError:
            return DTYPE_CODES[0]

    def visit(self, number: int) -> None:
        node = self.symbol.nodes[number]
        if node.is_variable:
            return
        if any(e.node in self.unclear for e in node.inputs):
            self.unclear.add(number)
            return
        self.ctx.here = node.name
        op = Operation(node, [functools.partial(self.value, e) for e in node.inputs], self.symbol.np_shape)
        start = len(self.ctx.nodes)
        try:
            found = self.table[node.op](self.ctx, op)
        except Unreadable as error:
            self.refused.append(error)
            self.unclear.add(number)
            return
        except AttarError:
            raise
        except Exception as error:  # a damaged file can be wrong in more ways than anyone has listed
            raise InputError(
                f"{node.op} {node.name!r} does not make sense: {type(error).__name__}: {str(error)[:200]}"
            ) from error
        outputs = [found] if isinstance(found, ir.Value) else list(found)
        self.outputs[number] = outputs
        self._name(node.name, self.ctx.nodes[start:], outputs[0])

    def value(self, entry: Entry) -> ir.Value:
        """The value of an entry. Variables become weights or inputs here, so that unused labels become
        neither.
        """
        node = self.symbol.nodes[entry.node]
        if entry.node in self.data:
            return self.data[entry.node]
        if not node.is_variable:
            outputs = self.outputs[entry.node]
            if entry.index >= len(outputs):
                raise Unreadable(node.op, node.name, f"its output {entry.index} is not to be had in ONNX")
            return outputs[entry.index]
        if entry.node not in self.outputs:
            if node.name not in self.params:
                raise self._unknown(node)
            if node.name not in self.weights:
                self.weights[node.name] = self.ctx.weight(node.name, self.params[node.name])
            self.outputs[entry.node] = [self.weights[node.name]]
        return self.outputs[entry.node][0]

    def _unknown(self, node: SymbolNode) -> InputError:
        if is_parameter(node):
            lost = [
                n.name
                for i in reachable(self.symbol)
                if (n := self.symbol.nodes[i]).is_variable and is_parameter(n) and n.name not in self.params
            ]
            more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
            return InputError(
                f"the parameters {', '.join(lost[:5])}{more} of the symbol are not among those given",
                hint="give the .params file that was saved with the symbol, by params=...",
            )
        return InputError(
            f"the shape of the input {node.name!r} is nowhere written",
            hint=f"give inputs=... or shapes={{{node.name!r}: (1, ...)}}",
        )

    def _name(self, name: str, nodes: Sequence[ir.Node], result: ir.Value) -> None:
        """Give the node that does the work the name of MXNet's node: the last that has a weight, or the
        last.
        """
        if not nodes:
            return
        heavy = [n for n in nodes if any(v is not None and v.name in self.params for v in n.inputs[1:])]
        main = heavy[-1] if heavy else (result.producer() or nodes[-1])
        if any(main is n for n in nodes):
            main.name = name

    def finish(self) -> Read:
        outputs: list[ir.Value] = []
        names: set[str] = set()
        for entry in self.symbol.heads:
            node = self.symbol.nodes[entry.node]
            value = self.value(entry)
            single = node.is_variable or len(self.outputs[entry.node]) == 1
            wanted = node.name if node.is_variable else f"{node.name}_output{'' if single else entry.index}"
            own = value.producer() is not None and not any(value is o for o in outputs)
            if not own or not any(value.producer() is n for n in self.ctx.nodes):
                self.ctx.here = node.name
                value = self.ctx.emit("Identity", value)
                wanted = f"{wanted}_out" if node.is_variable else wanted
            name, count = wanted, 0
            while name in names:
                count += 1
                name = f"{wanted}_{count}"
            names.add(name)
            value.name = name
            outputs.append(value)
        inputs = [v for v in dict.fromkeys(v for _, v in sorted(self.data.items())) if v.uses()]
        for value in outputs:  # only sizes of the inputs mean something to the caller
            known = {d for i in inputs for d in self.ctx.shape(i) if isinstance(d, str)}
            dims = [d if isinstance(d, int) or d in known else None for d in self.ctx.shape(value)]
            value.shape = ir.Shape(dims)
        model = ir.Model(
            ir.Graph(
                inputs,
                outputs,
                nodes=self.ctx.nodes,
                initializers=list(self.ctx.initializers.values()),
                opset_imports={"": OPSET},
                name="mxnet",
            ),
            ir_version=10,
            producer_name="attar",
        )
        for value in irgraph.all_values(model):  # products of sizes are for this module only
            if value.shape is not None and not value.is_graph_input() and not value.is_graph_output():
                value.shape = None if value.const_value is None else value.shape
        irgraph.tidy(model)
        return Read(model, self.ctx.demands)
