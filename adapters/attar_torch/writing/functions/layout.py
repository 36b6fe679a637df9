"""Moving elements where torch says it otherwise than ONNX."""

from __future__ import annotations

from typing import Any

import torch

from attar_torch.writing.leaf import leaf


@leaf
def reversed_slice(x: torch.Tensor, axis: int, start: int, end: int, step: int) -> torch.Tensor:
    """`x[start:end:step]` along `axis` for a negative step."""
    size = x.size(axis)
    first = min(start, size - 1) if start >= 0 else start + size
    last = max(min(end, size - 1), -1) if end >= 0 else max(end + size, -1)
    if first < 0:
        return x.narrow(axis, 0, 0)
    flipped = x.flip([axis])
    index = [slice(None)] * x.dim()
    index[axis] = slice(size - 1 - first, max(size - 1 - last, size - 1 - first), -step)
    return flipped[tuple(index)]


@leaf
def broadcast(x: torch.Tensor, shape: list[Any]) -> torch.Tensor:
    """ONNX Expand: numpy's broadcasting of `x` against `shape`, in both directions."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(shape)))


@leaf
def tile(x: torch.Tensor, repeats: list[Any]) -> torch.Tensor:
    """`x` repeated along every axis."""
    return x.repeat(repeats) if repeats else x


@leaf
def pad_edges(x: torch.Tensor, mode: str, pads: list[list[int]]) -> torch.Tensor:
    """Pad by what is in `x`: "edge" repeats the border, "reflect" mirrors at it, "wrap" goes round.

    Args:
        pads: (before, behind) of every axis; negative numbers cut.
    """
    for axis, (before, behind) in enumerate(pads):
        if before == 0 and behind == 0:
            continue
        size = x.size(axis)
        at = torch.arange(-before, size + behind, device=x.device)
        if mode == "edge":
            at = at.clamp(0, size - 1)
        elif mode == "wrap":
            at = at.remainder(size)
        else:
            period = max(2 * (size - 1), 1)
            at = at.remainder(period)
            at = torch.where(at < size, at, period - at)
        x = x.index_select(axis, at)
    return x


@leaf
def column_major(x: torch.Tensor, block: int) -> torch.Tensor:
    """Channels of DepthToSpace in mode DCR in the order that `pixel_shuffle` wants."""
    size = x.size(1) // (block * block)
    return x.unflatten(1, (block * block, size)).transpose(1, 2).flatten(1, 2)


@leaf
def space_to_depth(x: torch.Tensor, block: int) -> torch.Tensor:
    """ONNX SpaceToDepth: (n, c, h, w) to (n, block * block * c, h / block, w / block)."""
    made = torch.pixel_unshuffle(x, block)
    return made.unflatten(1, (x.size(1), block * block)).transpose(1, 2).flatten(1, 2)
