"""What an adapter promises: it recognises without importing, reads faithfully, copies, and says what is
wrong.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from attar.adapters import Adapter, Loaded
from attar.errors import AttarError, InputError
from attar.specs import input_specs, output_specs
from attar.testing.pass_checks import import_complaint
from attar.testing.trial import NonConformance, relative_difference, weights
from attar.testing.zoo import Array

TOLERANCE = 1e-4


def check_adapter(adapter: Adapter, source: Any, example: Any = None, **options: Any) -> int:
    """Run every check of `adapter_checks`; gives their number.

    Raises:
        NonConformance: some promise is broken; the message lists all of them.
    """
    checks = adapter_checks(adapter, source, example, **options)
    problems = []
    for name, check in checks.items():
        try:
            check()
        except NonConformance as problem:
            problems.append(f"[{name}] {problem}")
    if problems:
        raise NonConformance(
            f"adapter {adapter.name!r} breaks {len(problems)} checks:\n" + "\n".join(problems)
        )
    return len(checks)


def adapter_checks(
    adapter: Adapter, source: Any, example: Any = None, *, tolerance: float = TOLERANCE, **options: Any
) -> dict[str, Callable[[], None]]:
    """The checks of one adapter on one source, by name.

    Args:
        adapter: what to check.
        source: a model that it reads: a framework object or a path.
        example: inputs, as `adapter.load(..., inputs=example)` takes them.
        tolerance: largest output difference from the framework, relative to the largest magnitude of the
            output.
        options: further arguments of `adapter.load`.
    """

    def load() -> Loaded:
        try:
            return adapter.load(source, inputs=example, **options)
        except Exception as error:
            raise NonConformance(f"load() raised {type(error).__name__}: {error}") from error

    return {
        "named": lambda: _named(adapter),
        "recognises": lambda: _recognises(adapter, source),
        "recognises_without_importing": lambda: _lazily(adapter),
        "well_formed": lambda: _well_formed(load()),
        "faithful": lambda: _faithful(load(), tolerance),
        "copies_parameters": lambda: _copies(load()),
        "same_twice": lambda: _same_twice(load(), load()),
        "bad_source": lambda: _bad_source(adapter, options),
        "bad_inputs": lambda: _bad_inputs(adapter, source, example, options),
    }


def _named(adapter: Adapter) -> None:
    if not adapter.name.isidentifier():
        raise NonConformance(f"name is {adapter.name!r}; it must be an identifier")
    for suffix in adapter.suffixes:
        if not suffix.startswith(".") or suffix != suffix.lower():
            raise NonConformance(f"suffix {suffix!r} must be lower case and begin with a dot")


def _recognises(adapter: Adapter, source: Any) -> None:
    if not adapter.recognises(source):
        raise NonConformance(f"does not recognise {source!r:.200}")
    for foreign in (object(), 3, None, {}, "model.no-such-suffix", Path("no-suffix")):
        if adapter.recognises(foreign):
            raise NonConformance(f"claims to read {foreign!r}")


def _lazily(adapter: Adapter) -> None:
    """In a new interpreter: import the adapter's module and ask it about foreign things; no framework may
    appear.
    """
    cls = type(adapter)
    if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
        return
    ask = (
        f"cls = module\nfor part in {cls.__qualname__.split('.')!r}: cls = getattr(cls, part)\n"
        "for thing in (object(), 'model.onnx', 'model.pt', 'model.keras', 'model.params'):\n"
        "    cls().recognises(thing)"
    )
    complaint = import_complaint(cls.__module__, ask)
    if complaint:
        raise NonConformance(complaint)


def _well_formed(loaded: Loaded) -> None:
    import onnx

    from attar import graph

    model = loaded.model
    if not isinstance(model, ir.Model):
        raise NonConformance(f"load() gave {type(model).__name__}, not onnx_ir.Model")
    if model.functions:
        raise NonConformance(
            f"{len(model.functions)} model-local functions left; attar.graph.normalize inlines them"
        )
    overridable = [v.name for v in model.graph.inputs if v.name in model.graph.initializers]
    if overridable:
        raise NonConformance(f"initializers among the inputs: {', '.join(map(str, overridable))}")
    for name, value, tensor in weights(model):
        if value.shape is not None and list(value.shape) != list(tensor.shape):
            raise NonConformance(
                f"weight {name!r}: value says {list(value.shape)}, tensor {list(tensor.shape)}"
            )
    try:
        onnx.checker.check_model(graph.to_bytes(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise NonConformance(f"the ONNX checker rejects the model: {error}") from error


def _run(model: ir.Model, feeds: Mapping[str, Array]) -> list[Array]:
    from attar.runtime import OnnxRuntime

    try:
        return OnnxRuntime().open(model, optimize=False).run(feeds)
    except AttarError as error:
        raise NonConformance(f"the model does not run: {error}") from error


def _example(loaded: Loaded) -> Mapping[str, Array]:
    """The example the adapter reports, or ones of the declared sizes (2 for dynamic dimensions)."""
    if loaded.example is not None:
        wanted = {s.name for s in input_specs(loaded.model)}
        if set(loaded.example) != wanted:
            raise NonConformance(
                f"Loaded.example has {sorted(loaded.example)}, the model's inputs are {sorted(wanted)}"
            )
        return loaded.example
    rng, feeds = np.random.default_rng(0), {}
    for spec in input_specs(loaded.model):
        sizes = [d if isinstance(d, int) else 2 for d in spec.shape or ()]
        drawn = rng.standard_normal(sizes) if spec.dtype.kind == "f" else rng.integers(0, 2, sizes)
        feeds[spec.name] = np.asarray(drawn).astype(spec.dtype)
    return feeds


def _faithful(loaded: Loaded, tolerance: float) -> None:
    feeds = _example(loaded)
    outputs = _run(loaded.model, feeds)
    names = [s.name for s in output_specs(loaded.model)]
    for name, got in zip(names, outputs, strict=True):
        if got.dtype.kind == "f" and not np.isfinite(got).all():
            raise NonConformance(f"output {name!r} is not finite")
    if loaded.reference is None:
        return
    expected = [np.asarray(y) for y in loaded.reference(feeds)]
    if len(expected) != len(outputs):
        raise NonConformance(f"the source has {len(expected)} outputs, the model {len(outputs)}")
    for name, wanted, got in zip(names, expected, outputs, strict=True):
        if wanted.shape != got.shape:
            raise NonConformance(
                f"output {name!r} is {list(got.shape)}, in the framework {list(wanted.shape)}"
            )
        difference = relative_difference(wanted, got)
        if difference > tolerance:
            raise NonConformance(
                f"output {name!r} differs from the framework's by {difference:.3g} of its largest magnitude; "
                f"{tolerance:g} is allowed"
            )


def _copies(loaded: Loaded) -> None:
    """Overwrite every weight of the model that can be written; the source must not notice."""
    if loaded.reference is None:
        return
    feeds = _example(loaded)
    before = [np.array(y, copy=True) for y in loaded.reference(feeds)]
    saved: list[tuple[Array, Array]] = []
    for _, _, tensor in weights(loaded.model):
        array = tensor.numpy()
        if array.flags.writeable:
            saved.append((array, array.copy()))
            array[...] = 1
    try:
        after = [np.asarray(y) for y in loaded.reference(feeds)]
    finally:
        for array, content in saved:  # the caller's network, if they do share
            array[...] = content
    for wanted, got in zip(before, after, strict=True):
        if relative_difference(wanted, got) > 0:
            raise NonConformance(
                "writing to a weight of the model changes the source: copy parameters on reading"
            )


def _same_twice(one: Loaded, two: Loaded) -> None:
    from attar import graph

    if graph.to_bytes(one.model) != graph.to_bytes(two.model):
        raise NonConformance("reading the same source twice gives different models")


def _bad_source(adapter: Adapter, options: Mapping[str, Any]) -> None:
    """A missing file, an empty one and one of noise are `InputError`, for every suffix; so is a foreign
    object.
    """
    with tempfile.TemporaryDirectory() as folder:
        for suffix in adapter.suffixes:
            missing, empty, noise = (Path(folder) / f"{n}{suffix}" for n in ("missing", "empty", "noise"))
            empty.write_bytes(b"")
            noise.write_bytes(np.random.default_rng(0).bytes(4096))
            for path in (missing, empty, noise):
                load = functools.partial(adapter.load, path, **options)
                _must_refuse(f"a file ({path.stem}, {suffix})", load)
    _must_refuse("an object that is no model", functools.partial(adapter.load, object(), **options))


def _bad_inputs(adapter: Adapter, source: Any, example: Any, options: Mapping[str, Any]) -> None:
    """Inputs of an impossible rank, and what is no array. Adapters that need no example may ignore them."""
    for what, bad in (
        ("inputs of rank 9", np.zeros((1,) * 9, np.float32)),
        ("inputs that are no arrays", object()),
    ):
        load = functools.partial(adapter.load, source, inputs=bad, **options)
        _must_refuse(what, load, or_work=example is None)


def _must_refuse(what: str, attempt: Callable[[], Any], *, or_work: bool = False) -> None:
    try:
        attempt()
    except InputError as error:
        if not error.message.strip():
            raise NonConformance(f"{what}: InputError without a message") from error
        return
    except Exception as error:
        raise NonConformance(
            f"{what}: raised {type(error).__name__}: {error}; it should be InputError"
        ) from error
    if not or_work:
        raise NonConformance(f"{what} was accepted in silence")
