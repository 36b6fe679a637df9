"""Reading `.pt2` files without trusting them.

`torch.export.load` unpickles what it finds and evaluates the expressions of dynamic shapes as Python. Both
are closed here before it runs: weights and constants must be raw bytes, the example inputs must load with
`weights_only`, and expressions may hold arithmetic only. The archive is read once into memory, so what was
checked is what is loaded.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from attar.errors import InputError
from attar_torch.quiet import quiet

_SYMBOL = re.compile(r"^[a-z]{1,3}\d+$|^(?:True|False|oo|int_oo|inf)$")
_FUNCTIONS = frozenset(
    """Symbol Integer Float Rational Add Mul Pow Mod PythonMod FloorDiv CleanDiv CeilDiv Max Min Eq Ne Ge Gt
    Le Lt And Or Not Abs ceiling floor ModularIndexing TruncToInt CeilToInt FloorToInt ToFloat IntTrueDiv
    PowByNatural""".split()  # noqa: SIM905
)
_ARITHMETIC = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Constant, ast.Name, ast.Call,
    ast.keyword, ast.Load, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip


def read_program(path: Path) -> Any:
    """The exported program in a `.pt2` file.

    Raises:
        InputError: the file is missing, broken, of an old format, or holds anything that would run code.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a .pt2 file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _inspect(archive, path)
    except InputError:
        raise
    except Exception as error:  # a damaged archive fails in many ways
        raise InputError(f"{path} is not a .pt2 file, or it is damaged ({error})") from error
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = (
        "1"  # torch.load then ignores weights_only=False of its callers
    )
    try:
        with quiet():
            return torch.export.load(io.BytesIO(content))
    except Exception as error:
        raise InputError(
            f"{path} cannot be read by torch {torch.__version__}: {str(error).strip()[:300]}",
            hint="files of torch.export.save are tied to versions of torch; write it again",
        ) from error
    finally:
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before


def _inspect(archive: zipfile.ZipFile, path: Path) -> None:
    names = archive.namelist()
    if len(set(names)) != len(names):
        raise InputError(f"{path} holds two entries of one name")  # readers differ in which one they take
    unpacked = sum(i.file_size for i in archive.infolist())
    if unpacked > 2 * path.stat().st_size + (1 << 20):  # such archives are stored, not compressed
        raise InputError(f"{path} would unpack to {unpacked / 2**30:.1f} GB")
    parts = [n.split("/", 1)[-1] for n in names]
    if not any(p.startswith("models/") for p in parts):
        raise InputError(
            f"{path} is not a .pt2 file of torch.export.save in its current format",
            hint="load it with the torch that wrote it, and save it again",
        )
    if any(p.startswith("data/aotinductor/") for p in parts):
        raise InputError(f"{path} holds compiled code, which is not loaded")
    for name, part in zip(names, parts, strict=True):
        if part.startswith(("data/weights/", "data/constants/")) and part.endswith(".pt"):
            raise _pickled(path, part)
        if part.endswith("_config.json"):
            for key, entry in json.loads(archive.read(name)).get("config", {}).items():
                if entry.get("use_pickle") or not str(entry.get("path_name", "")).startswith(
                    ("weight_", "tensor_")
                ):
                    raise _pickled(path, key)
        if part.startswith("data/sample_inputs/") and archive.getinfo(name).file_size:
            try:
                torch.load(io.BytesIO(archive.read(name)), weights_only=True)
            except Exception as error:
                raise _pickled(path, part) from error
        if part.startswith("models/"):
            for text in _expressions(json.loads(archive.read(name))):
                if not _harmless(text):
                    raise InputError(f"{path} holds an expression that is not arithmetic: {text[:80]!r}")


def _pickled(path: Path, what: str) -> InputError:
    return InputError(
        f"{path}: {what!r} is pickled Python, which can run any code, so nothing was read",
        hint="load it yourself with torch.export.load if you trust it, and give the exported program",
    )


def _expressions(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, member in value.items():
            if key == "expr_str":
                yield str(member)
            else:
                yield from _expressions(member)
    elif isinstance(value, list):
        for member in value:
            yield from _expressions(member)


def _harmless(text: str) -> bool:
    """Whether `text` is arithmetic over shape symbols: no attribute, no subscript, no other call."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for node in ast.walk(tree):
        if not isinstance(node, _ARITHMETIC):
            return False
        if isinstance(node, ast.Call) and not isinstance(node.func, ast.Name):
            return False
        if isinstance(node, ast.Name) and node.id not in _FUNCTIONS and not _SYMBOL.match(node.id):
            return False
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not _SYMBOL.match(node.value):
            return False
    return True
