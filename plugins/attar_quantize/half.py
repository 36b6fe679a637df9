"""`quantize.float16`: weights, and where the target computes so activations, in 16-bit floats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar.errors import Refused
from attar.kernels import COMPUTE
from attar.passes import Doc, Pass, Range
from attar.patterns import check_patterns, matches, names_in
from attar_quantize.halves import Halver, Kernels, why_float
from attar_quantize.scheme import Array, largest

# Values that ranges are taken from, without calibration data: one made-up or given sample tells little.
_UNSEEN = 4.0
_FEW = 16  # constants of up to so many numbers must keep each of them
_TOO_SMALL = 64  # bytes of weights that are not worth a Cast


class Half(Pass, name="quantize.float16"):
    """Store weights as 16-bit floats, and compute with them where the target can.

    With `compute="float32"` weights are cast back when the model is loaded: half the size, the same time, an
    error of 2^-11. With `compute="half"` activations are halves too, in islands: an operator whose values
    come near the largest half, whose constants do not fit, or that ONNX does not define on halves stays in
    float32 with Casts around it. Inputs and outputs of the model keep their types in either.
    """

    aim = "size"

    type: Annotated[
        Literal["float16", "bfloat16"],
        Doc("float16: 11 bits of precision up to 65504; bfloat16: 8 bits and the range of float32"),
    ] = "float16"
    compute: Annotated[
        Literal["auto", "half", "float32"],
        Doc("type of the arithmetic; auto: half where the target has such kernels, as graphics cards do"),
    ] = "auto"
    margin: Annotated[
        float, Range(1.0), Doc("values seen must fit this many times into the largest half")
    ] = 4.0
    keep_float: Annotated[
        tuple[str, ...], Doc("patterns of node or value names to leave in float32 (*, ?)")
    ] = ()

    def apply(self, model: ir.Model, ctx: Context) -> None:
        self._check_names(model)
        half = ctx.target.computes_half if self.compute == "auto" else self.compute == "half"
        before = graph.byte_size(model)
        if half:
            self._compute(model, ctx)
        else:
            self._store(model, ctx)
        graph.tidy(model)
        ctx.note(f"{before} -> {graph.byte_size(model)} bytes of weights in {self.type}")

    # -- weights only --------------------------------------------------------------------------------------

    def _store(self, model: ir.Model, ctx: Context) -> None:
        taken = graph.taken_names(model.graph)
        done = 0
        for owner in list(model.graphs()):
            for value in list(owner.initializers.values()):
                tensor = value.const_value
                if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.nbytes < _TOO_SMALL:
                    continue
                if value.is_graph_input() or value.is_graph_output():
                    continue
                names = [value.name or "", *(u.name or "" for u, _ in value.uses())]
                if self._kept(names, ctx):
                    continue
                with graph.borrow(tensor) as array:
                    stored = fitting(array, self._kind)
                if stored is None:
                    ctx.skip(value, f"holds values that {self.type} does not")
                    continue
                self._cast_on_load(model, owner, value, stored, taken)
                done += 1
        if not done:
            raise Refused("no weight is worth storing as 16-bit floats")
        ctx.note(f"{done} weights stored as {self.type}, cast to float32 on loading")

    def _cast_on_load(
        self, model: ir.Model, owner: ir.Graph, value: ir.Value, stored: Array, taken: set[str]
    ) -> None:
        users = list(value.uses())
        name = graph.fresh_name(model.graph, f"{value.name}_{self.type}", taken)
        small = ir.Value(
            name=name,
            type=ir.TensorType(self._kind),
            shape=ir.Shape(stored.shape),
            const_value=ir.Tensor(stored, dtype=self._kind, name=name),
        )
        owner.register_initializer(small)
        cast = ir.node(
            "Cast",
            [small],
            attributes={"to": ir.DataType.FLOAT.value},
            name=graph.fresh_name(model.graph, f"{value.name}/cast", taken),
        )
        out = cast.outputs[0]
        out.name = graph.fresh_name(model.graph, f"{value.name}_float32", taken)
        out.type, out.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(stored.shape)
        owner.insert_before(next(iter(owner)), cast)
        for user, position in users:
            user.replace_input_with(position, out)
        if value.name and value.name in owner.initializers:
            del owner.initializers[value.name]

    # -- activations, too ----------------------------------------------------------------------------------

    def _compute(self, model: ir.Model, ctx: Context) -> None:
        reach, margin = self._reach(model, ctx)
        limit = largest(self._kind) / margin
        islands: dict[ir.Node, str] = {}
        kernels = Kernels(ctx.runtime, self._kind, model)
        for node in model.graph:
            names = [node.name or "", *(v.name or "" for v in node.outputs)]
            reason = self._kept(names, ctx) or why_float(node, self._kind, model.opset_imports[""])
            if not reason:
                reason = next((why for v in node.inputs if (why := self._misfit(v))), "")
            if not reason:
                over = [
                    v for v in (*node.inputs, *node.outputs) if v and reach.get(v.name or "", 0.0) > limit
                ]
                if over:
                    reason = f"{over[0].name} reaches {reach[over[0].name or '']:.3g}, near the largest half"
            if not reason and not kernels.has(node):
                reason = f"{ctx.runtime.name} has no kernel for {node.op_type} on {self.type}"
            if reason:
                islands[node] = reason
        halved = [n for n in model.graph if n not in islands and _touches_float(n)]
        compute = [n for n in model.graph if n.op_type in COMPUTE and _touches_float(n)]
        if not halved or (compute and not any(n not in islands for n in compute)):
            reasons = [(n.name or "?", reason) for n, reason in islands.items()]
            raise Refused("no operator can compute in 16-bit floats", nodes=reasons)
        for node, reason in islands.items():
            if _touches_float(node):
                ctx.skip(node, reason)
                node.metadata_props["attar.float"] = reason
        casts = Halver(model, self._kind).write(set(halved))
        ctx.note(f"{len(halved)} operators compute in {self.type}, {len(islands)} in float32, {casts} Casts")

    def _reach(self, model: ir.Model, ctx: Context) -> tuple[Mapping[str, float], float]:
        """Largest magnitude of every float32 value that was seen, and the margin it must keep."""
        from attar.calibration import as_data
        from attar.feeds import sample_feeds
        from attar.specs import input_specs
        from attar.statistics import collect

        values = [*model.graph.inputs, *(v for n in model.graph for v in n.outputs)]
        wanted = {v.name: None for v in values if v.dtype == ir.DataType.FLOAT and v.name}
        if self.type == "bfloat16":
            return {}, self.margin  # the exponents of float32: nothing overflows that did not before
        if ctx.data is not None:
            seen, margin = ctx.statistics(model, wanted), self.margin
        else:
            specs = input_specs(model)
            feeds = dict(ctx.feeds) if ctx.feeds is not None else sample_feeds(specs)
            seen = collect(model, wanted, as_data([feeds], specs), ctx.runtime, threads=ctx.threads)
            margin = self.margin * _UNSEEN
        reach = {}
        for name, found in seen.items():
            low, high = found.histogram.low, found.histogram.high
            finite = max(-low, high) if low <= high else 0.0
            # Infinities are the same in halves: masks of minus infinity are no overflow.
            reach[name] = finite
        return reach, margin

    def _misfit(self, value: ir.Value | None) -> str:
        """Why a constant keeps its readers in float32; empty if it does not."""
        tensor = value.const_value if value is not None and value.is_initializer() else None
        if value is None or tensor is None or tensor.dtype != ir.DataType.FLOAT:
            return ""
        with graph.borrow(tensor) as array:
            fits = fitting(array, self._kind) is not None
        return "" if fits else f"{value.name} does not fit into {self.type}"

    @property
    def _kind(self) -> ir.DataType:
        return ir.DataType.FLOAT16 if self.type == "float16" else ir.DataType.BFLOAT16

    def _kept(self, names: list[str], ctx: Context) -> str:
        for name in names:
            if name in ctx.keep_float:
                return ctx.keep_float[name]
        if matches(names, self.keep_float):
            return "kept in float by option keep_float"
        return ""

    def _check_names(self, model: ir.Model) -> None:
        option = f"{self.name}: option 'keep_float'"
        check_patterns(self.keep_float, names_in(model), option=option, of="weight, node or value")


def _touches_float(node: ir.Node) -> bool:
    return any(v is not None and v.dtype == ir.DataType.FLOAT for v in (*node.inputs, *node.outputs))


def fitting(array: Array, kind: ir.DataType) -> Array | None:
    """`array` in 16-bit floats, or None if that is another array: numbers overflow, or vanish.

    Rounding to 11 (8) bits changes a number by at most 2^-11 (2^-8) of itself. What is below the smallest
    normal half loses more, which is harmless beside larger numbers and fatal for a constant that is all there
    is, such as the 1e-12 that keeps a division from zero.
    """
    dtype = kind.numpy()
    with np.errstate(over="ignore"):
        small = array.astype(dtype)
    step = float(ml_dtypes.finfo(dtype).eps)  # type: ignore[no-untyped-call]
    count = 1 + (array.size >> 18)  # pieces: no float64 copy of the whole
    power = noise = 0.0
    for piece, other in zip(
        np.array_split(array.reshape(-1), count), np.array_split(small.reshape(-1), count), strict=True
    ):
        finite = np.isfinite(piece)
        exact, back = piece[finite].astype(np.float64), other[finite].astype(np.float64)
        if not np.isfinite(back).all():
            return None
        error = np.abs(back - exact)
        if array.size <= _FEW and (error > step * np.abs(exact)).any():
            return None
        power, noise = power + float((exact**2).sum()), noise + float((error**2).sum())
    return small if noise <= (2 * step) ** 2 * power else None
