"""Recipes: a tuple of passes, as Python objects, as plain tables, as TOML, or by the name of a preset.

    [[pass]]
    name = "fuse.inference"

    [[pass]]
    name = "quantize.static"
    per_channel = true

The TOML form has one `[[pass]]` table a step, whose keys are the options of the pass. `dump_recipe` writes
every option, so a recipe on file means the same after a default has changed.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from attar.errors import AttarError, InputError, RecipeError, did_you_mean
from attar.passes import Pass

if TYPE_CHECKING:
    from attar.registry import Registry

PRESETS: Mapping[str, tuple[Mapping[str, Any], ...]] = MappingProxyType(
    {
        "int8": ({"name": "fuse.inference"}, {"name": "fuse.kernels"}, {"name": "quantize.static"}),
        "int8-fast": ({"name": "fuse.inference"}, {"name": "quantize.static", "observer": "mse"}),
        "int4-weights": (
            {"name": "fuse.inference"},
            {"name": "quantize.weights", "type": "int4", "block": 32},
        ),
        "fp16": ({"name": "fuse.inference"}, {"name": "quantize.float16"}),
    }
)
"""Recipes by name. A preset names passes of plugins, so it works only where those plugins are installed."""

MAX_BYTES = 1 << 20
"""A recipe is a page of text; anything larger is some other file, and is refused without being read whole."""

_SHORT_ESCAPES = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
_FORM = "a recipe is TOML with one [[pass]] table a step"
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def load_recipe(source: Any, registry: Registry | None = None) -> tuple[Pass, ...]:
    """The passes that `source` stands for, in order.

    Args:
        source: a `Path` or string ending in `.toml`; TOML text; the name of a preset or of a pass; a pass, a
            pass class or a table `{"name": ..., option: value}`; or a list of passes, classes, tables, names.
        registry: where names are looked up; the installed plugins if not given.

    Raises:
        RecipeError: a step, pass or option is wrong (the message says which), or the TOML has a syntax error
            (the message says where).
        InputError: the file is missing, unreadable, too large or not text, or `source` is none of the above.
    """
    if isinstance(source, Path):
        return _parse(_read(source), str(source), registry)
    if isinstance(source, str):
        if source.lower().endswith(".toml") and "\n" not in source:
            return _parse(_read(Path(source)), source, registry)
        if "\n" in source or "=" in source or source.lstrip().startswith(("[", "#")):
            return _parse(source, "recipe", registry)
        return tuple(_named(source.strip(), registry))
    if isinstance(source, Pass) or (isinstance(source, type) and issubclass(source, Pass)):
        return _steps([source], "recipe", registry)
    if isinstance(source, Mapping):
        if "name" in source:
            return _steps([source], "recipe", registry)
        return _document(source, "recipe", registry)
    if isinstance(source, Iterable) and not isinstance(source, bytes | bytearray):
        return _steps(source, "recipe", registry)
    raise InputError(
        f"a recipe cannot be made of {type(source).__name__}",
        hint="give a list of passes, a path to a .toml file, TOML text, or a preset: " + ", ".join(PRESETS),
    )


def dump_recipe(passes: Iterable[Pass]) -> str:
    """TOML that `load_recipe` reads back as equal passes. Options that are None are left out.

    Raises:
        RecipeError: TOML cannot say a value: infinity, NaN, None where the default is something else, an
            integer beyond 64 bits, a lone surrogate, or an object that is no plain value.
    """
    tables = []
    for number, step in enumerate(passes, start=1):
        if not isinstance(step, Pass):
            raise RecipeError(f"step {number}: {step!r} is not a pass")
        if not step.name:
            raise RecipeError(f"step {number}: {type(step).__name__} has no name, so no recipe can call it")
        lines = ["[[pass]]", f"name = {_toml_string(step.name)}"]
        defaults = {option.name: option for option in step.options()}
        for key, value in step.to_dict().items():
            if key == "name":
                continue
            where = f"step {number}, {step.name}, option {key!r}"
            if value is None:
                if defaults[key].required or defaults[key].default is not None:
                    raise RecipeError(f"{where}: TOML has no null, and leaving it out means the default")
                continue
            lines.append(f"{_key(key)} = {_toml(value, where)}")
        tables.append("\n".join(lines) + "\n")
    return "\n".join(tables) if tables else "pass = []\n"


# -- reading ------------------------------------------------------------


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise InputError(f"{path} is no recipe: it is larger than {MAX_BYTES} bytes")
        return content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no recipe: byte {error.start} is not UTF-8 text") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _parse(text: str, where: str, registry: Registry | None) -> tuple[Pass, ...]:
    try:
        document = tomllib.loads(text)
    except RecursionError as error:
        raise RecipeError(f"{where}: brackets are nested too deeply") from error
    except (
        ValueError
    ) as error:  # TOMLDecodeError says line and column; int() refuses numbers of thousands of digits
        raise RecipeError(
            f"{where}: {error}", hint="a recipe is TOML with one [[pass]] table a step"
        ) from error
    return _document(document, where, registry)


def _document(document: Mapping[str, Any], where: str, registry: Registry | None) -> tuple[Pass, ...]:
    for key in document:
        if key != "pass":
            raise RecipeError(f"{where}: unknown key {key!r}", hint=_FORM)
    if "pass" not in document:
        raise RecipeError(f"{where}: no steps", hint='write a [[pass]] table with name = "family.verb"')
    tables = document["pass"]
    if not isinstance(tables, list):
        raise RecipeError(f"{where}: 'pass' is not a list of tables", hint="write [[pass]] with two brackets")
    return _steps(tables, where, registry)


def _steps(items: Iterable[Any], where: str, registry: Registry | None) -> tuple[Pass, ...]:
    passes: list[Pass] = []
    for number, item in enumerate(items, start=1):
        try:
            passes.extend(_step(item, registry))
        except RecipeError as error:
            raise RecipeError(f"{where}, step {number}: {error.message}", hint=error.hint) from error
    return tuple(passes)


def _step(item: Any, registry: Registry | None) -> tuple[Pass, ...]:
    if isinstance(item, Pass):
        return (item,)
    if isinstance(item, type) and issubclass(item, Pass):
        return (_build(item, {}),)
    if isinstance(item, str):
        return _named(item, registry)
    if isinstance(item, Mapping):
        return (_table(item, registry),)
    raise RecipeError(
        f"{item!r} is neither a pass, the name of one, nor a table",
        hint='a table reads {"name": "family.verb", option: value}',
    )


def _named(name: str, registry: Registry | None) -> tuple[Pass, ...]:
    """A preset or a pass with its defaults."""
    if name in PRESETS:
        return tuple(_table(table, registry) for table in PRESETS[name])
    passes = _registry(registry).passes
    if name in passes:
        return (_build(passes[name], {}),)
    hint = did_you_mean(name, [*PRESETS, *passes])
    raise RecipeError(f"{name!r} is neither a pass nor a preset", hint=hint + _broken(registry))


def _table(table: Mapping[str, Any], registry: Registry | None) -> Pass:
    if "name" not in table:
        raise RecipeError("the table has no 'name'", hint='write name = "family.verb"')
    name = table["name"]
    if not isinstance(name, str):
        raise RecipeError(f"'name' is {name!r}, not a string")
    passes = _registry(registry).passes
    if name not in passes:
        hint = did_you_mean(name, passes) + _broken(registry)
        raise RecipeError(f"unknown pass {name!r}", hint=hint)
    options = {key: value for key, value in table.items() if key != "name"}
    for key, value in options.items():
        problem = _not_plain(value)
        if problem:
            raise RecipeError(f"{name}: option {key!r} {problem}")
    return _build(passes[name], options)


def _build(cls: type[Pass], options: Mapping[str, Any]) -> Pass:
    try:
        return cls.from_dict(options)
    except RecipeError:
        raise
    except AttarError as error:
        raise RecipeError(f"{cls.name}: {error.message}", hint=error.hint) from error
    except Exception as error:  # the pass's own check of its options, which may raise anything
        raise RecipeError(f"{cls.name}: {type(error).__name__}: {error}") from error


def _registry(registry: Registry | None) -> Registry:
    if registry is not None:
        return registry
    from attar.registry import default_registry

    return default_registry()


def _broken(registry: Registry | None) -> str:
    """A pass may be unknown because its plugin did not load; then that is what the reader should look at."""
    broken = _registry(registry).broken
    return f"; plugins that failed to load: {', '.join(broken)} (see `attar plugins`)" if broken else ""


def _not_plain(value: Any) -> str | None:
    if isinstance(value, list | tuple):
        return next((problem for v in value if (problem := _not_plain(v))), None)
    if isinstance(value, float) and not math.isfinite(value):
        return f"= {value!r} is not a finite number"
    if value is None or isinstance(value, str | int | float):
        return None
    return f"is a {type(value).__name__}; only strings, numbers, booleans and lists of them are options"


# -- writing ------------------------------------------------------------


def _toml(value: Any, where: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise RecipeError(f"{where}: {value} does not fit in the 64 bits of a TOML integer")
        return int.__repr__(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise RecipeError(f"{where}: {value!r} is not a finite number")
        return float.__repr__(value)  # the shortest digits that read back as the same number
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RecipeError(f"{where}: {value!r} is not text that UTF-8 can write") from error
        return _toml_string(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(v, where) for v in value) + "]"
    raise RecipeError(f"{where}: {value!r} is no plain value")


def _toml_string(value: str) -> str:
    """A basic string: quotes, backslashes and control characters are escaped (TOML 1.0, "String")."""

    def escaped(char: str) -> str:
        if char in _SHORT_ESCAPES:
            return _SHORT_ESCAPES[char]
        return f"\\u{ord(char):04x}" if ord(char) < 0x20 or ord(char) == 0x7F else char

    return '"' + "".join(map(escaped, value)) + '"'


def _key(name: str) -> str:
    return (
        name if _BARE_KEY.fullmatch(name) else _toml_string(name)
    )  # identifiers may hold letters TOML quotes
