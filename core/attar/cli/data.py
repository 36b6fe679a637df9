"""Options for data: where it is, and how images become arrays."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from attar.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

F = TypeVar("F", bound=Callable[..., Any])


class Size(click.ParamType[Any]):
    """`224`, or height and width as `240x320`."""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        match = re.fullmatch(r"(\d+)(?:x(\d+))?", str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r} is no size: write 224 or 240x320", param, ctx)
        height, width = match.groups()
        return int(height) if width is None else (int(height), int(width))


class Numbers(click.ParamType[Any]):
    """`0.5`, `1/255`, or one number a channel: `0.485,0.456,0.406`."""

    name = "X[,Y,Z]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, float | tuple):
            return value
        try:
            numbers = tuple(_number(part) for part in str(value).split(","))
        except (ValueError, ZeroDivisionError):
            self.fail(f"{value!r} is no number: write 0.5, 1/255 or 0.485,0.456,0.406", param, ctx)
        return numbers[0] if len(numbers) == 1 else numbers


def _number(text: str) -> float:
    above, slash, below = text.partition("/")
    return float(above) / float(below) if slash else float(above)


_IMAGE_OPTIONS = (
    ("size", Size(), "Height and width that the model gets; taken from the model if it says."),
    ("resize", Size(), "Before cropping, bring the shorter side to this."),
    ("crop", click.Choice(["center", "none"]), "Cut the size out of the middle, or stretch to it."),
    (
        "interpolation",
        click.Choice(["bilinear", "bicubic", "nearest", "lanczos", "box", "hamming"]),
        "How to resize.",
    ),
    ("mean", Numbers(), "Subtracted after scaling; one number, or one a channel."),
    ("std", Numbers(), "Divided by; one number, or one a channel."),
    ("scale", Numbers(), "Factor on pixels from 0 to 255; 1/255 if not given."),
    ("layout", click.Choice(["NCHW", "NHWC"]), "Where the channels are; taken from the model if it says."),
    ("channels", click.Choice(["RGB", "BGR", "L"]), "Order of colours; L is grey."),
)


def preprocess_options(function: F) -> F:
    """--preprocess and --image-*; the command takes them as `**image` and asks `preprocess(image)`."""
    for name, kind, text in reversed(_IMAGE_OPTIONS):
        function = click.option(f"--image-{name}", f"image_{name}", type=kind, help=text)(function)
    return click.option(
        "--preprocess",
        "preprocess_file",
        type=click.Path(path_type=Path),
        help="TOML file with the same options (size = 224, ...); --image-* options go before it.",
    )(function)


def data_option(flag: str, name: str, text: str, *, required: bool = False) -> Callable[[F], F]:
    """A path to data: .npz, .npy or a folder of images."""
    return click.option(
        flag,
        name,
        type=click.Path(),
        required=required,
        help=f"{text} An .npz or .npy file or a folder of images.",
    )


def preprocess(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Options of `attar.calibration.ImagePreprocess` from what was given, None if nothing was.

    Raises:
        InputError: the file of --preprocess is missing or not TOML.
    """
    file: Path | None = given.get("preprocess_file")
    options = {} if file is None else _read(file)
    for name, _, _ in _IMAGE_OPTIONS:
        value = given.get(f"image_{name}")
        if value is not None:
            options[name] = value
    return options or None


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, or not TOML
        raise InputError(f"{file} is no TOML: {error}", hint="write lines such as size = 224") from error


def first_batch(path: str, model: ir.Model) -> dict[str, np.ndarray[Any, Any]]:
    """The first batch of the data at `path`, fitted to the model's inputs.

    Raises:
        InputError: the data cannot be read or do not fit.
    """
    from attar.calibration import as_data
    from attar.specs import input_specs

    return as_data(path, input_specs(model)).first().inputs
