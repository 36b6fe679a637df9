"""Data on its way through a model, layer after layer, beside the model as it was.

A layer is fitted to the inputs that the layers before it give once they are fitted. Running the data from the
start for every layer would cost a network of n layers n / 2 runs; here the values behind the last layer that
was looked at are kept, and each part of the model runs once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.errors import InputError
from attar.feeds import batch_of, pieces
from attar.gram import BUDGET, Gram, LayerInput, sweeps
from attar.layer_inputs import positions_of, vectors

if TYPE_CHECKING:
    from attar.context import Context
    from attar.runtime import Session

Array = np.ndarray[Any, np.dtype[Any]]
# Bytes of values that are kept between layers; where they would take more the data run from further back.
_KEPT = 1 << 30
# Samples that run at once, and elements of their inputs.
_AT_ONCE, _ELEMENTS = 8, 1 << 19
# Vectors of each group of a grouped convolution.
_GROUPED = 2048


@dataclass
class Pairs:
    """What a layer gets, x, and what it got in the reference, t.

    Attributes:
        gram: sums over all vectors looked at.
        x, t: some of the vectors themselves, `[groups, n, K]`; None unless asked for.
    """

    gram: Gram
    x: Array | None = None
    t: Array | None = None


class Front:
    """How far the data have come in a model and in its reference.

    Layers must be asked for from front to back; what stands before a value that was asked for must not change
    any more.

    Args:
        reference: the same graph with other weights.
        density: so many times the usual number of positions is looked at.
    """

    def __init__(
        self, model: ir.Model, reference: ir.Model, ctx: Context, *, density: int = 1, kept: int = _KEPT
    ) -> None:
        self._sides, self._ctx, self._density, self._limit = (model, reference), ctx, density, kept
        self._done = [{v.name or "" for v in side.graph.inputs} for side in self._sides]
        self._known = [set(names) for names in self._done]
        self._store: list[tuple[int, list[dict[str, Array]]]] | None = None

    def gather(self, wanted: Iterable[LayerInput], *, samples: int = 0) -> Iterator[tuple[LayerInput, Pairs]]:
        """The inputs of layers, in portions that fit the memory.

        Args:
            samples: vectors of each that are kept as they are.

        Raises:
            InputError: a value is unknown, or became NaN.
        """
        for portion in sweeps(dict.fromkeys(wanted), BUDGET):
            yield from self._portion(portion, samples).items()

    # -- running ---------------------------------------------------------------------------------------------

    def _portion(self, wanted: list[LayerInput], samples: int) -> dict[LayerInput, Pairs]:
        ctx = self._ctx
        names = {w.value for w in wanted}
        sides = list(zip(self._sides, self._done, self._known, strict=True))
        done = [before | _behind(side, before, names) for side, before, _ in sides]
        live = [_live(side, now) for side, now in zip(self._sides, done, strict=True)]
        sessions = [self._open(s[0], s[2], names | rest) for s, rest in zip(sides, live, strict=True)]
        total = ctx.calibration.count()
        found = {w: [Gram.zeros(w.group, w.depth, paired=True) for _ in range(2)] for w in wanted}
        raw: dict[LayerInput, list[tuple[Array, Array]]] = {w: [] for w in wanted}
        kept: list[tuple[int, list[dict[str, Array]]]] | None = []
        used = turn = 0
        for count, feeds in self._feeds():
            turn += count
            both = []
            for session, feed in zip(sessions, feeds, strict=True):
                values = {} if session is None else self._run(session, feed)
                both.append({**feed, **values})
            self._check(both[0], names)
            for place, want in enumerate(wanted):
                few = positions_of(want.depth, total and max(1, total // self._density))
                if want.group > 1:  # many small matrices, of which each needs little
                    few = min(few, max(8, _GROUPED // (total or 8)))
                x, t = (
                    vectors(
                        side[want.value].astype(np.float32, copy=False), want, few,
                        np.random.default_rng([ctx.seed, turn, place]),
                    )
                    for side in both
                )  # fmt: skip
                cut = x.shape[1] // count * (count // 2) if count > 1 else x.shape[1] * (turn % 2)
                first, second = found[want]
                for gram, part in ((first, slice(0, cut)), (second, slice(cut, None))):
                    if x[:, part].shape[1]:
                        gram.add(x[:, part], t[:, part])
                if samples:
                    step = max(1, round(x.shape[1] * (total or count) / count / samples))
                    raw[want].append((x[:, ::step].copy(), t[:, ::step].copy()))
            if kept is not None:
                slim = [{n: side[n] for n in names} for side, names in zip(both, live, strict=True)]
                used += sum(a.nbytes for side in slim for a in side.values())
                expected = used * max(1.0, (total or 0) / turn)
                if expected > self._limit:
                    kept = None
                else:
                    kept.append((count, slim))
        if kept is not None:
            self._store, self._known, self._done = kept, live, done
        out = {}
        for want, (first, second) in found.items():
            first.merge(second)
            first.half = second
            parts = raw[want]
            out[want] = Pairs(first)
            if parts:
                out[want].x, out[want].t = (np.concatenate([p[i] for p in parts], axis=1) for i in (0, 1))
        return out

    def _feeds(self) -> Iterator[tuple[int, list[dict[str, Array]]]]:
        """Pieces of the data as far as they have come, with their number of samples."""
        if self._store is not None:
            yield from self._store
            return
        data = self._ctx.calibration
        for batch in data:
            count = batch_of(batch.inputs, data.specs) or 1
            elements = _AT_ONCE * sum(a.size for a in batch.inputs.values()) // count
            for feeds in pieces(batch.inputs, data.specs, min(elements, _ELEMENTS)):
                yield batch_of(feeds, data.specs) or 1, [feeds, feeds]

    def _run(self, session: Session, known: dict[str, Array]) -> dict[str, Array]:
        given = {s.name: known[s.name] for s in session.inputs}
        return dict(zip(session.outputs, session.run(given), strict=True))

    def _check(self, values: dict[str, Array], names: set[str]) -> None:
        for name in names:
            value = values[name]
            if np.isnan(value.sum()) and np.isnan(value).any():
                raise InputError(
                    f"value {name!r} becomes NaN on calibration data",
                    hint="the model fails on this input; check the data's preprocessing",
                )

    def _open(self, model: ir.Model, known: set[str], names: set[str]) -> Session | None:
        """A session from what is known to those of the values named that are not; None if all are."""
        wanted = sorted(names - known)
        if not wanted:
            return None
        return self._ctx.runtime.open(_part(model, known, wanted), threads=self._ctx.threads)


def _behind(model: ir.Model, done: set[str], names: set[str]) -> set[str]:
    """All values that have to be computed for those named and are not done yet.

    Raises:
        InputError: a name is unknown.
    """
    makers = {o.name: node for node in model.graph for o in node.outputs}
    unknown = [n for n in names if n not in makers and n not in done]
    if unknown:
        raise InputError(f"the model has no value {unknown[0]!r} to observe")
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in done and name not in found:
            found |= {o.name or "" for o in makers[name].outputs}
            waiting += [n for v in reads(makers[name]) if (n := v.name or "") in makers]
    return found


def _live(model: ir.Model, done: set[str]) -> set[str]:
    """Values of what is done that the rest of the model reads."""
    found = set()
    for node in model.graph:
        if node.outputs[0].name not in done:
            found |= {v.name or "" for v in reads(node) if v.name in done}
    return found


def _part(model: ir.Model, known: set[str], wanted: list[str]) -> ir.Model:
    """The nodes between the values `known` and `wanted`, as a model of their own that shares the tensors."""
    makers = {o.name: node for node in model.graph for o in node.outputs}
    needed: set[ir.Node] = set()
    waiting = [makers[name] for name in wanted]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += [makers[v.name] for v in reads(node) if v.name in makers and v.name not in known]
    if any(_graphs(node) for node in needed):
        return _cut(model, known, wanted)
    values: dict[ir.Value, ir.Value] = {}
    inputs: list[ir.Value] = []
    weights: list[ir.Value] = []

    def twin(old: ir.Value) -> ir.Value:
        if old not in values:
            tensor = old.const_value if old.producer() is None and not old.is_graph_input() else None
            rank = None if old.shape is None else ir.Shape([None] * len(old.shape))
            shape = rank if tensor is None else ir.Shape(tensor.shape.numpy())
            values[old] = ir.Value(name=old.name, type=old.type, shape=shape, const_value=tensor)
            (inputs if tensor is None else weights).append(values[old])
        return values[old]

    nodes = []
    for node in model.graph:
        if node not in needed:
            continue
        copy = ir.Node(
            node.domain, node.op_type, [None if v is None else twin(v) for v in node.inputs],
            attributes=list(node.attributes.values()), num_outputs=len(node.outputs), name=node.name,
        )  # fmt: skip
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name, new.type = old.name, old.type
            if old.name not in known:
                values[old] = new
            else:
                new.name = f"{old.name}/again"
        nodes.append(copy)
    outputs = [values[o] for node in model.graph for o in node.outputs if o.name in wanted]
    main = ir.Graph(
        inputs, outputs, nodes=nodes, initializers=weights, name="part",
        opset_imports=dict(model.opset_imports),
    )  # fmt: skip
    return ir.Model(main, ir_version=model.ir_version, functions=list(model.functions.values()))


def _cut(model: ir.Model, known: set[str], wanted: list[str]) -> ir.Model:
    """`_part` where nodes hold graphs: a copy of the whole, cut."""
    copy = graph.clone(model)
    main = copy.graph
    values = {o.name: o for node in main for o in node.outputs}
    outputs = [values[n] for n in wanted]
    main.outputs.clear()
    for name in sorted(known):
        old = values.get(name)
        if old is None:
            continue
        rank = None if old.shape is None else ir.Shape([None] * len(old.shape))
        given = ir.Value(name=name, type=old.type, shape=rank)
        ir.convenience.replace_all_uses_with(old, given)
        old.name = graph.fresh_name(main, f"{name}/before")
        main.inputs.append(given)
    main.outputs.extend(outputs)
    graph.tidy(copy)
    for value in [v for v in main.inputs if not v.uses()]:
        main.inputs.remove(value)
    return copy


def _graphs(node: ir.Node) -> list[ir.Graph]:
    """The subgraphs of a node."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.is_ref() or attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            continue
        one = attribute.type == ir.AttributeType.GRAPH
        found += [attribute.as_graph()] if one else list(attribute.value)
    return found


def reads(node: ir.Node) -> list[ir.Value]:
    """The values that a node reads, those that its subgraphs take from outside included."""
    found = [v for v in node.inputs if v is not None]
    for inner in _graphs(node):
        found += [
            v for step in ir.traversal.RecursiveGraphIterator(inner) for v in step.inputs if v is not None
        ]
        found += [v for v in inner.outputs if v is not None]
    return [v for v in found if not v.is_initializer()]
