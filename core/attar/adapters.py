"""What an adapter is: the reader and writer of one framework's or file format's models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attar.errors import ConversionError, InputError

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from attar.registry import Registry

Reference = Callable[[Mapping[str, "np.ndarray[Any, Any]"]], Sequence["np.ndarray[Any, Any]"]]


@dataclass(frozen=True)
class Loaded:
    """What reading gave.

    Attributes:
        model: the IR, in normal form (see `attar.graph.normalize`).
        reference: runs the *source* in its own framework on named numpy inputs and returns its outputs in the
            model's order, for parity checks; None where the source is ONNX itself.
        example: named numpy inputs that the source accepts, where the caller gave some.
        notes: what a reader of the report should know (a fallback taken, an opset raised).
        tolerance: largest difference between source and model, relative to the largest output, that passes.
        tolerance_rms: alternatively, the root mean square of the difference over that of the output; for
            sources that compute in integers and round ties otherwise.
    """

    model: ir.Model
    reference: Reference | None = None
    example: Mapping[str, np.ndarray[Any, Any]] | None = None
    notes: tuple[str, ...] = field(default=())
    tolerance: float = 1e-3
    tolerance_rms: float = 0.0


@dataclass(frozen=True)
class Placed:
    """Where a native model holds an initializer, or a part of it.

    Attributes:
        path: attribute path in the native model.
        change: moves the elements of the initializer's array to where the native tensor has them: takes an
            array of the initializer's shape and gives one of the native shape; None where they are the same.
    """

    path: str
    change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]] | None = None


@dataclass(frozen=True)
class Exported:
    """What writing gave.

    Attributes:
        native: the framework's own object: a module, a Keras model, the bytes of a file, ...
        run: runs `native` on named numpy inputs and returns its outputs in the model's order and layout.
        notes: what a reader of the report should know.
        tolerance: largest difference from the model in ONNX Runtime, relative to the largest magnitude of an
            output, that counts as the same computation.
        weights: initializer -> the native tensors that hold its numbers, for adapters whose models train. A
            name that the model does not have is that of a constant which was computed from others.
        values: value -> what computes it in `native`, for adapters whose models can be looked into: the name
            of a node of the `torch.fx` graph.
    """

    native: Any
    run: Reference
    notes: tuple[str, ...] = field(default=())
    tolerance: float = 1e-3
    weights: Mapping[str, tuple[Placed, ...]] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)


class Adapter:
    """Base of adapters. Heavy imports belong inside the methods; `recognises` looks at names of types
    only."""

    name: ClassVar[str] = ""
    suffixes: ClassVar[tuple[str, ...]] = ()

    def recognises(self, source: Any) -> bool:
        """Whether `source` is one of ours. Must not import the framework."""
        if isinstance(source, str | Path):
            return Path(source).suffix.lower() in self.suffixes
        return False

    def load(
        self, source: Any, *, inputs: Any = None, registry: Registry | None = None, **options: Any
    ) -> Loaded:
        """Read `source` into the IR.

        Args:
            registry: whose `attar_liftings` teach further operators; the default one unless given.

        Raises:
            InputError: the source is broken, or `inputs` do not fit it.
            ConversionError: it uses operators that the IR cannot say; all are listed.
        """
        raise ConversionError(f"the adapter {self.name!r} does not read models")

    def write(self, model: ir.Model, *, registry: Registry, **options: Any) -> Exported:
        """Write `model`, which stays as it is, as a native model of the framework.

        Args:
            registry: whose `attar_lowerings` say how each operator is written.

        Raises:
            InputError: an option is unknown or has an impossible value.
            ConversionError: the framework cannot say some of its operators exactly; all are listed.
        """
        raise ConversionError(f"the adapter {self.name!r} does not write models")

    def save(self, exported: Exported, path: Path, **options: Any) -> tuple[Path, ...]:
        """Put what `write` gave into files; the first of those returned is the one to load again.

        Raises:
            InputError: the place cannot be written, or the suffix is not one of the framework's.
        """
        raise ConversionError(f"the adapter {self.name!r} does not write files")


def type_path(thing: Any) -> tuple[str, ...]:
    """`module.qualname` of every class in the MRO of `thing`'s type: recognises foreign objects without
    importing."""
    return tuple(f"{c.__module__}.{c.__qualname__}" for c in type(thing).__mro__)


def find_adapter(source: Any, registry: Registry) -> Adapter:
    """The adapter that recognises `source`.

    Raises:
        InputError: none does, or the file is not there.
    """
    absent = isinstance(source, str | Path) and not Path(source).exists()
    for adapter in registry.adapters.values():
        # A name that is no file may be the stem of several; whoever claims it without its suffix has looked.
        claimed = adapter.recognises(source)
        if claimed and not (absent and Path(source).suffix.lower() in adapter.suffixes):
            return adapter
    if absent:
        raise InputError(f"no such file: {source}")
    what = str(source) if isinstance(source, str | Path) else type_path(source)[0]
    hint = "adapters: " + ", ".join(
        f"{a.name} ({' '.join(a.suffixes) or 'objects'})" for a in registry.adapters.values()
    )
    if registry.broken:
        hint += "; failed to load: " + ", ".join(registry.broken)
    raise InputError(f"no adapter reads {what}", hint=hint)
