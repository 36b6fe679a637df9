"""Commands that plugins bring by the hook `attar_commands`.

Importing every plugin to ask it for commands would make `attar --help` as slow as the slowest plugin, so a
plugin whose source does not even mention the hook is not imported. What has no source is imported.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass, field
from pathlib import Path

import click

HOOK = "attar_commands"
MOST_FILES = 200


@dataclass
class Extensions:
    """Commands by name, and the errors of plugins whose commands could not be had."""

    commands: dict[str, click.Command] = field(default_factory=dict)
    broken: dict[str, Exception] = field(default_factory=dict)


@functools.cache
def load() -> Extensions:
    """The commands of all installed plugins. One that fails is kept in `broken` and stops no other."""
    found = Extensions()
    blocked = {n.strip() for n in os.environ.get("ATTAR_DISABLED_PLUGINS", "").split(",")}
    entries = importlib.metadata.entry_points(group="attar")
    for entry in sorted(entries, key=lambda e: (e.name, e.value)):
        if entry.name in blocked:
            continue
        try:
            if mentions_hook(entry.value):
                _add(entry, found)
        except Exception as error:  # whatever a plugin does, attar's own commands stay usable
            found.broken[entry.name] = error
    return found


def mentions_hook(target: str) -> bool:
    """Whether the plugin at `module:object` may implement the hook: its package says so, or has no source."""
    package = target.partition(":")[0].strip().partition(".")[0]
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return True
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return True
    files = [Path(spec.origin)]
    for folder in spec.submodule_search_locations or ():
        for path in Path(folder).rglob("*.py"):
            files.append(path)
            if len(files) > MOST_FILES:
                return True
    return any(HOOK.encode() in path.read_bytes() for path in files)


def _add(entry: importlib.metadata.EntryPoint, found: Extensions) -> None:
    from attar.errors import PluginError
    from attar.registry import Registry

    registry = Registry()  # one each, so that an error names its plugin and stops nobody else
    registry.register(entry.load(), name=entry.name)
    group = click.Group(entry.name)
    registry.hook.attar_commands(cli=group)
    from attar.cli import cli

    for name, command in group.commands.items():
        if name in cli.commands or name in found.commands:
            raise PluginError(f"plugin {entry.name!r} brings a command {name!r}, which exists already")
        found.commands[name] = command
