"""Regions of interest and boxes."""

from __future__ import annotations

import torch
from torch.nn import functional

from attar_torch.writing.leaf import leaf


@leaf
def roi_align(  # noqa: PLR0917
    x: torch.Tensor, rois: torch.Tensor, batches: torch.Tensor, mode: str, height: int, width: int,
    ratio: int, scale: float, offset: bool,
) -> torch.Tensor:  # fmt: skip
    """ONNX RoiAlign: every box cut out of its image as `height` by `width` bins of bilinear samples."""
    shift = 0.5 if offset else 0.0
    made = []
    for box, batch in zip(rois, batches, strict=True):
        x1, y1, x2, y2 = (float(v) * scale - shift for v in box)
        wide, high = x2 - x1, y2 - y1
        if not offset:
            wide, high = max(wide, 1.0), max(high, 1.0)
        rows = ratio if ratio > 0 else max(-int(-high // height), 1)
        columns = ratio if ratio > 0 else max(-int(-wide // width), 1)
        ys = y1 + (torch.arange(height * rows, device=x.device, dtype=x.dtype) + 0.5) * (high / height / rows)
        xs = x1 + (torch.arange(width * columns, device=x.device, dtype=x.dtype) + 0.5) * (
            wide / width / columns
        )
        taken = _bilinear(x[int(batch)], ys, xs, mode == "max")
        taken = taken.reshape(x.size(1), height, rows, width, columns, -1)
        if mode == "max":
            made.append(taken.amax((2, 4, 5)))
        else:
            made.append(taken.sum(5).mean((2, 4)))
    return torch.stack(made) if made else x.new_zeros(0, x.size(1), height, width)


def _bilinear(image: torch.Tensor, ys: torch.Tensor, xs: torch.Tensor, apart: bool) -> torch.Tensor:
    """The four weighted neighbours of every point (c, y, x, 4); ONNX's maximum is taken over them apart."""
    height, width = image.shape[1:]
    sides = []
    for points, size in ((ys, height), (xs, width)):
        valid = (points >= -1) & (points <= size)
        at = points.clamp(min=0)
        low = at.floor().to(torch.int64).clamp(max=size - 1)
        high = (low + 1).clamp(max=size - 1)
        part = torch.where(low >= size - 1, low.to(at.dtype), at) - low
        sides.append((low, high, (1 - part) * valid, part * valid))
    (y0, y1, wy0, wy1), (x0, x1, wx0, wx1) = sides
    corners = []
    for yi, wy in ((y0, wy0), (y1, wy1)):
        for xi, wx in ((x0, wx0), (x1, wx1)):
            corners.append(image[:, yi][:, :, xi] * (wy.unsqueeze(1) * wx))
    return torch.stack(corners, -1) if apart else torch.stack(corners, -1).sum(-1, keepdim=True)


@leaf
def non_max_suppression(  # noqa: PLR0917
    boxes: torch.Tensor, scores: torch.Tensor, count: int, overlap: float, least: float | None, center: bool
) -> torch.Tensor:
    """ONNX NonMaxSuppression: (batch, class, box) of the boxes that are kept, the best first."""
    kept: list[list[int]] = []
    if center:
        x, y, w, h = boxes.unbind(-1)
        boxes = torch.stack([y - h / 2, x - w / 2, y + h / 2, x + w / 2], -1)
    low = torch.minimum(boxes[..., :2], boxes[..., 2:])
    high = torch.maximum(boxes[..., :2], boxes[..., 2:])
    area = (high - low).prod(-1)
    for batch in range(scores.size(0)):
        for group in range(scores.size(1)):
            score = scores[batch, group]
            order = torch.argsort(score, descending=True, stable=True).tolist()
            chosen: list[int] = []
            for index in order:
                if len(chosen) >= count or (least is not None and not float(score[index]) > least):
                    break
                if chosen:
                    near = (
                        (
                            torch.minimum(high[batch, index], high[batch, chosen])
                            - torch.maximum(low[batch, index], low[batch, chosen])
                        )
                        .clamp(min=0)
                        .prod(-1)
                    )
                    union = area[batch, index] + area[batch, chosen] - near
                    if bool(((near > 0) & (near / union > overlap)).any()):
                        continue
                chosen.append(index)
                kept.append([batch, group, index])
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


@leaf
def col2im(  # noqa: PLR0917
    x: torch.Tensor,
    shape: list[int],
    block: list[int],
    strides: list[int],
    pads: list[int],
    dilations: list[int],
) -> torch.Tensor:
    """Columns put back and added up into an image with any number of spatial axes."""
    count = len(shape)
    wide = [n + pads[k] + pads[k + count] for k, n in enumerate(shape)]
    starts = torch.zeros(1, dtype=torch.int64, device=x.device)
    taps = torch.zeros(1, dtype=torch.int64, device=x.device)
    for k in range(count):
        steps = (wide[k] - dilations[k] * (block[k] - 1) - 1) // strides[k] + 1
        at = torch.arange(steps, device=x.device) * strides[k]
        tap = torch.arange(block[k], device=x.device) * dilations[k]
        starts = (starts.unsqueeze(1) * wide[k] + at).reshape(-1)
        taps = (taps.unsqueeze(1) * wide[k] + tap).reshape(-1)
    total = 1
    for n in wide:
        total *= n
    places = (taps.unsqueeze(1) + starts).reshape(-1)
    planes = x.reshape(x.size(0), -1, places.numel())
    made = planes.new_zeros(planes.size(0), planes.size(1), total).index_add(2, places, planes)
    made = made.reshape(planes.size(0), planes.size(1), *wide)
    cut = [-n for k in range(count - 1, -1, -1) for n in (pads[k], pads[k + count])]
    return functional.pad(made, cut)
