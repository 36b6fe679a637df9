"""The adapter for PyTorch. torch is imported only when something is read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attar.adapters import Adapter, Exported, Loaded, type_path
from attar.errors import InputError
from attar_torch.installed import need_torch

if TYPE_CHECKING:
    import onnx_ir as ir

    from attar.registry import Registry

_PICKLES = (".pt", ".pth", ".th", ".pkl", ".pickle")


class TorchAdapter(Adapter):
    """Modules (with example inputs), exported programs, and `.pt2` files of `torch.export.save`."""

    name: ClassVar[str] = "torch"
    suffixes: ClassVar[tuple[str, ...]] = (".pt2", *_PICKLES)  # pickles are claimed to say what to do instead

    def recognises(self, source: Any) -> bool:
        if isinstance(source, str | Path):
            return super().recognises(source)
        return _is_module(source) or _is_program(source)

    def load(self, source: Any, *, inputs: Any = None, registry: Any = None, **options: Any) -> Loaded:
        """Read a PyTorch model. The source is run in eval mode and left exactly as it was; its weights are
        copied.

        Args:
            source: a module, an exported program, or the path of a `.pt2` file.
            inputs: what the module is called with: a tensor or array, a tuple or list of positional
            arguments, or a
                mapping of keyword arguments. Arguments that are not tensors become constants. Needed for
                modules.
            options: `dynamic`, for modules: "auto" (axis 0 is the batch; axis 1 of integer inputs with two
                axes is a sequence), a mapping `{input: {axis: name}}`, or None for fixed shapes.

        Raises:
            InputError: the file is unreadable or a pickle, or the inputs are missing or do not fit the
            module.
            ConversionError: neither of torch's exporters can say the module in ONNX.
        """
        dynamic = options.pop("dynamic", "auto")
        if options:
            raise InputError(
                f"the adapter 'torch' has no option {sorted(options)[0]!r}",
                hint="it has one: dynamic",
            )
        if isinstance(source, str | Path):
            path = Path(source)
            if path.suffix.lower() in _PICKLES:
                raise InputError(
                    f"{path} is a pickle, which can run any code when it is opened, so it is not read",
                    hint="build the module, call "
                    "module.load_state_dict(torch.load(path, weights_only=True)) "
                    "and give the module",
                )
            need_torch("reading a .pt2 file")
            from attar_torch.archive import read_program

            source = read_program(path)
        if _is_program(source):
            from attar_torch.program import load_program

            return load_program(source)
        if not _is_module(source):
            raise InputError(f"{type_path(source)[0]} is not a PyTorch model")
        if inputs is None:
            raise InputError(
                f"a PyTorch module such as {type(source).__name__} can be read only with example inputs",
                hint="give inputs=...: what you would call the module with, "
                "e.g. inputs=torch.randn(2, 3, 224, 224)",
            )
        from attar_torch.module import load_module

        return load_module(source, inputs, dynamic)

    def write(self, model: ir.Model, *, registry: Registry, **options: Any) -> Exported:
        """Write `model` as a trainable `torch.fx.GraphModule`, in eval mode.

        Parameters are named as in the source, layers are those of `torch.nn` where they compute the same, and
        dimensions that are dynamic in `model` stay so.

        Args:
            registry: whose `attar_lowerings` for "torch" say how each operator is written: functions
                `lower(ctx, view)` of an `attar_torch.writing.context.Context` and an
                `attar.conversion.NodeView` that give the node's output, or a tuple of its outputs.

        Raises:
            InputError: there is an unknown option.
            ConversionError: torch cannot say some of the operators exactly; all are listed.
        """
        if options:
            raise InputError(f"writing for 'torch' has no option {sorted(options)[0]!r}")
        need_torch("writing a PyTorch model")
        from attar_torch.writing.build import write_module

        return write_module(model, registry)

    def save(self, exported: Exported, path: Path, **options: Any) -> tuple[Path, ...]:
        """Write an exported module as a `.pt2` file of `torch.export.save`; dynamic dimensions stay so.

        Raises:
            InputError: the place cannot be written, or the suffix is not `.pt2`.
            ConversionError: `torch.export` cannot capture the module.
        """
        if options:
            raise InputError(f"saving for 'torch' has no option {sorted(options)[0]!r}")
        from attar_torch.writing.program import save_program

        return (save_program(exported, path),)


def _is_module(source: Any) -> bool:
    return "torch.nn.modules.module.Module" in type_path(source)


def _is_program(source: Any) -> bool:
    return "torch.export.exported_program.ExportedProgram" in type_path(source)
