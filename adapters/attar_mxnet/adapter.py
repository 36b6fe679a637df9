"""The adapter for MXNet. Files are read without MXNet; it is imported only for live objects and for
comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attar.adapters import Adapter, Loaded, type_path
from attar.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import onnx_ir as ir

    from attar.registry import Registry

_OPTIONS = ("params", "symbol", "epoch", "shapes", "dtypes", "dynamic")


class MxnetAdapter(Adapter):
    """`-symbol.json` with its `.params`, Gluon blocks, symbols and modules.

    A plugin teaches it an operator by the hook `attar_liftings("mxnet")`: `lift(ctx, op)` as
    `attar_mxnet.reading` describes it.
    """

    name: ClassVar[str] = "mxnet"
    suffixes: ClassVar[tuple[str, ...]] = (".params", ".json")

    def recognises(self, source: Any) -> bool:
        if isinstance(source, str | Path):
            from attar_mxnet.reading.files import is_symbol

            path = Path(source)
            return (
                path.suffix.lower() == ".params" or is_symbol(path) or is_symbol(Path(f"{path}-symbol.json"))
            )
        return _is_live(source)

    def load(
        self, source: Any, *, inputs: Any = None, registry: Registry | None = None, **options: Any
    ) -> Loaded:
        """Read an MXNet model. The source is left as it was, but for a Gluon block whose parameters are not
        initialised yet: it is run once, as its first use would.

        Args:
            source: path of a `-symbol.json` or `.params` file (the other one is looked for beside it), the
                prefix that the two share, a `HybridBlock`, a `Symbol`, a pair of a symbol and its
                parameters, or a `Module`.
            inputs: example inputs: an array, a list in the order of the inputs, or a mapping by name. They
                give the shapes and element types, and with MXNet installed the result is compared on them.
            options:
                params: path of a `.params` file, or a mapping of names to arrays.
                symbol: path of the symbol, where `source` is a `.params` file.
                epoch: which of `net-0000.params`, `net-0001.params`, ... to take; the last by default.
                shapes: input name -> shape; None or a name stand for sizes that may differ from run to run.
                dtypes: input name -> element type; float32 by default.
                dynamic: "auto" (axis 0 of the inputs is the batch), a mapping `{input: {axis: name}}`, or
                    None for the very shapes of the example.

        Raises:
            InputError: a file is missing or damaged, parameters or shapes are missing, or the inputs do
            not fit. ConversionError: operators without counterpart in ONNX; all of them are listed.
        """
        for option in options:
            if option not in _OPTIONS:
                raise InputError(
                    f"the adapter 'mxnet' has no option {option!r}", hint=did_you_mean(option, _OPTIONS)
                )
        from attar_mxnet.reading.load import load_source

        table: Mapping[str, Any] | None = None
        if registry is not None and self.name in registry.adapters:
            table = registry.op_table("attar_liftings", self.name)
        return load_source(source, inputs, table, **options)

    def write(self, model: ir.Model, *, registry: Registry, **options: Any) -> Any:
        """Write `model` as an MXNet symbol with parameters; see `attar_mxnet.writing`."""
        from attar_mxnet.writing import write_symbol

        return write_symbol(model, registry=registry, **options)

    def save(self, exported: Any, path: Path, **options: Any) -> tuple[Path, ...]:
        """Write the files `<path>-symbol.json` and `<path>-0000.params`."""
        from attar_mxnet.writing import save_exported

        return save_exported(exported, path, **options)


def _is_live(source: Any) -> bool:
    if isinstance(source, tuple | list) and source:
        return "mxnet.symbol.symbol.Symbol" in type_path(source[0])
    return any(
        p
        in (
            "attar_mxnet.writing.native.MxnetModel",
            "mxnet.gluon.block.Block",
            "mxnet.symbol.symbol.Symbol",
            "mxnet.module.base_module.BaseModule",
        )
        for p in type_path(source)
    )
