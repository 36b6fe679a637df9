"""`cluster.weights`: few distinct numbers a tensor or channel, for size in a bundle."""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
import onnx_ir as ir

from attar import graph, invariants
from attar.context import Context
from attar.errors import Refused
from attar.gram import Gram, LayerInput, from_rows, layer_input, rows_of
from attar.ops import rule_of
from attar.passes import Choice, Doc, Pass, Range
from attar.patterns import check_operators, check_patterns, matches
from attar_cluster.kmeans import kmeans, nearest

Array = np.ndarray[Any, np.dtype[Any]]
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", "LSTM", "GRU", "RNN")
_TABLES = {"Gather": (0,)}  # rows of a table are no weights to the rules, which are about products


class Weights(Pass, name="cluster.weights"):
    """Let weights share few values, found by k-means (Han et al. 2016, "Deep compression").

    The values stay float, so the model runs everywhere as before; what becomes small is the `.attar` bundle,
    which stores an index for each weight and the values once. Zeros stay zeros: they are a cluster of their
    own. With calibration data the error of a weight counts by how much its input moves the output, and
    biases make good what the change does to the mean.
    """

    aim = "size"
    breaks = ()

    values: Annotated[int, Range(2, 65536), Doc("distinct values, zero included")] = 32
    granularity: Annotated[str, Choice("tensor", "channel"), Doc("what shares one set of values")] = "tensor"
    smallest: Annotated[int, Range(2), Doc("weights of fewer numbers stay as they are")] = 1024
    keep: Annotated[tuple[str, ...], Doc("patterns of nodes or weights that stay as they are")] = ()
    operators: Annotated[
        tuple[str, ...], Doc("operator types whose weights are clustered; empty: all that are known")
    ] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_operators(self.operators, OPERATORS, where=self.name)

    def apply(self, model: ir.Model, ctx: Context) -> None:
        readers = self._chosen(model, ctx)
        if not readers:
            reasons = [(s.name, s.reason) for s in ctx.step.skipped]
            raise Refused("no weight is worth clustering", nodes=reasons)
        grams = self._grams(model, readers, ctx)
        numbers = before = after = 0
        with ctx.progress.task("clustering weights", len(readers)) as task:
            for weight, nodes in readers.items():
                array = graph.const_array(weight)
                assert array is not None
                gram = grams.get(weight)
                axis = _output_axis(nodes[0])
                new = self._clustered(nodes[0], array, axis, gram)
                graph.replace_weight(weight, new)
                invariants.hold(weight, values=True, zeros=bool((array == 0).any()), axis=axis)
                if gram is not None and len(nodes) == 1:
                    _mend_mean(nodes[0], array, new, gram)
                numbers += array.size
                before += array.nbytes
                after += math.ceil(array.size * math.log2(self.values) / 8)
                task.advance()
        per = "tensor" if self.granularity == "tensor" else "output channel"
        ctx.note(
            f"{len(readers)} weights, {numbers} numbers, with at most {self.values} values a {per}: "
            f"about {after} instead of {before} bytes in a bundle"
        )

    def alternatives(self) -> tuple[Pass, ...]:
        """Twice and four times as many values."""
        options = {k: v for k, v in self.to_dict().items() if k != "name"}
        more = [n for n in (2 * self.values, 4 * self.values) if n <= 256]
        return tuple(type(self)(**{**options, "values": n}) for n in more)

    def _chosen(self, model: ir.Model, ctx: Context) -> dict[ir.Value, list[ir.Node]]:
        wanted = self.operators or OPERATORS
        found: dict[ir.Value, list[ir.Node]] = {}
        names: list[str] = []
        for node in graph.all_nodes(model):
            names += [node.name or "", *(v.name or "" for v in node.outputs)]
            if node.domain not in ("", "ai.onnx") or node.op_type not in wanted:
                continue
            rule = rule_of(node, ctx.registry)
            for place in _TABLES.get(node.op_type, () if rule is None else rule.weights):
                value = node.inputs[place] if place < len(node.inputs) else None
                if value is not None and graph.const_array(value) is not None:
                    found.setdefault(value, []).append(node)
        names += [v.name or "" for g in model.graphs() for v in g.initializers.values()]
        check_patterns(self.keep, names, option=f"{self.name}: option 'keep'", of="weight or node")
        out = {}
        for value, nodes in found.items():
            why = self._why_not(value, nodes)
            if why:
                ctx.skip(value, why)
            else:
                out[value] = nodes
        return out

    def _why_not(self, value: ir.Value, nodes: list[ir.Node]) -> str:
        array = graph.const_array(value)
        assert array is not None
        called = [value.name or "", *(n.name or "" for n in nodes)]
        called += [o.name or "" for n in nodes for o in n.outputs]
        if matches(called, self.keep):
            return "kept by option keep"
        if value.dtype not in _FLOATS:
            return f"its numbers are {value.dtype}, not float"
        if value.is_graph_output():
            return "the weight itself is an output of the model"
        if len(value.uses()) != len(nodes):
            return "it is also read by operators that are not clustered"
        if array.size < self.smallest or (self.granularity == "tensor" and array.size <= 2 * self.values):
            return f"too small: {array.size} numbers"
        if not np.isfinite(array.astype(np.float64)).all():
            return "it has NaN or infinite numbers"
        return ""

    def _grams(
        self, model: ir.Model, readers: dict[ir.Value, list[ir.Node]], ctx: Context
    ) -> dict[ir.Value, Gram]:
        """Diagonals of the Gram matrices, which other passes want, too. Nothing without data."""
        if ctx.data is None:
            return {}
        items: dict[ir.Value, LayerInput] = {}
        for weight, nodes in readers.items():
            node = nodes[0]
            in_main = node.graph is model.graph
            item = layer_input(node) if len(nodes) == 1 and in_main else None
            if item is not None:
                items[weight] = item
        frozen = graph.clone(model)
        found: dict[LayerInput, Gram] = {}
        for item, gram in ctx.grams(frozen, items.values()):
            diagonal = np.einsum("gkk->gk", gram.matrix)
            found[item] = Gram(diagonal.copy(), gram.total, gram.count)
        return {weight: found[item] for weight, item in items.items() if item in found}

    def _clustered(self, node: ir.Node, array: Array, axis: int, gram: Gram | None) -> Array:
        """`array` with few values, the same zeros, in its own type."""
        wide = array.astype(np.float64)
        mass: Array | None = None
        if gram is not None and node.op_type in ("Conv", "Gemm", "MatMul"):
            power = gram.matrix / max(1, gram.count)  # the diagonal, [groups, K]
            power = power + 0.01 * power.mean() if power.mean() > 0 else np.ones_like(power)
            rows = rows_of(node, array)
            mass = from_rows(node, np.broadcast_to(power[:, None, :], rows.shape).copy(), array.shape)
        if self.granularity == "tensor":
            return self._shared(wide, mass, array)
        out = np.empty_like(array)
        for source, part, weight in zip(
            np.moveaxis(wide, axis, 0),
            np.moveaxis(out, axis, 0),
            np.moveaxis(wide if mass is None else mass, axis, 0),
            strict=True,
        ):
            part[...] = self._shared(source, None if mass is None else weight, part)
        return out

    def _shared(self, wide: Array, mass: Array | None, like: Array) -> Array:
        full = wide != 0
        count = self.values - (0 if full.all() else 1)
        out = np.zeros(wide.shape, like.dtype)
        if full.any():
            centroids = kmeans(wide[full], count, None if mass is None else mass[full])
            stored = centroids.astype(like.dtype)
            out[full] = stored[nearest(wide[full], centroids)]
        return out


