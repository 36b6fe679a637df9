"""Whether PyTorch is there."""

from __future__ import annotations

from attar.errors import InputError


def need_torch(what: str) -> None:
    """Import torch, for `what`.

    Raises:
        InputError: it is not installed, or does not import.
    """
    try:
        import torch  # noqa: F401
    except Exception as error:  # a library that lacks its own libraries raises anything
        raise InputError(
            f"{what} needs PyTorch, which cannot be imported: {error}", hint="pip install 'attar[torch]'"
        ) from error
