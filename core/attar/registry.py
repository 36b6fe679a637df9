"""Finds plugins and answers questions about what they bring.

Plugins are found by the entry-point group `attar`. One that fails to import is kept in `Registry.broken` with
its error and does not stop the others. `ATTAR_DISABLED_PLUGINS` (names separated by commas) blocks plugins.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

from attar.errors import InputError, PluginError, RecipeError, did_you_mean
from attar.hooks import PROJECT, Hooks

if TYPE_CHECKING:
    from attar.adapters import Adapter
    from attar.ops import OpRule
    from attar.passes import Pass
    from attar.runtime import Runtime
    from attar.targets import Target


@dataclass(frozen=True)
class PluginInfo:
    """Where a registered plugin came from."""

    name: str
    distribution: str
    version: str


class Registry:
    """The plugins in use. Make one with `Registry()` (empty), `Registry.discover()` or take
    `default_registry()`.
    """

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(Hooks)
        self._infos: dict[str, PluginInfo] = {}
        self.broken: dict[str, Exception] = {}

    @classmethod
    def discover(cls) -> Registry:
        """A registry of all installed plugins, less the disabled ones."""
        registry = cls()
        blocked = {n.strip() for n in os.environ.get("ATTAR_DISABLED_PLUGINS", "").split(",")}
        entries = sorted(importlib.metadata.entry_points(group=PROJECT), key=lambda e: (e.name, e.value))
        for entry in entries:
            if entry.name in blocked:
                continue
            dist = entry.dist
            name, version = (dist.name, dist.version) if dist else ("?", "?")
            try:
                registry.register(entry.load(), name=entry.name, distribution=name, version=version)
            except (Exception, SystemExit) as error:  # one bad plugin must not take the others down
                # The name may be that of a plugin that works, or that failed before: it is not ours to
                # overwrite.
                taken = entry.name in registry._infos or entry.name in registry.broken
                key = f"{entry.name} ({name})" if taken else entry.name
                registry.broken[key] = _as_exception(error)
        return registry

    def register(self, plugin: object, *, name: str, distribution: str = "local", version: str = "") -> None:
        """Add a plugin (a module or an object with `hookimpl` methods).

        Raises:
            PluginError: the name is taken, or a hook is misspelt or not marked with `hookimpl`.
        """
        if name in self._infos:
            raise PluginError(
                f"plugin name {name!r} is taken by {self._infos[name].distribution} "
                f"and claimed again by {distribution}"
            )
        for hook in _HOOKS:  # pluggy passes over an unmarked function in silence
            function = getattr(plugin, hook, None)
            if callable(function) and not hasattr(function, f"{PROJECT}_impl"):
                raise PluginError(
                    f"plugin {name!r} of {distribution}: {hook} is not marked as a hook",
                    hint="put @hookimpl above it (from attar.hooks import hookimpl)",
                )
        try:
            self._manager.register(plugin, name=name)
            self._manager.check_pending()  # pluggy accepts a misspelt hook in silence until asked
        except (pluggy.PluginValidationError, ValueError) as error:
            if self._manager.has_plugin(name):
                self._manager.unregister(name=name)
            raise PluginError(
                f"plugin {name!r} of {distribution}: {error}",
                hint="hooks are listed in docs/plugins.md",
            ) from error
        self._infos[name] = PluginInfo(name, distribution, version)
        self._forget()

    def unregister(self, name: str) -> None:
        """Take a plugin out again.

        Raises:
            PluginError: there is none of that name.
        """
        if name not in self._infos:
            raise PluginError(f"no plugin {name!r} is registered", hint=did_you_mean(name, self._infos))
        self._manager.unregister(name=name)
        del self._infos[name]
        self._forget()

    @property
    def plugins(self) -> tuple[PluginInfo, ...]:
        return tuple(self._infos.values())

    @property
    def hook(self) -> Any:
        """The pluggy relay, for hooks that are events: before and after a pass, and the command line."""
        return self._manager.hook

    # -- what the plugins bring ------------------------------------------------------------------------------

    def tell(self, event: str, /, **arguments: Any) -> list[str]:
        """Call an event hook of every plugin, one by one.

        Returns:
            What went wrong, a sentence each: an onlooker that fails must not stop the work.
        """
        failures = []
        plugins = self._manager.get_plugins()
        for name in self._infos:
            plugin = self._manager.get_plugin(name)
            try:
                self._manager.subset_hook_caller(event, plugins - {plugin})(**arguments)
            except Exception as error:
                failures.append(f"plugin {name} failed in {event}: {type(error).__name__}: {error}")
        return failures

    @functools.cached_property
    def passes(self) -> dict[str, type[Pass]]:
        return self._collect("attar_passes", lambda items: [(p.name, p) for p in items])

    @functools.cached_property
    def adapters(self) -> dict[str, Adapter]:
        return self._collect("attar_adapters", lambda items: [(a.name, a) for a in items])

    @functools.cached_property
    def targets(self) -> dict[str, Target]:
        from attar.targets import builtin_targets

        builtin = {t.name: (t, "attar") for t in builtin_targets()}
        return self._collect("attar_targets", lambda items: [(t.name, t) for t in items], builtin)

    @functools.cached_property
    def runtimes(self) -> dict[str, Runtime]:
        from attar.runtime import OnnxRuntime

        builtin = {"onnxruntime": (OnnxRuntime(), "attar")}
        return self._collect("attar_runtimes", lambda items: [(r.name, r) for r in items], builtin)

    @functools.cached_property
    def ops(self) -> dict[str, OpRule]:
        """Operator rules by `OpRule.key`: an operator of another domain than ONNX's is `domain::op_type`."""
        from attar.ops import BUILTIN

        builtin = {name: (rule, "attar") for name, rule in BUILTIN.items()}
        return self._collect("attar_ops", lambda items: [(r.key, r) for r in items], builtin)

    @functools.cached_property
    def observers(self) -> dict[str, Callable[..., Any]]:
        return self._collect("attar_observers", _pairs)

    @functools.cached_property
    def importances(self) -> dict[str, Callable[..., Any]]:
        return self._collect("attar_importances", _pairs)

    @functools.cached_property
    def metrics(self) -> dict[str, Callable[..., Any]]:
        from attar.metrics import BUILTIN

        builtin = {name: (metric, "attar") for name, metric in BUILTIN.items()}
        return self._collect("attar_metrics", _pairs, builtin)

    def op_table(self, hook: str, framework: str) -> dict[str, Callable[..., Any]]:
        """The merged `attar_lowerings` or `attar_liftings` of all plugins for one framework."""
        return self._collect(hook, _pairs, framework=framework)

    def get_pass(self, name: str) -> type[Pass]:
        try:
            return self.passes[name]
        except KeyError:
            raise RecipeError(f"unknown pass {name!r}", hint=did_you_mean(name, self.passes)) from None

    def get_target(self, name: str) -> Target:
        try:
            return self.targets[str(name)]
        except KeyError:
            raise InputError(f"unknown target {name!r}", hint=did_you_mean(str(name), self.targets)) from None

    def get_adapter(self, name: str) -> Adapter:
        try:
            return self.adapters[name]
        except KeyError:
            raise InputError(f"unknown framework {name!r}", hint=did_you_mean(name, self.adapters)) from None

    # -- internals -------------------------------------------------------------------------------------------

    def _collect(
        self,
        hook: str,
        pairs: Callable[[Any], Iterable[tuple[str, Any]]],
        builtin: Mapping[str, tuple[Any, str]] | None = None,
        **arguments: Any,
    ) -> dict[str, Any]:
        """Merge the answers of one hook; two owners of one name are an error that names both."""
        owners: dict[str, str] = {name: owner for name, (_, owner) in (builtin or {}).items()}
        merged: dict[str, Any] = {name: item for name, (item, _) in (builtin or {}).items()}
        for name, answer in self._answers(hook, arguments):
            try:
                found = [(self._checked(hook, key), item) for key, item in pairs(answer)]
            except Exception as error:  # an answer of the wrong form, which is the plugin's fault alone
                self.broken[name] = PluginError(
                    f"plugin {self._owner(name)}: {hook} gave {answer!r:.200}, which cannot be used: {error}",
                    hint="docs/plugins.md says what each hook gives",
                )
                continue
            for key, item in found:
                if key in owners:
                    raise PluginError(
                        f"{key!r} ({hook}) is brought by both {owners[key]} and {self._owner(name)}",
                        hint="block one with ATTAR_DISABLED_PLUGINS",
                    )
                owners[key], merged[key] = self._owner(name), item
        return dict(sorted(merged.items()))

    def _answers(self, hook: str, arguments: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
        caller = getattr(self._manager.hook, hook)
        for impl in caller.get_hookimpls():  # oldest first; calling the hook itself gives newest first
            try:
                answer = impl.function(*(arguments[a] for a in impl.argnames))
            except Exception as error:
                self.broken[impl.plugin_name] = error
                continue
            if answer is not None:
                yield impl.plugin_name, answer

    @staticmethod
    def _checked(hook: str, key: Any) -> str:
        if not isinstance(key, str) or not key:
            raise TypeError(f"its name is {key!r}")
        return key

    def _owner(self, plugin: str) -> str:
        info = self._infos[plugin]
        return f"{plugin} ({info.distribution})"

    def _forget(self) -> None:
        for attribute, value in vars(type(self)).items():
            if isinstance(value, functools.cached_property):
                self.__dict__.pop(attribute, None)


_HOOKS = tuple(name for name in vars(Hooks) if name.startswith(f"{PROJECT}_"))


def _pairs(answer: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    return answer.items()


def _as_exception(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else PluginError(f"it ends the program on import: {error!r}")


@functools.cache
def default_registry() -> Registry:
    """The registry of all installed plugins, built on first use."""
    return Registry.discover()
