"""Running a quantized model as a processor without VNNI would: its sums of products saturate in 16 bits.

The layers that saturate are computed here (`saturating`), everything else by the runtime. The model is cut
into stages: a layer's result belongs to the stage behind that of its input, and what else a stage holds runs
as one piece, so that the runtime fuses it as it would in the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from attar import graph
from attar.diagnosis.integer_layers import IntegerLayer, inputs_of, integer_layers
from attar.diagnosis.saturating import HIGH, Lost
from attar.errors import InputError
from attar.runtime import Feeds, Runtime, Session

Array = np.ndarray[Any, np.dtype[Any]]
_LARGEST = 1 << 30  # bytes of weights: stages are handed to the runtime as messages, which end at 2 GB


@dataclass(frozen=True)
class _Stage:
    """Pieces that run together: a session with the values it reads and makes, then layers on its results."""

    session: Session | None
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    layers: tuple[IntegerLayer, ...]
    done: tuple[str, ...]


class SaturatingSession(Session):
    """A model that runs as on a processor without VNNI; see `emulate`.

    Attributes:
        layers: those that are computed with saturating sums, each with what it has `lost` so far.
    """

    def __init__(
        self, model: onnx.ModelProto, like: Session, runtime: Runtime, *, threads: int, saturate: bool
    ) -> None:
        self.inputs, self.outputs = like.inputs, like.outputs
        self.layers = integer_layers(model)
        self._saturate = saturate
        self._constants = {
            t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name in like.outputs
        }
        self._stages = _Cut(model, self.layers).stages(runtime, threads)

    @property
    def lost(self) -> Lost:
        """What was cut off in all layers and runs so far."""
        return Lost(sum(layer.lost.pairs for layer in self.layers), sum(x.lost.cut for x in self.layers))

    @property
    def safe(self) -> bool:
        """Whether no input whatever can make a sum saturate."""
        return all(layer.bound <= HIGH for layer in self.layers)

    def run(self, feeds: Feeds) -> list[Array]:
        values: dict[str, Array] = {**self._constants, **{k: np.asarray(v) for k, v in feeds.items()}}
        missing = [spec.name for spec in self.inputs if spec.name not in values]
        if missing:
            raise InputError(f"input {missing[0]!r} is missing")
        for stage in self._stages:
            if stage.session is not None:
                found = stage.session.run({name: values[name] for name in stage.reads})
                values.update(zip(stage.makes, found, strict=True))
            for layer in stage.layers:
                zero = layer.zero if isinstance(layer.zero, int) else int(values[layer.zero])
                values[layer.result] = layer.run(values[layer.codes], zero, saturate=self._saturate)
            for name in stage.done:
                values.pop(name, None)
        return [values[name] for name in self.outputs]


def emulate(
    model: ir.Model, runtime: Runtime, *, threads: int = 1, saturate: bool = True
) -> SaturatingSession:
    """A session that gives what `model` gives on an x86 processor without VNNI.

    Args:
        model: quantized, with the target's lowerings (they change which products are neighbours).
        saturate: False computes the same layers with exact sums, as processors with VNNI do.

    Raises:
        InputError: the model is too large, or the runtime cannot load it.
    """
    if graph.byte_size(model) > _LARGEST:
        raise InputError("the model is too large to be emulated (1 GB of weights at most)")
    data = graph.to_bytes(model)
    like = runtime.open(data, threads=threads)
    return SaturatingSession(
        onnx.load_model_from_string(data), like, runtime, threads=threads, saturate=saturate
    )


class _Cut:
    """Assigns every node to a stage and builds the models of the stages."""

    def __init__(self, model: onnx.ModelProto, layers: list[IntegerLayer]) -> None:
        self.model, self.layers = model, layers
        main = model.graph
        self.tensors = {t.name: t for t in main.initializer}
        self.types = {v.name: v.type for v in (*main.value_info, *main.input, *main.output)}
        self.outputs = {v.name for v in main.output}
        self.constant = set(self.tensors) | {""}
        self.level: dict[str, int] = {v.name: 0 for v in main.input}
        # Nodes that are repeated where they are read: of constants, and those that turn codes to numbers, so
        # that the runtime sees them beside the operators that it fuses them with.
        self.loose: dict[str, int] = {}
        self.placed: list[tuple[int, int]] = []
        by_result = {layer.result: layer for layer in layers}
        covered = {name for layer in layers for name in layer.covers}
        self.nodes = list(main.node)
        for number, node in enumerate(self.nodes):
            own = [o for o in node.output if o]
            layer = next((by_result[o] for o in own if o in by_result), None)
            if layer is not None:
                self.level[layer.result] = self.level[layer.codes] + 1
            elif not covered & set(own):
                self._place(number, own)

    def _place(self, number: int, own: list[str]) -> None:
        node = self.nodes[number]
        reads = inputs_of([node])
        if reads <= self.constant and not self.outputs & set(own):
            self.constant.update(own)
            self.loose.update(dict.fromkeys(own, number))
            return
        level = max((self.level[name] for name in reads if name in self.level), default=0)
        self.level.update(dict.fromkeys(own, level))
        if node.op_type == "DequantizeLinear" and not self.outputs & set(own):
            self.loose.update(dict.fromkeys(own, number))
        else:
            self.placed.append((level, number))

    def stages(self, runtime: Runtime, threads: int) -> list[_Stage]:
        last = max([0, *(level for level, _ in self.placed), *(self.level[x.codes] for x in self.layers)])
        pieces = [self._piece(level) for level in range(last + 1)]
        # What is read later: by other pieces, by layers, or by the caller.
        reads: dict[str, int] = {}
        for level, (_, outside) in enumerate(pieces):
            reads.update(dict.fromkeys(outside, level))
        for layer in self.layers:
            for name in (layer.codes, layer.zero) if isinstance(layer.zero, str) else (layer.codes,):
                reads[name] = max(reads.get(name, 0), self.level.get(layer.codes, 0))
        reads.update(dict.fromkeys(self.outputs, last + 1))
        found = []
        for level, (nodes, outside) in enumerate(pieces):
            made = [o for node in nodes for o in node.output if o in reads and o not in self.constant]
            made = list(dict.fromkeys(made))
            inside = {o for node in nodes for o in node.output}
            session = None
            if made:
                session = runtime.open(self._model(nodes, outside, made, inside), threads=threads)
            layers = tuple(x for x in self.layers if self.level[x.codes] == level)
            done = tuple(name for name, until in reads.items() if until == level)
            found.append(_Stage(session, tuple(sorted(outside)), tuple(made), layers, done))
        return found

    def _piece(self, level: int) -> tuple[list[onnx.NodeProto], set[str]]:
        """The nodes of a stage in order, repeated ones first, and the values that come from outside."""
        own = [self.nodes[number] for at, number in self.placed if at == level]
        wanted = inputs_of(own)
        copies: set[int] = set()
        pending = list(wanted)
        while pending:
            number = self.loose.get(pending.pop())
            if number is not None and number not in copies:
                copies.add(number)
                more = inputs_of([self.nodes[number]]) - wanted
                wanted |= more
                pending += more
        nodes = [*(self.nodes[number] for number in sorted(copies)), *own]
        made = {o for node in nodes for o in node.output}
        return nodes, {name for name in wanted if name not in made and name not in self.constant}

    def _model(
        self, nodes: list[onnx.NodeProto], outside: set[str], made: list[str], inside: set[str]
    ) -> bytes:
        names = inputs_of(nodes)
        piece = helper.make_graph(
            nodes,
            "stage",
            [self._info(name) for name in sorted(outside)],
            [self._info(name) for name in made],
            [tensor for name, tensor in self.tensors.items() if name in names],
            value_info=[self._info(name) for name in inside if name in self.types and name not in made],
        )
        model = helper.make_model(
            piece, opset_imports=self.model.opset_import, functions=self.model.functions
        )
        model.ir_version = self.model.ir_version
        return bytes(model.SerializeToString())

    def _info(self, name: str) -> onnx.ValueInfoProto:
        if name not in self.types:
            raise InputError(f"the type of value {name!r} is not known, so the model cannot be emulated")
        return onnx.ValueInfoProto(name=name, type=self.types[name])
