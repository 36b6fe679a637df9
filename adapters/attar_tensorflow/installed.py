"""Whether TensorFlow is there."""

from __future__ import annotations

from attar.frameworks import import_framework


def need_tensorflow(what: str) -> None:
    """Import tensorflow, for `what`.

    Raises:
        InputError: it is not installed, or does not import.
    """
    import_framework("tensorflow", "TensorFlow", what)
