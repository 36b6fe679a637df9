"""What adapters want of other people's frameworks: that they are there, and that they are silent."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from attar.errors import InputError


def import_framework(package: str, title: str, what: str) -> Any:
    """The imported `package`, which the extra of the same name installs, for `what`.

    Args:
        title: what people call the framework.
        what: what needs it, as the beginning of a sentence.

    Raises:
        InputError: it is not installed, or does not import.
    """
    try:
        return importlib.import_module(package)
    except Exception as error:  # a library that lacks its own libraries raises anything
        raise InputError(
            f"{what} needs {title}, which cannot be imported: {error}",
            hint=f"pip install 'attar[{package}]'",
        ) from error


@contextlib.contextmanager
def muted(descriptor: int) -> Iterator[None]:
    """Nothing reaches a file descriptor in the block, from C++ neither: 1 is standard output, 2 is standard
    error."""

    def flush() -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        with contextlib.suppress(OSError, AttributeError, TypeError):  # no C library to ask
            ctypes.CDLL(None).fflush(None)

    with contextlib.ExitStack() as stack:
        try:
            flush()
            kept = os.dup(descriptor)
        except (OSError, AttributeError, ValueError):  # nothing is open there
            yield
            return
        stack.callback(os.close, kept)
        sink = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, sink)
        stack.callback(os.dup2, kept, descriptor)
        os.dup2(sink, descriptor)
        try:
            yield
        finally:
            with contextlib.suppress(OSError, AttributeError, ValueError):
                flush()
