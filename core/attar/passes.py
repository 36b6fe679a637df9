"""A pass: one compression step, written as a frozen dataclass whose fields are its options.

    class Channels(Pass, name="prune.channels"):
        '''Remove whole channels, least important first.'''

        ratio: Annotated[float, Range(0.0, 0.95), Doc("share of the channels to remove")] = 0.5

        def apply(self, model: ir.Model, ctx: Context) -> None: ...

The same fields are the Python signature, the recipe line, the command-line option and the generated
documentation.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, dataclass_transform

from attar.errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    import onnx_ir as ir

    from attar.context import Context


@dataclasses.dataclass(frozen=True)
class Range:
    """An option must lie in [low, high]; None is no bound. `open_low`/`open_high` exclude the end itself."""

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False

    def complaint(self, value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None  # None of an optional option; the type check speaks of anything else
        low_ok = self.low is None or (value > self.low if self.open_low else value >= self.low)
        high_ok = self.high is None or (value < self.high if self.open_high else value <= self.high)
        return None if low_ok and high_ok else f"must lie in {self}"

    def __str__(self) -> str:
        low = "(-inf" if self.low is None else f"{'(' if self.open_low else '['}{self.low:g}"
        high = "inf)" if self.high is None else f"{self.high:g}{')' if self.open_high else ']'}"
        return f"{low}, {high}"


class Choice:
    """An option must be one of these values; search tries them in this order."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def complaint(self, value: Any) -> str | None:
        if value is None or value in self.values:
            return None
        shown = ", ".join(map(repr, self.values))
        near = did_you_mean(str(value), map(str, self.values))
        return f"must be one of {shown}" + (f" ({near})" if near.startswith("did") else "")

    def __repr__(self) -> str:
        return f"Choice({', '.join(map(repr, self.values))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Choice) and self.values == other.values

    def __hash__(self) -> int:
        return hash(self.values)


@dataclasses.dataclass(frozen=True)
class Doc:
    """One line of documentation for an option."""

    text: str


@dataclasses.dataclass(frozen=True)
class Option:
    """What is known of one option of a pass."""

    name: str
    type: Any
    default: Any
    required: bool
    range: Range | None
    choices: tuple[Any, ...] | None
    doc: str

    @property
    def type_name(self) -> str:
        return _type_name(self.type)


