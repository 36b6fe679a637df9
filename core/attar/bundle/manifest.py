"""What a manifest must say: checked key by key, so that whoever reads on may rely on it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from attar.bundle.write import FORMAT
from attar.errors import InputError

_WEIGHT = {
    **{"entry": str, "shape": list, "itemsize": int, "sha256": str},
    **{"form": str, "axis": int, "streams": list},
}
_STREAM = {"coder": str, "coded": int, "bytes": int}
_NAMES = {str: "a string", int: "a whole number", list: "a list", dict: "a table"}
# Beyond this numpy has no arrays, even where another axis is empty.
_AXES, _ELEMENTS = 32, 1 << 60


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """The table in the entry `name`.

    Raises:
        InputError: it is no JSON, or no table.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:  # no JSON or no text; nested without end
        raise InputError(f"{name} is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"{name} is not a table")
    return found


def check_manifest(manifest: Mapping[str, Any]) -> None:
    """Accept a manifest in which everything has the type, and sizes the range, that `write` gives them.

    Raises:
        InputError: it is of another format, or a key is missing or wrong; names the key.
    """
    if manifest.get("format") != FORMAT:
        raise InputError(
            f"a bundle of format {manifest.get('format')!r:.40}; this attar reads {FORMAT}",
            hint="a newer attar may read it",
        )
    _check(manifest, {"files": dict, "weights": list}, "")
    _check(manifest["files"], dict.fromkeys(manifest["files"], str), "files")
    for number, weight in enumerate(manifest["weights"]):
        where = f"weights[{number}]"
        _check(weight, _WEIGHT, where)
        shape = weight["shape"]
        fits = len(shape) <= _AXES and all(type(n) is int and n >= 0 for n in shape)
        if not fits or math.prod(max(1, n) for n in shape) > _ELEMENTS:
            raise InputError(f"its manifest's {where}.shape is impossible: {shape!r:.100}")
        if weight["itemsize"] not in (1, 2, 4, 8):
            raise InputError(f"its manifest's {where}.itemsize is {weight['itemsize']!r:.40}")
        for place, stream in enumerate(weight["streams"]):
            _check(stream, _STREAM, f"{where}.streams[{place}]")


def _check(found: Any, wanted: Mapping[str, type], where: str) -> None:
    """Every wanted key of the table `found` has a value of exactly the wanted type (True is no number)."""
    if not isinstance(found, dict):
        raise InputError(f"its manifest's {where} is not a table")
    for key, kind in wanted.items():
        if type(found.get(key)) is not kind:
            raise InputError(f"its manifest's {f'{where}.{key}'.lstrip('.')} is not {_NAMES[kind]}")
