"""`-symbol.json` files: MXNet's graphs as data, of every age from 0.8 to 1.9.1, without MXNet.

The format is nnvm's (`saveload_json.cc`), with the changes that MXNet makes on loading old files
(`legacy_json_util.cc`). Attributes were called `attr` (0.9, 0.10) and `param` (0.8 and before) and are merged
here; auxiliary states, which files of 0.8 leave out, are put among the inputs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from attar.errors import InputError
from attar.files import write_atomic

VERSION = 10901
VARIABLE = "null"
_LARGEST = 1 << 30  # bytes of JSON; the graphs of the largest networks have some megabytes

_LAST_INPUTS: dict[str, tuple[str, ...]] = {
    "BatchNorm": ("data", "gamma", "beta", "moving_mean", "moving_var"),
    "BatchNorm_v1": ("data", "gamma", "beta", "moving_mean", "moving_var"),
    "CuDNNBatchNorm": ("data", "gamma", "beta", "moving_mean", "moving_var"),
    "IdentityAttachKLSparseReg": ("data", "moving_avg"),
}
"""Inputs of the operators that have auxiliary states; 0.8 did not write these."""


class Entry(NamedTuple):
    """One output of a node. `version` is 1 where the input is an auxiliary state."""

    node: int
    index: int = 0  # type: ignore[assignment]
    version: int = 0


@dataclass
class SymbolNode:
    """A node; a variable (input, weight or auxiliary state) has the operator `null`.

    Attributes:
        attrs: the operator's parameters as MXNet spells them; hints such as `__shape__` on variables.
        inputs: the outputs of earlier nodes that it takes.
        subgraphs: bodies of control flow operators.
    """

    op: str
    name: str
    attrs: dict[str, str] = field(default_factory=dict)
    inputs: list[Entry] = field(default_factory=list)
    subgraphs: list[SymbolGraph] = field(default_factory=list)

    @property
    def is_variable(self) -> bool:
        return self.op == VARIABLE


@dataclass
class SymbolGraph:
    """Nodes in topological order and the entries that are the graph's outputs.

    Attributes:
        version: the MXNet that wrote it, as a number: 10901 is 1.9.1; 800 where the file does not say.
        np_shape: whether shapes follow numpy: 0 is a size, -1 is unknown, and scalars exist.
    """

    nodes: list[SymbolNode] = field(default_factory=list)
    heads: list[Entry] = field(default_factory=list)
    version: int = VERSION
    np_shape: bool = False

    def add(self, op: str, name: str, inputs: Sequence[Entry] = (), **attrs: str) -> Entry:
        """Append a node and give its first output."""
        self.nodes.append(SymbolNode(op, name, dict(attrs), list(inputs)))
        return Entry(len(self.nodes) - 1)

    def variable(self, name: str, **attrs: str) -> Entry:
        """Append a variable."""
        return self.add(VARIABLE, name, (), **attrs)

    def auxiliary(self) -> set[int]:
        """The variables that are auxiliary states, by number."""
        found = set()
        for node in self.nodes:
            states = _LAST_INPUTS.get(node.op, ())
            for place, entry in enumerate(node.inputs):
                state = place < len(states) and states[place].startswith("moving")
                if (state or entry.version) and self.nodes[entry.node].is_variable:
                    found.add(entry.node)
        return found


def read_symbol(path: str | Path) -> SymbolGraph:
    """The graph in a `-symbol.json` file.

    Raises:
        InputError: the file is missing, no symbol, or contradicts itself.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{path} has {path.stat().st_size / 2**30:.1f} GB, too much for a symbol")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    return parse_symbol(content, str(path))


def parse_symbol(text: str | bytes, source: str = "the given text") -> SymbolGraph:
    """As `read_symbol`, from the JSON itself.

    Raises:
        InputError: it is no symbol, or contradicts itself.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source} is not a JSON file, or it is cut short: {error}") from error
    try:
        return _graph(found, source)
    except RecursionError:
        raise InputError(f"{source} nests subgraphs without end") from None


def symbol_text(graph: SymbolGraph) -> str:
    """The JSON of `graph`, as MXNet's `Symbol.save` lays it out."""
    return json.dumps(_plain(graph), indent=2, ensure_ascii=False) + "\n"  # MXNet reads no \\u escapes


def write_symbol_file(path: str | Path, graph: SymbolGraph) -> None:
    """Write `graph` to `path` in one step.

    Raises:
        InputError: the file cannot be written.
    """
    write_atomic(path, symbol_text(graph).encode())


