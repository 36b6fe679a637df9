"""Image files as model inputs, with the preprocessing declared and not guessed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from attar.calibration.arrays import to_numpy
from attar.calibration.batch import Array
from attar.calibration.fit import kind_of
from attar.errors import InputError, did_you_mean
from attar.specs import TensorSpec

EXAMPLE = (
    "preprocess=ImagePreprocess(size=224, resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))"
)

_FILTERS = ("bilinear", "bicubic", "nearest", "lanczos", "box", "hamming")


@dataclass(frozen=True)
class ImagePreprocess:
    """How an image becomes the model's input: resize, crop, `(pixel * scale - mean) / std`, layout.

    Attributes:
        size: height and width that the model gets, one number for a square; None takes them from the model,
            and leaves images as they are where the model takes any.
        resize: before cropping, bring the shorter side to this many pixels (a pair: to exactly this height
            and width);
            None: to the smallest that covers `size`.
        crop: "center" cuts `size` out of the middle; "none" stretches the image to `size` instead.
        interpolation: bilinear, bicubic, nearest, lanczos, box or hamming.
        mean, std: one number, or one a channel in the order of `channels`, of pixels after `scale`.
        scale: factor on the pixels 0 to 255.
        layout: "NCHW" or "NHWC"; None: as the model's input says.
        channels: "RGB", "BGR" or "L" (grey).
        dtype: of the result; None: the model's.

    Raises:
        InputError: an option has a value that it cannot take.
    """

    size: tuple[int, int] | int | None = None
    resize: tuple[int, int] | int | None = None
    crop: str = "center"
    interpolation: str = "bilinear"
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    scale: float = 1 / 255
    layout: str | None = None
    channels: str = "RGB"
    dtype: str | None = None

    def __post_init__(self) -> None:
        for name in ("size", "resize", "mean", "std"):  # lists come from TOML and JSON
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        choices = {"crop": ("center", "none"), "interpolation": _FILTERS, "channels": ("RGB", "BGR", "L")}
        for name, allowed in {**choices, "layout": ("NCHW", "NHWC", None)}.items():
            value = getattr(self, name)
            if value not in allowed:
                hint = "one of " + ", ".join(map(repr, allowed))
                raise InputError(f"ImagePreprocess: {name}={value!r} is not known", hint=hint)
        for name in ("size", "resize"):
            _pair(getattr(self, name), name)
        for name in ("mean", "std"):
            try:
                values = np.atleast_1d(np.asarray(getattr(self, name), dtype=np.float64))
            except (TypeError, ValueError):
                values = np.zeros(0)
            if values.size not in (1, len(self.channels)) or not np.isfinite(values).all():
                raise InputError(
                    f"ImagePreprocess: {name} must be one number or one for each of {self.channels}"
                )
            if name == "std" and (values == 0).any():
                raise InputError("ImagePreprocess: std must not be 0")
        if (
            isinstance(self.scale, bool)
            or not isinstance(self.scale, int | float)
            or not 0 < self.scale < 1e9
        ):
            raise InputError(f"ImagePreprocess: scale={self.scale!r} must be a positive number")
        try:
            np.dtype(self.dtype)
        except TypeError:
            raise InputError(f"ImagePreprocess: dtype={self.dtype!r} is not known") from None
        if self.crop == "none" and self.resize is not None:
            raise InputError('ImagePreprocess: resize has no use with crop="none"', hint="give size alone")

    def bind(self, spec: TensorSpec) -> Callable[[Any], Array]:
        """A function from a PIL image to one sample for `spec`, `[C, H, W]` or `[H, W, C]`.

        Raises:
            InputError: the spec is not that of images, or contradicts the options.
        """
        if spec.shape is not None and len(spec.shape) != 4:
            raise InputError(f"images cannot be fed to {spec}", hint="an image input has 4 dimensions")
        layout = self.layout or _guess_layout(spec)
        axes = (1, 2, 3) if layout == "NCHW" else (3, 1, 2)
        dims = (None, None, None) if spec.shape is None else tuple(spec.shape[a] for a in axes)
        count = len(self.channels)
        if isinstance(dims[0], int) and dims[0] != count:
            raise InputError(
                f"channels={self.channels!r} gives {count} channels, the model takes {spec} ({layout})",
                hint='grey images are channels="L"'
                if dims[0] == 1
                else "declare layout= and channels= as the model wants",
            )
        size = _pair(self.size, "size")
        if size is None and isinstance(dims[1], int) and isinstance(dims[2], int):
            size = (dims[1], dims[2])
        dtype = np.dtype(self.dtype) if self.dtype else spec.dtype

        def read(image: Any) -> Array:
            pixels = np.asarray(self._place(_eight_bit(image, self.channels), size))
            pixels = pixels.reshape(*pixels.shape[:2], count)
            if self.channels == "BGR":
                pixels = pixels[..., ::-1]
            array = self._normalize(pixels, dtype)
            return np.ascontiguousarray(array.transpose(2, 0, 1) if layout == "NCHW" else array)

        return read

    def _place(self, image: Any, size: tuple[int, int] | None) -> Any:
        from PIL import Image

        method = Image.Resampling[self.interpolation.upper()]
        width, height = image.size
        resize = self.resize
        if self.crop == "none" and size is not None:
            return image.resize((size[1], size[0]), method)
        if isinstance(resize, tuple):
            height, width = resize
        else:
            if resize is not None:
                ratio = resize / min(height, width)
            elif size is not None:
                ratio = max(size[0] / height, size[1] / width)
            else:
                return image
            least = size if resize is None and size is not None else (1, 1)
            # The longer side is rounded down, as the usual training pipelines do; 1e-9 undoes float noise.
            height, width = (
                max(low, int(d * ratio + 1e-9)) for d, low in zip((height, width), least, strict=True)
            )
        if (width, height) != image.size:
            image = image.resize((width, height), method)
        if size is None or (height, width) == size:
            return image
        if size[0] > height or size[1] > width:
            raise InputError(
                f"a crop of {list(size)} does not fit an image resized to {[height, width]}",
                hint="resize must be at least size",
            )
        top, left = round((height - size[0]) / 2), round((width - size[1]) / 2)
        return image.crop((left, top, left + size[1], top + size[0]))

    def _normalize(self, pixels: Array, dtype: np.dtype[Any]) -> Array:
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        whole = kind_of(dtype) in "iu"
        untouched = self.scale == 1 and not mean.any() and bool((std == 1).all())
        if untouched and not (whole and np.iinfo(dtype).max < 255):
            return np.asarray(pixels, dtype)
        values = (pixels.astype(np.float32) * np.float32(self.scale) - mean) / std
        if not whole:
            return np.asarray(values, dtype)
        values = np.rint(values)
        info = np.iinfo(dtype)
        # The extremes that the options can give, not those of this image: an error should not depend on the
        # picture.
        ends = np.rint((np.array([[0.0], [255.0]]) * self.scale - mean) / std) + 0.0  # no -0
        if ends.min() < info.min or ends.max() > info.max or ends.max() - ends.min() < 2:
            raise InputError(
                f"the model takes {dtype} pixels, the options give {ends.min():g} to {ends.max():g}",
                hint="for raw pixels set scale=1",
            )
        return np.asarray(values.astype(dtype))


def as_preprocess(preprocess: Any, spec: TensorSpec) -> Callable[[Any], Array]:
    """A function from a PIL image to a sample, from an `ImagePreprocess`, a dict of its options, or any
    callable.

    Raises:
        InputError: it is none of them, or an option is wrong.
    """
    if isinstance(preprocess, Mapping):
        known = [f.name for f in fields(ImagePreprocess)]
        for option in preprocess:
            if option not in known:
                raise InputError(
                    f"preprocess: unknown option {option!r}", hint=did_you_mean(str(option), known)
                )
        preprocess = ImagePreprocess(**preprocess)
    if isinstance(preprocess, ImagePreprocess):
        return preprocess.bind(spec)
    if not callable(preprocess):
        raise InputError(
            f"preprocess must be ImagePreprocess, a dict or a callable, not {type(preprocess).__name__}"
        )

    def read(image: Any) -> Array:
        array = to_numpy(preprocess(image), "what preprocess returned")
        # Pipelines made for one picture often end with the batch axis already there.
        batch_of_one = spec.shape is not None and array.ndim == len(spec.shape) and array.shape[:1] == (1,)
        return array[0] if batch_of_one else array

    return read


def _eight_bit(image: Any, channels: str) -> Any:
    if image.mode.startswith("I") or image.mode == "F":
        raise InputError(
            f"the image has mode {image.mode!r}, not 8 bits a channel", hint="convert it, or give a callable"
        )
    return image.convert("L" if channels == "L" else "RGB")


def _guess_layout(spec: TensorSpec) -> str:
    first, last = (None, None) if spec.shape is None else (spec.shape[1], spec.shape[3])
    is_first, is_last = first in (1, 3), last in (1, 3)
    if is_first == is_last:
        raise InputError(
            f"the layout of {spec} cannot be told", hint='declare layout="NCHW" or layout="NHWC"'
        )
    return "NCHW" if is_first else "NHWC"


def _pair(value: Any, name: str) -> tuple[int, int] | None:
    if value is None:
        return None
    pair = value if isinstance(value, tuple) else (value, value)
    if len(pair) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in pair):
        raise InputError(
            f"ImagePreprocess: {name}={value!r} must be a positive number of pixels or (height, width)"
        )
    return pair[0], pair[1]
