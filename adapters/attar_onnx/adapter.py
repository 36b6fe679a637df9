"""The adapter for ONNX itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from attar.adapters import Adapter, Loaded, type_path
from attar.errors import InputError
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
        import onnx

        from attar import graph

        opset = options.pop("opset", 21)
        if options:
            raise InputError(
                f"the adapter 'onnx' has no option {sorted(options)[0]!r}", hint="it has one: opset"
            )
        origin = "memory"
        if isinstance(source, str | Path):
            model = graph.read_model(source)
            origin = Path(source).name
        elif isinstance(source, bytes | bytearray | memoryview):
            model = graph.from_proto(graph.parse(bytes(source), "the given bytes"), None, "the given bytes")
        elif _is_proto(source):
            own = onnx.ModelProto()
            own.CopyFrom(source)
            model = graph.from_proto(own, None, "the ModelProto")
        elif _is_ir(source):
            model = graph.clone(source)
        else:
            raise InputError(f"{type_path(source)[0]} is not an ONNX model")
        notes = graph.normalize(model, opset)
        graph.check(model)
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


def _is_proto(source: Any) -> bool:
    # The module of the class differs between onnx versions (onnx.onnx_ml_pb2, onnx.onnx_pb).
    return any(p.startswith("onnx.") and p.endswith(".ModelProto") for p in type_path(source))


def _is_ir(source: Any) -> bool:
    return any(p.startswith("onnx_ir.") and p.endswith(".Model") for p in type_path(source))
