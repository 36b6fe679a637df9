"""Which files make a model: the symbol and the parameters that go with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from attar.errors import InputError
from attar_mxnet.params import read_params

_EPOCH = re.compile(r"^(.*)-(\d{4,})\.params$")


def is_symbol(path: Path) -> bool:
    """Whether `path` is a JSON file that begins like a symbol."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    if path.name.endswith("symbol.json"):
        return True
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError:
        return False
    return b'"nodes"' in head and b'"op"' in head


def symbol_beside(params: Path) -> Path:
    """The symbol that goes with a `.params` file.

    Raises:
        InputError: there is none, or there are several.
    """
    match = _EPOCH.match(params.name)
    prefix = match[1] if match else params.stem
    best = params.with_name(f"{prefix}-symbol.json")
    if best.is_file():
        return best
    others = sorted(params.parent.glob("*symbol.json"))
    if len(others) == 1:
        return others[0]
    why = f"there is no {best.name} beside it" + (f", but {len(others)} other symbols" if others else "")
    raise InputError(
        f"{params} holds weights only, and {why}",
        hint="give the file with the graph by symbol='net-symbol.json'",
    )


def params_beside(symbol: Path, epoch: int | None = None) -> Path:
    """The parameters that go with a symbol: `net-0000.params`, of the highest epoch or of `epoch`.

    Raises:
        InputError: there are none.
    """
    prefix = re.sub(r"[-_.]?symbol$", "", symbol.stem)
    found: dict[int, Path] = {}
    for path in symbol.parent.glob("*.params"):
        match = _EPOCH.match(path.name)
        if match and match[1] == prefix:
            found[int(match[2])] = path
    if epoch is not None:
        if epoch not in found:
            raise InputError(f"{symbol.parent} has no {prefix}-{epoch:04d}.params")
        return found[epoch]
    if found:
        return found[max(found)]
    plain = symbol.with_name(f"{prefix}.params")
    if plain.is_file():
        return plain
    raise InputError(
        f"no parameters for {symbol.name}: neither {prefix}-0000.params nor {prefix}.params is beside it",
        hint="give them by params='net.params'",
    )


def arrays_of(given: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Parameters given as a path, or as a mapping of names to arrays, as numpy arrays of their own.

    Raises:
        InputError: `given` is neither, or the file is damaged.
    """
    if isinstance(given, str | Path):
        return read_params(given)
    if not isinstance(given, Mapping):
        raise InputError(
            f"params is {type(given).__name__}", hint="give a path, or a mapping of names to arrays"
        )
    return {str(name): to_numpy(array, f"the parameter {name!r}") for name, array in given.items()}


def to_numpy(array: Any, what: str) -> np.ndarray[Any, Any]:
    """A copy of an array of numpy, MXNet, or of anything that numpy takes.

    Raises:
        InputError: it is none.
    """
    if hasattr(array, "list_ctx") and hasattr(array, "data"):  # a Gluon parameter
        array = array.data(array.list_ctx()[0])
    try:
        if hasattr(array, "asnumpy"):
            array = array.asnumpy()
        result = np.array(array)
    except Exception as error:  # whatever the array's own library raises
        raise InputError(f"{what} cannot be had as an array: {error}") from error
    if result.dtype.kind not in "fiub" and result.dtype.name != "bfloat16":
        raise InputError(f"{what} holds no numbers but {result.dtype}")
    return result


def stripped(arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays by the names of the symbol's variables: without `arg:` and `aux:`."""
    result: dict[str, np.ndarray[Any, Any]] = {}
    for name, array in arrays.items():
        plain = name[4:] if name.startswith(("arg:", "aux:")) else name
        if plain in result:
            raise InputError(f"{plain!r} is among the parameters both as argument and as auxiliary state")
        result[plain] = array
    return result
