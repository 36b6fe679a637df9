"""Reading, from the kind of source to the loaded model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attar.adapters import Loaded
from attar.errors import AttarError, ConversionError, InputError
from attar.specs import TensorSpec, input_specs
from attar_tensorflow.adapter import kind_of
from attar_tensorflow.installed import need_tensorflow
from attar_tensorflow.reading.quiet import quiet

if TYPE_CHECKING:
    from attar.registry import Registry
    from attar_tensorflow.reading.program import Program

Array = np.ndarray[Any, np.dtype[Any]]


def read(
    source: Any,
    inputs: Any,
    registry: Registry | None,
    *,
    signature: str | None = None,
    outputs: Any = None,
    input_names: Any = None,
) -> Loaded:
    """Read `source`; see `TensorFlowAdapter.load`."""
    kind = kind_of(source)
    with quiet():
        need_tensorflow("reading a TensorFlow model")
        try:
            program = _program(
                source, kind, inputs, signature=signature, outputs=outputs, input_names=input_names
            )
            model, notes = _lift(program, registry)
        except AttarError:
            raise
        except RecursionError as error:
            raise ConversionError("the model is nested too deep to be read") from error
    specs = input_specs(model)
    example = None if inputs is None else named_example(specs, inputs)
    if example is not None and kind in ("keras", "function"):
        _try(program, example)
    return Loaded(model, program.run, example, (*program.notes, *notes))


def _program(
    source: Any, kind: str, inputs: Any, *, signature: Any, outputs: Any, input_names: Any
) -> Program:
    if kind == "saved-model":
        from attar_tensorflow.reading.stored import read_saved_model

        return read_saved_model(Path(source), signature)
    if kind == "frozen":
        from attar_tensorflow.reading.stored import read_frozen

        return read_frozen(Path(source), input_names, outputs)
    from attar_tensorflow.reading.keras_models import from_keras, read_file

    if kind == "keras-file":
        return from_keras(read_file(Path(source)), inputs, Path(source).name)
    if kind == "keras":
        return from_keras(source, inputs, type(source).__name__)
    from attar_tensorflow.reading.functions import from_function

    return from_function(source, inputs, signature, type(source).__name__)


def _lift(program: Program, registry: Registry | None) -> Any:
    from attar_tensorflow.reading.convert import to_ir

    if registry is None:
        from attar.registry import default_registry

        registry = default_registry()
    from attar_tensorflow.reading.table import LIFTINGS

    table = {**LIFTINGS, **registry.op_table("attar_liftings", "tensorflow")}
    return to_ir(program, table)


def _try(program: Program, example: Mapping[str, Array]) -> None:
    """The example goes through the source once: what it does not take is told now."""
    from attar_tensorflow.reading.functions import essence

    try:
        program.run(example)
    except Exception as error:
        raise InputError(f"{program.what} does not take these inputs: {essence(error)}") from error


def named_example(specs: tuple[TensorSpec, ...], inputs: Any) -> dict[str, Array]:
    """`inputs` (an array, a sequence in input order, or a mapping by name) as named arrays.

    Raises:
        InputError: a name, number, element type or shape does not fit the model.
    """
    names = [s.name for s in specs]
    if isinstance(inputs, Mapping):
        given = {str(k): v for k, v in inputs.items()}
    else:
        items = list(inputs) if isinstance(inputs, tuple | list) else [inputs]
        if len(items) != len(names):
            raise InputError(f"the model has {len(names)} inputs, the example {len(items)}")
        given = dict(zip(names, items, strict=True))
    if set(given) != set(names):
        raise InputError(
            f"the example names the inputs {sorted(given)}, the model has {names}",
            hint="name every input once",
        )
    example = {}
    for spec in specs:
        array = np.asarray(given[spec.name])
        if array.dtype != spec.dtype and np.can_cast(array.dtype, spec.dtype, "same_kind"):
            array = array.astype(spec.dtype)
        fits = spec.shape is None or (
            len(spec.shape) == array.ndim
            and all(not isinstance(d, int) or d == n for d, n in zip(spec.shape, array.shape, strict=True))
        )
        if array.dtype != spec.dtype or not fits:
            raise InputError(
                f"the example for {spec.name!r} is {array.dtype}{list(array.shape)}, the model takes {spec}"
            )
        example[spec.name] = np.array(array)
    return example
