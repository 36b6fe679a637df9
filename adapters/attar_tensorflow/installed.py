"""Whether TensorFlow is there."""

from __future__ import annotations

from attar.errors import InputError


def need_tensorflow(what: str) -> None:
    """Import tensorflow, for `what`.

    Raises:
        InputError: it is not installed, or does not import.
    """
    try:
        import tensorflow  # noqa: F401
    except Exception as error:  # a library that lacks its own libraries raises anything
        raise InputError(
            f"{what} needs TensorFlow, which cannot be imported: {error}",
            hint="pip install 'attar[tensorflow]'",
        ) from error
