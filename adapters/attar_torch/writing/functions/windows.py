"""Windows over spatial axes: padding, pooling in general form, deformable convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from attar_torch.writing.leaf import leaf


@leaf
def same_pads(x: torch.Tensor, spans: list[int], strides: list[int], upper: bool) -> torch.Tensor:
    """`x` padded with zeros so that windows at `strides` give ceil(size / stride) results."""
    pads: list[Any] = []
    for axis in range(len(spans) - 1, -1, -1):
        size = x.size(axis + 2)
        total = max((-(-size // strides[axis]) - 1) * strides[axis] + spans[axis] - size, 0)
        small = total // 2
        pads += [small, total - small] if upper else [total - small, small]
    return functional.pad(x, pads)


def window_pads(  # noqa: PLR0917
    x: torch.Tensor, kernel: list[int], strides: list[int], dilations: list[int], pads: list[int], ceil: bool
) -> tuple[list[Any], list[Any]]:
    """Padding on both sides of every spatial axis that makes plain windows give ONNX's number of results.

    With `ceil`, a last window may hang over the end, but none starts behind the input and its front padding.
    """
    count = len(kernel)
    begins, ends = pads[:count], []
    for axis in range(count):
        size, span = x.size(axis + 2), (kernel[axis] - 1) * dilations[axis] + 1
        room = size + pads[axis] + pads[axis + count] - span
        if ceil:
            number = -(-room // strides[axis]) + 1
            if (number - 1) * strides[axis] >= size + pads[axis]:
                number -= 1
        else:
            number = room // strides[axis] + 1
        ends.append((number - 1) * strides[axis] + span - size - pads[axis])
    return list(begins), ends


def grown(x: torch.Tensor, begins: list[Any], ends: list[Any], value: float) -> torch.Tensor:
    flat: list[Any] = []
    for axis in range(len(begins) - 1, -1, -1):
        flat += [begins[axis], ends[axis]]
    return functional.pad(x, flat, "constant", value)


@leaf
def max_pool(  # noqa: PLR0917
    x: torch.Tensor,
    kernel: list[int],
    strides: list[int],
    dilations: list[int],
    pads: list[int],
    ceil: bool,
    column_major: bool,
    want_indices: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """ONNX MaxPool in general form: the maxima and, on request, where they are in the whole tensor."""
    kind = x.dtype
    if not x.is_floating_point():  # 8-bit integers are exact in float32
        x = x.to(torch.float32)
    begins, ends = window_pads(x, kernel, strides, dilations, pads, ceil)
    pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[len(kernel) - 1]
    wide = grown(x, begins, ends, float("-inf"))
    if not want_indices:
        return pool(wide, kernel, strides, 0, dilations).to(kind), None
    made, at = pool(wide, kernel, strides, 0, dilations, return_indices=True)
    place, scale = torch.zeros_like(at), 1
    sizes = list(x.shape[2:])
    strides_of = {}
    for axis in range(len(sizes)) if column_major else range(len(sizes) - 1, -1, -1):
        strides_of[axis] = scale
        scale *= sizes[axis]
    for axis in range(len(sizes) - 1, -1, -1):
        coordinate = at % wide.size(axis + 2) - begins[axis]
        at = at // wide.size(axis + 2)
        place = place + coordinate * strides_of[axis]
    planes = torch.arange(x.size(0) * x.size(1), device=x.device).reshape(x.size(0), x.size(1))
    return made.to(kind), place + planes.reshape(x.size(0), x.size(1), *[1] * len(sizes)) * scale


def _window_sum(x: torch.Tensor, kernel: list[int], strides: list[int], dilations: list[int]) -> torch.Tensor:
    conv = (functional.conv1d, functional.conv2d, functional.conv3d)[len(kernel) - 1]
    ones = torch.ones(1, 1, *kernel, dtype=x.dtype, device=x.device)
    planes = x.reshape(x.size(0) * x.size(1), 1, *x.shape[2:])
    made = conv(planes, ones, None, tuple(strides), 0, tuple(dilations))
    return made.reshape(x.size(0), x.size(1), *made.shape[2:])


@leaf
def average_pool(  # noqa: PLR0917
    x: torch.Tensor,
    kernel: list[int],
    strides: list[int],
    dilations: list[int],
    pads: list[int],
    ceil: bool,
    include_pad: bool,
) -> torch.Tensor:
    """ONNX AveragePool in general form. What hangs over the end by `ceil` is never counted."""
    begins, ends = window_pads(x, kernel, strides, dilations, pads, ceil)
    count = len(kernel)
    counted = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
    if include_pad:
        counted = grown(counted, pads[:count], pads[count:], 1.0)
        rest = [e - p for e, p in zip(ends, pads[count:], strict=True)]
        counted = grown(counted, [0] * count, rest, 0.0)
    else:
        counted = grown(counted, begins, ends, 0.0)
    total = _window_sum(grown(x, begins, ends, 0.0), kernel, strides, dilations)
    return total / _window_sum(counted, kernel, strides, dilations)


@leaf
def lp_pool(  # noqa: PLR0917
    x: torch.Tensor,
    p: int,
    kernel: list[int],
    strides: list[int],
    dilations: list[int],
    pads: list[int],
    ceil: bool,
) -> torch.Tensor:
    """The p-norm of every window."""
    begins, ends = window_pads(x, kernel, strides, dilations, pads, ceil)
    powers = grown(x.abs() ** p, begins, ends, 0.0)
    return _window_sum(powers, kernel, strides, dilations) ** (1.0 / p)


@leaf
def max_unpool(x: torch.Tensor, indices: torch.Tensor, shape: list[Any]) -> torch.Tensor:
    """Zeros of `shape` with the elements of `x` at `indices` of the whole tensor."""
    total = 1
    for size in shape:
        total = total * size
    return x.new_zeros(total).scatter(0, indices.reshape(-1), x.reshape(-1)).reshape(shape)


@leaf
def even_lrn(x: torch.Tensor, size: int, alpha: float, beta: float, bias: float) -> torch.Tensor:
    """Local response normalization over windows of any `size`, one more behind than before if it is even."""
    square = (
        (x * x).unsqueeze(1).flatten(3).unsqueeze(-1) if x.dim() > 3 else (x * x).unsqueeze(1).unsqueeze(-1)
    )
    before, behind = (size - 1) // 2, size - 1 - (size - 1) // 2
    wide = functional.pad(square, (0, 0, 0, 0, before, behind))
    total = functional.avg_pool3d(wide, (size, 1, 1), 1).squeeze(-1).squeeze(1) * size
    return x / (bias + alpha / size * total.reshape(x.shape)) ** beta


@leaf
def deform_conv(  # noqa: PLR0917
    x: torch.Tensor,
    weight: torch.Tensor,
    offset: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    strides: list[int],
    pads: list[int],
    dilations: list[int],
    groups: int,
    offset_groups: int,
) -> torch.Tensor:
    """Deformable convolution in two dimensions: every tap reads at its own offset, bilinearly."""
    batch, channels, height, width = x.shape
    rows, columns = weight.shape[2:]
    high, wide = offset.shape[2:]
    shift = offset.reshape(batch, offset_groups, rows * columns, 2, high, wide)
    ys = torch.arange(high, device=x.device, dtype=x.dtype) * strides[0] - pads[0]
    xs = torch.arange(wide, device=x.device, dtype=x.dtype) * strides[1] - pads[1]
    taps_y = torch.arange(rows, device=x.device, dtype=x.dtype).repeat_interleave(columns) * dilations[0]
    taps_x = torch.arange(columns, device=x.device, dtype=x.dtype).repeat(rows) * dilations[1]
    at_y = shift[:, :, :, 0] + taps_y.reshape(-1, 1, 1) + ys.reshape(-1, 1)
    at_x = shift[:, :, :, 1] + taps_x.reshape(-1, 1, 1) + xs
    grid = torch.stack([(2 * at_x + 1) / width - 1, (2 * at_y + 1) / height - 1], -1)
    source = x.reshape(batch * offset_groups, channels // offset_groups, height, width)
    grid = grid.reshape(batch * offset_groups, rows * columns * high, wide, 2)
    taken = functional.grid_sample(source, grid, padding_mode="zeros", align_corners=False)
    taken = taken.reshape(batch, offset_groups, -1, rows * columns, high, wide)
    if mask is not None:
        taken = taken * mask.reshape(batch, offset_groups, 1, rows * columns, high, wide)
    taken = taken.reshape(batch, groups, channels // groups * rows * columns, high * wide)
    kernel = weight.reshape(1, groups, weight.size(0) // groups, -1)
    made = torch.matmul(kernel, taken).reshape(batch, -1, high, wide)
    return made if bias is None else made + bias.reshape(-1, 1, 1)
