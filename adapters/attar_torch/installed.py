"""Whether PyTorch is there."""

from __future__ import annotations

from attar.frameworks import import_framework


def need_torch(what: str) -> None:
    """Import torch, for `what`.

    Raises:
        InputError: it is not installed, or does not import.
    """
    import_framework("torch", "PyTorch", what)
