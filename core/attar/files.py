"""Writing files so that nothing is ever half written."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from attar.errors import InputError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it takes `path`'s place in one step, on failure it
    goes.

    Raises:
        InputError: the folder does not exist or cannot be written.
    """
    with contextlib.suppress(ValueError):  # a NUL in the path, reported below
        path = Path(os.path.realpath(path))  # a link stays a link; the file that it names is replaced
    # Not tempfile: its files are private, and a saved model is an ordinary file that follows the umask.
    part = path.with_name(f".{path.name[:60]}.{secrets.token_hex(6)}.part")
    try:
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        yield part
        _sync(part, os.O_RDWR)
        part.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the new name itself; some systems cannot open a folder
        _sync(path.parent, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def place(path: str | Path) -> Path:
    """`path` as a place for a file.

    Raises:
        InputError: it is no path, or a folder.
    """
    try:
        path = Path(path)
        folder = path.is_dir()
    except (TypeError, OSError) as error:  # no path at all; a name that is too long
        reason = getattr(error, "strerror", None) or "a path is expected"
        raise InputError(f"cannot write {path!s:.200}: {reason}") from error
    if folder:
        raise InputError(f"cannot write {path}: it is a folder")
    return path


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`, which keeps its old content until all of it is on disk."""
    with replacing(place(path)) as part:
        part.write_bytes(data)
