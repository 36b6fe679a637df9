"""Graphs from files: SavedModel folders and frozen graphs. They run in a session of their own.

A SavedModel is read by its graph, signatures and variables alone; the objects that wrote it are not revived.
Before anything of a file is run it is searched for operators that could do harm.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attar.errors import InputError, did_you_mean
from attar_tensorflow.reading.functions import essence
from attar_tensorflow.reading.program import Array, Program, unique
from attar_tensorflow.reading.values import Const, Variable

LIMIT = 1 << 31
"""Bytes that a protobuf may have."""

# They reach files, the network or Python. A SavedModel's own saving and restoring (SaveV2, RestoreV2) is not
# among them: it is only told where its variables lie.
HARMFUL = frozenset(
    [
        "EagerPyFunc",
        "PyFunc",
        "PyFuncStateless",
        "ReadFile",
        "WriteFile",
        "MatchingFiles",
        "WholeFileReader",
        "WholeFileReaderV2",
        "FixedLengthRecordReader",
        "FixedLengthRecordReaderV2",
        "TextLineReader",
        "TextLineReaderV2",
        "TFRecordReader",
        "TFRecordReaderV2",
        "LMDBReader",
        "TFRecordDataset",
        "TextLineDataset",
        "FixedLengthRecordDataset",
        "CSVDataset",
        "SqlDataset",
        "DebugIdentity",
        "DebugIdentityV2",
        "DebugIdentityV3",
        "RpcCall",
        "RpcClient",
        "RpcServer",
        "Save",
        "SaveSlices",
    ]
)


def read_saved_model(folder: Path, signature: str | None) -> Program:
    """A SavedModel folder, by one of its signatures.

    Raises:
        InputError: it is broken, could do harm, or has no such signature.
    """
    meta = _meta_graph(folder)
    graph_def, signatures = meta.graph_def, dict(meta.signature_def)
    _check(graph_def, folder)
    name = _signature(signatures, signature, folder)
    chosen = signatures[name]
    inputs = [(key, chosen.inputs[key].name) for key in sorted(chosen.inputs)]
    outputs = [(key, chosen.outputs[key].name) for key in sorted(chosen.outputs)]
    if any(not t for _, t in (*inputs, *outputs)) or not outputs:
        raise InputError(
            f"{folder}: the signature {name!r} names no plain tensors", hint="choose another one"
        )
    import tensorflow as tf

    v1 = tf.compat.v1
    graph = tf.Graph()
    with graph.as_default():
        session = v1.Session(graph=graph, config=_cpu())
        try:
            v1.saved_model.loader.load(session, list(meta.meta_info_def.tags), str(folder))
        except Exception as error:  # TensorFlow has a type for each way in which a folder can be broken
            raise InputError(f"{folder} cannot be read as a SavedModel: {essence(error)}") from error
    return _program(graph, session, inputs, outputs, str(folder))


def read_frozen(path: Path, inputs: Any, outputs: Any) -> Program:
    """A GraphDef file with its weights inside.

    Args:
        path: the file.
        inputs: names of the input operations; its placeholders unless given.
        outputs: names of the output operations; those that nothing uses unless given.

    Raises:
        InputError: it is broken, could do harm, or has no such operations.
    """
    import tensorflow as tf

    graph_def = _graph_def(path)
    _check(graph_def, path)
    graph = tf.Graph()
    with graph.as_default():
        try:
            tf.import_graph_def(graph_def, name="")
        except Exception as error:
            raise InputError(
                f"{path} is no graph that this TensorFlow understands: {essence(error)}"
            ) from error
    operations = {o.name: o for o in graph.get_operations()}
    ins = _named(operations, inputs, path) if inputs is not None else [
        o.outputs[0] for o in operations.values() if o.type == "Placeholder" and o.outputs[0].consumers()
    ]  # fmt: skip
    outs = (
        _named(operations, outputs, path) if outputs is not None else _sinks(operations.values(), ins, path)
    )
    session = tf.compat.v1.Session(graph=graph, config=_cpu())
    return _program(graph, session, _titled(ins), _titled(outs), str(path))


def _program(graph: Any, session: Any, inputs: Any, outputs: Any, what: str) -> Program:
    def tensor(name: Any) -> Any:
        return graph.get_tensor_by_name(name) if isinstance(name, str) else name

    try:
        ins = [(n, tensor(t)) for n, t in inputs]
        outs = [(n, tensor(t)) for n, t in outputs]
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{what}: its signature names tensors that its graph does not have: {error}"
        ) from error
    captured = _variables(graph, session, [t for _, t in outs], {t.op.name for _, t in ins})
    return Program(graph, ins, outs, captured, _runner(session, ins, outs), Path(what).name, notes=[])


def _runner(session: Any, ins: Any, outs: Any) -> Callable[[Mapping[str, Array]], list[Array]]:
    def run(feeds: Mapping[str, Array]) -> list[Array]:
        from attar_tensorflow.reading.quiet import quiet

        with quiet():
            results = session.run([t for _, t in outs], {t: feeds[n] for n, t in ins})
        return [np.asarray(r) for r in results]

    return run


def _variables(graph: Any, session: Any, outputs: Sequence[Any], inputs: set[str]) -> list[tuple[Any, Any]]:
    """The values of the variables that the outputs need."""
    import tensorflow as tf

    needed = [o for o in _behind(outputs) if o.name not in inputs]
    handles = [o for o in needed if o.type == "VarHandleOp"]
    references = [o for o in needed if o.type in ("VariableV2", "Variable")]
    with graph.as_default():
        reads = [tf.raw_ops.ReadVariableOp(resource=o.outputs[0], dtype=o.get_attr("dtype")) for o in handles]
    try:
        values = session.run([*reads, *(o.outputs[0] for o in references)])
    except tf.errors.OpError as error:
        raise InputError(f"the values of the model's variables are missing: {essence(error)}") from error
    out: list[tuple[Any, Any]] = []
    titles = _plain([o.get_attr("shared_name").decode() or o.name for o in handles])
    for o, value, title in zip(handles, values, titles, strict=False):
        const = Const(np.array(value), title)
        out.append((o.outputs[0], Variable(lambda c=const: c)))
    for o, value in zip(references, values[len(handles) :], strict=True):
        out.append((o.outputs[0], Const(np.array(value), o.name)))
    return out


def _plain(names: list[str]) -> list[str]:
    """Names without the numbers that saving added to them, where they are different without."""
    short = [re.sub(r"_\d+$", "", name) if "/" in name else name for name in names]
    return [s if short.count(s) == 1 else n for n, s in zip(names, short, strict=True)]


def _behind(tensors: Sequence[Any]) -> list[Any]:
    """All operations that `tensors` need."""
    found: dict[str, Any] = {}
    todo = [t.op for t in tensors]
    while todo:
        operation = todo.pop()
        if operation.name not in found:
            found[operation.name] = operation
            todo += [t.op for t in operation.inputs]
    return list(found.values())


# -- files ---------------------------------------------------------------------------------------------------


def _bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > LIMIT:
            raise InputError(f"{path} has {size:,} bytes, more than a protobuf can have")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _meta_graph(folder: Path) -> Any:
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    proto = saved_model_pb2.SavedModel()
    try:
        proto.ParseFromString(_bytes(folder / "saved_model.pb"))
    except DecodeError as error:
        raise InputError(f"{folder / 'saved_model.pb'} is damaged, or no SavedModel") from error
    if not proto.meta_graphs:
        raise InputError(f"{folder / 'saved_model.pb'} holds no graph")
    serving = [m for m in proto.meta_graphs if "serve" in m.meta_info_def.tags]
    return (serving or list(proto.meta_graphs))[0]


def _graph_def(path: Path) -> Any:
    from google.protobuf.message import DecodeError
    from tensorflow.core.framework import graph_pb2

    proto = graph_pb2.GraphDef()
    try:
        proto.ParseFromString(_bytes(path))
    except DecodeError as error:
        hint = None
        if path.name == "saved_model.pb":
            hint = "give the folder of a SavedModel, not the file in it"
        raise InputError(f"{path} is damaged, or no frozen graph", hint=hint) from error
    if not proto.node:
        hint = (
            "give the folder of a SavedModel, not the file in it" if path.name == "saved_model.pb" else None
        )
        raise InputError(f"{path} is no frozen graph: it holds no operations", hint=hint)
    return proto


def _check(graph_def: Any, where: Path) -> None:
    nodes = [*graph_def.node, *(n for f in graph_def.library.function for n in f.node_def)]
    found = sorted({n.op for n in nodes} & HARMFUL)
    if found:
        raise InputError(
            f"{where} uses operators that reach files or Python, so it is not run: {', '.join(found)}",
            hint="take them out, or convert the model yourself and give the ONNX file",
        )


def _signature(signatures: Mapping[str, Any], wanted: str | None, folder: Path) -> str:
    usable = [s for s in sorted(signatures) if not s.startswith("__saved_model")]
    if wanted is not None:
        if wanted not in usable:
            raise InputError(f"{folder} has no signature {wanted!r}", hint=did_you_mean(wanted, usable))
        return wanted
    if "serving_default" in usable:
        return "serving_default"
    if len(usable) == 1:
        return usable[0]
    raise InputError(
        f"{folder} has {'several signatures' if usable else 'no signature'}",
        hint=f"choose one: signature=... ({', '.join(usable)})" if usable else "save it with signatures=...",
    )


def _named(operations: Mapping[str, Any], names: Any, path: Path) -> list[Any]:
    wanted = [names] if isinstance(names, str) else list(names)
    out = []
    for name in wanted:
        title, _, k = str(name).partition(":")
        if title not in operations or int(k or 0) >= len(operations[title].outputs):
            raise InputError(f"{path} has no tensor {name!r}", hint=did_you_mean(title, operations))
        out.append(operations[title].outputs[int(k or 0)])
    return out


def _sinks(operations: Any, inputs: Sequence[Any], path: Path) -> list[Any]:
    """The tensors that nothing uses but that need an input."""
    reached: set[str] = {t.op.name for t in inputs}
    todo = [o for t in inputs for o in t.consumers()]
    while todo:
        operation = todo.pop()
        if operation.name not in reached:
            reached.add(operation.name)
            todo += [o for t in operation.outputs for o in t.consumers()]
    ends = [
        o.outputs[0]
        for o in operations
        if o.name in reached
        and o.outputs
        and not any(t.consumers() for t in o.outputs)
        and o.type not in ("NoOp", "Assert", "Placeholder")
    ]
    if not ends:
        raise InputError(f"{path} has no outputs to be found", hint="name them: outputs=[...]")
    return ends


def _titled(tensors: Sequence[Any]) -> list[tuple[str, Any]]:
    return list(zip(unique([t.op.name for t in tensors]), tensors, strict=True))


def _cpu() -> Any:
    import tensorflow as tf

    return tf.compat.v1.ConfigProto(device_count={"GPU": 0})
