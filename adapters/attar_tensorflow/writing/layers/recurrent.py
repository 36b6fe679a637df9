"""LSTM, GRU and simple RNN as Keras layers, where Keras computes what ONNX does.

Keras is batch-major; `join_recurrent` puts transposes around a node and makes it `attar::Recurrent`, whose
maker is here.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import onnx_ir as ir

from attar.graph import const_array, fresh_name, taken_names
from attar_tensorflow.writing.context import View
from attar_tensorflow.writing.layers.made import Made, Maker, named

_DEFAULTS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}
_MOVES = ("Expand", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze")
_LAYERS = {"LSTM": keras.layers.LSTM, "GRU": keras.layers.GRU, "RNN": keras.layers.SimpleRNN}


def join_recurrent(graph: ir.Graph) -> None:
    """Recurrent nodes that Keras has a layer for become `attar::Recurrent`, in place."""
    taken = taken_names(graph)
    for node in list(graph):
        if node.op_type in _DEFAULTS and not node.domain and _is_plain(node):
            _join(graph, node, taken)


def _is_plain(node: ir.Node) -> bool:
    """Whether Keras' layer computes this node: usual activations, no peepholes, lengths, clip, state."""
    inputs = [*node.inputs, *[None] * 8]
    if any(const_array(v) is None or const_array(v).dtype != np.float32 for v in inputs[1:3]):
        return False
    if inputs[3] is not None and const_array(inputs[3]) is None:
        return False
    if inputs[4] is not None or inputs[7] is not None or not all(_is_zero(v) for v in inputs[5:7]):
        return False
    attributes = node.attributes
    if attributes.get_int("layout", 0) or attributes.get_int("input_forget", 0) or "clip" in attributes:
        return False
    if inputs[0] is None or inputs[0].shape is None or len(inputs[0].shape) != 3:
        return False
    if "activations" not in attributes:
        return True
    usual = _DEFAULTS[node.op_type] * const_array(inputs[1]).shape[0]
    return [str(a).lower() for a in attributes["activations"].value] == usual


def _is_zero(value: ir.Value | None) -> bool:
    if value is None:
        return True
    array = const_array(value)
    if array is not None:
        return not array.any()
    producer = value.producer()
    if producer is None:
        return False
    if producer.op_type == "ConstantOfShape":
        return (
            "value" not in producer.attributes or not producer.attributes["value"].as_tensor().numpy().any()
        )
    return producer.op_type in _MOVES and _is_zero(producer.inputs[0])


def _join(graph: ir.Graph, node: ir.Node, taken: set[str]) -> None:
    x = node.inputs[0]
    producer = x.producer()
    if producer is not None and producer.op_type == "Transpose" and _perm(producer) == [1, 0, 2]:
        first = producer.inputs[0]
    else:
        first = _transposed(graph, node, x, [1, 0, 2], taken)
    attributes = {
        "kind": node.op_type,
        "direction": node.attributes.get_string("direction", "forward"),
        "linear_before_reset": node.attributes.get_int("linear_before_reset", 0),
    }
    made = ir.node(
        "Recurrent",
        [first, *node.inputs[1:4]],
        attributes,
        domain="attar",
        name=node.name,
        num_outputs=len(node.outputs),
    )
    graph.insert_before(node, made)
    for index, (new, old) in enumerate(zip(made.outputs, node.outputs, strict=True)):
        inside = [2, 0, 1, 3] if index == 0 else [1, 0, 2]
        back = [1, 2, 0, 3] if index == 0 else [1, 0, 2]
        new.name = fresh_name(graph, f"{old.name or node.op_type}_batch_first", taken)
        new.type = old.type
        new.shape = None if old.shape is None else ir.Shape([old.shape[p] for p in inside])
        if not old.uses() and not old.is_graph_output():
            continue
        turned = _transposed(graph, node, new, back, taken)
        turned.shape, name = old.shape, old.name
        old.name = fresh_name(graph, f"{name}_old", taken)
        turned.name = name
        old.replace_all_uses_with(turned, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _perm(node: ir.Node) -> list[int]:
    return list(node.attributes["perm"].value) if "perm" in node.attributes else []


def _transposed(graph: ir.Graph, at: ir.Node, x: ir.Value, perm: list[int], taken: set[str]) -> ir.Value:
    name = fresh_name(graph, f"{x.name}_transpose", taken)
    node = ir.node("Transpose", [x], {"perm": perm}, name=name)
    out = node.outputs[0]
    out.name, out.type = name, x.type
    out.shape = None if x.shape is None else ir.Shape([x.shape[p] for p in perm])
    graph.insert_before(at, node)
    return out


def _gates(kind: str, array: np.ndarray) -> np.ndarray:
    """(gates, n) in Keras' order of gates, (n, gates)."""
    if kind == "LSTM":  # i, o, f, c -> i, f, c, o
        i, o, f, c = np.split(array, 4)
        array = np.concatenate([i, f, c, o])
    return np.ascontiguousarray(array.T)


def _cell(kind: str, view: View, d: int) -> tuple[dict[str, np.ndarray], bool]:
    w, r = view.const(1)[d], view.const(2)[d]
    weights = {"kernel": _gates(kind, w), "recurrent_kernel": _gates(kind, r)}
    if not view.has(3):
        return weights, False
    inner, outer = np.split(view.const(3)[d], 2)
    if kind == "GRU" and view.attr("linear_before_reset", 0):
        weights["bias"] = np.stack([inner, outer])
    else:
        weights["bias"] = _gates(kind, (inner + outer)[:, None]).reshape(-1)
    return weights, True


def _recurrent(view: View) -> Made | None:
    kind, direction = view.attr("kind"), view.attr("direction")
    hidden = view.const(2).shape[-1]
    count = view.const(1).shape[0]
    cells = [_cell(kind, view, d) for d in range(count)]
    options: dict[str, Any] = {
        "units": hidden,
        "return_sequences": True,
        "return_state": True,
        "use_bias": cells[0][1],
        "kernel_initializer": "zeros",
        "recurrent_initializer": "zeros",
        "dtype": "float32",
    }
    if kind == "GRU":
        options["reset_after"] = bool(view.attr("linear_before_reset", 0))
    states = 2 if kind == "LSTM" else 1
    if count == 1:
        backward = direction == "reverse"
        layer = named("rnn", _LAYERS[kind], go_backwards=backward, **options)
        weights = {f"cell.{name}": array for name, array in cells[0][0].items()}
    else:
        backward = False

        def both(name: str) -> Any:
            inner = _LAYERS[kind](name=f"{name}_cell", **options)
            return keras.layers.Bidirectional(inner, merge_mode=None, name=name, dtype="float32")

        layer, weights = both, {}
        for part, (found, _) in zip(("forward_layer", "backward_layer"), cells, strict=True):
            weights |= {f"{part}.cell.{name}": array for name, array in found.items()}

    def results(found: Any) -> list[Any]:
        """Sequences (B, T, D, H) and last states (B, D, H), as far as they are wanted."""
        sequences = [keras.ops.flip(found[0], 1)] if backward else list(found[:count])
        ends = list(found[count:])
        given = [keras.ops.stack(sequences, 2) if view.wants(0) else None]
        for s in range(states):
            wanted = view.wants(1 + s)
            given.append(keras.ops.stack([ends[s + d * states] for d in range(count)], 1) if wanted else None)
        return given

    sources = (1, 2, 3) if view.has(3) else (1, 2)
    return Made(layer, weights, sources=sources, key=(kind, direction), results=results)


MAKERS: dict[str, Maker] = {"attar::Recurrent": _recurrent}