_RESERVED = ("name", "requires", "needs", "plans", "aim", "breaks", "idempotent", "tolerance")


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Pass:
    """Base of all passes. Subclass it with a `name` of the form `family.verb`.

    Class attributes a pass may set:
        requires: names of passes that must have run before; the driver runs those that have not.
        needs: arguments of `attar.compress` without which the pass cannot work ("calibration", "evaluate",
            "training").
        plans: the pass heeds `ctx.keep_float` and `ctx.measured`, so that running it again with them is a
            repair.
        aim: what the pass is for. A recipe that aims at "size" and has no step that aims at "speed" may give
            a slower model if it is a smaller one; the report says so. Others may not. A recipe that aims at
            "accuracy" alone is not held to either; with such a step and no evaluation, outputs may change.
        breaks: what other passes noted on weights and this one may undo: "zeros", "pattern", "values"; see
            `attar.invariants`.
        idempotent: applying the pass twice equals applying it once; conformance checks it.
        tolerance: largest relative output difference that the conformance zoo may show, None for lossy
            without bound.
    """

    name: ClassVar[str] = ""
    requires: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    plans: ClassVar[bool] = False
    aim: ClassVar[Literal["", "speed", "size", "accuracy"]] = ""
    breaks: ClassVar[tuple[str, ...]] = ()
    idempotent: ClassVar[bool] = False
    tolerance: ClassVar[float | None] = None

    def __init_subclass__(cls, *, name: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name:
            if name.count(".") != 1 or not all(p.isidentifier() for p in name.split(".")):
                raise TypeError(f"{cls.__qualname__}: a pass is named 'family.verb', not {name!r}")
            cls.name = name
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            if field.name in _RESERVED:
                raise TypeError(
                    f"{cls.__qualname__}: {field.name!r} is an attribute of every pass, not an option; "
                    "write it without annotation, or choose another name"
                )
        # The generated __init__ says "unexpected keyword argument"; a user deserves the pass's own words.
        generated = cls.__init__

        @functools.wraps(generated)
        def checked_init(self: Any, *args: Any, **options: Any) -> None:
            if args:
                raise RecipeError(f"{cls.name or cls.__name__}: options are given by name", hint=cls.usage())
            known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
            for option in options:
                if option not in known:
                    raise RecipeError(
                        f"{cls.name or cls.__name__}: unknown option {option!r}",
                        hint=did_you_mean(option, known),
                    )
            missing = [o.name for o in cls.options() if o.required and o.name not in options]
            if missing:
                raise RecipeError(
                    f"{cls.name or cls.__name__}: option {missing[0]!r} has no default; give it a value",
                    hint=cls.usage(),
                )
            try:
                generated(self, **options)
            except TypeError as error:
                raise RecipeError(f"{cls.name or cls.__name__}: {error}") from error

        cls.__init__ = checked_init  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        for option in self.options():
            value = getattr(self, option.name)
            fitted, problem = _fit(value, option.type)
            if problem is None and option.range is not None:
                problem = _each(option.range.complaint, fitted)
            if problem is None and option.choices is not None:
                choice = Choice(*option.choices)
                problem = choice.complaint(fitted) and _each(choice.complaint, fitted)
            if problem is not None:
                raise RecipeError(f"{self.name}: option {option.name!r} = {value!r} {problem}")
            if fitted is not value:
                object.__setattr__(self, option.name, fitted)

    def apply(self, model: ir.Model, ctx: Context) -> None:
        """Change `model` in place. Raise `Refused` to decline; anything left alone goes to `ctx.skip`."""
        raise TypeError(f"pass {self.name!r} does not define apply()")

    def alternatives(self) -> tuple[Pass, ...]:
        """Other settings of this pass, worth trying when its result is not near enough to the original."""
        return ()

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        """The options in order of declaration."""
        return _options_of(cls)  # type: ignore[arg-type]  # mypy takes the hash of instances for the class's

    @classmethod
    def usage(cls) -> str:
        """`name(option=default, ...)`, for help texts."""
        parts = (o.name + ("" if o.required else f"={o.default!r}") for o in cls.options())
        return f"{cls.name}({', '.join(parts)})"

    def to_dict(self) -> dict[str, Any]:
        """`{"name": ..., option: value, ...}` with every option, of plain TOML/JSON types."""
        out: dict[str, Any] = {"name": self.name}
        for option in self.options():
            value = getattr(self, option.name)
            out[option.name] = list(value) if isinstance(value, tuple) else value
        return out

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Pass:
        """The inverse of `to_dict`; missing options take their defaults.

        Raises:
            RecipeError: an option is unknown or its value does not fit, or the table is another pass's.
        """
        if table.get("name", cls.name) != cls.name:
            raise RecipeError(f"{cls.name}: the table names the pass {table['name']!r}")
        return cls(**{k: v for k, v in table.items() if k != "name"})

    def __str__(self) -> str:
        changed = (
            f"{o.name}={getattr(self, o.name)!r}"
            for o in self.options()
            if o.required or getattr(self, o.name) != o.default
        )
        return f"{self.name}({', '.join(changed)})"


@functools.cache
def _options_of(cls: Any) -> tuple[Option, ...]:
    hints = typing.get_type_hints(cls, include_extras=True)
    found = []
    for field in dataclasses.fields(cls):
        bound, choices, doc = None, None, ""
        hint, marks = _unwrap(hints[field.name])
        for mark in marks:
            if isinstance(mark, Range):
                bound = mark
            elif isinstance(mark, Choice):
                choices = mark.values
            elif isinstance(mark, Doc):
                doc = mark.text
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        default = None if field.default is dataclasses.MISSING else field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        found.append(Option(field.name, hint, default, required, bound, choices, doc))
    return tuple(found)


def _unwrap(hint: Any) -> tuple[Any, list[Any]]:
    """A type hint without `Annotated` and `Literal`, also inside `... | None`, and their marks."""
    if typing.get_origin(hint) is Annotated:
        inner, *marks = typing.get_args(hint)
        plain, more = _unwrap(inner)
        return plain, [*more, *marks]
    if typing.get_origin(hint) is Literal:
        values = typing.get_args(hint)
        return typing.Union[tuple(dict.fromkeys(map(type, values)))], [Choice(*values)]  # noqa: UP007
    if _is_union(hint):
        pairs = [_unwrap(member) for member in typing.get_args(hint)]
        plain = typing.Union[tuple(kind for kind, _ in pairs)]  # noqa: UP007
        return plain, [mark for _, marks in pairs for mark in marks]
    return hint, []


def _is_union(kind: Any) -> bool:
    return isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union


def _each(complaint: Callable[[Any], str | None], value: Any) -> str | None:
    """The first complaint about `value`, or about one of its elements if it is a list."""
    elements = value if isinstance(value, tuple) else (value,)
    return next((problem for v in elements if (problem := complaint(v)) is not None), None)


def _type_name(kind: Any) -> str:
    if kind is type(None):
        return "none"
    if _is_union(kind):
        return " or ".join(_type_name(k) for k in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        count = "" if inner[-1] is Ellipsis else f"{len(inner)} "
        return f"list of {count}{_type_name(inner[0])}"
    return str(getattr(kind, "__name__", kind))


def _fit(value: Any, kind: Any) -> tuple[Any, str | None]:
    """`value` brought to `kind` without loss (1 -> 1.0, list -> tuple), and what is wrong if it cannot be."""
    if kind is Any:
        return value, None
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()  # numbers out of numpy: what a search draws
    if _is_union(kind):
        for member in typing.get_args(kind):
            fitted, problem = _fit(value, member)
            if problem is None:
                return fitted, None
        return value, f"must be {_type_name(kind)}"
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            return value, f"must be a {_type_name(kind)}"
        inner = typing.get_args(kind)
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        if len(kinds) != len(value):
            return value, f"must be a {_type_name(kind)}"
        pairs = [_fit(v, k) for v, k in zip(value, kinds, strict=True)]
        if any(problem for _, problem in pairs):
            return value, f"must be a {_type_name(kind)}"
        return tuple(v for v, _ in pairs), None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            return value, "must be float"
    if kind is float and isinstance(value, float) and math.isnan(value):
        return value, "must be a number"  # NaN equals nothing, so no recipe with it could be compared
    if kind is int and isinstance(value, bool):
        return value, "must be int"
    if inspect.isclass(kind) and isinstance(value, kind):
        return value, None
    return value, f"must be {_type_name(kind)}"
