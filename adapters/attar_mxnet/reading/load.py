"""Loading as a whole: the source as data, the shapes of its inputs, the IR, and the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.adapters import Loaded, Reference
from attar.errors import AttarError, ConversionError, InputError, did_you_mean
from attar_mxnet.reading import LIFTINGS, live
from attar_mxnet.reading.dims import Dim, safe_name
from attar_mxnet.reading.files import arrays_of, is_symbol, params_beside, stripped, symbol_beside, to_numpy
from attar_mxnet.reading.graph import Given, Read, read_graph
from attar_mxnet.reading.inputs import BATCH, data_inputs, guessed_shape
from attar_mxnet.reading.matching import matched
from attar_mxnet.symbol_json import SymbolGraph, parse_symbol

Array = np.ndarray[Any, np.dtype[Any]]
_COMMON_SIZES = (224, 28, 32, 299, 64, 112, 96, 128, 160, 192, 256, 227, 300, 331, 384, 416, 512, 48, 24)


@dataclass(frozen=True)
class _Source:
    text: str | bytes
    symbol: SymbolGraph
    params: Mapping[str, Array]
    what: str
    names: tuple[str, ...]
    run: Any = None


def load_source(
    source: Any,
    inputs: Any,
    table: Mapping[str, Any] | None,
    *,
    params: Any = None,
    symbol: Any = None,
    epoch: int | None = None,
    shapes: Mapping[str, Sequence[Any]] | None = None,
    dtypes: Mapping[str, Any] | None = None,
    dynamic: Any = "auto",
) -> Loaded:
    """See `attar_mxnet.adapter.MxnetAdapter.load`."""
    if dynamic not in ("auto", None) and not isinstance(dynamic, Mapping):
        raise InputError(
            f"dynamic={dynamic!r} is not understood", hint="'auto', None, or {input: {axis: name}}"
        )
    found = _from_files(Path(source), params, symbol, epoch) if isinstance(source, str | Path) else None
    if found is None:
        found = _from_live(source, inputs, params)
    example = None if inputs is None else _example(found, inputs)
    given = _given(found, example, shapes or {}, dtypes or {}, dynamic)
    exact = _given(found, example, shapes or {}, dtypes or {}, None)
    read, notes = _read(found, table or LIFTINGS, given, exact)
    model = read.model
    _in_order(model, found.names)
    try:
        graph.normalize(model)
        graph.check(model)
    except AttarError as error:
        raise ConversionError(f"{found.what} cannot be written as ONNX: {error.message}") from error
    graph.set_provenance(model, framework="mxnet", source=found.what)
    if example is not None:
        used = {v.name for v in model.graph.inputs}
        example = {n: a for n, a in example.items() if n in used}
    reference, remarks = _reference(found, example)
    return Loaded(model, reference, example, (*notes, *remarks))


def _from_files(path: Path, params: Any, symbol: Any, epoch: int | None) -> _Source:
    if path.suffix.lower() == ".params":
        weights, file = path if params is None else params, Path(symbol) if symbol else symbol_beside(path)
    else:
        prefix = Path(f"{path}-symbol.json")
        file = prefix if not path.exists() and is_symbol(prefix) else path
        weights = params_beside(file, epoch) if params is None else params
    try:
        text = file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from error
    read = parse_symbol(text, str(file))
    arrays = matched(read, stripped(arrays_of(weights)))
    return _Source(text, read, arrays, file.name, data_inputs(read, arrays))


def _from_live(source: Any, inputs: Any, params: Any) -> _Source:
    traced = live.trace(source, inputs, params)
    read = parse_symbol(traced.text, "the traced symbol")
    arrays = stripped(traced.params)
    if traced.run is None:
        arrays = matched(read, arrays)
    return _Source(
        traced.text, read, arrays, traced.what, traced.names or data_inputs(read, arrays), traced.run
    )


def _example(found: _Source, inputs: Any) -> dict[str, Array]:
    names = found.names
    labels = {n.name for n in found.symbol.nodes if n.is_variable}  # may be given; nothing depends on them
    if isinstance(inputs, Mapping) and set(names) <= set(map(str, inputs)) <= {*names, *labels}:
        return _singled(found, {n: to_numpy(inputs[n], f"the input {n!r}") for n in names})
    items = live.flat(list(inputs.values()) if isinstance(inputs, Mapping) else inputs)
    if isinstance(inputs, Mapping):
        raise InputError(
            f"the example names the inputs {sorted(map(str, inputs))}, the model has {list(names)}"
        )
    if len(items) != len(names):
        raise InputError(f"the model has the inputs {list(names)}, the example has {len(items)}")
    return _singled(found, {n: to_numpy(a, f"the input {n!r}") for n, a in zip(names, items, strict=True)})


def _singled(found: _Source, example: dict[str, Array]) -> dict[str, Array]:
    """Doubles as singles, which is what numpy's default type means to a network that has no doubles."""
    if any(a.dtype == np.float64 for a in found.params.values()):
        return example
    return {n: live.singled(a) for n, a in example.items()}