def _output_axis(node: ir.Node) -> int:
    if node.op_type in ("Conv", "Gather"):
        return 0
    if node.op_type == "Gemm":
        trans = node.attributes.get("transB")
        return 0 if trans is not None and trans.value else 1
    return 1 if node.op_type != "MatMul" else max(0, _rank(node) - 1)


def _rank(node: ir.Node) -> int:
    array = graph.const_array(node.inputs[1])
    return 0 if array is None else array.ndim


def _mend_mean(node: ir.Node, old: Array, new: Array, gram: Gram) -> None:
    """Move the node's own bias by what the change does to the mean of its outputs."""
    bias = node.inputs[2] if node.op_type in ("Conv", "Gemm") and len(node.inputs) > 2 else None
    array = graph.const_array(bias)
    plain = all((a := node.attributes.get(k)) is None or float(a.value) == 1 for k in ("alpha", "beta"))
    if bias is None or array is None or len(bias.uses()) != 1 or array.ndim != 1 or not plain:
        return
    rows = rows_of(node, old.astype(np.float64)) - rows_of(node, new.astype(np.float64))
    shift = np.einsum("gok,gk->go", rows, gram.total / max(1, gram.count)).reshape(-1)
    if shift.shape == array.shape:
        graph.replace_weight(bias, (array + shift).astype(array.dtype))
