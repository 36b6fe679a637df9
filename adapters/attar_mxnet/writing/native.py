"""What writing gives: a graph and its parameters as data, which MXNet loads."""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from attar.errors import InputError
from attar.specs import TensorSpec
from attar_mxnet.params import write_params
from attar_mxnet.reading import live
from attar_mxnet.symbol_json import SymbolGraph, symbol_text, write_symbol_file

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class MxnetModel:
    """An MXNet model.

    Attributes:
        symbol: the graph.
        parameters: name with prefix -> array: `arg:` for what is learnt and for constants, `aux:` for the
            moving statistics of batch normalizations.
        inputs: what it takes, in order.
        constants: arguments that no training changes (they stand behind a BlockGrad).
        notes: what a reader of the report should know.
    """

    symbol: SymbolGraph
    parameters: dict[str, Array]
    inputs: tuple[TensorSpec, ...]
    constants: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    _blocks: list[Any] = field(default_factory=list, compare=False, repr=False)

    def __repr__(self) -> str:
        operators = sum(not n.is_variable for n in self.symbol.nodes)
        return (
            f"MxnetModel({operators} operators, {len(self.parameters)} parameters, inputs {self.input_names})"
        )

    @property
    def input_names(self) -> list[str]:
        """As `SymbolBlock.imports` wants them."""
        return [spec.name for spec in self.inputs]

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of the parameters that training changes."""
        names = (n.removeprefix("arg:") for n in self.parameters if n.startswith("arg:"))
        return tuple(n for n in names if n not in self.constants)

    @property
    def json(self) -> str:
        """The content of the `-symbol.json` file."""
        return symbol_text(self.symbol)

    def save(self, prefix: str | Path, epoch: int = 0) -> tuple[Path, Path]:
        """Write `<prefix>-symbol.json` and `<prefix>-<epoch>.params`, as MXNet names them.

        Raises:
            InputError: the files cannot be written.
        """
        prefix = Path(prefix)
        symbol = prefix.with_name(f"{prefix.name}-symbol.json")
        params = prefix.with_name(f"{prefix.name}-{epoch:04d}.params")
        write_params(params, self.parameters)
        write_symbol_file(symbol, self.symbol)
        return symbol, params

    def block(self) -> Any:
        """A new `mxnet.gluon.SymbolBlock` with the parameters in it. Constants get no gradient.

        Raises:
            InputError: mxnet is not installed.
        """
        mx = live.mxnet()
        with tempfile.TemporaryDirectory() as folder, _quiet():
            symbol, params = self.save(Path(folder) / "model")
            stored = str(params) if self.parameters else None
            block = mx.gluon.SymbolBlock.imports(str(symbol), self.input_names, stored)
        parameters = block.collect_params()
        for name in self.constants:
            parameters[name].grad_req = "null"
        return block

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """The outputs for named inputs, computed by MXNet.

        Raises:
            InputError: mxnet is not installed, or an input is missing or of another type.
        """
        mx = live.mxnet()
        if not self._blocks:
            self._blocks.append(self.block())
        arrays = [_fitting(spec, feeds) for spec in self.inputs]
        with _quiet():
            try:
                return _called(mx, self._blocks[0], arrays)
            except mx.base.MXNetError as error:
                # MXNet 1.9.1 fails now and then at a graph's first run on integers, and never at the second.
                if "delay_alloc" not in str(error):
                    raise
                return _called(mx, self._blocks[0], arrays)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without MXNet's remarks: it guesses types and prints its failures, and warns of unused inputs."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _called(mx: Any, block: Any, arrays: Sequence[Array]) -> list[Array]:
    found = block(*(mx.nd.array(a, dtype=a.dtype) for a in arrays))
    return [o.asnumpy() for o in (found if isinstance(found, list | tuple) else [found])]


def _fitting(spec: TensorSpec, feeds: Mapping[str, Array]) -> Array:
    if spec.name not in feeds:
        raise InputError(f"the input {spec.name!r} is not given; given are {sorted(feeds)}")
    array = np.asarray(feeds[spec.name])
    if array.dtype != spec.dtype or (spec.shape is not None and array.ndim != len(spec.shape)):
        raise InputError(f"{spec.name!r} is {array.dtype}{list(array.shape)}, the model takes {spec}")
    return array
