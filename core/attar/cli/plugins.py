"""`attar plugins` shows what is installed; `attar plugin new` starts another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attar.cli.app import clean, emit, shared_options
from attar.errors import AttarError

if TYPE_CHECKING:
    from attar.registry import Registry

KINDS = ("passes", "adapters", "targets", "runtimes", "ops", "observers", "importances", "metrics")


@click.command()
@shared_options
def plugins() -> None:
    """List the plugins and what they bring.

    Plugins that failed to load are listed with their errors.

    \b
    Examples:
      attar plugins
      attar plugins --json
      ATTAR_DISABLED_PLUGINS=prune attar plugins
    """
    from attar.registry import default_registry

    registry = default_registry()
    found = [
        {
            "name": i.name,
            "distribution": i.distribution,
            "version": i.version,
            "brings": brought(registry, i.name),
        }
        for i in registry.plugins
    ]
    # asked after `brought`, which finds the plugins whose hooks fail
    broken = {name: f"{type(error).__name__}: {error}" for name, error in registry.broken.items()}
    clashes = conflicts(registry)
    emit({"plugins": found, "broken": broken, "conflicts": clashes}, lambda: _text(found, broken, clashes))


def brought(registry: Registry, plugin: str) -> dict[str, list[str]]:
    """Kind -> names that one plugin brings. A hook that fails brings nothing and is in `registry.broken`."""
    from attar.registry import Registry

    ours, alone = Registry(), Registry()
    instance = _object_of(registry, plugin)
    if instance is None:
        return {}
    alone.register(instance, name=plugin)
    found: dict[str, list[str]] = {}
    for kind in KINDS:
        try:
            names = [name for name in getattr(alone, kind) if name not in getattr(ours, kind)]
        except AttarError as error:  # it claims a name of attar's own
            registry.broken.setdefault(plugin, error)
            continue
        if names:
            found[kind] = names
    registry.broken.update({k: v for k, v in alone.broken.items() if k not in registry.broken})
    return found


def conflicts(registry: Registry) -> list[str]:
    """Names that two plugins claim."""
    found = []
    for kind in KINDS:
        try:
            getattr(registry, kind)
        except AttarError as error:
            found.append(str(error))
    return found


def _object_of(registry: Registry, plugin: str) -> object | None:
    """What was registered under a name; None if it implements no hook."""
    from attar.hooks import Hooks

    for hook in vars(Hooks):
        if hook.startswith("attar_"):
            for impl in getattr(registry.hook, hook).get_hookimpls():
                if impl.plugin_name == plugin:
                    found: object = impl.plugin
                    return found
    return None


def _text(found: list[dict[str, Any]], broken: dict[str, str], clashes: list[str]) -> str:
    lines = []
    for plugin in found:
        lines.append(clean(f"{plugin['name']}  ({plugin['distribution']} {plugin['version']})"))
        lines += [clean(f"  {kind}: {', '.join(names)}") for kind, names in plugin["brings"].items()]
    if not found:
        lines.append("no plugins")
    if broken:
        lines += ["", "failed to load:"]
        lines += [clean(f"  {name}: {error}") for name, error in broken.items()]
    if clashes:
        lines += ["", "names with two owners:", *(clean(f"  {clash}") for clash in clashes)]
    return "\n".join(lines)


@click.group()
def plugin() -> None:
    """Work on plugins of your own."""


@plugin.command("new")
@click.argument("name")
@click.option(
    "-d",
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Folder to write the plugin's folder into; here if not given.",
)
@shared_options
def new(name: str, directory: Path) -> None:
    """Write a working, tested plugin called NAME.

    \b
    Examples:
      attar plugin new sparsify
      attar plugin new sparsify -d ~/src
    """
    from attar.testing.scaffold import new_plugin

    made = new_plugin(name, directory)
    emit({"plugin": name, "path": str(made)}, lambda: clean(f"wrote {made}"))
