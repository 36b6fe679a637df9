"""Images made more of: mirrored, shifted, mixed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from attar.errors import InputError

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, np.dtype[Any]]
_LAST = (1, 3, 4)


def channels_last(shape: tuple[int, ...]) -> bool:
    """Whether images of `shape`, four axes, have their channels last, which few of them tell."""
    return shape[3] in _LAST and shape[1] not in _LAST


def augmented(
    images: Array, rng: np.random.Generator, *, flip: bool = False, crop: int = 0, noise: float = 0.0
) -> Array:
    """Samples, each made another one.

    Args:
        flip: images (four axes) are mirrored left to right with probability one half.
        crop: images are shifted by up to so many pixels both ways, sequences (three axes) along axis 1, with
            zeros around.
        noise: normal noise is added to floats, of this share of the standard deviation of the batch.
    """
    if noise and images.dtype.kind == "f":
        drawn = rng.standard_normal(images.shape, np.float32)
        images = (images + drawn * np.float32(noise * float(images.std()))).astype(images.dtype)
    if images.ndim == 3 and crop:
        return _shifted(images, rng, crop)
    if images.ndim != 4:
        return images
    last = channels_last(images.shape)
    tall, wide = (1, 2) if last else (2, 3)
    made = images.copy()
    if flip:
        chosen = rng.random(len(images)) < 0.5
        made[chosen] = np.flip(made[chosen], axis=wide)
    if crop:
        high, broad = images.shape[tall], images.shape[wide]
        ends = [(0, 0)] * 4
        ends[tall] = ends[wide] = (crop, crop)
        padded = np.pad(made, ends)
        down, right = rng.integers(0, 2 * crop + 1, (2, len(images)))
        for i, (y, x) in enumerate(zip(down, right, strict=True)):
            part = (
                padded[i, y : y + high, x : x + broad] if last else padded[i, :, y : y + high, x : x + broad]
            )
            made[i] = part
    return made


def _shifted(rows: Array, rng: np.random.Generator, most: int) -> Array:
    padded = np.pad(rows, [(0, 0), (most, most), (0, 0)])
    starts = rng.integers(0, 2 * most + 1, len(rows))
    return np.stack([padded[i, s : s + rows.shape[1]] for i, s in enumerate(starts)])


def mixed(
    inputs: dict[str, torch.Tensor], rng: np.random.Generator, mixup: float, cutmix: float
) -> tuple[dict[str, torch.Tensor], torch.Tensor, float]:
    """A batch mixed with itself in another order.

    mixup (Zhang et al. 2018, arXiv:1710.09412): x = s x + (1 - s) x', s from Beta(alpha, alpha). CutMix (Yun
    et al. 2019, arXiv:1905.04899): a rectangle of x' in x, s being the share of x that is left. Where both
    are asked for, each has one half of the batches. Inputs that are not floats stay.

    Returns:
        The mixed inputs, the other order, and s.

    Raises:
        InputError: no input can be mixed so.
    """
    import torch

    some = next(iter(inputs.values()))
    order = torch.from_numpy(rng.permutation(len(some))).to(some.device)
    cut = bool(cutmix) and (not mixup or rng.random() < 0.5)
    alpha = cutmix if cut else mixup
    share = float(rng.beta(alpha, alpha))
    if not cut:
        if not any(x.is_floating_point() for x in inputs.values()):
            raise InputError("mixup mixes floats, and no input has any", hint="train without mixup")
        made = {
            n: share * x + (1 - share) * x[order] if x.is_floating_point() else x for n, x in inputs.items()
        }
        return made, order, share
    made, side, shares = dict(inputs), (1 - share) ** 0.5, []
    down = right = 0.0
    for name, x in inputs.items():
        if x.dim() != 4:
            continue
        tall, wide = (1, 2) if channels_last(tuple(x.shape)) else (2, 3)
        high, broad = x.shape[tall], x.shape[wide]
        if not shares:  # several images are several views of one sample: they are cut at the same place
            down, right = int(rng.integers(high)) / high, int(rng.integers(broad)) / broad
        rows, columns = _around(down, side, high), _around(right, side, broad)
        inside = torch.zeros(high, broad, dtype=torch.bool, device=x.device)
        inside[rows, columns] = True
        where = inside[None, :, :, None] if tall == 1 else inside[None, None]
        made[name] = torch.where(where, x[order], x)
        shares.append(1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (high * broad))
    if not shares:
        raise InputError("cutmix cuts images, and no input has four axes", hint="train without cutmix")
    return made, order, float(np.mean(shares))


def _around(place: float, side: float, size: int) -> slice:
    """The pixels of a rectangle along an axis of `size`: its middle and its length are shares of that."""
    middle, half = round(place * size), int(size * side) // 2
    return slice(max(0, middle - half), min(size, middle + half))