def _given(
    found: _Source,
    example: Mapping[str, Array] | None,
    shapes: Mapping[str, Sequence[Any]],
    dtypes: Mapping[str, Any],
    dynamic: Any,
) -> Given:
    for option, named in (("shapes", shapes), ("dtypes", dtypes)):
        for name in named:
            if name not in found.names:
                raise InputError(
                    f"{option} names the input {name!r}", hint=did_you_mean(str(name), found.names)
                )
    for name in dynamic if isinstance(dynamic, Mapping) else ():
        if name not in found.names:
            raise InputError(f"dynamic names the input {name!r}", hint=did_you_mean(str(name), found.names))
    known: dict[str, Sequence[Dim]] = {}
    types = {n: np.dtype(t) for n, t in dtypes.items()}
    batch: int | None = None
    for name in found.names:
        if name in shapes:
            dims = [_dim(name, axis, d) for axis, d in enumerate(shapes[name])]
        elif example is not None:
            dims = list(example[name].shape)
        else:
            continue
        if example is not None:
            types.setdefault(name, example[name].dtype)
        if dims and dynamic == "auto" and isinstance(dims[0], int):
            batch = dims[0] if batch is None else batch
            dims[0] = BATCH if dims[0] == batch else dims[0]
        for axis, label in (dynamic or {}).get(name, {}).items() if isinstance(dynamic, Mapping) else ():
            if not isinstance(axis, int) or not -len(dims) <= axis < len(dims):
                raise InputError(f"input {name!r} has {len(dims)} axes, but dynamic names axis {axis!r}")
            dims[axis] = safe_name(str(label))
        known[name] = dims
    return Given(known, types)


def _dim(name: str, axis: int, size: Any) -> Dim:
    if isinstance(size, str):
        return safe_name(size)
    if size is None or size in (-1, 0):
        return BATCH if axis == 0 else f"{safe_name(name)}_{axis}"
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 0:
        raise InputError(f"shapes[{name!r}] has the size {size!r}")
    return int(size)


def _read(found: _Source, table: Mapping[str, Any], given: Given, exact: Given) -> tuple[Read, list[str]]:
    """Read with dynamic axes; where the network does not allow them, with the sizes that were given."""
    failure: InputError | ConversionError | None = None
    try:
        read = read_graph(found.symbol, found.params, table, given)
    except (InputError, ConversionError) as error:
        failure = error
    if failure is not None and given.shapes != exact.shapes:
        try:
            read = read_graph(found.symbol, found.params, table, exact)
        except (InputError, ConversionError):
            raise failure from None
        return read, ["the batch size is fixed to the one given, because the network depends on it"]
    if not given.shapes and (failure is not None or read.demands):
        fixed = _common_size(found, table, given)
        if fixed is not None:
            return fixed
    if failure is not None:
        raise failure
    return read, []


def _common_size(found: _Source, table: Mapping[str, Any], given: Given) -> tuple[Read, list[str]] | None:
    """The network at the image size that its weights were made for, where that is a common one."""
    for number, node in enumerate(found.symbol.nodes):
        if node.name not in found.names or not node.is_variable:
            continue
        shape = guessed_shape(found.symbol, number, found.params)
        if shape is None or "height" not in shape:
            continue
        for size in _COMMON_SIZES:
            dims = [size if d in ("height", "width") else d for d in shape]
            try:
                read = read_graph(found.symbol, found.params, table, Given({node.name: dims}, given.dtypes))
            except (InputError, ConversionError):
                continue
            if not read.demands:
                note = f"the input {node.name!r} is taken to be {size} x {size}, which fits the weights"
                return read, [f"{note}; shapes={{...}} says otherwise"]
    return None


def _in_order(model: ir.Model, names: Sequence[str]) -> None:
    """The inputs in the order in which the source takes them."""
    order = {n: i for i, n in enumerate(names)}
    inputs = sorted(model.graph.inputs, key=lambda v: order.get(v.name or "", len(order)))
    model.graph.inputs.clear()
    model.graph.inputs.extend(inputs)


def _reference(found: _Source, example: Mapping[str, Array] | None) -> tuple[Reference | None, list[str]]:
    if found.run is not None:
        return (lambda feeds: found.run([np.asarray(feeds[n]) for n in found.names])), []
    if not live.installed():
        return None, ["mxnet is not installed, so the model was not compared with it"] if example else []
    if example is None:
        return _later(found), []
    try:
        return live.bound(found.text, found.params, found.symbol.np_shape), []
    except InputError as error:
        return None, [f"not compared with mxnet: {error.message}"]


def _later(found: _Source) -> Reference:
    """A reference that imports MXNet when it is first asked."""
    made: list[Reference] = []

    def run(feeds: Mapping[str, Array]) -> Sequence[Array]:
        if not made:
            made.append(live.bound(found.text, found.params, found.symbol.np_shape))
        return made[0](feeds)

    return run