def _plain(graph: SymbolGraph) -> dict[str, Any]:
    nodes = []
    for node in graph.nodes:
        plain: dict[str, Any] = {"op": node.op, "name": node.name}
        if node.attrs:
            plain["attrs"] = dict(sorted(node.attrs.items()))
        plain["inputs"] = [list(e) for e in node.inputs]
        if node.subgraphs:
            plain["subgraphs"] = [_plain(g) for g in node.subgraphs]
        nodes.append(plain)
    attrs: dict[str, Any] = {"mxnet_version": ["int", graph.version]}
    if graph.np_shape:
        attrs = {"is_np_shape": ["int", 1], **attrs}
    return {
        "nodes": nodes,
        "arg_nodes": [i for i, n in enumerate(graph.nodes) if n.is_variable],
        "heads": [list(e) for e in graph.heads],
        "attrs": attrs,
    }


def _graph(found: Any, source: str) -> SymbolGraph:
    if not isinstance(found, dict) or not isinstance(found.get("nodes"), list) or "heads" not in found:
        raise InputError(
            f"{source} is not an MXNet symbol: it has no list of nodes and heads",
            hint="Symbol.save and HybridBlock.export write such files",
        )
    attrs = found.get("attrs", {})
    attrs = attrs if isinstance(attrs, Mapping) else {}
    graph = SymbolGraph(
        version=_number(attrs.get("mxnet_version"), 800), np_shape=_number(attrs.get("is_np_shape"), 0) > 0
    )
    graph.nodes = [_node(raw, number, source) for number, raw in enumerate(found["nodes"])]
    graph.heads = list(_entries(found["heads"], len(graph.nodes), f"{source}: the heads"))
    if not graph.heads:
        raise InputError(f"{source} is a symbol without outputs")
    if graph.version < 900:
        _add_missing_states(graph)
    if graph.version < 905:
        for node in graph.nodes:  # there -1 stood for "none"
            if node.op in ("argmax", "argmin") and node.attrs.get("axis") == "-1":
                del node.attrs["axis"]
    return graph


def _node(raw: Any, number: int, source: str) -> SymbolNode:
    where = f"{source}: node {number}"
    if not isinstance(raw, dict) or not isinstance(raw.get("op"), str):
        raise InputError(f"{where} has no operator")
    name = raw.get("name", "")
    if not isinstance(name, str):
        raise InputError(f"{where} has the name {name!r:.60}, which is no text")
    attrs: dict[str, str] = {}
    for key in ("param", "attr", "attrs"):
        part = raw.get(key) or {}
        if not isinstance(part, dict):
            raise InputError(f"{where} ({name}): {key} is not a mapping")
        attrs.update({k: v if isinstance(v, str) else json.dumps(v) for k, v in part.items()})
    inputs = list(_entries(raw.get("inputs", []), number, f"{where} ({name})"))
    subgraphs = raw.get("subgraphs") or []
    if not isinstance(subgraphs, list):
        raise InputError(f"{where} ({name}): subgraphs is not a list")
    inner = [_graph(g, f"{where} ({name})") for g in subgraphs]
    return SymbolNode(raw["op"], name, attrs, inputs, inner)


def _entries(raw: Any, limit: int, where: str) -> Iterator[Entry]:
    """Entries of two numbers (to 0.8) or three, each of a node before `limit`."""
    if not isinstance(raw, list):
        raise InputError(f"{where}: the inputs are not a list")
    for item in raw:
        numbers = item if isinstance(item, list) else [item]
        if not 1 <= len(numbers) <= 3 or any(type(n) is not int or n < 0 for n in numbers):
            raise InputError(f"{where}: {item!r:.60} does not name an output of a node")
        if numbers[0] >= limit:
            raise InputError(f"{where} takes node {numbers[0]}, which does not come before it")
        yield Entry(*numbers)


def _number(value: Any, default: int) -> int:
    """The number in `["int", 10901]`."""
    if isinstance(value, list) and len(value) == 2:
        value = value[1]
    if isinstance(value, bool | int):
        return int(value)
    return default


def _add_missing_states(graph: SymbolGraph) -> None:
    """Make the variables that 0.8 implied: `bn0_moving_mean` is the fourth input of the BatchNorm `bn0`."""
    nodes: list[SymbolNode] = []
    moved: dict[int, int] = {}
    for number, node in enumerate(graph.nodes):
        inputs = [Entry(moved[e.node], e.index, e.version) for e in node.inputs]
        for name in _LAST_INPUTS.get(node.op, ())[len(inputs) :]:
            nodes.append(SymbolNode(VARIABLE, f"{node.name}_{name}" if node.name else name))
            inputs.append(Entry(len(nodes) - 1, 0, 1 if name.startswith("moving") else 0))
        moved[number] = len(nodes)
        nodes.append(SymbolNode(node.op, node.name, node.attrs, inputs, node.subgraphs))
    graph.nodes = nodes
    graph.heads = [Entry(moved[e.node], e.index, e.version) for e in graph.heads]
