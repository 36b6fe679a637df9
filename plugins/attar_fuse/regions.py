"""The part of a model that a form makes needless, cut out as a model of its own, and the same in the other
form."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from attar.graph import const_array
from attar_fuse.sites import Form, Site, Tape

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_STORED = 64  # elements of a constant that count as structure: shapes, axes, bounds


def needless(site: Site, form: Form) -> list[ir.Node]:
    """The nodes that nothing would use if `form` made the outputs of `site`, in order."""
    kept, replaced = set(form.inputs), set(site.outputs)
    dead: set[ir.Node] = set()
    waiting = [v.producer() for v in site.outputs]
    while waiting:
        node = waiting.pop()
        if node is None or node in dead or node.graph is not site.node.graph:
            continue
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            continue
        if all(v in replaced or (v not in kept and _only_for(v, dead)) for v in node.outputs):
            dead.add(node)
            waiting += [v.producer() for v in node.inputs if v is not None]
    graph = site.node.graph
    assert graph is not None
    return [node for node in graph if node in dead]


def _only_for(value: ir.Value, nodes: set[ir.Node]) -> bool:
    return not value.is_graph_output() and all(user in nodes for user, _ in value.uses())


def on_integers(nodes: Sequence[ir.Node]) -> bool:
    """Whether a layer among `nodes` reads what comes from integers: it runs as an integer kernel then."""
    return any(
        (maker := None if v is None else v.producer()) is not None and maker.op_type == "DequantizeLinear"
        for node in nodes
        if node.op_type in _LAYERS
        for v in node.inputs
    )


@dataclass(frozen=True)
class Region:
    """Nodes of a model that one form would replace.

    Attributes:
        inputs: the values that they or the form read, constants left out.
    """

    site: Site
    form: Form
    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]

    @classmethod
    def of(cls, site: Site, form: Form) -> Region | None:
        """The region of a form at a site; None if nothing would become needless or a type is not known."""
        nodes = needless(site, form)
        if not {v.producer() for v in site.outputs} <= set(nodes):
            return None
        inside = {v for n in nodes for v in n.outputs}
        read = [*(v for n in nodes for v in n.inputs if v is not None), *form.inputs]
        inputs = dict.fromkeys(v for v in read if v not in inside and const_array(v) is None)
        if any(v.dtype is None or not v.name for v in (*inputs, *site.outputs)):
            return None
        return cls(site, form, tuple(nodes), tuple(inputs))

    def before(self, model: ir.Model) -> ir.Model:
        """The region as it is, as a model."""
        copy = self._empty(model)
        values = self._copies(copy)
        for node in self.nodes:
            new = ir.Node(
                node.domain, node.op_type, [None if v is None else values(v) for v in node.inputs],
                list(node.attributes.values()), num_outputs=len(node.outputs), name=node.name,
            )  # fmt: skip
            copy.graph.append(new)
            for old, value in zip(node.outputs, new.outputs, strict=True):
                value.name, value.type, value.shape = old.name, old.type, old.shape
                values.known[old] = value
        return self._with_outputs(copy, [values(v) for v in self.site.outputs])

    def after(self, model: ir.Model) -> ir.Model:
        """The region in the other form, with the same inputs and outputs."""
        copy = self._empty(model)
        if self.form.opset > copy.opset_imports[""]:
            set_opset(copy, self.form.opset)
        values = self._copies(copy)
        taken = {v.name for v in self.site.outputs}
        for value in self.form.inputs:
            values(value)
        tape = Tape(copy, copy.graph.append)
        tape.reserve(taken)
        made = self.form.make(tape, values.known)
        for old, new in zip(self.site.outputs, made, strict=True):
            new.name, new.type, new.shape = old.name, old.type, old.shape
        return self._with_outputs(copy, list(made))

    def key(self, sizes: Mapping[str, tuple[int, ...]]) -> str:
        """Equal for regions that take equally long: operators, attributes, shapes and small constants.

        Args:
            sizes: value name -> shape in a typical run.
        """
        number: dict[ir.Value, int] = {}
        told = [self.site.pattern, self.form.name]
        for node in self.nodes:
            told.append(f"{node.domain}.{node.op_type}")
            attributes = sorted(node.attributes.values(), key=lambda a: a.name)
            told += [f"{a.name}={a.value}" for a in attributes]
            for value in node.inputs:
                told.append("-" if value is None else self._told(value, number, sizes))
            for value in node.outputs:
                number[value] = len(number)
        told += [self._told(v, number, sizes) for v in self.form.inputs]
        told += [str(number.get(v)) for v in self.site.outputs]
        return hashlib.blake2b("\n".join(told).encode(), digest_size=16).hexdigest()

    @staticmethod
    def _told(value: ir.Value, number: dict[ir.Value, int], sizes: Mapping[str, tuple[int, ...]]) -> str:
        array = const_array(value)
        if array is not None:
            content = array.tolist() if array.size <= _STORED and array.dtype.kind in "iub" else ""
            scalar = array.tolist() if array.size == 1 else ""
            return f"{array.dtype}{array.shape}{content or scalar}"
        index = number.setdefault(value, len(number))
        return f"{index}:{value.dtype}{value.shape}{sizes.get(value.name or '')}"

    def _empty(self, model: ir.Model) -> ir.Model:
        graph = ir.Graph([], [], nodes=[], opset_imports=dict(model.opset_imports), name="region")
        return ir.Model(graph, ir_version=model.ir_version)

    def _copies(self, copy: ir.Model) -> _Copies:
        values = _Copies(copy)
        for value in self.inputs:
            new = ir.Value(name=value.name, type=value.type, shape=value.shape)
            copy.graph.inputs.append(new)
            values.known[value] = new
        return values

    @staticmethod
    def _with_outputs(copy: ir.Model, outputs: Sequence[ir.Value]) -> ir.Model:
        copy.graph.outputs.extend(outputs)
        return copy


class _Copies:
    """Values of the model -> those of a cut-out; constants are copied when they are asked for."""

    def __init__(self, copy: ir.Model) -> None:
        self._copy, self.known = copy, dict[ir.Value, ir.Value]()

    def __call__(self, value: ir.Value) -> ir.Value:
        if value not in self.known:
            tensor = value.const_value
            if tensor is None:
                array = const_array(value)
                assert array is not None
                tensor = ir.tensor(array)
            new = ir.Value(name=value.name, const_value=tensor, type=value.type)
            new.shape = ir.Shape(tensor.shape.numpy())
            new.type = new.type or ir.TensorType(tensor.dtype)
            self._copy.graph.register_initializer(new)
            self.known[value] = new
        return self.known[value]


def set_opset(model: ir.Model, opset: int) -> None:
    """Declare an opset, and the first IR version that knows it, as it stands."""
    versions: Mapping[tuple[str, int], int] = onnx.helper.OP_SET_ID_VERSION_MAP
    model.opset_imports[""] = opset
    model.ir_version = max(model.ir_version or 0, versions.get(("ai.onnx", opset), 0))


def apply(region: Region, model: ir.Model, replaced: dict[ir.Value, ir.Value]) -> None:
    """Put the form into `model`, which the region is part of. What nothing uses then is left to `tidy`.

    Args:
        replaced: what forms put in before stand for; this one's outputs are added.
    """
    last = region.site.node
    graph = last.graph
    assert graph is not None
    made = region.form.make(
        Tape(model, lambda node: graph.insert_before(last, node)),
        {v: replaced.get(v, v) for v in region.form.inputs},
    )
    for old, new in zip(region.site.outputs, made, strict=True):
        name = old.name
        new.type, new.shape = old.type, old.shape
        new.metadata_props.update(old.metadata_props)
        old.name = None
        new.name = name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        replaced[old] = new
    graph.remove([n for n in region.nodes if n.graph is not None], safe=True)


def intact(region: Region) -> bool:
    """Whether nothing that the region consists of has been replaced since."""
    return all(n.graph is not None for n in region.nodes)
