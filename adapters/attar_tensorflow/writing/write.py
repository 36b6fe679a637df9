"""IR -> TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from attar.adapters import Exported
from attar.conversion import prepare
from attar.errors import ConversionError, InputError, did_you_mean
from attar.graph import clone, tidy
from attar.registry import Registry
from attar.specs import input_specs
from attar_tensorflow.installed import need_tensorflow

_OPTIONS: dict[str, tuple[Any, ...]] = {
    "form": ("auto", "keras", "module"),
    "layout": ("source", "channels_last"),
    "fake_quantize": (False, True),
}


def options_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options with their defaults.

    Raises:
        InputError: one is unknown or has an impossible value.
    """
    for name, value in given.items():
        if name not in _OPTIONS:
            raise InputError(f"TensorFlow's writer has no option {name!r}", hint=did_you_mean(name, _OPTIONS))
        if not any(value is v or (isinstance(v, str) and value == v) for v in _OPTIONS[name]):
            raise InputError(f"{name} must be one of {_OPTIONS[name]}, not {value!r:.60}")
    return {name: given.get(name, values[0]) for name, values in _OPTIONS.items()}


def write(model: ir.Model, *, registry: Registry, **options: Any) -> Exported:
    """See `attar_tensorflow.writing.write_model`."""
    chosen = options_of(options)
    need_tensorflow("writing a TensorFlow model")
    table = lowerings(registry)
    prepared = prepare(model, table, "TensorFlow", registry=registry)
    _refuse_outputs(prepared)
    notes: list[str] = []
    if chosen["fake_quantize"]:
        _fake(prepared, notes)
    from attar_tensorflow.writing.functional import why_not

    form = chosen["form"]
    reason = why_not(prepared) if form != "module" else None
    if reason and form == "keras":
        raise ConversionError(f"a Keras model cannot say this network: {reason}", hint='form="module" can')
    # A sum that rounds to the other side moves an activation by a whole step.
    quantized = any(n.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") for n in prepared.graph)
    tolerance = 0.05 if chosen["fake_quantize"] or quantized else 1e-3
    keep = chosen["layout"] == "source"
    if form == "keras" or (form == "auto" and not reason):
        try:
            network, run = _keras(clone(prepared), table, keep)
            return Exported(network, run, tuple(notes), tolerance)
        except ConversionError as error:
            if form == "keras":
                raise
            reason = error.message.split("\n")[0]
    network, run = _module(prepared, table)
    if reason:
        notes.append(f"written as a tf.Module: {reason}")
    if not keep:
        notes.append("a tf.Module takes and gives images as the source does, not channels-last")
    return Exported(network, run, tuple(notes), tolerance)


def _module(prepared: ir.Model, table: Mapping[str, Any]) -> tuple[Any, Any]:
    from attar_tensorflow.writing.module import Network

    network = Network(prepared, table)
    return network, runner(network, prepared.graph.outputs, [s.name for s in input_specs(prepared)])


def _keras(prepared: ir.Model, table: Mapping[str, Any], keep: bool) -> tuple[Any, Any]:
    """A Keras model and its runner; `keep` the layout of inputs and outputs. Works in `prepared`."""
    from attar_tensorflow.writing.functional import Writer
    from attar_tensorflow.writing.fusions import join_dense
    from attar_tensorflow.writing.layers.recurrent import join_recurrent
    from attar_tensorflow.writing.layout import channels_last

    names, outputs = [s.name for s in input_specs(prepared)], list(prepared.graph.outputs)
    before = [(v, v.shape) for v in (*prepared.graph.inputs, *outputs)]
    join_dense(prepared.graph)
    join_recurrent(prepared.graph)
    tidy(prepared)
    channels_last(prepared.graph, keep_interface=keep)
    network = Writer(prepared, table).write()
    now = [*prepared.graph.inputs, *prepared.graph.outputs]
    turned = [len(shape) if a is not b else 0 for (a, shape), b in zip(before, now, strict=True)]
    count = len(names)
    if keep:
        turned = [0] * len(turned)
    return network, runner(network, outputs, names, turned[:count], turned[count:])


def _refuse_outputs(prepared: ir.Model) -> None:
    """Inside, small integers travel in bytes; handed out, they would be of another type than the model's."""
    lacking = {
        f"{value.dtype.name} output": [value.name or "?"]
        for value in prepared.graph.outputs
        if value.dtype is not None and value.dtype.name in ("INT2", "UINT2", "INT4", "UINT4")
    }
    if lacking:
        raise ConversionError(
            "TensorFlow cannot say this exactly: it has no tensors of such types",
            missing=lacking,
            hint="cast the output to int8 or uint8",
        )


def _fake(prepared: ir.Model, notes: list[str]) -> None:
    from attar_tensorflow.writing.fusions import join_fake_quantize

    left = join_fake_quantize(prepared.graph)
    notes.append("quantization is written as fake quantization, which rounds ties away from even")
    if left:
        shown = ", ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
        notes.append(f"exact quantization stays at {shown}: fake quantization has no such steps")


def lowerings(registry: Registry) -> dict[str, Any]:
    """The built-in operators and those that plugins teach."""
    from attar_tensorflow.writing.table import LOWERINGS

    return {**LOWERINGS, **registry.op_table("attar_lowerings", "tensorflow")}


def runner(
    native: Any,
    outputs: Sequence[ir.Value],
    inputs: Sequence[str],
    turned_inputs: Sequence[int] = (),
    turned_outputs: Sequence[int] = (),
) -> Any:
    """A function from named numpy arrays in the IR's layout to the outputs of `native`, in that layout and in
    the IR's types.

    Args:
        turned_inputs, turned_outputs: for each, its rank if `native` has it channels-last, else 0.
    """
    import tensorflow as tf

    types = [None if v.dtype is None else np.dtype(v.dtype.numpy()) for v in outputs]
    turned_inputs = turned_inputs or [0] * len(inputs)
    turned_outputs = turned_outputs or [0] * len(outputs)

    def run(feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        missing = [n for n in inputs if n not in feeds]
        if missing:
            raise InputError(f"no array given for input {missing[0]!r}")
        arrays = [np.asarray(feeds[n]) for n in inputs]
        arrays = [
            np.moveaxis(a, 1, -1) if turned else a for a, turned in zip(arrays, turned_inputs, strict=True)
        ]
        tensors = [tf.constant(a) for a in arrays]
        if isinstance(native, tf.Module) and not hasattr(native, "layers"):
            found = native(*tensors)
        else:
            found = native(tensors if len(tensors) > 1 else tensors[0], training=False)
        found = found if isinstance(found, list | tuple) else [found]
        results = [np.asarray(t) for t in found]
        results = [np.moveaxis(a, -1, 1) if t else a for a, t in zip(results, turned_outputs, strict=True)]
        return [a if t is None or a.dtype == t else a.astype(t) for a, t in zip(results, types, strict=True)]

    return run
