"""The adapter for ONNX itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from attar.adapters import Adapter, Exported, Loaded, type_path
from attar.errors import AttarError, InputError, check_whole
from attar_onnx.example import named_example


class OnnxAdapter(Adapter):
    """ONNX files (`.onnx`), bundles (`.attar`), their bytes, `onnx.ModelProto` and `onnx_ir.Model`."""

    name: ClassVar[str] = "onnx"
    suffixes: ClassVar[tuple[str, ...]] = (".onnx", ".attar")

    def recognises(self, source: Any) -> bool:
        if isinstance(source, str | Path):
            return super().recognises(source)
        if isinstance(source, bytes | bytearray | memoryview):
            return True
        return _is_proto(source) or _is_ir(source)

    def load(self, source: Any, *, inputs: Any = None, registry: Any = None, **options: Any) -> Loaded:
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

    def write(self, model: Any, *, registry: Any = None, **options: Any) -> Exported:
        """The model as an `onnx.ModelProto` with all weights inside.

        Args:
            model: the model.
            registry: not needed.
            options: `opset`, the opset to write (that of the model unless given).

        Raises:
            InputError: it exceeds the 2 GB that a protobuf can hold, or cannot be said in that opset.
        """
        from attar import graph
        from attar.runtime import OnnxRuntime

        opset = options.pop("opset", None)
        if options:
            raise InputError(
                f"the adapter 'onnx' has no option {sorted(options)[0]!r} for writing",
                hint="it has one: opset",
            )
        notes: list[str] = []
        if opset is not None:
            check_whole("opset", opset, least=1)
            model = graph.clone(model)
            notes = graph.to_opset(model, opset)
            if model.opset_imports[""] != opset:
                raise InputError(f"the model cannot be written in opset {opset}: {'; '.join(notes)}")
        proto = graph.to_proto(model)

        def run(feeds: Any) -> Any:
            return OnnxRuntime().open(proto.SerializeToString()).run(feeds)

        return Exported(proto, run, tuple(notes))

    def save(self, exported: Exported, path: Path, **options: Any) -> tuple[Path, ...]:
        """Write an `.onnx` file.

        Raises:
            InputError: the file cannot be written, or its name has another suffix.
        """
        from attar.bundle import is_bundle
        from attar.files import write_atomic

        if path.suffix.lower() != ".onnx":
            raise InputError(
                f"cannot write {path}: ONNX models are written as .onnx files",
                hint="attar pack makes a bundle of one" if is_bundle(path) else None,
            )
        write_atomic(path, exported.native.SerializeToString())
        return (path,)


def _read(source: Any) -> tuple[Any, str]:
    """The IR of `source` as it is, as an object of its own, and what to call its origin."""
    import onnx

    from attar import bundle, graph

    if isinstance(source, str | Path):
        model = bundle.read(source).model if bundle.is_bundle(source) else graph.read_model(source)
        return model, Path(source).name
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
