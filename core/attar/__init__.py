"""attar makes trained networks smaller and faster, whatever framework they come from, and proves it.

import attar

model = attar.load(net, inputs=example)
result = attar.compress(model, calibration=loader, evaluate=(validation, "top1"))
print(result.report)
result.save("net-int8.onnx")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from attar.errors import (
    AttarError,
    BudgetMissed,
    ConversionError,
    InputError,
    PluginError,
    RecipeError,
    Refused,
    VerifyError,
)
from attar.hooks import hookimpl
from attar.passes import Choice, Doc, Pass, Range

if TYPE_CHECKING:
    from attar.api import (
        Comparison,
        Profile,
        compare,
        evaluate,
        load,
        profile,
        save,
    )
    from attar.calibration import ImagePreprocess
    from attar.context import Context
    from attar.conversion.convert import Conversion, convert, export
    from attar.diagnosis import Diagnosis, diagnose
    from attar.recipe import dump_recipe, load_recipe
    from attar.registry import Registry, default_registry
    from attar.report import Report
    from attar.run import Result, compress

__version__ = "0.1.0"

# Looked up on first use, so that `import attar` stays quick.
_LAZY = {
    "Comparison": "attar.api",
    "Context": "attar.context",
    "Conversion": "attar.conversion.convert",
    "Diagnosis": "attar.diagnosis",
    "ImagePreprocess": "attar.calibration",
    "Profile": "attar.api",
    "Registry": "attar.registry",
    "Report": "attar.report",
    "Result": "attar.run",
    "compare": "attar.api",
    "compress": "attar.run",
    "convert": "attar.conversion.convert",
    "default_registry": "attar.registry",
    "diagnose": "attar.diagnosis",
    "dump_recipe": "attar.recipe",
    "evaluate": "attar.api",
    "export": "attar.conversion.convert",
    "load": "attar.api",
    "load_recipe": "attar.recipe",
    "profile": "attar.api",
    "save": "attar.api",
}

__all__ = [
    "AttarError", "BudgetMissed", "Choice", "Comparison", "Context", "Conversion", "ConversionError",
    "Diagnosis", "Doc",
    "ImagePreprocess", "InputError", "Pass", "PluginError", "Profile", "Range", "RecipeError", "Refused",
    "Registry", "Report", "Result", "VerifyError", "compare", "compress", "convert", "default_registry",
    "diagnose", "dump_recipe", "evaluate", "export", "hookimpl", "load", "load_recipe", "profile", "save",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'attar' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
