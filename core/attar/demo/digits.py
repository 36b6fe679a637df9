"""The demo's data: 1,797 handwritten digits, 8x8 pixels, in a fixed order of 1,000 + 200 + 597.

The source and the licence are in the README.md beside this file.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Literal

import numpy as np
import numpy.typing as npt

Part = Literal["train", "validation", "test"]

PARTS: dict[Part, slice] = {
    "train": slice(0, 1000),
    "validation": slice(1000, 1200),
    "test": slice(1200, 1797),
}
SCALE = 4
"""How many times the images are enlarged on reading, so that a convolution has pixels to work on."""


def digits(part: Part) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Images [n, 1, 32, 32] in [0, 1] and labels [n] in 0..9 of one part.

    The order was drawn once at random and is kept in the file, so a part is the same images everywhere. The
    test part took no part in the training or in any choice made on the way.
    """
    with files("attar.demo").joinpath("digits.npz").open("rb") as file, np.load(file) as archive:
        images, labels = archive["images"][PARTS[part]], archive["labels"][PARTS[part]]
    return enlarge(images.astype(np.float32) / 16)[:, None], labels.astype(np.int64)


def enlarge(images: npt.NDArray[np.float32], scale: int = SCALE) -> npt.NDArray[np.float32]:
    """Images [n, h, w] -> [n, scale*h, scale*w] by bilinear interpolation, pixel centres kept in place.

    The same as ONNX's Resize(mode="linear", coordinate_transformation_mode="half_pixel"): the output pixel i
    lies at (i + 0.5) / scale - 0.5 of the input, and the border is repeated outwards.
    """
    for axis in (1, 2):
        size = images.shape[axis]
        at = (np.arange(size * scale) + 0.5) / scale - 0.5
        low = np.floor(at).astype(np.int64)
        share = (at - low).astype(np.float32).reshape((-1, 1) if axis == 1 else (-1,))
        left = images.take(low.clip(0, size - 1), axis=axis)
        right = images.take((low + 1).clip(0, size - 1), axis=axis)
        images = left * (1 - share) + right * share
    return images
