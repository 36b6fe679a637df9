"""Names that Keras and TensorFlow take, made from those of the IR."""

from __future__ import annotations

import re

_PARAMETER = re.compile(
    r"[./](?:weight|bias|kernel|gamma|beta|scale|running_mean|running_var|moving_mean|moving_variance|"
    r"weight_\w+|bias_\w+|[wrb])$",
    re.IGNORECASE,
)


class Names:
    """Gives each name once."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def give(self, wanted: str) -> str:
        """`wanted` with the characters that TensorFlow accepts, made unique."""
        base = clean(wanted)
        name, count = base, 0
        while name.lower() in self._taken:  # file systems and `.keras` archives do not all tell case
            count += 1
            name = f"{base}_{count}"
        self._taken.add(name.lower())
        return name


def clean(name: str) -> str:
    """`name` with slashes, colons and other characters that are not allowed replaced."""
    name = re.sub(r":0$", "", name)  # TensorFlow's first output
    name = re.sub(r"[^A-Za-z0-9_.\-]", "_", name.strip("/"))
    return name if name[:1].isalnum() else f"x{name}" if name else "unnamed"


def owner(parameter: str) -> str:
    """The layer that a parameter belongs to: `features.0.conv` for `features.0.conv.weight`."""
    shortened = _PARAMETER.sub("", parameter)
    return shortened if shortened else parameter
