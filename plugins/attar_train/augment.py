"""Images made more of: mirrored, shifted, mixed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

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
    """
    import torch

    some = next(iter(inputs.values()))
    order = torch.from_numpy(rng.permutation(len(some))).to(some.device)
    cut = bool(cutmix) and (not mixup or rng.random() < 0.5)
    alpha = cutmix if cut else mixup
    share = float(rng.beta(alpha, alpha))
    if not cut:
        made = {
            n: share * x + (1 - share) * x[order] if x.is_floating_point() else x for n, x in inputs.items()
        }
        return made, order, share
    made = dict(inputs)
    for name, x in inputs.items():
        if x.dim() != 4:
            continue
        tall, wide = (1, 2) if channels_last(tuple(x.shape)) else (2, 3)
        high, broad = x.shape[tall], x.shape[wide]
        side = (1 - share) ** 0.5
        y, at = int(rng.integers(high)), int(rng.integers(broad))
        top, bottom = max(0, y - int(high * side) // 2), min(high, y + int(high * side) // 2)
        left, right = max(0, at - int(broad * side) // 2), min(broad, at + int(broad * side) // 2)
        inside = torch.zeros(high, broad, dtype=torch.bool, device=x.device)
        inside[top:bottom, left:right] = True
        where = inside[None, :, :, None] if tall == 1 else inside[None, None]
        made[name] = torch.where(where, x[order], x)
        share = 1 - (bottom - top) * (right - left) / (high * broad)
    return made, order, share
