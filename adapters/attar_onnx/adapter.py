"""The adapter for ONNX itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from attar.adapters import Adapter, Loaded, type_path
from attar.errors import AttarError, InputError
from attar_onnx.example import named_example


class OnnxAdapter(Adapter):
    """ONNX files (`.onnx`), their bytes, `onnx.ModelProto` and `onnx_ir.Model`."""

    name: ClassVar[str] = "onnx"
    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)

    def recognises(self, source: Any) -> bool:
        if isinstance(source, str | Path):
            return super().recognises(source)
        if isinstance(source, bytes | bytearray | memoryview):
            return True
        return _is_proto(source) or _is_ir(source)

    def load(self, source: Any, *, inputs: Any = None, **options: Any) -> Loaded:
        """Read an ONNX model and bring it to normal form. `source` itself is not changed.

        Args:
            source: path, bytes, `onnx.ModelProto` or `onnx_ir.Model`.
            inputs: example inputs, by name, in order or a single array; only checked and kept.
            options: `opset`, the opset of the normal form (default 21).

        Raises:
            InputError: the source is no valid ONNX model, or the example does not fit it.
        """
        from attar import graph

        opset = options.pop("opset", 21)
        if options:
            raise InputError(
                f"the adapter 'onnx' has no option {sorted(options)[0]!r}", hint="it has one: opset"
            )
        try:
            model, origin = _read(source)
            notes = graph.normalize(model, opset)
            graph.check(model)
        except AttarError:
            raise
        except Exception as error:  # protobufs can be wrong in more ways than anyone has listed
            raise InputError(
                f"the model is not valid ONNX: {type(error).__name__}: {str(error).strip()[:300]}"
            ) from error
        graph.set_provenance(model, framework="onnx", source=origin)
        example = None if inputs is None else named_example(model, inputs)
        return Loaded(model, example=example, notes=tuple(notes))

    def export(self, model: Any, **options: Any) -> Any:
        """The model as an `onnx.ModelProto` with all weights inside.

        Raises:
            InputError: it exceeds the 2 GB that a protobuf can hold.
        """
        from attar import graph

        if options:
            raise InputError(f"the adapter 'onnx' has no option {sorted(options)[0]!r} for export")
        return graph.to_proto(model)


def _read(source: Any) -> tuple[Any, str]:
    """The IR of `source` as it is, as an object of its own, and what to call its origin."""
    import onnx

    from attar import graph

    if isinstance(source, str | Path):
        return graph.read_model(source), Path(source).name
    if isinstance(source, bytes | bytearray | memoryview):
        proto = graph.parse(bytes(source), "the given bytes")
        return graph.from_proto(proto, None, "the given bytes"), "memory"
    if _is_proto(source):
        own = onnx.ModelProto()
        own.CopyFrom(source)
        return graph.from_proto(own, None, "the ModelProto"), "memory"
    if _is_ir(source):
        return graph.clone(source), "memory"
    raise InputError(f"{type_path(source)[0]} is not an ONNX model")


def _is_proto(source: Any) -> bool:
    # The module of the class differs between onnx versions (onnx.onnx_ml_pb2, onnx.onnx_pb).
    return any(p.startswith("onnx.") and p.endswith(".ModelProto") for p in type_path(source))


def _is_ir(source: Any) -> bool:
    return any(p.startswith("onnx_ir.") and p.endswith(".Model") for p in type_path(source))
