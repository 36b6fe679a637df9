"""Makes Keras know attar's layer as soon as Keras is there, without importing it before."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

_LAYER = "attar_tensorflow.writing.operator_layer"


def register_layer() -> None:
    """Register `attar>Operator`, now if Keras is imported, else when it is: `keras.models.load_model` then
    reads the models that attar writes."""
    if sys.modules.get("keras") is not None:
        importlib.import_module(_LAYER)
    elif not any(isinstance(finder, _WhenKeras) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenKeras())


class _WhenKeras(importlib.abc.MetaPathFinder):
    """Finds nothing itself; lets the others find Keras' saving package and registers the layer after it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "keras.saving":  # imported last of what the layer needs of Keras
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _After(spec.loader)
        return spec


class _After(importlib.abc.Loader):
    """Loads as `loader` does, then registers the layer."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _register(module)


def _register(saving: ModuleType) -> None:
    """Give Keras a stand-in under the layer's name that becomes the layer when a model asks for it."""
    table = saving.get_custom_objects()
    table.setdefault("attar>Operator", _StandIn)


class _StandIn:
    """In the place of the layer until a saved model names it."""

    @classmethod
    def from_config(cls, config: dict[str, object]) -> object:
        return importlib.import_module(_LAYER).Operator.from_config(config)
