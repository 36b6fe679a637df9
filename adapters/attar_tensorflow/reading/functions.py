"""Functions, modules and Keras models that live in memory, traced to a program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from attar.errors import ConversionError, InputError
from attar_tensorflow.reading.program import Program, captures, flat_outputs, unique

Array = np.ndarray[Any, np.dtype[Any]]


def essence(error: BaseException) -> str:
    """The first telling line of one of TensorFlow's long messages."""
    lines = [ln.strip() for ln in str(error).splitlines() if set(ln.strip()) - set("-=~^* ")]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def from_concrete(
    function: Any,
    inputs: Sequence[tuple[str, Any]],
    outputs: Sequence[tuple[str, Any]],
    what: str,
    *,
    names: Mapping[int, str] | None = None,
    layers: frozenset[str] = frozenset(),
) -> Program:
    """A program of a `ConcreteFunction`, of whose graph `inputs` and `outputs` are tensors."""
    runner = _runner(function, [n for n, _ in inputs], [t for _, t in outputs])
    return Program(function.graph, inputs, outputs, captures(function, names or {}), runner, what, layers)


def _runner(
    function: Any, names: Sequence[str], wanted: Sequence[Any]
) -> Callable[[Mapping[str, Array]], list[Array]]:
    places = [next(k for k, t in enumerate(function.outputs) if t is w) for w in wanted]
    kinds = [t.dtype for t in function.inputs[: len(names)]]

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        import tensorflow as tf

        from attar_tensorflow.reading.quiet import quiet

        given = [tf.constant(feeds[n], dtype=d) for n, d in zip(names, kinds, strict=True)]
        with quiet():
            results = function._call_flat(given, function.captured_inputs)
        flat = list(results) if isinstance(results, list | tuple) else tf.nest.flatten(results)
        return [np.asarray(flat[k]) for k in places]

    return run


def trace(call: Callable[..., Any], specs: Any, what: str) -> Any:
    """`call` as a concrete function of `specs`, a list of positional or a mapping of keyword specs.

    Raises:
        ConversionError: it cannot be traced.
    """
    import tensorflow as tf

    function = tf.function(call, autograph=False)
    try:
        return (
            function.get_concrete_function(**specs)
            if isinstance(specs, Mapping)
            else function.get_concrete_function(*specs)
        )
    except Exception as error:  # the model's own code runs here, and may raise anything
        raise ConversionError(f"{what} cannot be traced on its inputs: {essence(error)}") from error


def from_function(source: Any, example: Any, signature: str | None, what: str) -> Program:
    """A `tf.function`, a `ConcreteFunction` or a `tf.Module` with `__call__`.

    Raises:
        InputError: it was never traced, and `example` does not say on what to trace it.
    """
    import tensorflow as tf

    if hasattr(source, "structured_input_signature"):
        return of_concrete(source, what)
    if isinstance(getattr(source, "signatures", None), Mapping) and source.signatures:
        return of_concrete(_by_signature(source.signatures, signature, what), what)
    call = source
    if isinstance(source, tf.Module) and not hasattr(source, "get_concrete_function"):
        if not callable(source):
            raise InputError(f"{what} has no __call__, so there is nothing to read")
        call = source.__call__
    if example is None:
        return of_concrete(_fixed(call, what), what)
    specs = specs_of(example)
    try:
        if hasattr(call, "get_concrete_function"):
            concrete = (
                call.get_concrete_function(**specs)
                if isinstance(specs, dict)
                else call.get_concrete_function(*specs)
            )
        else:
            concrete = trace(call, specs, what)
    except ConversionError:
        raise
    except Exception as error:
        raise InputError(f"{what} does not take these inputs: {essence(error)}") from error
    return of_concrete(concrete, what, source)


def _by_signature(signatures: Any, wanted: str | None, what: str) -> Any:
    """One signature of a SavedModel that was loaded already."""
    known = list(signatures)
    name = wanted or (
        "serving_default" if "serving_default" in known else known[0] if len(known) == 1 else None
    )
    if name not in known:
        raise InputError(f"choose a signature of {what}: signature=...", hint=f"it has {', '.join(known)}")
    return signatures[name]


def _fixed(call: Any, what: str) -> Any:
    """The one form of a function that has an `input_signature`, or that was called in one way only."""
    if getattr(call, "input_signature", None) is not None:
        try:
            return call.get_concrete_function()
        except Exception as error:
            raise ConversionError(f"{what} cannot be traced on its signature: {essence(error)}") from error
    listed = getattr(call, "_list_all_concrete_functions", None)
    known = listed() if listed is not None else []
    if len(known) == 1:
        return known[0]
    raise InputError(
        f"{what} can be read only with example inputs", hint="give inputs=...: what you would call it with"
    )


def of_concrete(function: Any, what: str, source: Any = None) -> Program:
    """A program of a `ConcreteFunction` with the names of its arguments."""
    import tensorflow as tf

    tensors = list(function.inputs[: len(function.inputs) - len(function.captured_inputs)])
    names = _argument_names(function, len(tensors)) or [t.op.name for t in tensors]
    outputs = flat_outputs(function.structured_outputs)
    by_tensor = []
    flat = [t for _, t in outputs]
    for name, t in zip(unique([n for n, _ in outputs]), flat, strict=True):
        match = next((o for o in function.outputs if o is t), None)
        by_tensor.append((name, match))
    if any(t is None for _, t in by_tensor):
        by_tensor = list(zip(unique([n for n, _ in outputs]), function.outputs, strict=False))
    names_of = {}
    if isinstance(source, tf.Module):
        names_of = {id(v.handle): v.name.rpartition(":")[0] for v in source.variables if hasattr(v, "handle")}
    return from_concrete(
        function, list(zip(unique(names), tensors, strict=True)), by_tensor, what, names=names_of
    )


def _argument_names(function: Any, count: int) -> list[str] | None:
    import tensorflow as tf

    try:
        args, kwargs = function.structured_input_signature
    except (AttributeError, TypeError):
        return None
    given = [*tf.nest.flatten(args), *(s for k in sorted(kwargs) for s in tf.nest.flatten(kwargs[k]))]
    specs = [s for s in given if isinstance(s, tf.TensorSpec)]
    if len(specs) != count:
        return None
    keys = [k for k in sorted(kwargs) if isinstance(kwargs[k], tf.TensorSpec)]
    plain = [s.name for s in specs]
    if len(keys) == count:
        plain = keys
    return [n or f"input_{k}" for k, n in enumerate(plain)]


def specs_of(example: Any) -> Any:
    """What to trace on: element type and shape of the example, with the batch left open."""
    import tensorflow as tf

    def spec(x: Any, name: str | None = None) -> Any:
        if isinstance(x, tf.TensorSpec):
            return x
        array = np.asarray(x)
        shape = [None, *array.shape[1:]] if array.ndim else []
        return tf.TensorSpec(shape, array.dtype, name=name)

    if isinstance(example, Mapping):
        return {str(k): spec(v, str(k)) for k, v in example.items()}
    items = list(example) if isinstance(example, tuple | list) else [example]
    return [spec(x) for x in items]
