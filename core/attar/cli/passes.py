"""`attar passes`: what compression steps there are, and the options of each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import click

from attar.cli.app import clean, emit, shared_options
from attar.cli.shell import complete_pass, doc_of, first_sentence
from attar.passes import Option, Pass


@click.command()
@click.argument("name", required=False, shell_complete=complete_pass)
@shared_options
def passes(name: str | None) -> None:
    """List the passes, or the options of one.

    \b
    Examples:
      attar passes
      attar passes quantize.static
      attar passes --json
    """
    from attar.registry import default_registry

    registry = default_registry()
    if name is None:
        found = registry.passes
        emit({"passes": [describe(cls) for cls in found.values()]}, lambda: _list(found))
    else:
        cls = registry.get_pass(name)
        emit(describe(cls), lambda: _page(cls))


def describe(cls: type[Pass]) -> dict[str, Any]:
    """A pass as plain JSON types."""
    return {
        "name": cls.name,
        "doc": doc_of(cls),
        "requires": list(cls.requires),
        "needs": list(cls.needs),
        "options": [
            {
                "name": o.name,
                "type": o.type_name,
                "required": o.required,
                "default": list(o.default) if isinstance(o.default, tuple) else o.default,
                "range": None if o.range is None else str(o.range),
                "choices": None if o.choices is None else list(o.choices),
                "doc": o.doc,
            }
            for o in cls.options()
        ],
    }


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns two spaces apart; those that hold only figures below their head are aligned on the right."""
    columns = list(zip(*rows, strict=True))
    sides = ["<" if any(map(_is_text, column[1:])) or not any(column[1:]) else ">" for column in columns]
    widths = [max(map(len, column)) for column in columns]
    lines = (
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _is_text(cell: str) -> bool:
    return re.fullmatch(r"[-\d,.%]*", cell) is None


def _list(found: dict[str, type[Pass]]) -> str:
    if not found:
        return "no passes: no plugin brings any (see `attar plugins`)"
    return table([(clean(name), clean(first_sentence(doc_of(cls)))) for name, cls in found.items()])


def _page(cls: type[Pass]) -> str:
    parts = [cls.name, doc_of(cls)]
    if cls.requires:
        parts.append("runs after: " + ", ".join(cls.requires))
    if cls.needs:
        parts.append("needs: " + ", ".join(cls.needs))
    options = cls.options()
    if options:
        head = ("option", "type", "default", "allowed", "")
        parts.append(table([head, *(_row(o) for o in options)]))
    else:
        parts.append("no options")
    return "\n\n".join(part for part in parts if part)


def _row(option: Option) -> tuple[str, ...]:
    allowed = ""
    if option.choices is not None:
        allowed = " | ".join(map(str, option.choices))
    elif option.range is not None:
        allowed = str(option.range)
    default = "(required)" if option.required else repr(option.default)
    return (option.name, option.type_name, default, allowed, option.doc)
