"""`quantize.weights`: weights in few bits, arithmetic in float; for size."""

from __future__ import annotations

import mmap
from typing import Annotated

import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar.errors import AttarError, RecipeError, Refused, did_you_mean
from attar.passes import Doc, Pass, Range
from attar.patterns import check_operators, check_patterns, matches, names_in
from attar_quantize.methods import METHODS, Layer
from attar_quantize.places import OPERATORS, Place, bits_of, find_places
from attar_quantize.scheme import QType
from attar_quantize.storage import Store, is_mapped
from attar_quantize.weight_writer import WeightWriter

# Below this many bytes saved the new nodes and names take back what the codes give.
_WORTH = 768
# Models that lie in a file, or are larger than this, are written to a file as they are made.
_IN_MEMORY = 1 << 28


class Weights(Pass, name="quantize.weights"):
    """Store weights as integers of 8, 4 or 2 bits, in blocks or per channel; activations stay float.

    The result is smaller, not quicker: weights are turned back to float when the model is loaded, or inside
    the kernel where the target has one that is quicker so (MatMulNBits for few rows). Neither takes more time
    than the original.
    """

    aim = "size"
    breaks = ("values",)  # equal weights under different scales become different ones

    type: Annotated[
        str, Doc("type of the codes: int8, int4, int2 or unsigned, other bits, float8e4m3fn, float8e5m2")
    ] = "int8"
    block: Annotated[
        int, Range(0, 1 << 16), Doc("weights that share a scale; 0: a channel, or a row of a table")
    ] = 0
    symmetric: Annotated[bool | None, Doc("zero point at zero; default: with 8 bits and more")] = None
    method: Annotated[
        str, Doc("nearest; mse: ranges of least squared error; hqq: half-quadratic; with data: gptq, awq")
    ] = "mse"
    operators: Annotated[
        tuple[str, ...], Doc("operator types whose weights are quantized; empty: all that are known")
    ] = ()
    overrides: Annotated[
        tuple[str, ...],
        Doc("other types by name, the first match wins: 'pattern=int8', 'pattern=int4/32', 'pattern=float'"),
    ] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        _qtype(self.type, self.block, self.symmetric, f"{self.name}: option 'type'")
        for text in self.overrides:
            self._override(text)
        if self.method not in METHODS:
            raise RecipeError(
                f"{self.name}: unknown method {self.method!r}", hint=did_you_mean(self.method, list(METHODS))
            )
        check_operators(self.operators, OPERATORS, where=self.name)

    def apply(self, model: ir.Model, ctx: Context) -> None:
        self._check_names(model)
        types = [_qtype(self.type, self.block, self.symmetric, self.name)]
        types += [qtype for text in self.overrides if (qtype := self._override(text)[1]) is not None]
        opset = max(qtype.opset for qtype in types)
        if model.opset_imports[""] < opset:
            graph.normalize(model, opset)
        if model.opset_imports[""] < opset:
            raise Refused(f"the model cannot be raised to opset {opset}, which the types need")
        places = find_places(model, frozenset(self.operators or OPERATORS), ctx)
        jobs = [(place, qtype) for place in places if (qtype := self._wanted(place, ctx)) is not None]
        if not jobs:
            reasons = [(s.name, s.reason) for s in ctx.step.skipped]
            raise Refused("no weight is worth storing as integers", nodes=reasons)
        on_disk = graph.byte_size(model) > _IN_MEMORY or any(
            is_mapped(place.weight.const_value) for place, _ in jobs if place.weight.const_value
        )
        room = sum(place.bytes + 3 * mmap.PAGESIZE for place, _ in jobs) if on_disk else 0
        writer = WeightWriter(model, ctx, Store(room=room))
        before = graph.byte_size(model)
        with ctx.progress.task("quantizing weights", len(jobs)) as task:
            for place, qtype in jobs:
                tensor = place.weight.const_value
                assert tensor is not None
                with graph.borrow(tensor) as array:
                    weight = array.T if place.transposed else array
                    axis = place.block_axis if qtype.block else place.channel_axis
                    layer = Layer(weight, qtype, axis, place.users, model, ctx)
                    codes, params = METHODS[self.method](layer)
                    writer.write(place, codes, params)
                    del array, weight, layer
                task.advance()
        kinds = sorted({q.name + (f"/{q.block}" if q.block else "") for _, q in jobs})
        after = graph.byte_size(model)
        ctx.note(
            f"{len(jobs)} of {len(places)} weights stored as {', '.join(kinds)}: {before} -> {after} bytes"
        )

    def alternatives(self) -> tuple[Pass, ...]:
        """Finer settings: smaller blocks and the other method, then 8 bits."""
        options = {k: v for k, v in self.to_dict().items() if k != "name"}
        out = []
        if bits_of(self.type) < 8:
            if self.method != "hqq" or self.block != 16:
                out.append(Weights(**{**options, "block": 16, "method": "mse"}))
            out.append(Weights(**{**options, "type": "int8"}))
        return tuple(out)

    # -- which type for which weight -----------------------------------------------------------------------

    def _wanted(self, place: Place, ctx: Context) -> QType | None:
        """The type for a weight, or None, with the reason told to `ctx`, if it stays as it is."""

        reason, qtype = self._choice(place, ctx)
        if reason:
            ctx.skip(place.weight, reason, names=place.names)
            return None
        return qtype

    def _choice(self, place: Place, ctx: Context) -> tuple[str, QType | None]:
        """Why a weight stays as it is, or an empty reason and its type."""
        if place.why:
            return place.why, None
        for name in place.names:
            if name in ctx.keep_float:
                return ctx.keep_float[name], None
        qtype: QType | None = _qtype(self.type, self.block, self.symmetric, self.name)
        for text in self.overrides:
            pattern, other = self._override(text)
            if matches(place.names, (pattern,)):
                qtype = other
                break
        if qtype is None:
            return "kept in float by option overrides", None
        qtype = place.fitted(qtype)
        if place.bytes - place.bytes_as(qtype) < _WORTH:
            return "too small: the codes would save less than what the new nodes take", None
        return "", qtype

    def _override(self, text: str) -> tuple[str, QType | None]:
        pattern, equals, kind = text.rpartition("=")
        where = f"{self.name}: option 'overrides' = {text!r}"
        if not equals or not pattern:
            raise RecipeError(where + " is not of the form 'pattern=type'", hint="e.g. '*attention*=int8'")
        if kind in ("float", "float32"):
            return pattern, None
        name, _, block = kind.partition("/")
        if block and not block.isdecimal():
            raise RecipeError(where + f": {block!r} is no block size")
        return pattern, _qtype(name, int(block) if block else self.block, self.symmetric, where)

    def _check_names(self, model: ir.Model) -> None:
        patterns = [self._override(text)[0] for text in self.overrides]
        option = f"{self.name}: option 'overrides': pattern"
        check_patterns(patterns, names_in(model), option=option, of="weight or node")


def _qtype(name: str, block: int, symmetric: bool | None, where: str) -> QType:
    try:
        plain = QType.of(name)
        if plain.format in ("float16", "bfloat16", "float4e2m1"):
            raise RecipeError(f"{where} = {name!r}: ONNX Runtime has no kernel that takes such weights apart")
        if plain.format:
            return QType.of(name, block=block)
        chosen = plain.bits >= 8 if symmetric is None else symmetric
        # A zero point of its own wants the codes of its sign; kernels take few-bit codes of either.
        narrow = chosen and plain.signed and plain.bits >= 8
        return QType(plain.signed and chosen, plain.bits, chosen, narrow, block=block)
    except RecipeError:
        raise
    except AttarError as error:
        raise RecipeError(f"{where} = {name!r}: {error.message}", hint=error.hint) from error
