"""One node of a symbol as a lifting sees it: typed attributes, inputs, refusals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

import numpy as np
import onnx_ir as ir

from attar.errors import ConversionError, InputError
from attar_mxnet.reading import values
from attar_mxnet.symbol_json import SymbolNode

T = TypeVar("T")
_REQUIRED: Any = object()


class Unreadable(ConversionError):  # noqa: N818  as Refused: it is an answer
    """One node cannot be said in ONNX. All of them are gathered into one error."""

    def __init__(self, op: str, name: str, reason: str) -> None:
        super().__init__(f"{op} {name!r}: {reason}")
        self.op, self.node, self.reason = op, name, reason


class Operation:
    """A node and the values that go into it.

    Attributes:
        op: MXNet's name of the operator.
        name: the node's name.
        np_shape: whether the symbol follows numpy's shapes: 0 is a size then, not "unknown".
    """

    def __init__(
        self, node: SymbolNode, inputs: Sequence[Callable[[], ir.Value]], np_shape: bool = False
    ) -> None:
        self.op, self.name, self.np_shape = node.op, node.name, np_shape
        self._attrs, self._inputs = node.attrs, inputs

    def __len__(self) -> int:
        return len(self._inputs)

    @property
    def inputs(self) -> list[ir.Value]:
        """All inputs. Inputs that nobody asks for, such as labels, do not become inputs of the model."""
        return [self.input(i) for i in range(len(self))]

    def input(self, index: int) -> ir.Value:
        """Input `index`, which must be there."""
        if index >= len(self):
            raise InputError(
                f"{self.op} {self.name!r} takes {index + 1} inputs, the symbol gives {len(self)}"
            )
        return self._inputs[index]()

    def refuse(self, reason: str) -> Unreadable:
        """The error to raise where this node cannot be said in ONNX."""
        return Unreadable(self.op, self.name, reason)

    def has(self, name: str) -> bool:
        """Whether the attribute is there and is not None."""
        return name in self._attrs and not values.is_none(self._attrs[name])

    def text(self, name: str, default: str = "") -> str:
        return self._attrs[name].strip() if self.has(name) else default

    def raw(self, name: str) -> str:
        return self._attrs.get(name, "")

    @overload
    def whole(self, name: str) -> int: ...
    @overload
    def whole(self, name: str, default: T) -> int | T: ...
    def whole(self, name: str, default: Any = _REQUIRED) -> Any:
        return self._read(name, values.to_int, default)

    @overload
    def number(self, name: str) -> float: ...
    @overload
    def number(self, name: str, default: T) -> float | T: ...
    def number(self, name: str, default: Any = _REQUIRED) -> Any:
        return self._read(name, values.to_float, default)

    def flag(self, name: str, default: bool = False) -> bool:
        return bool(self._read(name, values.to_bool, default))

    @overload
    def wholes(self, name: str) -> tuple[int, ...]: ...
    @overload
    def wholes(self, name: str, default: T) -> tuple[int, ...] | T: ...
    def wholes(self, name: str, default: Any = _REQUIRED) -> Any:
        return self._read(name, values.to_ints, default)

    def bounds(self, name: str) -> tuple[int | None, ...]:
        """Bounds of a slice, which may be None each."""
        return self._read(name, values.to_optional_ints, ())  # type: ignore[no-any-return]

    def numbers(self, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
        return self._read(name, values.to_floats, default)  # type: ignore[no-any-return]

    @overload
    def dtype(self, name: str) -> np.dtype[Any]: ...
    @overload
    def dtype(self, name: str, default: T) -> np.dtype[Any] | T: ...
    def dtype(self, name: str, default: Any = _REQUIRED) -> Any:
        return self._read(name, values.to_dtype, default)

    def _read(self, name: str, parse: Callable[[str], Any], default: Any) -> Any:
        if not self.has(name) and not (name in self._attrs and parse is values.to_optional_ints):
            if default is _REQUIRED:
                raise InputError(f"{self.op} {self.name!r} has no {name}")
            return default
        try:
            return parse(self._attrs[name])
        except (ValueError, OverflowError):
            raise InputError(
                f"{self.op} {self.name!r}: {name} is {self._attrs[name]!r:.60}, which cannot be read"
            ) from None
