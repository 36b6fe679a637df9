"""The adapter for `.tflite` files. TensorFlow is needed only to run them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from attar.adapters import Adapter, Exported, Loaded
from attar.errors import InputError, did_you_mean
from attar.files import write_atomic
from attar.specs import input_specs

if TYPE_CHECKING:
    import onnx_ir as ir

    from attar.registry import Registry

_LIMIT = 1 << 36
# Codes of two integer runtimes differ by one where they round a tie otherwise, and that spreads.
_QUANTIZED = 0.05


class TFLiteAdapter(Adapter):
    """`.tflite` files: float, dynamic range, and quantized to 8 or 16 bits."""

    name: ClassVar[str] = "tflite"
    suffixes: ClassVar[tuple[str, ...]] = (".tflite",)

    def recognises(self, source: Any) -> bool:
        if isinstance(source, bytes | bytearray | memoryview):
            return bytes(source[4:8]) == b"TFL3"
        return super().recognises(source)

    def load(
        self, source: Any, *, inputs: Any = None, registry: Registry | None = None, **options: Any
    ) -> Loaded:
        """Read a `.tflite` file. Quantized tensors keep their codes, scales and zero points exactly.

        Args:
            source: the path of a file.
            inputs: example inputs, by name, in order or a single array; of the types of the file.
            registry: whose `attar_liftings` teach further operators; the default one unless given.
            options: `float_io` (default False): inputs and outputs that are codes in the file become real
            numbers.

        Raises:
            InputError: the file is missing, damaged, or contradicts itself; or the example does not fit.
            ConversionError: it uses operators that ONNX cannot say; all are listed.
        """
        from attar import graph
        from attar.registry import default_registry
        from attar_tensorflow.tflite.file import parse
        from attar_tensorflow.tflite.interpreter import Interpreter, available, may_delegate
        from attar_tensorflow.tflite.reading import lift

        float_io = options.pop("float_io", False)
        if options:
            raise InputError(
                f"the adapter 'tflite' has no option {sorted(options)[0]!r}", hint="it has one: float_io"
            )
        if not isinstance(float_io, bool):
            raise InputError(f"float_io is True or False, not {float_io!r:.60}")
        data, what = _bytes(source)
        file = parse(data, what)
        table = (registry or default_registry()).op_table("attar_liftings", "tflite")
        model, notes = lift(file, table, what, float_io=float_io)
        graph.set_provenance(model, framework="tflite", source=Path(what).name)
        main = file.graphs[0]
        reference: Any = None
        if not available():
            notes.append("TensorFlow is not installed: nothing to hold the model against")
        else:
            delegate = may_delegate(main)
            reference = Interpreter(data, main.input_names, main.output_names, delegate=delegate)
            if float_io:
                reference = _float_reference(reference, model, main)
        example = None if inputs is None else _example(model, inputs)
        codes = any(t.type in ("INT8", "UINT8", "INT16") and t.quantization is not None for t in main.tensors)
        return Loaded(model, reference, example, tuple(notes), tolerance_rms=_QUANTIZED if codes else 0.0)

    def write(self, model: ir.Model, *, registry: Registry, **options: Any) -> Exported:
        """Write a model as the bytes of a `.tflite` file.

        What lies between DequantizeLinear and QuantizeLinear is written on integers with exactly their scales
        and zero
        points: int8 activations (uint8 ones are shifted by 128), symmetric int8 weights, int32 biases.

        Args:
            registry: whose `attar_lowerings` say how each operator is written.
            options: `int8_io` (default True): real inputs and outputs of a quantized model become int8.
            `layout`:
                "source" (default) keeps the axes of inputs and outputs, "channels_last" gives and takes
                images as
                TensorFlow does. `Exported.run` takes and gives what the model does, whatever they are.

        Raises:
            InputError: an option is unknown or has an impossible value, or the file would be larger than 2
            GB.
            ConversionError: TFLite cannot say some operators exactly; all are listed.
        """
        from attar_tensorflow.tflite.file import parse
        from attar_tensorflow.tflite.interpreter import Interpreter, available, may_delegate
        from attar_tensorflow.tflite.writing import lower

        known = {"int8_io": (True, (True, False)), "layout": ("source", ("source", "channels_last"))}
        if unknown := sorted(set(options) - set(known)):
            raise InputError(
                f"the adapter 'tflite' has no option {unknown[0]!r} for export",
                hint=did_you_mean(unknown[0], known),
            )
        chosen = {name: options.get(name, default) for name, (default, _) in known.items()}
        for name, (_, values) in known.items():
            if chosen[name] not in values:
                raise InputError(f"{name} is one of {', '.join(map(repr, values))}, not {chosen[name]!r:.60}")
        table = registry.op_table("attar_lowerings", "tflite")
        written = lower(
            model,
            table,
            registry,
            int8_io=chosen["int8_io"],
            channels_last=chosen["layout"] == "channels_last",
        )
        names = [[p.name for p in ports] for ports in (written.inputs, written.outputs)]
        delegate = may_delegate(parse(written.data, "the file written").graphs[0])
        inner = Interpreter(written.data, *names, delegate=delegate)
        if available():
            inner.check()

        def run(feeds: Mapping[str, Any]) -> list[Any]:
            missing = [p.name for p in written.inputs if p.name not in feeds]
            if missing:
                raise InputError(f"the input {missing[0]!r} is missing")
            arrays = inner({p.name: p.feed(np.asarray(feeds[p.name])) for p in written.inputs})
            return [p.fetch(a) for p, a in zip(written.outputs, arrays, strict=True)]

        return Exported(written.data, run, written.notes)

    def save(self, exported: Exported, path: Path, **options: Any) -> tuple[Path, ...]:
        """Write the file, in one step.

        Raises:
            InputError: the place cannot be written, or the suffix is another one.
        """
        if options:
            raise InputError(f"the adapter 'tflite' has no option {sorted(options)[0]!r} for saving")
        path = Path(path)
        if path.suffix.lower() not in self.suffixes:
            raise InputError(f"{path} does not end in .tflite")
        write_atomic(path, exported.native)
        return (path,)


def _bytes(source: Any) -> tuple[bytes, str]:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source), "the given bytes"
    if not isinstance(source, str | Path):
        raise InputError(f"{type(source).__name__} is not a .tflite file")
    path = Path(source)
    try:
        if path.stat().st_size > _LIMIT:
            raise InputError(f"{path} is too large to be read")
        return path.read_bytes(), str(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _float_reference(run: Any, model: ir.Model, main: Any) -> Any:
    """The file on real numbers: they are quantized on the way in and dequantized on the way out."""
    from attar_tensorflow.tflite.codes import decode, encode

    def reference(feeds: Mapping[str, Any]) -> list[Any]:
        given = dict(feeds)
        for name, index in zip(main.input_names, main.inputs, strict=True):
            given[name] = encode(np.asarray(feeds[name]), main.tensors[index])
        return [decode(a, main.tensors[i]) for a, i in zip(run(given), main.outputs, strict=True)]

    return reference


def _example(model: ir.Model, inputs: Any) -> dict[str, np.ndarray[Any, Any]]:
    """`inputs` as named arrays of the types that the model takes."""
    specs = input_specs(model)
    if isinstance(inputs, Mapping):
        given = dict(inputs)
    else:
        items = list(inputs) if isinstance(inputs, tuple | list) else [inputs]
        if len(items) != len(specs):
            raise InputError(f"the model has {len(specs)} inputs, the example {len(items)}")
        given = {spec.name: item for spec, item in zip(specs, items, strict=True)}
    if set(given) != {s.name for s in specs}:
        raise InputError(
            f"the example names the inputs {sorted(given)}, the model has {[s.name for s in specs]}"
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
        example[spec.name] = array
    return example
