"""Resizing, and exchanging space for depth or batch."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from attar_tensorflow.tflite.liftop import Op


def _resize(op: Op, **attributes: object) -> None:
    """The size is input 1; `half_pixel_centers` and `align_corners` say how pixels lie on each other."""
    align, half = bool(op.option("align_corners")), bool(op.option("half_pixel_centers"))
    if align and half:
        raise op.refuse("corners are aligned and pixels have half centres at once")
    if op.rank(0) != 4:
        raise op.refuse("it does not have 4 axes")
    mode = "align_corners" if align else "half_pixel" if half else "asymmetric"
    height, width = op.whole(1, "its size")
    x, (batch, *_, channels) = op.real(0, first=True), op.shape(0)
    # Sizes rather than scales keep odd sizes exact. All four: ONNX Runtime misreads two with `axes`.
    if batch is not None and channels is not None:
        sizes: np.ndarray | ir.Value = np.asarray([batch, channels, height, width], np.int64)
    else:
        kept = op.emit("Slice", [op.emit("Shape", [x]), np.asarray([0]), np.asarray([2])])
        sizes = op.emit("Concat", [kept, np.asarray([height, width], np.int64)], axis=0)
    value = op.emit("Resize", [x, None, None, sizes], coordinate_transformation_mode=mode, **attributes)
    op.give(value, first=True)


def resize_bilinear(op: Op) -> None:
    _resize(op, mode="linear")


def resize_nearest(op: Op) -> None:
    """Aligned corners round halves up, the other two cut off (with half centres: after adding the half)."""
    if op.option("align_corners"):
        _resize(op, mode="nearest", nearest_mode="round_prefer_ceil")
    elif op.option("half_pixel_centers"):
        # floor((i + 0.5) * scale) is round_prefer_ceil of (i + 0.5) * scale - 0.5
        _resize(op, mode="nearest", nearest_mode="round_prefer_ceil")
    else:
        _resize(op, mode="nearest", nearest_mode="floor")


def space_to_depth(op: Op) -> None:
    op.give(op.emit("SpaceToDepth", [op.real(0, first=True)], blocksize=op.option("block_size")), first=True)


def depth_to_space(op: Op) -> None:
    value = op.emit("DepthToSpace", [op.real(0, first=True)], blocksize=op.option("block_size"), mode="DCR")
    op.give(value, first=True)


def space_to_batch(op: Op) -> None:
    """Pads, then every element of a block goes to an image of its own (TensorFlow's `SpaceToBatchND`)."""
    blocks, shape = op.whole(1, "its blocks"), op.shape(0)
    pads = op.need(2, "how much it pads").astype(np.int64)
    count = len(blocks)
    if None in shape[1:] or pads.shape != (count, 2) or count + 1 > len(shape):
        raise op.refuse("its sizes are not known")
    before, after = ([0] + [int(p[side]) for p in pads] + [0] * (len(shape) - count - 1) for side in (0, 1))
    x = op.emit("Pad", [op.real(0), np.asarray(before + after)])
    sizes = [int(d or 0) + b + a for d, b, a in zip(shape, before, after, strict=True)]
    cut = [-1]
    for size, block in zip(sizes[1 : count + 1], blocks, strict=True):
        cut += [size // block, block]
    rest = sizes[count + 1 :]
    x = op.emit("Reshape", [op.settled(x, 0), np.asarray(cut + rest)])
    inner = [2 * i + 2 for i in range(count)]
    outer = [2 * i + 1 for i in range(count)]
    tail = range(2 * count + 1, 2 * count + 1 + len(rest))
    x = op.emit("Transpose", [op.settled(x, 0)], perm=[*inner, 0, *outer, *tail])
    small = [s // b for s, b in zip(sizes[1 : count + 1], blocks, strict=True)]
    op.give(op.emit("Reshape", [op.settled(x, 0), np.asarray([-1, *small, *rest])]))


def batch_to_space(op: Op) -> None:
    """The way back, then the edges are cut off."""
    blocks, shape = op.whole(1, "its blocks"), op.shape(0)
    crops = op.need(2, "how much it cuts off").astype(np.int64)
    count = len(blocks)
    if None in shape[1:] or crops.shape != (count, 2) or count + 1 > len(shape):
        raise op.refuse("its sizes are not known")
    sizes = [int(d or 0) for d in shape[1 : count + 1]]
    rest = [int(d or 0) for d in shape[count + 1 :]]
    x = op.emit("Reshape", [op.real(0), np.asarray([*blocks, -1, *sizes, *rest])])
    mixed = [axis for i in range(count) for axis in (count + 1 + i, i)]
    tail = range(2 * count + 1, 2 * count + 1 + len(rest))
    x = op.emit("Transpose", [op.settled(x, 0)], perm=[count, *mixed, *tail])
    large = [s * b for s, b in zip(sizes, blocks, strict=True)]
    x = op.settled(op.emit("Reshape", [op.settled(x, 0), np.asarray([-1, *large, *rest])]), 0)
    ends = [n - int(c) for n, c in zip(large, crops[:, 1], strict=True)]
    op.give(op.emit("Slice", [x, crops[:, 0], np.asarray(ends), np.arange(1, count + 1)]))


LIFTINGS = {
    "RESIZE_BILINEAR": resize_bilinear,
    "RESIZE_NEAREST_NEIGHBOR": resize_nearest,
    "SPACE_TO_DEPTH": space_to_depth,
    "DEPTH_TO_SPACE": depth_to_space,
    "SPACE_TO_BATCH_ND": space_to_batch,
    "BATCH_TO_SPACE_ND": batch_to_space,
}
