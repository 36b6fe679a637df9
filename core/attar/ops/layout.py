"""Channel flow of operators that move elements: Transpose, Reshape, Concat, Split, Slice, Gather, Pad and the
like."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import onnx_ir as ir

from attar.ops.rule import AxisLink
from attar.ops.shapes import (
    Dim,
    alike,
    axes_of,
    axis_of,
    constant_ints,
    in_dims,
    input_at,
    int_of,
    ints_of,
    out_dims,
    rank_of,
    string_of,
)


def transpose(node: ir.Node) -> list[AxisLink]:
    """Output axis k is input axis perm[k]; without perm the order is reversed."""
    rank = rank_of(node)
    if rank is None:
        return []
    perm = ints_of(node, "perm") or tuple(reversed(range(rank)))
    return [AxisLink(0, a, 0, k) for k, a in enumerate(perm)]


def reshape(node: ir.Node) -> list[AxisLink]:
    """Reshape and Flatten, from the shapes alone: see `reshape_links`."""
    shape, out = in_dims(node, 0), out_dims(node)
    return [] if shape is None or out is None else reshape_links(shape, out)


def reshape_links(shape: tuple[Dim, ...], out: tuple[Dim, ...]) -> list[AxisLink]:
    """Links of a row-major reshape from `shape` to `out`.

    Both are cut into runs of axes of equal product, from the left while dimensions are known, then from the
    right. Inside a run, let an input axis have a indices at stride s and an output axis b at stride t. Both
    show digits of
    the same linear index e: (e // s) % a and (e // t) % b. They share the digits between lo = max(s, t) and
    hi = min(s*a, t*b); if these bounds divide evenly, (i // (lo/s)) % (hi/lo) == (o // (lo/t)) % (hi/lo).
    """
    links: list[AxisLink] = []
    i = o = 0
    while i < len(shape) and o < len(out):  # from the left
        step = _run(shape[i:], out[o:])
        if step is None:
            break
        links += _run_links(shape[i : i + step[0]], out[o : o + step[1]], i, o)
        i, o = i + step[0], o + step[1]
    else:
        return links
    end, last = len(shape), len(out)
    while end > i and last > o:  # from the right, over what is left
        step = _run(shape[i:end][::-1], out[o:last][::-1])
        if step is None:
            break
        end, last = end - step[0], last - step[1]
        links += _run_links(shape[end : end + step[0]], out[last : last + step[1]], end, last)
    return links


def _run(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> tuple[int, int] | None:
    """Lengths of the shortest prefixes of equal product; None if unknown dimensions come in the way."""
    if alike(a[0], b[0]):
        return 1, 1
    product, count = [1, 1], [0, 0]
    sides = (a, b)
    while count == [0, 0] or product[0] != product[1]:
        side = 0 if product[0] <= product[1] and count[0] < len(a) else 1
        if count[side] >= len(sides[side]):
            return None
        dim = sides[side][count[side]]
        if not isinstance(dim, int) or dim == 0:
            return None
        product[side] *= dim
        count[side] += 1
        if 0 in count:
            continue
    return (count[0], count[1]) if 0 not in count else None


def _run_links(a: tuple[Dim, ...], b: tuple[Dim, ...], i: int, o: int) -> list[AxisLink]:
    if len(a) == 1 and len(b) == 1:
        return [AxisLink(0, i, 0, o)]
    left, right = [int(d or 0) for d in a], [int(d or 0) for d in b]
    links = []
    for j, (size, s) in enumerate(zip(left, _strides(left), strict=True)):
        for k, (width, t) in enumerate(zip(right, _strides(right), strict=True)):
            lo, hi = max(s, t), min(s * size, t * width)
            if hi <= lo or lo % s or lo % t or hi % lo or (s * size) % hi or (t * width) % hi:
                continue
            if size == width and s == t:
                links.append(AxisLink(0, i + j, 0, o + k))
            else:
                links.append(
                    AxisLink(0, i + j, 0, o + k, "block", hi // lo, in_inner=lo // s, out_inner=lo // t)
                )
    return links


def _strides(shape: list[int]) -> list[int]:
    return [1, *accumulate(reversed(shape[1:]), lambda x, y: x * y)][::-1]


def squeeze(node: ir.Node) -> list[AxisLink]:
    shape = in_dims(node, 0)
    if shape is None:
        return []
    axes = axes_of(node, len(shape))
    if axes is None:
        return []
    if not axes:
        if any(not isinstance(d, int) for d in shape):
            return []
        axes = tuple(a for a, d in enumerate(shape) if d == 1)
    stay = [a for a in range(len(shape)) if a not in axes]
    return [AxisLink(0, a, 0, k) for k, a in enumerate(stay)]


def unsqueeze(node: ir.Node) -> list[AxisLink]:
    rank = rank_of(node)
    if rank is None:
        return []
    given = constant_ints(node, 1) if input_at(node, 1) is not None else ints_of(node, "axes")
    if given is None:
        return []
    new = rank + len(given)
    axes = {a % new for a in given}
    return [AxisLink(0, a, 0, k) for a, k in enumerate(k for k in range(new) if k not in axes)]


def concat(node: ir.Node) -> list[AxisLink]:
    """Input k lands on the joined axis behind the inputs before it."""
    out = out_dims(node)
    if out is None:
        return []
    axis, start = axis_of(node, 0, len(out)), 0
    offset: int | None = start
    links = []
    for index in range(len(node.inputs)):
        shape = in_dims(node, index)
        if shape is None:
            offset = None
            continue
        links += [AxisLink(index, a, 0, a) for a in range(len(shape)) if a != axis]
        length = shape[axis]
        if not isinstance(length, int):
            offset = None
        if offset is not None and isinstance(length, int):
            links.append(AxisLink(index, axis, 0, axis, "part", length, out_start=offset))
            offset += length
    return links


def split(node: ir.Node) -> list[AxisLink]:
    """Output k is the piece behind the outputs before it; lengths come from the inferred shapes."""
    shape = in_dims(node, 0)
    if shape is None:
        return []
    axis = axis_of(node, 0, len(shape))
    links = [AxisLink(0, a, o, a) for o in range(len(node.outputs)) for a in range(len(shape)) if a != axis]
    start = 0
    for o in range(len(node.outputs)):
        out = out_dims(node, o)
        length = None if out is None else out[axis]
        if not isinstance(length, int):
            break
        links.append(AxisLink(0, axis, o, axis, "part", length, in_start=start))
        start += length
    return links


def slice_(node: ir.Node) -> list[AxisLink]:
    """Axes that are not cut go on whole; cut ones need constant bounds and a known length."""
    shape = in_dims(node, 0)
    starts, ends = constant_ints(node, 1), constant_ints(node, 2)
    if shape is None:
        return []
    axes = constant_ints(node, 3) if input_at(node, 3) is not None else tuple(range(len(starts or ())))
    steps = constant_ints(node, 4) if input_at(node, 4) is not None else (1,) * len(axes or ())
    if axes is None or (not axes and starts is None):
        return []
    cut = {a % len(shape): k for k, a in enumerate(axes)}
    links = [AxisLink(0, a, 0, a) for a in range(len(shape)) if a not in cut]
    if starts is None or ends is None or steps is None:
        return links
    for a, k in cut.items():
        length = shape[a]
        if (starts[k], steps[k]) == (0, 1) and ends[k] >= (length if isinstance(length, int) else 2**31 - 1):
            links.append(AxisLink(0, a, 0, a))
        elif isinstance(length, int):
            chosen = range(length)[slice(starts[k], _end(ends[k], steps[k], length), steps[k])]
            if steps[k] > 0:
                links.append(
                    AxisLink(0, a, 0, a, "part", len(chosen), in_start=chosen.start, in_step=steps[k])
                )
            else:
                links.append(AxisLink(0, a, 0, a, "pick", indices=tuple(chosen)))
    return links


def _end(end: int, step: int, length: int) -> int | None:
    """ONNX counts an end before -length, stepping backwards, as "through index 0"; Python spells that
    None."""
    return None if step < 0 and end < -length else end


def gather(node: ir.Node) -> list[AxisLink]:
    """The gathered axis gives way to the axes of the indices; constant indices in one row are a pick."""
    shape, where = in_dims(node, 0), in_dims(node, 1)
    if shape is None or where is None:
        return []
    axis, wide = axis_of(node, 0, len(shape)), len(where)
    links = [AxisLink(0, a, 0, a if a < axis else a + wide - 1) for a in range(len(shape)) if a != axis]
    links += [AxisLink(1, k, 0, axis + k) for k in range(wide)]
    chosen, length = constant_ints(node, 1), shape[axis]
    if chosen is not None and wide == 1 and isinstance(length, int):
        indices = tuple(i + length if i < 0 else i for i in chosen)
        links.append(AxisLink(0, axis, 0, axis, "pick", indices=indices))
    return links


def expand(node: ir.Node) -> list[AxisLink]:
    from attar.ops.elementwise import aligned

    return aligned(node, [0])


def tile(node: ir.Node) -> list[AxisLink]:
    """Output index o repeats input index o % length."""
    shape, repeats = in_dims(node, 0), constant_ints(node, 1)
    if shape is None or repeats is None:
        return []
    links = []
    for a, (length, times) in enumerate(zip(shape, repeats, strict=True)):
        if times == 1:
            links.append(AxisLink(0, a, 0, a))
        elif isinstance(length, int) and length and times:
            links.append(AxisLink(0, a, 0, a, "block", length))
    return links


def pad_amounts(node: ir.Node, rank: int) -> tuple[list[int], list[int]] | None:
    """(begins, ends) for every axis of a Pad with constant amounts; None if they are not constant."""
    pads = constant_ints(node, 1) if input_at(node, 1) is not None else ints_of(node, "pads")
    if pads is None:
        return None
    axes: tuple[int, ...] | None = tuple(range(rank))
    if input_at(node, 3) is not None:
        axes = constant_ints(node, 3)
    if axes is None or len(pads) != 2 * len(axes):
        return None
    begins, ends = [0] * rank, [0] * rank
    for k, a in enumerate(axes):
        begins[a % rank], ends[a % rank] = pads[k], pads[k + len(axes)]
    return begins, ends


def pad(node: ir.Node) -> list[AxisLink]:
    """Constant padding shifts an axis; edge, reflect and wrap pick indices, which numpy's own `pad` tells."""
    shape = in_dims(node, 0)
    amounts = None if shape is None else pad_amounts(node, len(shape))
    if shape is None or amounts is None:
        return []
    mode, links = string_of(node, "mode", "constant"), []
    for a, (length, before, after) in enumerate(zip(shape, *amounts, strict=True)):
        if before == after == 0:
            links.append(AxisLink(0, a, 0, a))
        elif not isinstance(length, int):
            continue
        elif mode == "constant":
            cut = max(-before, 0)
            size = length - cut - max(-after, 0)
            links.append(AxisLink(0, a, 0, a, "part", size, in_start=cut, out_start=max(before, 0)))
        elif before >= 0 and after >= 0:
            picked = np.pad(np.arange(length), (before, after), mode=mode)  # type: ignore[call-overload]
            links.append(AxisLink(0, a, 0, a, "pick", indices=tuple(int(v) for v in picked)))
    return links


def depth_to_space(node: ir.Node) -> list[AxisLink]:
    """[N, C*b*b, H, W] -> [N, C, H*b, W*b]. DCR: channel i = k*C + c; CRD: i = c*b*b + k."""
    shape, b = in_dims(node, 0), int_of(node, "blocksize", 1)
    links = [AxisLink(0, 0, 0, 0)]
    if shape is None or len(shape) != 4:
        return []
    if isinstance(shape[1], int):
        channels = shape[1] // (b * b)
        inner = b * b if string_of(node, "mode", "DCR") == "CRD" else 1
        links.append(AxisLink(0, 1, 0, 1, "block", channels, in_inner=inner))
    return links + _scaled_plane(shape, b, grow=True)


def space_to_depth(node: ir.Node) -> list[AxisLink]:
    """[N, C, H, W] -> [N, b*b*C, H/b, W/b], output channel k*C + c."""
    shape, b = in_dims(node, 0), int_of(node, "blocksize", 1)
    if shape is None or len(shape) != 4:
        return []
    links = [AxisLink(0, 0, 0, 0)]
    if isinstance(shape[1], int):
        links.append(AxisLink(0, 1, 0, 1, "block", shape[1]))
    return links + _scaled_plane(shape, b, grow=False)


def _scaled_plane(shape: tuple[Dim, ...], b: int, *, grow: bool) -> list[AxisLink]:
    links = []
    for a in (2, 3):
        length = shape[a]
        if isinstance(length, int):
            size = length if grow else length // b
            few, many = (1, b) if grow else (b, 1)
            links.append(AxisLink(0, a, 0, a, "block", size, in_inner=few, out_inner=many))
    return links
