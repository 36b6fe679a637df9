"""`.params` files of MXNet 2: numpy's `.npz`, read without trusting what it says of its sizes."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from typing import Any

import numpy as np
from numpy.lib import format as npy

from attar.errors import InputError

_DEFLATE_LIMIT = 1032  # no deflated byte stands for more
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def parse_npz(content: bytes, source: str) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an `.npz` by name. Pickled objects are refused.

    Raises:
        InputError: `content` is damaged, or an array claims more than the file can hold.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for info in archive.infolist():
                if info.file_size > _DEFLATE_LIMIT * (info.compress_size + 1):
                    raise InputError(f"{source}: {info.filename!r} claims to hold {info.file_size} bytes")
                with archive.open(info) as member:
                    arrays[info.filename.removesuffix(".npy")] = _array(member, info, source)
    except InputError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        ValueError,
        EOFError,
        OSError,
        NotImplementedError,
        RuntimeError,
    ) as e:
        raise InputError(
            f"{source} is a damaged npz file: {e}", hint="copy or download the file again"
        ) from e
    return arrays


def _array(member: Any, info: zipfile.ZipInfo, source: str) -> np.ndarray[Any, Any]:
    version = npy.read_magic(member)  # type: ignore[no-untyped-call,unused-ignore]
    if version not in _HEADERS:
        raise InputError(f"{source}: {info.filename!r} has an unknown format {version}")
    shape, fortran, dtype = _HEADERS[version](member)  # type: ignore[no-untyped-call,unused-ignore]
    if dtype.hasobject:
        raise InputError(
            f"{source}: {info.filename!r} is a pickle, which can run any code, so it is not read"
        )
    left = info.file_size - member.tell()
    if math.prod(shape) * dtype.itemsize != left:
        raise InputError(f"{source}: {info.filename!r} is {dtype}{list(shape)}, but holds {left} bytes")
    array = np.frombuffer(member.read(), dtype).copy()
    return array.reshape(shape, order="F" if fortran else "C")
