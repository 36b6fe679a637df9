"""What measured figures belong to: versions, processor, system."""

from __future__ import annotations

import importlib.metadata
import os
import platform

from attar.targets import cpu_name, instruction_set


def environment() -> dict[str, str]:
    """Versions and hardware, for reports."""
    versions = {}
    for package in ("attar", "onnxruntime", "onnx", "onnx-ir", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "?"
    return {
        **versions,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": cpu_name(),
        "integer instructions": instruction_set(),
        "cores": str(os.cpu_count() or 1),
    }
