"""Live MXNet objects: blocks are traced with symbols, and the source runs in MXNet for comparison."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attar.adapters import Reference, type_path
from attar.errors import InputError
from attar.frameworks import import_framework
from attar_mxnet.reading.files import arrays_of, stripped, to_numpy

Array = np.ndarray[Any, np.dtype[Any]]
WRITTEN = "attar_mxnet.writing.native.MxnetModel"


@dataclass(frozen=True)
class Traced:
    """A live model as data.

    Attributes:
        text: the JSON of its symbol.
        names: the inputs in the order in which the source takes them; empty where it has no order.
        run: runs the source on arrays in that order, where it can run by itself.
    """

    text: str
    params: Mapping[str, Array]
    what: str
    names: tuple[str, ...] = ()
    run: Callable[[Sequence[Array]], list[Array]] | None = None


def mxnet() -> Any:
    """The installed mxnet.

    Raises:
        InputError: it is not installed, or does not import.
    """
    if "bool" not in vars(np):  # mxnet 1.9.1 uses names that numpy dropped in 1.24
        np.bool = np.bool_  # type: ignore[attr-defined,unused-ignore]
    return import_framework("mxnet", "MXNet", "reading or running a network of MXNet's own")


def installed() -> bool:
    """Whether mxnet is there, without importing it."""
    return importlib.util.find_spec("mxnet") is not None


def trace(source: Any, inputs: Any, params: Any) -> Traced:
    """The symbol and the parameters of a block, a symbol, a pair or a module.

    Raises:
        InputError: the source is not initialised, or cannot be traced.
    """
    types = type_path(source)
    if WRITTEN in types:
        names = tuple(source.input_names)
        return Traced(
            source.json,
            source.parameters,
            "MxnetModel",
            names,
            lambda a: source.run(dict(zip(names, a, strict=True))),
        )
    if isinstance(source, tuple | list):
        merged: dict[str, Any] = {}
        for part in source[1:]:
            merged.update(arrays_of(part))
        return Traced(source[0].tojson(), merged, "Symbol")
    if "mxnet.symbol.symbol.Symbol" in types:
        if params is None:
            raise InputError("a symbol has no weights", hint="give them by params=...: a path or a mapping")
        return Traced(source.tojson(), arrays_of(params), "Symbol")
    if "mxnet.module.base_module.BaseModule" in types:
        arguments, states = source.get_params()
        return Traced(source.symbol.tojson(), arrays_of({**arguments, **states}), type(source).__name__)
    if "mxnet.gluon.block.HybridBlock" not in types:
        raise InputError(
            f"{type(source).__name__} is a Block, which runs as Python only",
            hint="make it a HybridBlock (hybrid_forward), which can be traced",
        )
    return _trace_block(source, inputs)


def _trace_block(block: Any, inputs: Any) -> Traced:
    mx = mxnet()
    structure = _structure(inputs)
    count = max(1, len(flat(structure)))
    names = ("data",) if count == 1 else tuple(f"data{i}" for i in range(count))
    if isinstance(inputs, Mapping) and len(inputs) == count:
        names = tuple(map(str, inputs))
    numpy_mode = mx.util.is_np_array()

    def run(arrays: Sequence[Array]) -> list[Array]:
        make = mx.np.array if numpy_mode else mx.nd.array
        with mx.autograd.pause(train_mode=False):
            given = [make(a, dtype=a.dtype) for a in arrays]
            found = block(*_regroup(structure, given))
            return [to_numpy(o, "an output") for o in flat(found)]

    weights = block.collect_params()
    if any(getattr(p, "_deferred_init", None) for p in weights.values()):
        if inputs is None:
            raise InputError(
                f"the sizes of {type(block).__name__} are not known before its first use",
                hint="give inputs=...: what you would call the block with",
            )
        try:
            run([singled(to_numpy(a, "an input")) for a in flat(structure)])
        except Exception as error:
            raise InputError(
                f"{type(block).__name__} does not run on the inputs: {_first_line(error)}"
            ) from error
    variables = [mx.sym.var(n) for n in names]
    if numpy_mode:
        variables = [v.as_np_ndarray() for v in variables]
    try:
        found = flat(block(*_regroup(structure, variables)))
        symbol = (
            found[0]
            if len(found) == 1
            else mx.sym.Group([s.as_nd_ndarray() if numpy_mode else s for s in found])
        )
        text = symbol.tojson()
    except Exception as error:  # hybrid_forward is anybody's code
        raise InputError(
            f"{type(block).__name__} cannot be traced with symbols: {_first_line(error)}",
            hint="hybrid_forward must work on symbols; several inputs are given as inputs=(a, b)",
        ) from error
    arrays = {}
    for name, parameter in weights.items():
        try:
            arrays[name] = to_numpy(parameter.data(parameter.list_ctx()[0]), f"the parameter {name!r}")
        except RuntimeError as error:
            raise InputError(
                f"the parameter {name!r} has no content: {_first_line(error)}", hint="block.initialize()"
            ) from error
    return Traced(text, arrays, type(block).__name__, names, run)


def bound(text: str | bytes, params: Mapping[str, Array], outputs_np: bool) -> Reference:
    """Runs a symbol in MXNet itself, which reads the JSON with its own reader.

    Raises:
        InputError: mxnet is not installed, or cannot read or run it.
    """
    mx = mxnet()
    weights = stripped(params)
    bindings: dict[tuple[Any, ...], Any] = {}

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        key = tuple((n, a.shape, a.dtype.str) for n, a in sorted(feeds.items()))
        try:
            with mx.util.np_shape(outputs_np):
                symbol = mx.sym.load_json(text.decode() if isinstance(text, bytes) else text)
                if key not in bindings:
                    bindings.clear()
                    types = {
                        n: a.dtype for n, a in {**weights, **feeds}.items() if n in set(symbol.list_inputs())
                    }
                    states = {n: a.shape for n, a in weights.items() if n in set(symbol.list_inputs())}
                    shapes = {**states, **{n: a.shape for n, a in feeds.items()}}
                    executor = symbol.simple_bind(mx.cpu(), grad_req="null", type_dict=types, **shapes)
                    arrays = {n: mx.nd.array(a, dtype=a.dtype) for n, a in weights.items()}
                    executor.copy_params_from(arrays, arrays, allow_extra_params=True)
                    bindings[key] = executor
                given = {n: mx.nd.array(a, dtype=a.dtype) for n, a in feeds.items()}
                return [to_numpy(o, "an output") for o in bindings[key].forward(is_train=False, **given)]
        except Exception as error:
            raise InputError(f"mxnet does not run the model: {_first_line(error)}") from error

    return run


def singled(array: Array) -> Array:
    """An array of doubles in single precision, any other as it is."""
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _structure(inputs: Any) -> tuple[Any, ...]:
    """The arguments of a call."""
    if inputs is None:
        return (None,)
    if isinstance(inputs, Mapping):
        return tuple(inputs.values())
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)


def flat(nested: Any) -> list[Any]:
    if isinstance(nested, tuple | list):
        return [leaf for part in nested for leaf in flat(part)]
    return [nested]


def _regroup(structure: Any, leaves: Sequence[Any]) -> Any:
    rest = list(leaves)

    def build(part: Any) -> Any:
        return [build(p) for p in part] if isinstance(part, tuple | list) else rest.pop(0)

    return [build(part) for part in structure]


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Check failed" in line or "Error" in line]
    return f"{type(error).__name__}: {(telling or lines or [''])[0][:300]}"
