"""Fit one array to the spec of one input: element type, rank, dimensions, and that all of it is finite."""

from __future__ import annotations

import numpy as np

from attar.calibration.batch import Array
from attar.errors import InputError
from attar.specs import TensorSpec


def fit_dtype(array: Array, spec: TensorSpec, where: str) -> Array:
    """`array` in the dtype of `spec`; the same object if it has it already.

    Floats are rounded to other floats if they stay finite; integers and booleans become floats or other
    integers if every value is kept exactly. Floats never become integers.

    Raises:
        InputError: the conversion would change values, or `array` is neither numeric nor what the spec asks
            for.
    """
    target = spec.dtype
    if array.dtype == target:
        return array
    have, want = kind_of(array.dtype), kind_of(target)
    if want == "O":  # strings in ONNX; untyped inputs take what comes
        return array.astype(object) if have == "U" else array
    if have == "f" and want == "f":
        with np.errstate(over="ignore"):
            out = array.astype(target)
        if not all_finite(out) and all_finite(array):
            raise InputError(
                f"{where}: values of {array.dtype} are too large for {target}", hint=f"the model takes {spec}"
            )
        return out
    if have in "iub" and want in "iubf" and array.size:
        # The 4-bit types have no min of their own.
        plain = array.astype(np.int8) if array.dtype.kind == "V" else array
        low, high = int(plain.min()), int(plain.max())
        least, most = _exact_range(target)
        if low < least or high > most:
            raise InputError(
                f"{where}: {array.dtype} values from {low} to {high} do not fit {target} exactly",
                hint=f"the model takes {spec}; convert the data yourself if that is meant",
            )
        return array.astype(target)
    if have in "iub" and want in "iubf":
        return array.astype(target)
    hint = f"the model takes {spec}"
    if have == "f" and want in "iu":
        hint += "; were the data normalized although the model takes raw integers?"
    raise InputError(f"{where}: {array.dtype} cannot be fed to an input of {target}", hint=hint)


def check_finite(array: Array, where: str) -> None:
    """Raise `InputError` if `array` holds NaN or infinity."""
    if all_finite(array):
        return
    wide = array.astype(np.float64).reshape(-1)
    bad = np.flatnonzero(~np.isfinite(wide))
    spot = tuple(int(i) for i in np.unravel_index(bad[0], array.shape))
    raise InputError(
        f"{where}: {bad.size} of {wide.size} values are NaN or infinite, first {wide[bad[0]]} at {spot}",
        hint="look at the preprocessing: a division by zero, a log of zero, a missing value",
    )


def all_finite(array: Array) -> bool:
    """Whether a float array has no NaN and no infinity; True for other dtypes. One pass and no temporary as a
    rule."""
    if kind_of(array.dtype) != "f":
        return True
    if array.dtype.kind != "f":  # bfloat16 and float8: numpy's reductions do not know them
        array = array.astype(np.float32)
    # NaN and infinity survive a sum. The converse fails when a sum of large numbers overflows: then look at
    # each.
    with np.errstate(over="ignore", invalid="ignore"):
        total = array.sum(dtype=np.float32 if array.dtype.itemsize < 4 else array.dtype)
    return bool(np.isfinite(total)) or bool(np.isfinite(array).all())


def check_shape(array: Array, spec: TensorSpec, where: str, *, free_batch: bool) -> None:
    """Check rank and fixed dimensions; `free_batch` leaves axis 0 to the re-batching.

    Raises:
        InputError: with the expected spec and, for images in the other layout, a hint that says so.
    """
    if spec.shape is None:
        return
    got = tuple(array.shape)
    if _matches(got, spec, free_batch):
        return
    hint = None
    if len(got) == len(spec.shape) >= 3:
        last = len(got) - 1
        moved = {
            "channels last (NHWC)": (
                (got[0], got[last], *got[1:last]),
                (0, last, *range(1, last)),
                "first (NCHW)",
            ),
            "channels first (NCHW)": ((got[0], *got[2:], got[1]), (0, *range(2, last + 1), 1), "last (NHWC)"),
        }
        for layout, (shape, axes, wanted) in moved.items():
            if _matches(shape, spec, free_batch):
                hint = (
                    f"these are {layout}, the model takes channels {wanted}: array.transpose{axes} turns them"
                )
                break
    raise InputError(f"{where}: got shape {list(got)}, expected {spec}", hint=hint)


def _matches(shape: tuple[int, ...], spec: TensorSpec, free_batch: bool) -> bool:
    assert spec.shape is not None
    if len(shape) != len(spec.shape):
        return False
    pairs = list(zip(shape, spec.shape, strict=True))[1 if free_batch else 0 :]
    return all(not isinstance(want, int) or want == have for have, want in pairs)


def kind_of(dtype: np.dtype[np.generic]) -> str:
    """f(loat), i(nt), u(nsigned), b(ool), U (text), O(bject) or another numpy kind; knows the small ML
    types."""
    name = dtype.name
    if name.startswith(("float", "bfloat")):
        return "f"
    if dtype.kind == "V":
        return {"int": "i", "uin": "u"}.get(name[:3], "V")
    return "U" if dtype.kind == "S" else dtype.kind


def _exact_range(dtype: np.dtype[np.generic]) -> tuple[int, int]:
    """The integers that `dtype` holds without gaps."""
    name, kind = dtype.name, kind_of(dtype)
    if kind == "b":
        return 0, 1
    if kind == "f":
        # p significand bits: every integer up to 2^p is exact.
        bits = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}.get(name, 3)
        return -(2**bits), 2**bits
    if dtype.kind in "iu":
        info = np.iinfo(dtype.str)
        return int(info.min), int(info.max)
    width = int("".join(c for c in name if c.isdigit()))
    return (0, 2**width - 1) if kind == "u" else (-(2 ** (width - 1)), 2 ** (width - 1) - 1)
