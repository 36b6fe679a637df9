"""The arithmetic of sliding windows: padding, output sizes, ONNX's `auto_pad` and `ceil_mode`."""

from __future__ import annotations

from dataclasses import dataclass

from attar_tensorflow.writing.context import View


@dataclass(frozen=True)
class Window:
    """The window of a convolution or pooling over `rank` spatial axes.

    Attributes:
        kernel, strides, dilations: one number an axis.
        pads: (before, after) an axis, without what `ceil_mode` adds; None where `same` says it.
        same: padded as TensorFlow's "SAME", which is ONNX's SAME_UPPER; used where sizes are not known.
        ceil: whether sizes are rounded up.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...] | None
    same: bool = False
    ceil: bool = False

    @property
    def reach(self) -> tuple[int, ...]:
        """Elements from the first to the last tap."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def plain(self) -> bool:
        """Nothing is padded."""
        return self.pads is not None and not any(map(any, self.pads))

    def output(self, sizes: list[int]) -> list[int]:
        """Sizes of the output for these input sizes."""
        out = []
        for i, size in enumerate(sizes):
            before, after = self.pads[i] if self.pads is not None else (0, 0)
            room = size + before + after - self.reach[i]
            steps = room // self.strides[i] + 1
            if self.ceil and room % self.strides[i]:
                # A window that starts in the padding after the end is left out.
                steps += (steps * self.strides[i]) < size + before
            out.append(steps)
        return out

    def beyond(self, sizes: list[int]) -> list[int]:
        """How far the last window reaches beyond the padded input, which only `ceil_mode` causes."""
        far = []
        for i, (size, out) in enumerate(zip(sizes, self.output(sizes), strict=True)):
            before, after = self.pads[i] if self.pads is not None else (0, 0)
            far.append(max((out - 1) * self.strides[i] + self.reach[i] - (size + before + after), 0))
        return far


def window_of(view: View, kernel: tuple[int, ...], sizes: list[int | None]) -> Window:
    """The window of a convolution or pooling node; refused where padding depends on sizes that are unknown.

    Args:
        sizes: spatial sizes of the input, None where unknown.
    """
    rank = len(kernel)
    strides = tuple(view.attr("strides") or [1] * rank)
    dilations = tuple(view.attr("dilations") or [1] * rank)
    ceil = bool(view.attr("ceil_mode", 0))
    auto = view.attr("auto_pad", "NOTSET") or "NOTSET"
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if auto == "VALID":
        return Window(kernel, strides, dilations, ((0, 0),) * rank, ceil=ceil)
    if auto == "NOTSET":
        flat = view.attr("pads") or [0] * (2 * rank)
        pads = tuple((flat[i], flat[i + rank]) for i in range(rank))
        same = not ceil and _is_same(pads, strides, reach, sizes)
        return Window(kernel, strides, dilations, pads, same=same, ceil=ceil)
    pads = []
    for size, stride, length in zip(sizes, strides, reach, strict=True):
        if size is None and stride > 1:
            if auto == "SAME_UPPER":
                return Window(kernel, strides, dilations, None, same=True)
            raise view.refuse("SAME_LOWER padding of sizes that are known only while the model runs")
        total = length - 1 if size is None else max((-(-size // stride) - 1) * stride + length - size, 0)
        small, large = total // 2, total - total // 2
        pads.append((small, large) if auto == "SAME_UPPER" else (large, small))
    return Window(kernel, strides, dilations, tuple(pads), same=auto == "SAME_UPPER")


def _is_same(
    pads: tuple[tuple[int, int], ...], strides: tuple[int, ...], reach: list[int], sizes: list[int | None]
) -> bool:
    """Whether these explicit pads are what TensorFlow's "SAME" comes to."""
    for (before, after), stride, length, size in zip(pads, strides, reach, sizes, strict=True):
        if size is None and stride > 1:
            return False
        total = length - 1 if size is None else max((-(-size // stride) - 1) * stride + length - size, 0)
        if (before, after) != (total // 2, total - total // 2):
            return False
    return True
